{{/* What the schema cannot say: values that do not fit each other. All problems are reported at once, one a line. Each check
gives its problems as lines; an empty text is none. */}}
{{- define "gearbox.check" -}}
{{- $found := include "gearbox.check.renamed" . | splitList "\n" -}}
{{- if not (join "" $found | trim) -}}
{{- range $check := list "names" "image" "access" "exposed" "weights" "retrieval" "stores" "ray" "server" "pools" "catalog" -}}
{{- $found = concat $found (include (printf "gearbox.check.%s" $check) $ | splitList "\n") -}}
{{- end -}}
{{- end -}}
{{- $problems := list -}}
{{- range $found }}{{ with trim . }}{{ $problems = append $problems (printf "  - %s" .) }}{{ end }}{{ end -}}
{{- if $problems -}}
{{- fail (printf "these values cannot work:\n%s\n" (join "\n" (uniq $problems))) -}}
{{- end -}}
{{- end }}

{{/* renamed.yaml: places and what became of them; `[]` is each entry of a list. */}}
{{- define "gearbox.check.renamed" -}}
{{- range $old, $change := .Files.Get "renamed.yaml" | fromYaml -}}
{{- $path := splitList "." $old -}}
{{- $sections := list $.Values -}}
{{- range $name := initial $path -}}
{{- $inner := list -}}
{{- range $section := $sections -}}
{{- $value := get $section (trimSuffix "[]" $name) -}}
{{- if kindIs "map" $value }}{{ $inner = append $inner $value }}{{ else if kindIs "slice" $value }}{{ $inner = concat $inner $value }}{{ end -}}
{{- end -}}
{{- $sections = $inner -}}
{{- end -}}
{{- range $section := $sections -}}
{{- if hasKey $section (last $path) }}
{{ $old }} was {{ $change }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "gearbox.check.names" -}}
{{- $name := include "gearbox.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
KubeRay does not accept the name '{{ $name }}': it must start with a letter and have only a-z, 0-9 and '-'; set fullnameOverride
{{- end }}
{{- end }}

{{- define "gearbox.check.image" -}}
{{- $images := dict "image" .Values.image "head.image" .Values.head.image "gateway.image" .Values.gateway.image -}}
{{- $_ := set $images "weights.job.image" .Values.weights.job.image -}}
{{- $_ := set $images "postgresql.image" .Values.postgresql.image -}}
{{- $_ := set $images "redis.image" .Values.redis.image -}}
{{- range .Values.pools }}{{ $_ := set $images (printf "image of pool '%s'" .name) .image }}{{ end -}}
{{- range $where, $image := $images }}
{{- if and (eq "latest" (default "" (get (default (dict) $image) "tag"))) (not (get $image "digest")) }}
{{ $where }}: the tag 'latest' can become another image, so that pods of one cluster differ; name a version or a digest
{{- end }}
{{- end }}
{{- end }}

{{- define "gearbox.check.access" -}}
{{- $access := default (dict) .Values.platform.access -}}
{{- $secret := include "gearbox.keysSecret" . -}}
{{- if and (not $access.allow_anonymous) (not $access.keys) (not $secret) }}
platform.access: there is no API key, so nobody could call. Create keys with `gearbox keys new TENANT` and name the Secret that holds what it prints in secrets.keys.existingSecret, or list it in secrets.keys.entries; or say platform.access.allow_anonymous: true
{{- end }}
{{- if and $access.keys_file (ne $access.keys_file "/etc/gearbox/keys/keys.yaml") }}
platform.access.keys_file: the chart mounts no '{{ $access.keys_file }}'; leave it out and set secrets.keys
{{- end }}
{{- if and .Values.secrets.keys.existingSecret .Values.secrets.keys.entries }}
secrets.keys: existingSecret and entries are both set; which of them holds the keys?
{{- end }}
{{- if contains "@" (default "" $access.rate_limit_store) }}
platform.access.rate_limit_store holds a password, and what is in `platform` can be read by all who may read a RayService; put the URI into a Secret and name it in secrets.rateLimitStore.existingSecret
{{- end }}
{{- $known := concat (list "best" "balanced" "fast" "cheap") (keys (default (dict) .Values.platform.profiles) | sortAlpha) -}}
{{- range $key := concat (default (list) $access.keys) .Values.secrets.keys.entries }}
{{- $budget := default "balanced" $key.budget }}
{{- if not (has $budget $known) }}
the key of tenant '{{ $key.tenant }}' has the budget '{{ $budget }}', which is not a profile; use one of {{ join ", " $known }}
{{- end }}
{{- end }}
{{- $budget := default "balanced" $access.anonymous_profile }}
{{- if not (has $budget $known) }}
platform.access.anonymous_profile: '{{ $budget }}' is not a profile; use one of {{ join ", " $known }}
{{- end }}
{{- end }}

{{- define "gearbox.check.exposed" -}}
{{- $open := dig "access" "allow_anonymous" false .Values.platform -}}
{{- $ways := list -}}
{{- if .Values.ingress.enabled }}{{ $ways = append $ways "ingress.enabled" }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $ways = append $ways "httpRoute.enabled" }}{{ end -}}
{{- if ne .Values.service.type "ClusterIP" }}{{ $ways = append $ways "service.type" }}{{ end -}}
{{- if and $open $ways (not .Values.allowPublicAnonymousAccess) }}
platform.access.allow_anonymous lets everybody in who reaches the platform, and {{ join " and " $ways }} would let in everybody outside; configure keys, or say allowPublicAnonymousAccess: true
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
ingress.hosts is empty: an Ingress without a host takes all requests of its controller; name the hosts
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
httpRoute.parentRefs is empty: a route belongs to a Gateway; name it
{{- end }}
{{- end }}

{{- define "gearbox.check.weights" -}}
{{- $weights := .Values.weights -}}
{{- if and (include "gearbox.builds" .) .Values.image.digest (not $weights.job.image.tag) (not $weights.job.image.digest) }}
weights.job.image: recipes are made by the image that builds, and with image.digest nothing says which that is; name its digest or tag here
{{- end }}
{{- range .Values.platform.variants }}
{{- $from := default "" .weights }}
{{- if eq (empty .recipe) (empty $from) }}
variant '{{ .name }}' needs exactly one of 'recipe' and 'weights'
{{- end }}
{{- if and .recipe .digest }}
variant '{{ .name }}' has a digest, but a recipe makes other weights on other hardware; leave the digest out
{{- end }}
{{- if eq $weights.mode "pod" }}
{{- if .recipe }}
weights.mode pod: every pod of variant '{{ .name }}' would build the weights again from its recipe; build them once, put them into a bucket and name it in 'weights' with a 'digest', or use weights.mode shared
{{- else if and (not (hasPrefix "/" $from)) (not .digest) }}
weights.mode pod: variant '{{ .name }}' has no digest, so pods could run different weights; add the digest of its card
{{- else if hasPrefix "/models/" $from }}
weights.mode pod: variant '{{ .name }}' has its weights in '{{ $from }}', but /models is empty when a pod starts; name a URI, or use weights.mode shared
{{- end }}
{{- else if and (hasPrefix "/" $from) (not (hasPrefix "/models/" $from)) (not (hasPrefix "/opt/" $from)) }}
variant '{{ .name }}' has its weights in '{{ $from }}'; the pods have the volume at /models, and what an image brings belongs below /opt
{{- end }}
{{- if and $from (not (hasPrefix "/" $from)) (not (regexMatch "^(s3|gs|abfs|hf)://" $from)) }}
variant '{{ .name }}': weights '{{ $from }}' are neither an absolute path nor a URI that begins with s3://, gs://, abfs:// or hf://
{{- end }}
{{- end }}
{{- end }}

{{- define "gearbox.check.retrieval" -}}
{{- $retrieves := include "gearbox.retrieves" . -}}
{{- $retrieval := default (dict) .Values.platform.retrieval -}}
{{- if and $retrieval.database (ne $retrieval.database "embedded") }}
platform.retrieval.database would be read by all who may read a RayService or a ConfigMap; put it into a Secret and name it in secrets.database.existingSecret
{{- end }}
{{- if and $retrieves (not .Values.secrets.database.existingSecret) (not .Values.postgresql.enabled) }}
platform.retrieval has no database: name a Secret with its connection string in secrets.database.existingSecret, or set postgresql.enabled: true for a trial
{{- end }}
{{- if and .Values.postgresql.enabled (not $retrieves) }}
postgresql.enabled, but nothing uses it: platform.retrieval is not set
{{- end }}
{{- if and .Values.postgresql.enabled .Values.secrets.database.existingSecret }}
secrets.database.existingSecret and postgresql.enabled are both set; which database is it?
{{- end }}
{{- end }}

{{- define "gearbox.check.stores" -}}
{{- range $name := list "postgresql" "redis" }}
{{- $store := get $.Values $name }}
{{- if and $store.enabled (not $store.auth.password) (not $store.auth.existingSecret) }}
{{ $name }}.auth: no password is generated; set existingSecret, or password for a trial
{{- end }}
{{- if and $store.auth.password $store.auth.existingSecret }}
{{ $name }}.auth: password and existingSecret are both set; which of them is it?
{{- end }}
{{- end }}
{{- if and .Values.redis.enabled .Values.secrets.rateLimitStore.existingSecret }}
secrets.rateLimitStore.existingSecret and redis.enabled are both set; which store is it?
{{- end }}
{{- end }}

{{- define "gearbox.check.ray" -}}
{{- $ray := .Values.ray -}}
{{- if and $ray.gcsFaultTolerance.enabled (not $ray.gcsFaultTolerance.redisAddress) }}
ray.gcsFaultTolerance.enabled needs redisAddress, HOST:PORT of a Redis that outlives the release
{{- end }}
{{- if and (not $ray.gcsFaultTolerance.enabled) (or $ray.gcsFaultTolerance.redisAddress $ray.gcsFaultTolerance.existingSecret) }}
ray.gcsFaultTolerance has a Redis but is not enabled; set enabled: true
{{- end }}
{{- if and $ray.auth.existingSecret (not $ray.auth.enabled) }}
ray.auth.existingSecret is set but ray.auth.enabled is false; nothing would ask for the token
{{- end }}
{{- end }}

{{- define "gearbox.check.server" -}}
{{- $server := default (dict) .Values.platform.server -}}
{{- if le (float64 (default 0 $server.drain_timeout_s)) 0.0 }}
platform.server.drain_timeout_s is {{ default 0 $server.drain_timeout_s }}: every pod that stops would cut its answers; set it to the seconds that a long answer takes
{{- end }}
{{- if not (has $server.host (list "0.0.0.0" "::")) }}
platform.server.host is {{ default "127.0.0.1" $server.host }}: no other pod could reach a gateway or an engine; use 0.0.0.0
{{- end }}
{{- $taken := dict "6379" "Ray's GCS" "8080" "Ray's metrics" "8265" "Ray's dashboard" "10001" "Ray's client" "52365" "Ray's agent"
  "8404" "HAProxy's statistics" "8500" "Serve's own proxy" "9101" "HAProxy's metrics" -}}
{{- $ports := dict "port" (include "gearbox.port" .) "metrics_port" (include "gearbox.metricsPort" .) -}}
{{- range $name, $port := $ports }}
{{- with get $taken $port }}
platform.server.{{ $name }}: {{ $port }} is the port of {{ . }}; use another one
{{- end }}
{{- if lt (int $port) 1024 }}
platform.server.{{ $name }}: the platform is not root, so it cannot listen on {{ $port }}; use one from 1024 on
{{- end }}
{{- end }}
{{- if eq $ports.port $ports.metrics_port }}
platform.server: port and metrics_port are both {{ $ports.port }}
{{- end }}
{{- $public := int $ports.port }}
{{- $metrics := int $ports.metrics_port }}
{{- $last := add $metrics 4 | int }}
{{- if and (gt $public $metrics) (le $public $last) }}
platform.server.port: {{ $metrics }} (metrics_port) to {{ $last }} are the platform's own; use another one
{{- end }}
{{- if gt $last 65535 }}
platform.server.metrics_port: the platform also uses the four ports after {{ $metrics }}, and the last port is 65535; use a smaller one
{{- end }}
{{- if or (and (ge $public 30000) (le $public 31000)) (and (ge $last 30000) (le $metrics 31000)) }}
platform.server: 30000 to 31000 are the ports of replicas, and metrics_port takes four more; use others for port and metrics_port
{{- end }}
{{- end }}
