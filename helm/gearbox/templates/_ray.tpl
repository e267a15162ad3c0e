{{/* Ray's pods. A change of anything here is a change of rayClusterConfig: KubeRay makes a new cluster beside the old one. */}}

{{/* Environment of every Ray container: the chart says how Ray behaves, the image where its parts are. */}}
{{- define "gearbox.rayEnv" -}}
{{- $root := .root -}}
- {name: RAY_SERVE_ENABLE_HA_PROXY, value: "1"}
- {name: RAY_SERVE_THROUGHPUT_OPTIMIZED, value: "1"}
# Ray kills a proxy that is not ready after 5 s, which a busy node needs.
- {name: RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S, value: "60"}
# After three failed checks Ray replaces a proxy; by default every 10 s, in which a killed HAProxy would answer nobody for 30 s.
- {name: RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S, value: "2"}
# A proxy that takes a new configuration finishes the streams it has: as long as replicas do.
- {name: RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S, value: {{ include "gearbox.drain" $root | quote }}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_DEDUP_LOGS, value: "0"}
- {name: RAY_worker_niceness, value: "0"}
- {name: HF_HUB_OFFLINE, value: "1"}
- {name: HOME, value: /home/gearbox}
{{- if eq .component "gateway" }}
{{- with include "gearbox.databaseSecret" $root | fromYaml }}
- name: GEARBOX_RETRIEVAL__DATABASE
  valueFrom:
    secretKeyRef: {{ toYaml . | nindent 6 }}
{{- end }}
{{- with include "gearbox.limitsSecret" $root | fromYaml }}
- name: GEARBOX_ACCESS__RATE_LIMIT_STORE
  valueFrom:
    secretKeyRef: {{ toYaml . | nindent 6 }}
{{- end }}
{{- end }}
{{- with .group.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where the connection string of the documents' database is, `{name, key}`; empty: nowhere. */}}
{{- define "gearbox.databaseSecret" -}}
{{- $given := .Values.secrets.database -}}
{{- if not (include "gearbox.retrieves" .) }}
{{- else if $given.existingSecret }}
name: {{ $given.existingSecret | quote }}
key: {{ $given.key | quote }}
{{- else if .Values.postgresql.enabled }}
name: {{ default (printf "%s-postgresql" (include "gearbox.fullname" .)) .Values.postgresql.auth.existingSecret | quote }}
key: uri
{{- end }}
{{- end }}

{{/* Where the URI of the rate-limit store is, `{name, key}`; empty: nowhere. */}}
{{- define "gearbox.limitsSecret" -}}
{{- $given := .Values.secrets.rateLimitStore -}}
{{- if $given.existingSecret }}
name: {{ $given.existingSecret | quote }}
key: {{ $given.key | quote }}
{{- else if .Values.redis.enabled }}
name: {{ default (printf "%s-redis" (include "gearbox.fullname" .)) .Values.redis.auth.existingSecret | quote }}
key: uri
{{- end }}
{{- end }}

{{/* Probes. Each is given, so that KubeRay adds none of its own: those would have engines' pods ready only with a proxy. */}}
{{- define "gearbox.rayProbes" -}}
# Ray's agent says whether the raylet lives. It is slow to answer while engines load weights.
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
readinessProbe:
  {{- if eq .component "gateway" }}
  # Requests come to it when it can take over from other gateways: not while variants of a new cluster still start.
  httpGet: {path: /readyz/all, port: serve}
  {{- else if eq .component "head" }}
  httpGet: {path: /api/gcs_healthz, port: dashboard}
  {{- else }}
  httpGet: {path: /api/local_raylet_healthz, port: 52365}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ ternary 2 6 (eq .component "gateway") }}
{{- end }}

