{{- define "headroom.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "headroom.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "headroom.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "headroom.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Of one part: (list . "router") */}}
{{- define "headroom.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "headroom.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "headroom.labels" -}}
{{- $root := index . 0 -}}
{{ include "headroom.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "headroom.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- define "headroom.secret" -}}
{{- default (include "headroom.fullname" .) .Values.adminKey.existingSecret -}}
{{- end -}}

{{/* What the environment of every process has. */}}
{{- define "headroom.env" -}}
- name: HEADROOM_ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ include "headroom.secret" . }}, key: {{ .Values.adminKey.key }}}}
{{- with .Values.router.env }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "headroom.podSecurity" -}}
securityContext: {runAsNonRoot: true, runAsUser: 65534, runAsGroup: 65534, fsGroup: 65534, seccompProfile: {type: RuntimeDefault}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "headroom.containerSecurity" -}}
securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end -}}

{{/* router.yaml, as a mapping: what the chart makes of its values, and `config` over it. */}}
{{- define "headroom.config" -}}
{{- include "headroom.checked" . -}}
{{- $full := include "headroom.fullname" . -}}
{{- $own := dict
  "listen" (dict "host" "0.0.0.0" "port" 8080 "drain_s" .Values.router.drainSeconds)
  "admin_key" (dict "key_env" "HEADROOM_ADMIN_KEY")
-}}
{{- $found := list -}}
{{- range .Values.engines -}}
{{- $source := dict "service" .service -}}
{{- with .namespace }}{{ $_ := set $source "namespace" . }}{{ end -}}
{{- with .port }}{{ $_ := set $source "port" . }}{{ end -}}
{{- with .scheme }}{{ $_ := set $source "scheme" . }}{{ end -}}
{{- $entry := dict "kubernetes" $source -}}
{{- with .defaults }}{{ $_ := set $entry "defaults" . }}{{ end -}}
{{- $found = append $found $entry -}}
{{- end -}}
{{- $found = concat $found (default (list) .Values.config.discover) -}}
{{- if not (or $found .Values.config.backends) -}}
{{- fail "no engines: give engines: [{service: NAME}], or backends or discover under config" -}}
{{- end -}}
{{- $state := default (dict) .Values.config.state -}}
{{- if not (or $state.redis $state.redis_url) -}}
{{- if .Values.redis.enabled -}}
{{- $_ := set $own "state" (dict "redis_url" (printf "redis://%s-redis:6379/0" $full)) -}}
{{- else if .Values.redis.url -}}
{{- $_ := set $own "state" (dict "redis_url" .Values.redis.url) -}}
{{- end -}}
{{- end -}}
{{- if .Values.sidecar.enabled -}}
{{- $_ := set $own "scrape" (dict "source" "state") -}}
{{- end -}}
{{- if .Values.autoscaler.enabled -}}
{{- $autoscale := dict "port" 8081 "variants" (include "headroom.variants" . | fromYaml) -}}
{{- if .Values.autoscaler.workloads -}}
{{- $_ := set $autoscale "target" (dict "name" "kubernetes" "workloads" .Values.autoscaler.workloads) -}}
{{- $_ := set $autoscale "election" (dict "by" "kubernetes" "name" (printf "%s-autoscaler" $full)) -}}
{{- end -}}
{{- $_ := set $own "autoscale" $autoscale -}}
{{- end -}}
{{- $whole := mustMergeOverwrite $own (deepCopy .Values.config) -}}
{{- if $found }}{{ $_ := set $whole "discover" $found }}{{ end -}}
{{- toYaml $whole -}}
{{- end -}}

