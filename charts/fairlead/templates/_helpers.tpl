{{- /*
Names are fixed, not made of the release's: the ledger knows the operator by its ServiceAccount, routers in other
namespaces know the Services, and two Fairleads in one cluster would both own the same kinds.
*/ -}}

{{- define "fairlead.tag" -}}
{{- .Values.image.tag | default .Chart.AppVersion -}}
{{- end -}}

{{- /* image reference; call with (list . "fairlead-operator") */ -}}
{{- define "fairlead.image" -}}
{{- $root := index . 0 -}}
{{- with $root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- index . 1 }}:{{ include "fairlead.tag" $root -}}
{{- end -}}

{{- /* selector of a component; call with (list . "operator"); the operator finds the gateway's pods by the name */ -}}
{{- define "fairlead.selector" -}}
app.kubernetes.io/name: fairlead-{{ index . 1 }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
{{- end -}}

{{- define "fairlead.commonLabels" -}}
app.kubernetes.io/part-of: fairlead
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{- /* labels of a component's objects; call with (list . "operator") */ -}}
{{- define "fairlead.labels" -}}
{{ include "fairlead.selector" . }}
app.kubernetes.io/component: {{ index . 1 }}
{{ include "fairlead.commonLabels" (index . 0) }}
{{- end -}}

{{- /* labels of a component's pods: without chart and version, so that a new chart alone restarts nothing */ -}}
{{- define "fairlead.podLabels" -}}
{{ include "fairlead.selector" . }}
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/part-of: fairlead
{{- end -}}

{{- define "fairlead.platformNamespaces" -}}
{{- append .Values.platformNamespaces .Release.Namespace | uniq | sortAlpha | join "," -}}
{{- end -}}

{{- define "fairlead.operatorURL" -}}
http://fairlead-operator.{{ .Release.Namespace }}:8080
{{- end -}}

{{- define "fairlead.ledgerURL" -}}
http://fairlead-ledger.{{ .Release.Namespace }}:8080
{{- end -}}

{{- /* what callers use: HTTPS on 443 with a certificate, otherwise plain HTTP on 80 */ -}}
{{- define "fairlead.gatewayURL" -}}
{{ ternary "https" "http" (ne .Values.tls.secretName "") }}://fairlead-gateway.{{ .Release.Namespace }}
{{- end -}}

{{- /* what is the same in every pod; call with (list . "operator" token), token: whether it talks to the API server */ -}}
{{- define "fairlead.podSpec" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
serviceAccountName: fairlead-{{ index . 1 }}
automountServiceAccountToken: {{ index . 2 }}
# Service links would set FAIRLEAD_OPERATOR_PORT=tcp://…, in the name space of our own settings.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 0 }}
{{- end }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 0 }}
{{- end }}
{{- if gt (int $values.replicas) 1 }}
topologySpreadConstraints:
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- include "fairlead.selector" $ | nindent 6 }}
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end -}}

{{- define "fairlead.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* environment of every program; call with the root */ -}}
{{- define "fairlead.env" -}}
- name: FAIRLEAD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: HOME
  value: /tmp
{{- end -}}

{{- /*
Projected tokens, one file for each audience, so that whoever receives one can use it nowhere else.
Call with the list of names; an hour outlives a restart of the API server, which alone can renew them.
*/ -}}
{{- define "fairlead.tokens" -}}
- name: tokens
  projected:
    defaultMode: 0440
    sources:
    {{- range . }}
    - serviceAccountToken: {path: {{ . }}, audience: fairlead.dev/{{ . }}, expirationSeconds: 3600}
    {{- end }}
{{- end -}}

{{- /* egress to DNS, wherever it runs: as pods, on the node, or outside */ -}}
{{- define "fairlead.egressDNS" -}}
- ports:
  {{- range .Values.networkPolicy.dnsPorts }}
  - {port: {{ . }}, protocol: UDP}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end -}}

{{- /* egress to the API server: it is no pod, so no selector can name it, only its ports */ -}}
{{- define "fairlead.egressAPI" -}}
- ports:
  {{- range .Values.networkPolicy.apiServerPorts }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
{{- end -}}

{{- /* JSON list of the ports on which OIDC providers are asked for their keys: https, and those in issuers' addresses */ -}}
{{- define "fairlead.providerPorts" -}}
{{- $ports := list -}}
{{- range .Values.oidc -}}
{{- if not .jwks -}}
{{- $own := regexFind ":[0-9]+$" (urlParse .issuer).host | trimPrefix ":" -}}
{{- $ports = concat $ports (list 443 (int ($own | default 443))) -}}
{{- end -}}
{{- end -}}
{{- $ports | uniq | toJson -}}
{{- end -}}

{{- /* port of an http or https address: its own, or its scheme's */ -}}
{{- define "fairlead.port" -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{- /* egress to a component of the release; call with (list . "ledger" 8080) */ -}}
{{- define "fairlead.egressTo" -}}
- to:
  - podSelector:
      matchLabels: {{- include "fairlead.selector" . | nindent 8 }}
  ports:
  - {port: {{ index . 2 }}, protocol: TCP}
{{- end -}}
