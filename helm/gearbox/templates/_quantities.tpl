{{/* Numbers from values: quantities as Kubernetes writes them. Each template gives a number as text. */}}

{{/* Cores that KubeRay passes to Ray: the limit, else the request, rounded up. */}}
{{- define "gearbox.cores" -}}
{{- $quantity := toString (coalesce (dig "limits" "cpu" "" .) (dig "requests" "cpu" "" .) "0") -}}
{{- if hasSuffix "m" $quantity -}}
{{- trimSuffix "m" $quantity | float64 | mulf 0.001 | ceil -}}
{{- else -}}
{{- float64 $quantity | ceil -}}
{{- end -}}
{{- end }}

{{/* GPUs that KubeRay passes to Ray: the first limit whose name ends with `gpu` or is a MIG slice. */}}
{{- define "gearbox.gpus" -}}
{{- $gpus := 0 -}}
{{- range $key, $value := dig "limits" (dict) . -}}
{{- if and (not $gpus) (or (hasSuffix "gpu" $key) (hasPrefix "nvidia.com/mig-" $key)) }}{{ $gpus = int $value }}{{ end -}}
{{- end -}}
{{- $gpus -}}
{{- end }}

{{/* GiB of memory: the limit. */}}
{{- define "gearbox.gib" -}}
{{- $quantity := toString (dig "limits" "memory" "0" .) -}}
{{- $number := regexFind "^[0-9.]+" $quantity | float64 -}}
{{- $unit := regexFind "[A-Za-z]*$" $quantity -}}
{{- $bytes := dict "" 1.0 "k" 1e3 "Ki" 1024.0 "M" 1e6 "Mi" 1048576.0 "G" 1e9 "Gi" 1073741824.0 "T" 1e12 "Ti" 1099511627776.0 -}}
{{- divf (mulf $number (get $bytes $unit)) 1073741824.0 -}}
{{- end }}

{{/* `platform.server.drain_timeout_s` in whole seconds. */}}
{{- define "gearbox.drain" -}}
{{- ceil (float64 (dig "server" "drain_timeout_s" 600 .Values.platform)) | int -}}
{{- end }}

{{/* Seconds that a pod may take to leave: Serve keeps a replica until its replacement runs only while more than the time
for its answers is left, so there is a quarter of an hour for that. It is a bound; a pod goes when it is done. */}}
{{- define "gearbox.leaving" -}}
{{- add 900 (include "gearbox.drain" . | int) -}}
{{- end }}

{{/* Ports of the API and of the gateway's metrics. */}}
{{- define "gearbox.port" -}}
{{- dig "server" "port" 8000 .Values.platform | int -}}
{{- end }}
{{- define "gearbox.metricsPort" -}}
{{- dig "server" "metrics_port" 9464 .Values.platform | int -}}
{{- end }}
