{{/* What the weights step makes, and where engines find it. */}}

{{/* The folder of one variant's weights. Its hash stands for what makes other weights or asks for another measurement. */}}
{{- define "gearbox.folder" -}}
{{- $platform := .root.Values.platform -}}
{{- $variant := .variant -}}
{{- if hasPrefix "/" (default "" $variant.weights) -}}
{{- $variant.weights -}}
{{- else -}}
{{- $engine := merge (dict) (default (dict) $variant.engine) (default (dict) $platform.engine) -}}
{{- $env := merge (dict) (default (dict) $variant.env) (default (dict) $platform.env) -}}
{{- $origin := dict "source" $platform.model.source "engine" $engine "env" $env -}}
{{- range $key := list "recipe" "weights" "digest" }}{{ $_ := set $origin $key (get $variant $key) }}{{ end -}}
/models/catalog/{{ $variant.name }}-{{ toJson $origin | sha256sum | trunc 8 }}
{{- end -}}
{{- end }}

{{/* The folder of the embedder. */}}
{{- define "gearbox.embedderFolder" -}}
{{- $embedder := get (default (dict) .Values.platform.retrieval) "embedder" | default "" -}}
{{- if hasPrefix "/" $embedder -}}
{{- $embedder -}}
{{- else -}}
/models/catalog/embedder-{{ toJson (dict "source" $embedder) | sha256sum | trunc 8 }}
{{- end -}}
{{- end }}

{{/* Arguments of the weights step as a list: what it makes, for the variants of one `pool` or of all, and how its folders
are called. What is used where it is, by an absolute path, is not its business. Empty: there is nothing to do. */}}
{{- define "gearbox.weightsArgs" -}}
{{- $root := .root -}}
{{- $folders := dict -}}
{{- range .root.Values.platform.variants -}}
{{- if or (not $.pool) (eq $.pool (dig "resources" "pool" "engine" .)) -}}
{{- $_ := set $folders .name (include "gearbox.folder" (dict "root" $root "variant" .)) -}}
{{- end -}}
{{- end -}}
{{- if and .embedder (include "gearbox.retrieves" .root) -}}
{{- $_ := set $folders "embedder" (include "gearbox.embedderFolder" .root) -}}
{{- end -}}
{{- $names := list -}}{{- $args := list -}}
{{- range $name, $folder := $folders -}}
{{- if hasPrefix "/models/catalog/" $folder -}}
{{- $names = append $names $name -}}
{{- $args = append $args (printf "--as=%s=%s" $name (base $folder)) -}}
{{- end -}}
{{- end -}}
{{- if $names }}{{ $args = prepend $args (printf "--only=%s" (join "," $names)) }}{{ end -}}
{{- toYaml $args -}}
{{- end }}

{{/* The image of the weights step: recipes are made by the image that builds, `-build` after the tag (docker/README.md). */}}
{{- define "gearbox.weightsImage" -}}
{{- $own := .Values.weights.job.image -}}
{{- if or $own.tag $own.digest (not (include "gearbox.builds" .)) -}}
{{- toYaml $own -}}
{{- else -}}
{{- $tag := default (include "gearbox.tag" .) .Values.image.tag -}}
{{- toYaml (merge (dict "tag" (printf "%s-build" $tag)) $own) -}}
{{- end -}}
{{- end }}

{{/* Whether any variant is made by a recipe. */}}
{{- define "gearbox.builds" -}}
{{- range .Values.platform.variants }}{{ if .recipe }}yes{{ end }}{{ end -}}
{{- end }}

{{/* The configuration that the weights step reads: the platform's, but the step needs no API keys. */}}
{{- define "gearbox.platform" -}}
{{- $platform := deepCopy .Values.platform -}}
{{- $_ := set $platform "access" (dict "allow_anonymous" true) -}}
{{- toYaml $platform -}}
{{- end }}

{{/* A container that makes or copies weights. */}}
{{- define "gearbox.weightsContainer" -}}
{{- $values := .root.Values.weights -}}
name: weights
{{ include "gearbox.imageFields" (dict "root" .root "image" (include "gearbox.weightsImage" .root | fromYaml)) }}
securityContext:
  {{- toYaml .root.Values.securityContext | nindent 2 }}
command: [gearbox, weights, --config=/etc/gearbox/platform.yaml, --into=/models/catalog]
args:
  {{- toYaml .args | nindent 2 }}
env:
  - {name: HOME, value: /home/gearbox}
  - {name: HF_HOME, value: /models/.cache/huggingface}
  - {name: GEARBOX_CACHE_DIR, value: /models/.cache/gearbox}
  {{- if $values.offline }}
  - {name: HF_HUB_OFFLINE, value: "1"}
  {{- end }}
  {{- with $values.env }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $values.credentials.existingSecret }}
envFrom:
  - secretRef: {name: {{ . | quote }}}
{{- end }}
resources:
  {{- toYaml $values.job.resources | nindent 2 }}
volumeMounts:
  - {name: models, mountPath: /models}
  - {name: platform, mountPath: /etc/gearbox, readOnly: true}
  - {name: home, mountPath: /home/gearbox}
  - {name: tmp, mountPath: /tmp}
{{- end }}
