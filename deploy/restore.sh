#!/usr/bin/env bash
# Puts a backup in the database's place, on a stack that up.sh has started:
#
#     deploy/restore.sh gaia-20261129-031700.zip     # a name in the volume "backups"
#
# The collector stands still meanwhile and starts again, whatever comes of it; what arrives then,
# and what its queue holds, goes into the restored database. clickhouse/restore.sh does the rest.
set -euo pipefail
cd "$(dirname "$0")"

case ${1-} in
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "${0##*/}"; exit 0 ;;
esac
if [ $# -ne 1 ]; then
    echo "restore.sh: name one backup, such as gaia-20261129-031700.zip; see restore.sh --help" >&2
    exit 2
fi
start_again() {
    local code=$?
    if [ "$code" != 0 ]; then
        echo "restore.sh: failed; what the database holds now stands above" >&2
    fi
    # Without its dependencies: a schema that could not be applied must not keep it from its queue.
    if docker compose up --detach --no-deps --no-recreate collector; then
        echo "restore.sh: the collector runs again" >&2
    else
        echo "restore.sh: the collector is still stopped; start it with deploy/up.sh" >&2
    fi
    exit "$code"
}
trap start_again EXIT
docker compose stop collector
docker compose run --rm restore "$1"
