#!/bin/sh
# Puts a backup in the database's place: restore.sh gaia-20261129-031700.zip (a name in /backups).
# Runs in the ClickHouse image; deploy/restore.sh and k8s/restore.sh stop the collector meanwhile.
#
# The landing tables go first: an insert is then refused, and the collector keeps its rows. With
# them, but without the views behind them, rows would be accepted and vanish. The database that is
# there stays, as gaia_before, until the backup is in place, and comes back where that fails.
set -eu
name=${1-}
backups=${BACKUPS_DIR:-/backups}
case $name in
    '' | -* | *[!A-Za-z0-9._-]*)
        echo "restore.sh: name a backup, such as gaia-20261129-031700.zip" >&2; exit 2 ;;
esac
if [ ! -e "$backups/$name" ]; then
    echo "restore.sh: there is no backup $name, so nothing was changed; there are:" >&2
    ls -1 "$backups" >&2
    exit 2
fi
# The password goes through a file: arguments are visible to everyone on the machine.
settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
printf '<config><host>%s</host><user>gaia_admin</user><password>%s</password></config>' \
    "${CLICKHOUSE_HOST:-clickhouse}" "$(cat "${SECRETS_DIR:-/run/secrets}/clickhouse_admin_password")" > "$settings"
client() { clickhouse-client --config-file "$settings" --query "$1"; }
there() { client "SELECT count() FROM system.databases WHERE name = '$1'"; }
# The server refuses to drop tables above 50 GB unless it is told that this is meant.
drop() { client "DROP DATABASE IF EXISTS $1 SYNC SETTINGS max_table_size_to_drop = 0"; }
put_back() { drop gaia && { [ "$before" = 0 ] || client 'RENAME DATABASE gaia_before TO gaia'; }; }
unfinished() {
    echo "restore.sh: $1. No row is accepted until this is mended, and the collector keeps what" \
        "arrives: run it again" >&2
    exit 1
}

drop otel || unfinished 'the landing tables could not be dropped; the database is as it was'
before=$(there gaia_before) || unfinished 'the server does not answer; the database is as it was'
# An earlier restore was interrupted: what stands beside its remains is the database.
if [ "$before" = 1 ]; then put_back || unfinished 'the database is still called gaia_before'; fi
before=$(there gaia) || unfinished 'the server does not answer; the database is as it was'
if [ "$before" = 1 ]; then
    client 'RENAME DATABASE gaia TO gaia_before' || unfinished 'the database is as it was'
fi
if client "RESTORE DATABASE gaia FROM Disk('backups', '$name')" &&
    [ "$(client 'SELECT count() > 0 FROM gaia.schema_versions')" = 1 ]; then
    restored=true state="the database holds $name"
    drop gaia_before || unfinished "$state, and what was there is still there as gaia_before"
else
    restored=false state="$name could not be restored; the database holds what it held before"
    put_back || unfinished "$name could not be restored, and the database is called gaia_before"
fi
# Makes the landing tables again, and brings the backup of an earlier version to the newest schema.
sh "$(dirname "$0")/apply-schema.sh" || unfinished "$state, but the schema was not applied"
echo "restore.sh: $state" >&2
[ "$restored" = true ]