{{/* The variants of the autoscaler. It does not read `discover`: what a replica is, it has from here, else from routers
while one runs. Here it is the variant's own, else the defaults of the engines that are of it. A variant that may have no
replica at all needs it: the facts of the first one are stated nowhere else. */}}
{{- define "headroom.variants" -}}
{{- $whole := dict -}}
{{- range $name, $given := .Values.autoscaler.variants -}}
{{- $variant := deepCopy (default (dict) $given) -}}
{{- $listed := dig "autoscale" "variants" $name "replica" false $.Values.config | not | not -}}
{{- range (default (list) $.Values.config.backends) }}{{ if eq (default "" .variant) $name }}{{ $listed = true }}{{ end }}{{ end -}}
{{- range $.Values.engines -}}
{{- $facts := default (dict) .defaults -}}
{{- if and (eq (default "" $facts.variant) $name) $facts.models (not $variant.replica) -}}
{{- $_ := set $variant "replica" (omit $facts "variant") -}}
{{- end -}}
{{- end -}}
{{- if and (eq (toString $variant.min_replicas) "0") (not (or $listed $variant.replica)) -}}
{{- fail (printf "autoscaler.variants.%s: min_replicas is 0: give replica: {models: [...], card: ..., model: ...}, or models beside variant in the defaults of its engines: while none runs, its facts are stated nowhere else" $name) -}}
{{- end -}}
{{- $_ := set $whole $name $variant -}}
{{- end -}}
{{- toYaml $whole -}}
{{- end -}}

{{/* What the routers read of the API server, of `engines` and of `discover` alike: by namespace, services and whether
pods are selected. Not what is read at a url, with other rights. */}}
{{- define "headroom.watched" -}}
{{- $sources := list -}}
{{- range .Values.engines }}{{ $sources = append $sources (dict "service" .service "namespace" .namespace) }}{{ end -}}
{{- range (default (list) .Values.config.discover) -}}
{{- with .kubernetes }}{{ $sources = append $sources (ternary (dict "service" .) . (kindIs "string" .)) }}{{ end -}}
{{- end -}}
{{- $watched := dict -}}
{{- range $sources -}}
{{- if not .url -}}
{{- $namespace := default $.Release.Namespace .namespace -}}
{{- $known := default (dict "services" (list) "pods" false) (get $watched $namespace) -}}
{{- if .service }}{{ $_ := set $known "services" (append $known.services .service | uniq) }}{{ end -}}
{{- if .selector }}{{ $_ := set $known "pods" true }}{{ end -}}
{{- $_ := set $watched $namespace $known -}}
{{- end -}}
{{- end -}}
{{- toYaml $watched -}}
{{- end -}}

{{/* Whether the processes share a state in Redis, the chart's or that of the config: "true" or nothing. */}}
{{- define "headroom.shared" -}}
{{- $state := default (dict) .Values.config.state -}}
{{- if or .Values.redis.enabled .Values.redis.url $state.redis_url $state.redis }}true{{ end -}}
{{- end -}}

{{/* The part that runs the autoscaler: routers do where the config has it inside. */}}
{{- define "headroom.scaler" -}}
{{- if dig "autoscale" "inside" false .Values.config }}router{{ else }}autoscaler{{ end -}}
{{- end -}}

{{/* The port at which KEDA calls the autoscaler, where there is one with that target; nothing otherwise. */}}
{{- define "headroom.kedaPort" -}}
{{- $target := dig "autoscale" "target" "" .Values.config -}}
{{- if or .Values.autoscaler.enabled (eq (include "headroom.scaler" .) "router") -}}
{{- if kindIs "map" $target -}}
{{- if eq (toString $target.name) "keda" }}{{ default 9300 $target.port }}{{ end -}}
{{- else if eq (toString $target) "keda" }}9300{{ end -}}
{{- end -}}
{{- end -}}

{{/* The Lease object by which autoscalers elect one; nothing where they do not elect so. */}}
{{- define "headroom.lease" -}}
{{- $election := dig "autoscale" "election" dict (include "headroom.config" . | fromYaml) -}}
{{- if eq (toString $election.by) "kubernetes" }}{{ default "headroom-autoscaler" $election.name }}{{ end -}}
{{- end -}}

