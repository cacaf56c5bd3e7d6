{{/*
The sidecar for a chart of yours, among the initContainers of a pod (Kubernetes 1.29 and later):

  initContainers:
    {{- include "aggregatord.sidecar" . | nindent 4 }}

The pod needs an emptyDir of medium Memory with the name of sidecar.volume, mounted by the
application at sidecar.dir, PROMETHEUS_MULTIPROC_DIR with that path, and one runAsUser for both.
*/}}
{{- define "aggregatord.sidecar" -}}
- name: aggregatord
  image: {{ include "aggregatord.image" . }}
  restartPolicy: Always
  args: [serve, --dir={{ .Values.sidecar.dir }}]
  ports:
    - {name: metrics, containerPort: 9500}
  startupProbe:
    httpGet: {path: /-/ready, port: metrics}
    periodSeconds: 1
    failureThreshold: 300
  livenessProbe:
    httpGet: {path: /-/healthy, port: metrics}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: {{ .Values.sidecar.volume }}, mountPath: {{ .Values.sidecar.dir }}}
{{- end }}

{{- define "aggregatord.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* The configuration file: config and, with kubelet.enabled, the discovery of pods. */}}
{{- define "aggregatord.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if .Values.kubelet.enabled }}
{{- $kubelet := pick .Values.kubelet "root" "logs" }}
{{- with .Values.kubelet.volume }}{{ $_ := set $kubelet "volume" . }}{{ end }}
{{- with .Values.kubelet.settings }}{{ $_ := set $kubelet "settings" . }}{{ end }}
{{- $discovery := append ($config.discovery | default list) (dict "kubelet" $kubelet) }}
{{- $_ := set $config "discovery" $discovery }}
{{- end }}
{{- if $config }}{{ toYaml $config }}{{ end }}
{{- end }}
