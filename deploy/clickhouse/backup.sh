#!/bin/sh
# Backs the database up to the backups disk and keeps the newest KEEP. Runs in the ClickHouse image.
set -eu
printf '<config><host>%s</host><user>gaia_admin</user><password>%s</password></config>' \
    "${CLICKHOUSE_HOST:-clickhouse}" "$(cat /run/secrets/clickhouse_admin_password)" > /tmp/client.xml
name="gaia-$(date -u +%Y%m%d-%H%M%S).zip"
clickhouse-client --config-file /tmp/client.xml \
    --query "BACKUP DATABASE gaia TO Disk('backups', '$name')"
echo "wrote $name"
# The names sort by time. Everything but the newest KEEP goes.
ls -1 /backups/gaia-*.zip | sort -r | tail -n "+$((${KEEP:-14} + 1))" | while read -r old; do
    rm -f "$old" && echo "removed $old"
done
