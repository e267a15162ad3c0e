{{/* What works, but perhaps not as it was meant: one warning a line. */}}
{{- define "gearbox.warnings" -}}
{{- $platform := .Values.platform -}}
{{- $server := default (dict) $platform.server -}}
{{- $access := default (dict) $platform.access -}}
{{- $gateways := default 1 $server.gateway_replicas | int -}}
{{- $shared := or (include "gearbox.limitsSecret" .) (and $access.rate_limit_store (not (hasPrefix "async+memory:" $access.rate_limit_store))) -}}
{{- if and (gt $gateways 1) (not $shared) (not $access.allow_anonymous) }}
- {{ $gateways }} gateways count rate limits each for itself: a tenant gets up to {{ $gateways }} times its limit. Set secrets.rateLimitStore.existingSecret to a Redis.
{{- end }}
{{- $modes := .Values.weights.volume.accessModes -}}
{{- if and (eq .Values.weights.mode "shared") (not .Values.weights.volume.existingClaim) (not (has "ReadWriteMany" $modes)) }}
- the volume of weights is {{ join ", " $modes }}: all pods must run on one node. Use ReadWriteMany, or weights.mode pod.
{{- end }}
{{- if $access.allow_anonymous }}
- platform.access.allow_anonymous: whoever reaches the Service may call.{{ if not .Values.networkPolicy.enabled }} No NetworkPolicy keeps anyone out.{{ else if not .Values.networkPolicy.from }} networkPolicy.from would say who does.{{ end }}
{{- end }}
{{- if gt $gateways (int .Values.gateway.pods.min) }}
- {{ $gateways }} gateways share {{ int .Values.gateway.pods.min }} pods: gateway.pods.min is below platform.server.gateway_replicas.
{{- end }}
{{- $cores := mulf (float64 .Values.gateway.pods.max) (include "gearbox.cores" .Values.gateway.resources | float64) }}
{{- if gt (float64 $gateways) $cores }}
- the gateway pool has no room for as many new gateways as there are, so a change of theirs would wait for ever. Raise gateway.pods.max.
{{- end }}
{{- range $pool := .Values.pools }}
{{- $cpus := 0.0 }}{{ $gpus := 0.0 }}{{ $leastCpus := 0.0 }}{{ $leastGpus := 0.0 }}
{{- range $platform.variants }}
{{- if eq $pool.name (dig "resources" "pool" "engine" .) }}
{{- $eachCpus := dig "resources" "cpus" 1 . | float64 }}
{{- $eachGpus := dig "resources" "gpus" 0 . | float64 }}
{{- $most := dig "replicas" "max" 1 . | float64 }}
{{- $least := dig "replicas" "min" 1 . | float64 }}
{{- $cpus = addf $cpus (mulf $most $eachCpus) }}
{{- $gpus = addf $gpus (mulf $most $eachGpus) }}
{{- $leastCpus = addf $leastCpus (mulf $least $eachCpus) }}
{{- $leastGpus = addf $leastGpus (mulf $least $eachGpus) }}
{{- end }}
{{- end }}
{{- $cores := mulf (float64 $pool.pods.max) (include "gearbox.cores" $pool.resources | float64) }}
{{- $cards := mulf (float64 $pool.pods.max) (include "gearbox.gpus" $pool.resources | float64) }}
{{- if or (gt (round $cpus 3) $cores) (gt (round $gpus 3) $cards) }}
- pool {{ $pool.name }} has {{ $cores }} cores and {{ $cards }} GPUs at most, but all its replicas would need {{ round $cpus 3 }} and {{ round $gpus 3 }}: the largest numbers of replicas cannot all run at once.
{{- end }}
{{- range $platform.variants }}
{{- if and (eq $pool.name (dig "resources" "pool" "engine" .)) (dig "replicas" "surge" true .) }}
{{- $more := max 1 (dig "replicas" "min" 1 . | int) | float64 }}
{{- $cpusThen := addf $leastCpus (mulf $more (dig "resources" "cpus" 1 . | float64)) }}
{{- $gpusThen := addf $leastGpus (mulf $more (dig "resources" "gpus" 0 . | float64)) }}
{{- if or (gt (round $cpusThen 3) $cores) (gt (round $gpusThen 3) $cards) }}
- pool {{ $pool.name }} has no room for replacements of variant {{ .name }} beside its replicas, so a change of it would wait for ever. Raise pods.max, or set replicas.surge: false, which replaces them one after the other.
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .Values.monitoring.rules.enabled (not .Values.monitoring.podMonitor.enabled) }}
- there are alerts, but no PodMonitor: Prometheus needs another way to the metrics, or GearboxAbsent fires.
{{- end }}
{{- if .Values.redis.enabled }}
- the Redis of the chart is for trials: one pod. A Redis of your own goes into secrets.rateLimitStore.
{{- end }}
{{- if .Values.postgresql.enabled }}
- the PostgreSQL of the chart is for trials: one pod, no backups. A database of your own goes into secrets.database.
{{- end }}
{{- end }}
