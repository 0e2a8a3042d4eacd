{{/* Labels of everything that the chart makes: dict "ctx" . "component" "control". */}}
{{- define "hauberk.labels" -}}
app.kubernetes.io/name: hauberk
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/instance: {{ .ctx.Release.Name }}
app.kubernetes.io/version: {{ .ctx.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: hauberk
app.kubernetes.io/managed-by: {{ .ctx.Release.Service }}
{{- end }}

{{/* Labels that select a component's pods; they never change. */}}
{{- define "hauberk.selector" -}}
app.kubernetes.io/name: hauberk
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* What every container of ours may not do. */}}
{{- define "hauberk.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "hauberk.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
