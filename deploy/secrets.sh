# Sourced: make_secrets FOLDER makes what is missing there; nothing has a default password.
# shellcheck shell=bash

make_secrets() {
    local folder=$1 here name hash users
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    mkdir -p "$folder"
    chmod 700 "$folder"
    for name in clickhouse_admin_password clickhouse_writer_password clickhouse_reader_password \
        grafana_admin_password otlp_token; do
        if [ ! -s "$folder/$name" ]; then
            # 32 random bytes, without a newline: the collector takes the file as it is.
            head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/$name"
            chmod 444 "$folder/$name"
        fi
    done
    users=$(cat "$here/clickhouse/users.d/gaia.xml")
    for name in clickhouse_admin_password clickhouse_writer_password clickhouse_reader_password; do
        hash=$(sha256_of "$folder/$name")
        users=${users//@$name@/$hash}
    done
    rm -f "$folder/clickhouse-users.xml"
    printf '%s\n' "$users" > "$folder/clickhouse-users.xml"
    chmod 444 "$folder/clickhouse-users.xml"
}

sha256_of() {
    if command -v sha256sum >/dev/null; then sha256sum "$1"; else shasum -a 256 "$1"; fi |
        cut -d' ' -f1
}
