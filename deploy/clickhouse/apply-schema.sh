#!/bin/sh
# Applies schema/*.sql, which may be done again and again. Runs inside the ClickHouse image.
set -eu
# The password goes through a file: arguments are visible to everyone on the machine.
printf '<config><host>%s</host><user>gaia_admin</user><password>%s</password></config>' \
    "${CLICKHOUSE_HOST:-clickhouse}" "$(cat /run/secrets/clickhouse_admin_password)" > /tmp/client.xml
for file in /schema/*.sql; do
    echo "applying $file"
    clickhouse-client --config-file /tmp/client.xml --multiquery --queries-file "$file"
done
