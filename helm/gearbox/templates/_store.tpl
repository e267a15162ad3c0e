{{/* PostgreSQL and Redis for trials: one pod with one volume each. `store` says what differs between them. */}}

{{- define "gearbox.store" -}}
{{- $root := .root -}}
{{- $name := .name -}}
{{- $full := printf "%s-%s" (include "gearbox.fullname" $root) $name -}}
{{- $values := get $root.Values $name -}}
{{- if and $values.auth.password (not $values.auth.existingSecret) }}
apiVersion: v1
kind: Secret
metadata:
  {{- include "gearbox.metadata" (dict "root" $root "name" $name) | nindent 2 }}
type: Opaque
stringData:
  password: {{ $values.auth.password | quote }}
  uri: {{ printf .uri $values.auth.password $full | quote }}
---
{{- end }}
apiVersion: v1
kind: Service
metadata:
  {{- include "gearbox.metadata" (dict "root" $root "name" $name) | nindent 2 }}
spec:
  selector:
    {{- include "gearbox.selector" (dict "root" $root "component" $name) | nindent 4 }}
  ports:
    - {name: {{ $name }}, port: {{ .port }}, targetPort: {{ $name }}, protocol: TCP}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  {{- include "gearbox.metadata" (dict "root" $root "name" $name) | nindent 2 }}
spec:
  replicas: 1
  serviceName: {{ $full }}
  selector:
    matchLabels:
      {{- include "gearbox.selector" (dict "root" $root "component" $name) | nindent 6 }}
  template:
    metadata:
      labels:
        app.kubernetes.io/name: {{ $name }}
        {{- include "gearbox.podLabels" (dict "root" $root "component" $name) | nindent 8 }}
    spec:
      serviceAccountName: {{ include "gearbox.fullname" $root }}
      {{- include "gearbox.podFields" $root | nindent 6 }}
      containers:
        - name: {{ $name }}
          {{- include "gearbox.imageFields" (dict "root" $root "image" $values.image) | nindent 10 }}
          securityContext:
            # The user that the image's files are made for.
            {{- toYaml (merge (dict "runAsUser" 999 "runAsGroup" .group) $root.Values.securityContext) | nindent 12 }}
          {{- with .args }}
          args:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          env:
            - name: {{ .passwordEnv }}
              valueFrom:
                secretKeyRef: {name: {{ default $full $values.auth.existingSecret | quote }}, key: password}
            {{- with .env }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - {name: {{ $name }}, containerPort: {{ .port }}}
          {{- range $probe, $times := dict "startupProbe" 60 "readinessProbe" 3 "livenessProbe" 6 }}
          {{ $probe }}:
            exec: {command: {{ toJson $.probe }}}
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: {{ $times }}
          {{- end }}
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: {{ .data }}}
            - {name: tmp, mountPath: /tmp}
            - {name: run, mountPath: {{ .run }}}
      volumes:
        - name: tmp
          emptyDir: {}
        - name: run
          emptyDir: {}
  volumeClaimTemplates:
    - metadata:
        name: data
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.storageClassName }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources: {requests: {storage: {{ $values.size | quote }}}}
{{- end }}
