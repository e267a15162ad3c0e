{{/* serveConfigV2: one application for the gateway, one for retrieval, one for each variant. deployments/apps.py reads it.

What is in `args` is what an application's replicas are replaced for; what is in `deployments` is changed in place. So each
application's arguments hold only what concerns it. */}}
{{- define "gearbox.serveConfig" -}}
{{- $platform := include "gearbox.served" . | fromYaml -}}
{{- $every := dict "server" (dict "drain_timeout_s" $platform.server.drain_timeout_s) "access" (dict "allow_anonymous" true) -}}
{{- $folders := dict -}}
{{- range $platform.variants }}{{ $_ := set $folders .name (include "gearbox.folder" (dict "root" $ "variant" .)) }}{{ end -}}

{{- /* Profiles change in place, so the names of profiles do, too: they come with `user_config`, before the first request. */ -}}
{{- $access := omit $platform.access "anonymous_profile" -}}
{{- $keys := list -}}
{{- range $access.keys }}{{ $keys = append $keys (omit . "budget") }}{{ end -}}
{{- if $keys }}{{ $_ := set $access "keys" $keys }}{{ end -}}
{{- $gateway := merge (dict "server" (omit $platform.server "gateway_replicas") "access" $access)
  (pick $platform "model" "observability" "retrieval") -}}
{{- $replicas := default 1 $platform.server.gateway_replicas -}}
{{- $deployment := dict "name" "gateway" "num_replicas" $replicas
  "user_config" (dict "config" $platform "catalog" $folders) -}}
{{- $apps := list (dict "name" "gateway" "route_prefix" "/" "import_path" "deployments.apps:gateway"
  "args" (dict "config" $gateway) "deployments" (list $deployment)) -}}

{{- if include "gearbox.retrieves" . -}}
{{- $config := merge (dict) $every (pick $platform "model" "retrieval") -}}
{{- $apps = append $apps (dict "name" "retrieval" "route_prefix" nil "import_path" "deployments.apps:retrieval"
  "args" (dict "config" $config "folder" (include "gearbox.embedderFolder" .))) -}}
{{- end -}}

{{- range $variant := $platform.variants -}}
{{- $bounds := default (dict) $variant.replicas -}}
{{- $one := omit $variant "replicas" "price_usd_per_hour" -}}
{{- with pick $bounds "surge" }}{{ $_ := set $one "replicas" . }}{{ end -}}
{{- $config := merge (dict "variants" (list $one)) $every (pick $platform "model" "engine" "frontend" "env") -}}
{{- $scaling := dict "min_replicas" (dig "min" 1 $bounds) "max_replicas" (dig "max" 1 $bounds)
  "target_ongoing_requests" (dig "target_in_flight" 16 $bounds) -}}
{{- $deployment := dict "name" (printf "engine:%s" $variant.name) "autoscaling_config" $scaling -}}
{{- $apps = append $apps (dict "name" (printf "variant-%s" $variant.name) "route_prefix" nil
  "import_path" "deployments.apps:variant" "args" (dict "config" $config "folder" (get $folders $variant.name))
  "deployments" (list $deployment)) -}}
{{- end -}}

{{- $http := dict "host" "0.0.0.0" "port" (include "gearbox.port" . | int) -}}
{{- toYaml (dict "proxy_location" "EveryNode" "http_options" $http "applications" $apps) -}}
{{- end }}

{{/* The platform's configuration as it is served: with the file of keys, and without what comes by the environment. */}}
{{- define "gearbox.served" -}}
{{- $platform := deepCopy .Values.platform -}}
{{- $access := default (dict) $platform.access -}}
{{- if include "gearbox.keysSecret" . }}{{ $_ := set $access "keys_file" "/etc/gearbox/keys/keys.yaml" }}{{ end -}}
{{- $_ := set $platform "access" $access -}}
{{- $_ := set $platform "server" (merge (default (dict) $platform.server) (dict "drain_timeout_s" 600)) -}}
{{- if $access.allow_anonymous }}{{ $_ := set $platform.server "allowed_hosts" (include "gearbox.hosts" . | fromYamlArray) }}{{ end -}}
{{- if include "gearbox.retrieves" . }}{{ $_ := set $platform "retrieval" (omit $platform.retrieval "database") }}{{ end -}}
{{- toYaml $platform -}}
{{- end }}

{{/* Names under which an open platform is reached: the Service's, those of the Ingress and the HTTPRoute, the operator's own. */}}
{{- define "gearbox.hosts" -}}
{{- $name := include "gearbox.fullname" . -}}
{{- $service := printf "%s.%s" $name .Release.Namespace -}}
{{- $hosts := list $name $service (printf "%s.svc" $service) (printf "%s.svc.cluster.local" $service) -}}
{{- with .Values.ingress }}{{ if .enabled }}{{ $hosts = concat $hosts (default (list) .hosts) }}{{ end }}{{ end -}}
{{- with .Values.httpRoute }}{{ if .enabled }}{{ $hosts = concat $hosts (default (list) .hostnames) }}{{ end }}{{ end -}}
{{- toYaml (concat $hosts (default (list) (dig "server" "allowed_hosts" (list) .Values.platform)) | uniq) -}}
{{- end }}

{{/* Name of the secret with the API keys' hashes; empty: there is none. */}}
{{- define "gearbox.keysSecret" -}}
{{- $keys := .Values.secrets.keys -}}
{{- if $keys.existingSecret -}}
{{- $keys.existingSecret -}}
{{- else if $keys.entries -}}
{{- include "gearbox.fullname" . }}-keys
{{- end -}}
{{- end }}

{{/* Whether documents are answered from: an empty section is one with all defaults. */}}
{{- define "gearbox.retrieves" -}}
{{- if kindIs "map" .Values.platform.retrieval }}yes{{ end -}}
{{- end }}