{{/* A pod of Ray: `component` head, gateway or engine; `group` its values; `pool` its name. */}}
{{- define "gearbox.rayPod" -}}
{{- $root := .root -}}
{{- $group := .group -}}
{{- $head := eq .component "head" -}}
{{- $copies := and (eq $root.Values.weights.mode "pod") (not $head) -}}
{{- $gateway := eq .component "gateway" -}}
{{- $args := list -}}
{{- if $copies -}}
{{- $args = include "gearbox.weightsArgs" (dict "root" $root "pool" (ternary "" .pool $gateway) "embedder" $gateway) | fromYamlArray -}}
{{- if and $gateway $args }}{{ $args = prepend $args "--cards" }}{{ end -}}
{{- end -}}
metadata:
  labels:
    {{- include "gearbox.podLabels" . | nindent 4 }}
    gearbox.io/pool: {{ .pool }}
    {{- with $group.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with merge (dict) (default (dict) $group.annotations) (ternary (dict "gearbox.io/weights" (join " " $args | sha256sum | trunc 8)) (dict) (not (empty $args))) }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "gearbox.fullname" $root }}{{ if $head }}-head{{ end }}
  {{- include "gearbox.podFields" $root | nindent 2 }}
  {{- include "gearbox.scheduling" . | nindent 2 }}
  {{- with $group.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    -
      {{- $own := dict "labelSelector" (dict "matchLabels" (dict "gearbox.io/release" (include "gearbox.fullname" $root) "gearbox.io/pool" $.pool)) }}
      {{- toYaml (merge (dict) . $own (dict "matchLabelKeys" (list "ray.io/cluster"))) | nindent 6 }}
    {{- end }}
  {{- end }}
  # What it runs before it is stopped waits for replacements and for the answers that it has, the head for its workers; a
  # minute for the rest.
  terminationGracePeriodSeconds: {{ add 60 (include "gearbox.leaving" $root | int) }}
  {{- if $args }}
  initContainers:
    -
      {{- include "gearbox.weightsContainer" (dict "root" $root "args" $args) | nindent 6 }}
  {{- end }}
  containers:
    - name: ray-{{ ternary "head" "worker" $head }}
      {{- include "gearbox.imageFields" (dict "root" $root "image" $group.image) | nindent 6 }}
      securityContext:
        {{- toYaml $root.Values.securityContext | nindent 8 }}
      env:
        {{- include "gearbox.rayEnv" . | nindent 8 }}
      ports:
        {{- if $head }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        - {name: serve, containerPort: {{ include "gearbox.port" $root }}}
        {{- if $gateway }}
        - {name: gearbox-metrics, containerPort: {{ include "gearbox.metricsPort" $root }}}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      {{- include "gearbox.rayProbes" . | nindent 6 }}
      lifecycle:
        preStop:
          exec:
            command: [python, -m, deployments.drain, "--deadline-s={{ include "gearbox.leaving" $root }}", "--metrics-port={{ include "gearbox.metricsPort" $root }}"]
      resources:
        {{- toYaml $group.resources | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/gearbox}
        - {name: shm, mountPath: /dev/shm}
        {{- if or $copies (eq $root.Values.weights.mode "shared") }}
        - {name: models, mountPath: /models, readOnly: true}
        {{- end }}
        {{- if and $gateway (include "gearbox.keysSecret" $root) }}
        - {name: keys, mountPath: /etc/gearbox/keys, readOnly: true}
        {{- end }}
  volumes:
    {{- include "gearbox.rayVolumes" (merge (dict "head" $head "gateway" $gateway "copies" $copies "weights" (not (empty $args))) .) | nindent 4 }}
{{- end }}

{{- define "gearbox.rayVolumes" -}}
{{- $root := .root -}}
- name: tmp
  emptyDir: {}
- name: home
  emptyDir: {}
# As large as the pod's memory limit: Ray's objects and the engines' shared tensors are in it.
- name: shm
  emptyDir: {medium: Memory}
{{- if eq $root.Values.weights.mode "shared" }}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "gearbox.claim" $root }}
{{- else if .copies }}
- name: models
  {{- include "gearbox.podModels" $root | nindent 2 }}
{{- end }}
{{- if .weights }}
- name: platform
  configMap: {name: {{ include "gearbox.fullname" $root }}-platform}
{{- end }}
{{- if and .gateway (include "gearbox.keysSecret" $root) }}
- name: keys
  secret:
    secretName: {{ include "gearbox.keysSecret" $root | quote }}
    items: [{key: {{ ternary $root.Values.secrets.keys.key "keys.yaml" (not (empty $root.Values.secrets.keys.existingSecret)) | quote }}, path: keys.yaml}]
{{- end }}
{{- if and .head $root.Values.ray.autoscaler.enabled }}
# Mounted by the autoscaler's container alone: Ray's own processes get no token.
- name: token
  projected:
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3607}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
      - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
{{- end }}
{{- end }}

{{/* Name of the claim of the shared volume. */}}
{{- define "gearbox.claim" -}}
{{- default (printf "%s-weights" (include "gearbox.fullname" .)) .Values.weights.volume.existingClaim -}}
{{- end }}

{{/* The volume for weights of one pod, in mode `pod`. */}}
{{- define "gearbox.podModels" -}}
{{- with .Values.weights.pod -}}
{{- if .storageClassName -}}
ephemeral:
  volumeClaimTemplate:
    spec:
      accessModes: [ReadWriteOnce]
      storageClassName: {{ .storageClassName | quote }}
      resources: {requests: {storage: {{ .size | quote }}}}
{{- else -}}
emptyDir: {sizeLimit: {{ .size | quote }}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A worker group. `replicas` is left out: it begins with the minimum, then it is the autoscaler's. */}}
{{- define "gearbox.workerGroup" -}}
- groupName: {{ .pool }}
  minReplicas: {{ int .group.pods.min }}
  maxReplicas: {{ int .group.pods.max }}
  rayStartParams: {}
  # Ray's node label: replicas are placed by it.
  labels:
    gearbox.io/pool: {{ .pool }}
  {{- with .group.accelerator }}
  # So that the autoscaler knows what a pod would have while there is none.
  resources:
    "accelerator_type:{{ . }}": "1"
  {{- end }}
  template:
    {{- include "gearbox.rayPod" . | nindent 4 }}
{{- end }}
