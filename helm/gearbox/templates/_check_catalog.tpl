{{/* Whether the pools can hold the catalog: variants against the pods that they are to run in. */}}

{{- define "gearbox.check.pools" -}}
{{- $names := list "head" "gateway" -}}
{{- range .Values.pools }}
{{- if has .name (list "head" "gateway") }}
pools: '{{ .name }}' is the name of a pool of the chart's own; call it otherwise
{{- else if has .name $names }}
pools: two are called '{{ .name }}'; names must differ
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- range prepend .Values.pools (merge (dict "name" "gateway") .Values.gateway) }}
{{- if gt (int .pods.min) (int .pods.max) }}
pool '{{ .name }}': pods.min ({{ int .pods.min }}) is larger than pods.max ({{ int .pods.max }})
{{- end }}
{{- if not (dig "limits" "memory" "" .resources) }}
pool '{{ .name }}': resources.limits.memory is not set; Ray must know how much a pod has
{{- end }}
{{- if eq "0" (include "gearbox.cores" .resources) }}
pool '{{ .name }}': resources say no cpu; Ray must know how many a pod has
{{- end }}
{{- if and (get . "accelerator") (eq "0" (include "gearbox.gpus" .resources)) }}
pool '{{ .name }}': it has the accelerator {{ .accelerator }}, but resources.limits names no GPU, e.g. nvidia.com/gpu: 1
{{- end }}
{{- end }}
{{- if and (ge (int .Values.gateway.pods.min) 1) (gt (int (default 0 .Values.gateway.minAvailable)) (sub (int .Values.gateway.pods.min) 1)) }}
gateway.minAvailable ({{ int .Values.gateway.minAvailable }}) must be below gateway.pods.min ({{ int .Values.gateway.pods.min }}), else no node with a gateway can be drained
{{- end }}
{{- end }}

{{- define "gearbox.check.catalog" -}}
{{- $pools := dict -}}
{{- range .Values.pools }}{{ $_ := set $pools .name . }}{{ end -}}
{{- $seen := list -}}
{{- range .Values.platform.variants }}
{{- if has .name $seen }}
two variants are called '{{ .name }}'; names must differ
{{- end }}
{{- $seen = append $seen .name }}
{{- $bounds := default (dict) .replicas }}
{{- if gt (dig "min" 1 $bounds | int) (dig "max" 1 $bounds | int) }}
variant '{{ .name }}': replicas.min ({{ dig "min" 1 $bounds | int }}) is larger than replicas.max ({{ dig "max" 1 $bounds | int }})
{{- end }}
{{- $poolName := dig "resources" "pool" "engine" . }}
{{- if hasKey $pools $poolName }}
{{- include "gearbox.check.replica" (dict "variant" . "pool" (get $pools $poolName)) }}
{{- else }}
variant '{{ .name }}' runs in the pool '{{ $poolName }}', which does not exist; pools: {{ keys $pools | sortAlpha | join ", " | default "none" }}
{{- end }}
{{- end }}
{{- range .Values.pools }}
{{- include "gearbox.check.room" (dict "root" $ "pool" .) }}
{{- end }}
{{- include "gearbox.check.gateways" . }}
{{- end }}

