{{/* Names and labels. */}}

{{/* The beginning of every name. KubeRay takes names of 47 characters at most and adds to them: 36 leave room for all. */}}
{{- define "gearbox.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $own := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $full := default $own .Values.fullnameOverride -}}
{{- if gt (len $full) 36 -}}
{{- printf "%s-%s" (trunc 27 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end }}

{{/* Labels of every object. Not of Ray's pods: they would be other pods, so a new cluster, with each version of the chart. */}}
{{- define "gearbox.labels" -}}
{{- with .Values.labels }}
{{- toYaml . }}
{{ end -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: gearbox
{{- end }}

{{/* The metadata of an object. `name` is what comes after the full name, `annotations` are its own, over those of all. */}}
{{- define "gearbox.metadata" -}}
name: {{ include "gearbox.fullname" .root }}{{ with .name }}-{{ . }}{{ end }}
namespace: {{ .root.Release.Namespace | quote }}
labels:
  {{- include "gearbox.labels" .root | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default (dict) .annotations) .root.Values.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Labels of a pod. Without app.kubernetes.io/name: KubeRay's Services select Ray's pods by its own value of that. */}}
{{- define "gearbox.podLabels" -}}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: gearbox
{{ include "gearbox.selector" . }}
{{- end }}

{{/* What selects the pods of one release, and of one `component` of it. */}}
{{- define "gearbox.selector" -}}
gearbox.io/release: {{ include "gearbox.fullname" .root }}
gearbox.io/component: {{ .component }}
{{- end }}

{{/* An image's reference: `image` over the platform's own; the digest wins. */}}
{{- define "gearbox.image" -}}
{{- $own := .root.Values.image -}}
{{- $image := default (dict) .image -}}
{{- $digest := get $image "digest" -}}
{{- if not (or $digest (get $image "tag") (get $image "repository")) }}{{ $digest = $own.digest }}{{ end -}}
{{- $repository := default $own.repository (get $image "repository") -}}
{{- if $digest -}}
{{- printf "%s@%s" $repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce (get $image "tag") $own.tag (include "gearbox.tag" .root)) -}}
{{- end -}}
{{- end }}

{{/* The tag where none is said: the image for CPUs of this version. */}}
{{- define "gearbox.tag" -}}
{{ .Chart.AppVersion }}-cpu
{{- end }}

{{/* An image and when it is pulled, as the fields of a container. */}}
{{- define "gearbox.imageFields" -}}
image: {{ include "gearbox.image" . | quote }}
imagePullPolicy: {{ get (default (dict) .image) "pullPolicy" | default .root.Values.image.pullPolicy }}
{{- end }}

{{/* The fields of every pod's spec that are the same everywhere. */}}
{{- define "gearbox.podFields" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a pod runs, as far as it was said. */}}
{{- define "gearbox.scheduling" -}}
{{- range $key := list "nodeSelector" "tolerations" "affinity" "priorityClassName" "runtimeClassName" }}
{{- with get $.group $key }}
{{ $key }}:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}
