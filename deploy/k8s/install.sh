#!/usr/bin/env bash
# Installs the stack on the Kubernetes cluster that kubectl points to (made for single-node k3s).
#
#     deploy/k8s/install.sh --domain metrics.example.org --email you@example.org
#         [--public]        anyone may look, without an account; --no-public ends that
#         [--keep-days N]   delete values that are older than N days; 0 keeps all
#
# The names DOMAIN, otlp.DOMAIN and otlp-grpc.DOMAIN must point to the cluster. Run it again to
# update: what was chosen stands in deploy/k8s/.env and stays, and secrets are made once and kept in
# deploy/secrets. --dry-run prints what would be applied.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=../secrets.sh
. "$here/secrets.sh"
# shellcheck source=../settings.sh
. "$here/settings.sh"

cert_manager=v1.19.1
domain=$(saved "$here/k8s/.env" GAIA_DOMAIN "")
email=$(saved "$here/k8s/.env" GAIA_EMAIL "")
public=$(saved "$here/k8s/.env" GAIA_PUBLIC false)
keep=$(saved "$here/k8s/.env" GAIA_KEEP_DAYS "")
dry=false
while [ $# -gt 0 ]; do
    case $1 in
        --domain) domain=${2:?--domain needs a name}; shift 2 ;;
        --email) email=${2:?--email needs an address}; shift 2 ;;
        --public) public=true; shift ;;
        --no-public) public=false; shift ;;
        --keep-days) keep=${2:?--keep-days needs a number}; shift 2 ;;
        --dry-run) dry=true; shift ;;
        -h | --help) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
        *) echo "install.sh: unknown option $1; see install.sh --help" >&2; exit 2 ;;
    esac
done
if [[ -z $domain || ! $email =~ ^[^[:space:]@]+@[^[:space:]@]+$ ]]; then
    echo "install.sh: --domain and --email are needed; see install.sh --help" >&2
    exit 2
fi
check_settings install.sh "$domain" "$keep"
if ! command -v kubectl >/dev/null; then
    echo "install.sh: kubectl is not installed; on the node of k3s it is 'k3s kubectl'" >&2
    exit 2
fi

explore=true
if [ "$public" = true ]; then explore=false; fi
if [ "$dry" = false ]; then make_secrets "$here/secrets"; fi
secrets=$here/secrets
for_clickhouse=$(files_hash "$here/clickhouse/users.d" "$secrets"/clickhouse_*_password)
for_collector=$(files_hash "$secrets/otlp_token" "$secrets/clickhouse_writer_password")
for_grafana=$(files_hash "$secrets/grafana_admin_password" "$secrets/clickhouse_reader_password")
manifests=$(kubectl kustomize "$here" |
    sed -e "s/GAIA_DOMAIN/$domain/g" -e "s/GAIA_EMAIL/$email/g" \
        -e "s/GAIA_CLICKHOUSE_SECRETS/$for_clickhouse/" \
        -e "s/GAIA_COLLECTOR_SECRETS/$for_collector/" \
        -e "s/GAIA_GRAFANA_SECRETS/$for_grafana/" \
        -e "s/value: GAIA_KEEP_DAYS/value: \"$keep\"/" -e "s/GAIA_PUBLIC/\"$public\"/g" -e "s/GAIA_EXPLORE/\"$explore\"/g" \
        -e 's/""\(true\|false\)""/"\1"/g')
if [ "$dry" = true ]; then
    printf '%s\n' "$manifests"
    exit 0
fi

printf 'GAIA_DOMAIN=%s\nGAIA_EMAIL=%s\nGAIA_PUBLIC=%s\nGAIA_KEEP_DAYS=%s\n' \
    "$domain" "$email" "$public" "$keep" > "$here/k8s/.env"
if ! kubectl get crd certificates.cert-manager.io >/dev/null 2>&1; then
    kubectl apply -f "https://github.com/cert-manager/cert-manager/releases/download/$cert_manager/cert-manager.yaml"
    kubectl --namespace cert-manager rollout status deployment --timeout 300s
fi
kubectl apply -f "$here/k8s/namespace.yaml"
arguments=()
for name in clickhouse_admin_password clickhouse_writer_password clickhouse_reader_password \
    grafana_admin_password otlp_token clickhouse-users.xml; do
    arguments+=("--from-file=$name=$here/secrets/$name")
done
kubectl --namespace gaia create secret generic gaia-secrets "${arguments[@]}" \
    --dry-run=client --output yaml | kubectl apply -f -
# A finished Job cannot be changed: the schema is applied by a new one.
kubectl --namespace gaia delete job clickhouse-schema --ignore-not-found
printf '%s\n' "$manifests" | kubectl apply -f -
kubectl --namespace gaia rollout status statefulset/clickhouse --timeout 300s
kubectl --namespace gaia wait --for=condition=complete job/clickhouse-schema --timeout 300s
kubectl --namespace gaia rollout status statefulset/collector --timeout 300s
kubectl --namespace gaia rollout status deployment/grafana --timeout 300s
cat <<TEXT
Grafana:   https://$domain/   user admin, password in $here/secrets/grafana_admin_password
Training:  export OTEL_EXPORTER_OTLP_ENDPOINT=https://otlp.$domain
           export OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20\$(cat $here/secrets/otlp_token)"
gRPC:      OTEL_EXPORTER_OTLP_PROTOCOL=grpc with https://otlp-grpc.$domain
TEXT