{{/* One replica in one pod. */}}
{{- define "gearbox.check.replica" -}}
{{- $need := default (dict) .variant.resources -}}
{{- $pool := .pool -}}
{{- $who := printf "variant '%s'" .variant.name -}}
{{- $cores := include "gearbox.cores" $pool.resources | float64 -}}
{{- $gpus := include "gearbox.gpus" $pool.resources | float64 -}}
{{- $cpus := dig "cpus" 1 $need | float64 -}}
{{- $needGpus := dig "gpus" 0 $need | float64 -}}
{{- if gt $cpus $cores }}
{{ $who }}: a replica needs {{ $cpus }} cpus, but a pod of pool '{{ $pool.name }}' has {{ $cores }}; raise resources.limits.cpu of the pool
{{- end }}
{{- if and (gt $needGpus 0.0) (eq $gpus 0.0) }}
{{ $who }}: a replica needs a GPU, but pool '{{ $pool.name }}' has none; add nvidia.com/gpu to its resources.limits or name another pool
{{- else if gt $needGpus $gpus }}
{{ $who }}: a replica needs {{ $needGpus }} GPUs, but a pod of pool '{{ $pool.name }}' has {{ $gpus }}
{{- end }}
{{- if and $need.accelerator (gt $needGpus 0.0) (ne $need.accelerator (default "" $pool.accelerator)) }}
{{ $who }}: it needs the accelerator {{ $need.accelerator }}, but pool '{{ $pool.name }}' has {{ default "none named" $pool.accelerator }}; set the pool's accelerator or name another pool
{{- end }}
{{- if and $need.accelerator (eq $needGpus 0.0) }}
{{ $who }}: it names the accelerator {{ $need.accelerator }} but needs no GPU; set resources.gpus
{{- end }}
{{- $gib := include "gearbox.gib" $pool.resources | float64 -}}
{{- if and $need.memory_gb (gt (float64 $need.memory_gb) $gib) }}
{{ $who }}: a replica needs {{ $need.memory_gb }} GiB of memory, but a pod of pool '{{ $pool.name }}' has {{ $gib }}
{{- end }}
{{- end }}

{{/* The smallest number of replicas of all variants of a pool, in all its pods. */}}
{{- define "gearbox.check.room" -}}
{{- $pool := .pool -}}
{{- $cpus := 0.0 -}}{{- $gpus := 0.0 -}}
{{- range .root.Values.platform.variants -}}
{{- if eq $pool.name (dig "resources" "pool" "engine" .) -}}
{{- $replicas := dig "replicas" "min" 1 . | float64 -}}
{{- $cpus = addf $cpus (mulf $replicas (dig "resources" "cpus" 1 . | float64)) -}}
{{- $gpus = addf $gpus (mulf $replicas (dig "resources" "gpus" 0 . | float64)) -}}
{{- end -}}
{{- end -}}
{{- $pods := float64 $pool.pods.max -}}
{{- $cores := mulf $pods (include "gearbox.cores" $pool.resources | float64) -}}
{{- $cards := mulf $pods (include "gearbox.gpus" $pool.resources | float64) -}}
{{- if gt (round $cpus 3) $cores }}
pool '{{ $pool.name }}': the smallest numbers of replicas need {{ round $cpus 3 }} cpus, but pods.max of {{ $pods }} gives {{ $cores }}; raise pods.max or resources.limits.cpu
{{- end }}
{{- if and $cards (gt (round $gpus 3) $cards) }}
pool '{{ $pool.name }}': the smallest numbers of replicas need {{ round $gpus 3 }} GPUs, but pods.max of {{ $pods }} gives {{ $cards }}; raise pods.max
{{- end }}
{{- end }}

{{/* Gateways, retrieval and its embedder count as half a core each. */}}
{{- define "gearbox.check.gateways" -}}
{{- $replicas := dig "server" "gateway_replicas" 1 .Values.platform -}}
{{- if include "gearbox.retrieves" . }}{{ with .Values.platform.retrieval }}{{ $replicas = add $replicas (dig "replicas" "min" 1 .) (dig "embedder_replicas" "min" 1 .) }}{{ else }}{{ $replicas = add $replicas 2 }}{{ end }}{{ end -}}
{{- $cores := mulf (float64 .Values.gateway.pods.max) (include "gearbox.cores" .Values.gateway.resources | float64) -}}
{{- if gt (mulf 0.5 (float64 $replicas)) $cores }}
gateway: {{ $replicas }} replicas of half a core each, but pods.max of {{ int .Values.gateway.pods.max }} gives {{ $cores }} cores; raise gateway.pods.max or the cpu of gateway.resources
{{- end }}
{{- end }}
