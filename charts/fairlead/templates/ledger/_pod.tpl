{{- /* the ledger's pod, on either database; call with the root */ -}}
{{- define "fairlead.ledgerPod" -}}
{{- $root := . -}}
metadata:
  labels: {{- include "fairlead.podLabels" (list $root "ledger") | nindent 4 }}
  {{- with $root.Values.ledger.podAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- include "fairlead.podSpec" (list $root "ledger" true) | nindent 2 }}
  terminationGracePeriodSeconds: 30
  containers:
  - name: ledger
    image: {{ include "fairlead.image" (list $root "fairlead-operator") | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [fairlead-ledger, --listen, "0.0.0.0:8080"]
    env:
    {{- include "fairlead.env" $root | nindent 4 }}
    - name: FAIRLEAD_PLATFORM_NAMESPACES
      value: {{ include "fairlead.platformNamespaces" $root | quote }}
    {{- with $root.Values.ledger.database }}
    - name: FAIRLEAD_DATABASE
      {{- if .secretName }}
      valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: {{ .secretKey }}}}
      {{- else }}
      value: /var/lib/fairlead/ledger.db
      {{- end }}
    - name: FAIRLEAD_SYNCHRONOUS_STANDBY
      value: {{ .synchronousStandby | quote }}
    {{- end }}
    ports:
    - {name: http, containerPort: 8080}
    # Long: an upgrade of a large database's schema runs before the first answer.
    startupProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 2
      failureThreshold: 300
    readinessProbe:
      httpGet: {path: /readyz, port: http}
      periodSeconds: 5
      timeoutSeconds: 3
    livenessProbe:
      httpGet: {path: /healthz, port: http}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 6
    resources: {{- toYaml $root.Values.ledger.resources | nindent 6 }}
    securityContext: {{- include "fairlead.containerSecurity" $root | nindent 6 }}
    volumeMounts:
    {{- if not $root.Values.ledger.database.secretName }}
    - {name: data, mountPath: /var/lib/fairlead}
    {{- end }}
    - {name: tmp, mountPath: /tmp}
  volumes:
  - name: tmp
    emptyDir: {sizeLimit: 64Mi}
{{- end -}}
