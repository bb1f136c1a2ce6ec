#!/usr/bin/env bash
# Puts a backup in the database's place, on a stack that install.sh has installed:
#
#     deploy/k8s/restore.sh gaia-20261129-031700.zip     # a name in the volume clickhouse-backups
#
# The collector stands still meanwhile and starts again, whatever comes of it; what arrives then,
# and what its queue holds, goes into the restored database. clickhouse/restore.sh does the rest.
set -euo pipefail

case ${1-} in
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
if [[ $# -ne 1 || ! $1 =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]]; then
    echo "restore.sh: name one backup, such as gaia-20261129-031700.zip; see restore.sh --help" >&2
    exit 2
fi
kube() { kubectl --namespace gaia "$@"; }
start_again() {
    local code=$?
    if [ "$code" != 0 ]; then
        echo "restore.sh: failed; what the database holds now stands above, or in" \
            "'kubectl --namespace gaia logs job/clickhouse-restore'" >&2
    fi
    if kube scale statefulset/collector --replicas 1; then
        echo "restore.sh: the collector runs again" >&2
    else
        echo "restore.sh: the collector is still stopped; start it with 'kubectl --namespace gaia" \
            "scale statefulset/collector --replicas 1'" >&2
    fi
    exit "$code"
}
trap start_again EXIT
kube scale statefulset/collector --replicas 0
if kube get pod collector-0 >/dev/null 2>&1; then
    kube wait --for=delete pod/collector-0 --timeout 300s
fi
kube delete job clickhouse-restore --ignore-not-found
kube create job clickhouse-restore --from=cronjob/clickhouse-restore --dry-run=client --output yaml |
    sed "s/NAME_OF_BACKUP/$1/" | kube apply -f -
# `kubectl wait` waits for one condition, and would wait for a failed Job until the time is over.
state=""
until [[ $state =~ Complete|Failed ]]; do
    sleep "${POLL_SECONDS:-5}"
    state=$(kube get job clickhouse-restore --output 'jsonpath={.status.conditions[*].type}')
done
kube logs job/clickhouse-restore
[[ $state =~ Complete ]]