{{/* Fails for what the rest of the chart contradicts: probes, Services and rights are made for what it sets itself. */}}
{{- define "headroom.checked" -}}
{{- $config := .Values.config -}}
{{- if ne (int (dig "listen" "port" 8080 $config)) 8080 -}}
{{- fail "config.listen.port: probes and Services of this chart are for 8080; clients' port is service.port" -}}
{{- end -}}
{{- if not (has (dig "listen" "host" "0.0.0.0" $config) (list "0.0.0.0" "::")) -}}
{{- fail "config.listen.host: a pod has to listen on all of its addresses, 0.0.0.0 or ::" -}}
{{- end -}}
{{- if dig "listen" "tls" false $config -}}
{{- fail "config.listen.tls: probes and Services of this chart are for HTTP; let an Ingress or a Gateway end TLS" -}}
{{- end -}}
{{- if and .Values.autoscaler.enabled (dig "autoscale" "inside" false $config) -}}
{{- fail "autoscaler.enabled and config.autoscale.inside are two autoscalers: give one of them" -}}
{{- end -}}
{{- if .Values.autoscaler.enabled -}}
{{- if ne (int (dig "autoscale" "port" 8081 $config)) 8081 -}}
{{- fail "config.autoscale.port: the Service of this chart is for 8081" -}}
{{- end -}}
{{- if not (include "headroom.shared" .) -}}
{{- fail "autoscaler reads the routers' demand in Redis: give redis.enabled, redis.url or config.state" -}}
{{- end -}}
{{- if and .Values.autoscaler.workloads (dig "autoscale" "target" false $config) -}}
{{- fail "autoscaler.workloads and config.autoscale.target are two targets: give one of them" -}}
{{- end -}}
{{- else if .Values.autoscaler.workloads -}}
{{- fail "autoscaler.workloads has no use without autoscaler.enabled: true" -}}
{{- end -}}
{{- $inside := dig "autoscale" "inside" false $config -}}
{{- $target := dig "autoscale" "target" "" $config -}}
{{- if and (or .Values.autoscaler.enabled $inside) (kindIs "map" $target) -}}
{{- if and (eq (toString $target.name) "kubernetes") (not $target.url) -}}
{{- fail "config.autoscale.target: kubernetes has its rights in this chart by autoscaler.workloads: give these" -}}
{{- end -}}
{{- end -}}
{{- if and $inside (eq (toString (dig "autoscale" "election" "by" "" $config)) "kubernetes") -}}
{{- fail "config.autoscale.election: routers of this chart have no rights to a Lease: give by: state, or autoscaler.enabled" -}}
{{- end -}}
{{- end -}}

{{/* Whether engines announce themselves: "true" or nothing. */}}
{{- define "headroom.registered" -}}
{{- range (default (list) .Values.config.discover) }}{{ if hasKey . "redis" }}true{{ end }}{{ end -}}
{{- end -}}

{{/* Changes exactly when a change of the config needs a restart: it is reloaded in place otherwise. */}}
{{- define "headroom.restartChecksum" -}}
{{- $config := include "headroom.config" . | fromYaml -}}
{{- $fixed := pick $config "listen" "upstream" "state" "record" -}}
{{- if dig "autoscale" "inside" false $config -}}
{{- $_ := set $fixed "autoscale" (pick $config.autoscale "inside" "election" "memory_file") -}}
{{- end -}}
{{- $fixed | toJson | sha256sum -}}
{{- end -}}

{{/* The same for the autoscaler as a process of its own, beside what restarts routers. */}}
{{- define "headroom.electionChecksum" -}}
{{- $config := include "headroom.config" . | fromYaml -}}
{{- pick (default (dict) $config.autoscale) "election" "memory_file" | toJson | sha256sum -}}
{{- end -}}

{{/* group/version/plural of a workload of the autoscaler */}}
{{- define "headroom.resource" -}}
{{- $known := dict
  "Deployment" "apps/v1/deployments"
  "StatefulSet" "apps/v1/statefulsets"
  "ReplicaSet" "apps/v1/replicasets"
  "LeaderWorkerSet" "leaderworkerset.x-k8s.io/v1/leaderworkersets"
-}}
{{- default (get $known (default "Deployment" .kind)) .resource -}}
{{- end -}}
