#!/bin/sh
# Brings the database to the newest schema; may run again and again, and after an interruption.
# schema/NN-*.sql are versions: each is applied once and noted in gaia.schema_versions. The landing
# tables of 01 are in no backup, so that file is applied every time; each of its statements may run
# again, and a later version that changes them changes that file too.
# schema/views.sql is applied every time, so that changed views reach a running database.
# KEEP_DAYS: values older than so many days are deleted; 0 keeps all; unset changes nothing.
# Runs inside the ClickHouse image.
set -eu
schema=${SCHEMA_DIR:-/schema}
# The password goes through a file: arguments are visible to everyone on the machine.
settings=$(mktemp)
trap 'rm -f "$settings"' EXIT
printf '<config><host>%s</host><user>gaia_admin</user><password>%s</password></config>' \
    "${CLICKHOUSE_HOST:-clickhouse}" "$(cat "${SECRETS_DIR:-/run/secrets}/clickhouse_admin_password")" > "$settings"
client() { clickhouse-client --config-file "$settings" "$@"; }

# Beside the remains of an interrupted restore the versions say nothing about what is there.
if [ "$(client --query "SELECT count() FROM system.databases WHERE name = 'gaia_before'")" != 0 ]; then
    echo "a restore was interrupted and gaia_before holds the database: run restore.sh again" >&2
    exit 2
fi
client --query 'CREATE DATABASE IF NOT EXISTS gaia'
client --query 'CREATE TABLE IF NOT EXISTS gaia.schema_versions
    (version UInt32, applied DateTime DEFAULT now()) ENGINE = ReplacingMergeTree ORDER BY version'
for file in "$schema"/[0-9][0-9]-*.sql; do
    version=$(basename "$file" | cut -c1-2)
    noted=$(client --query "SELECT count() FROM gaia.schema_versions WHERE version = $version")
    if [ "$noted" = 0 ] || [ "$version" = 01 ]; then
        echo "applying $file"
        client --multiquery --queries-file "$file"
    fi
    if [ "$noted" = 0 ]; then
        client --query "INSERT INTO gaia.schema_versions (version) VALUES ($version)"
    fi
done
echo "applying $schema/views.sql"
client --multiquery --queries-file "$schema/views.sql"

case ${KEEP_DAYS-} in
    '') ;;
    *[!0-9]*) echo "KEEP_DAYS=$KEEP_DAYS is no number of days" >&2; exit 2 ;;
    *)
        point='toDateTime(1577836800 + intDiv(bitAnd(version, 1125899906842623), 1000000))'
        for pair in "points $point" 'system_points toDateTime(ts)' 'text_records toDateTime(ts)' \
            'histogram_records toDateTime(ts)'; do
            table=${pair%% *} time=${pair#* }
            has=$(client --query "SELECT countIf(engine_full LIKE '% TTL %') FROM system.tables
                WHERE database = 'gaia' AND name = '$table'")
            if [ "$KEEP_DAYS" -gt 0 ]; then
                client --query "ALTER TABLE gaia.$table MODIFY TTL $time + INTERVAL $KEEP_DAYS DAY"
            elif [ "$has" = 1 ]; then
                client --query "ALTER TABLE gaia.$table REMOVE TTL"
            fi
        done ;;
esac
