#!/usr/bin/env bash
# Starts the stack on this machine: ClickHouse, collector, Grafana, TLS.
#
#     deploy/up.sh                                   # https://localhost, own certificate authority
#     deploy/up.sh --domain metrics.example.org      # a public name: certificate by ACME
#     deploy/up.sh --domain … --public               # anyone may look, without an account
#     deploy/up.sh --no-public                       # nobody may, any more
#     deploy/up.sh --keep-days 400                   # delete values that are older; 0 keeps all
#     deploy/up.sh                                   # again: update; all that was chosen stays
#     deploy/up.sh --down                            # stop; the data stays in its volumes
#     deploy/up.sh … --dry-run                       # say what would be done
set -euo pipefail
cd "$(dirname "$0")"
# shellcheck source=secrets.sh
. ./secrets.sh
# shellcheck source=settings.sh
. ./settings.sh

domain=$(saved .env GAIA_DOMAIN localhost)
public=$(saved .env GAIA_PUBLIC false)
keep=$(saved .env GAIA_KEEP_DAYS "")
dry=false down=false
while [ $# -gt 0 ]; do
    case $1 in
        --domain) domain=${2:?--domain needs a name}; shift 2 ;;
        --public) public=true; shift ;;
        --no-public) public=false; shift ;;
        --keep-days) keep=${2:?--keep-days needs a number}; shift 2 ;;
        --dry-run) dry=true; shift ;;
        --down) down=true; shift ;;
        -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${0##*/}"; exit 0 ;;
        *) echo "up.sh: unknown option $1; see up.sh --help" >&2; exit 2 ;;
    esac
done
check_settings up.sh "$domain" "$keep"
if [ "$dry" = false ] && ! docker compose version >/dev/null 2>&1; then
    echo "up.sh: docker with the compose plugin is needed; install both, then run this again" >&2
    exit 2
fi
if [ "$down" = true ]; then
    if [ "$dry" = true ]; then echo "run: docker compose down"; exit 0; fi
    exec docker compose down
fi
explore=true
if [ "$public" = true ]; then explore=false; fi
# Without a public name the ports are for this machine alone (Docker's rules pass by ufw).
bind=0.0.0.0
if [ "$domain" = localhost ]; then bind=127.0.0.1; fi
settings() {
    printf 'GAIA_DOMAIN=%s\nGAIA_BIND=%s\nGAIA_PUBLIC=%s\nGAIA_EXPLORE=%s\nGAIA_KEEP_DAYS=%s\n' \
        "$domain" "$bind" "$public" "$explore" "$keep"
    printf 'GAIA_CLICKHOUSE_FILES=%s\nGAIA_COLLECTOR_FILES=%s\nGAIA_GRAFANA_FILES=%s\n' \
        "$(files_hash clickhouse/config.d secrets/clickhouse-users.xml)" \
        "$(files_hash collector secrets/otlp_token secrets/clickhouse_writer_password)" \
        "$(files_hash grafana/provisioning secrets/clickhouse_reader_password)"
    printf 'GAIA_CADDY_FILES=%s\n' "$(files_hash caddy)"
}
start=(docker compose up --detach --wait --wait-timeout 300 caddy grafana clickhouse)
if [ "$dry" = true ]; then
    printf 'make what is missing in %s/secrets\nwrite %s/.env:\n%s\nrun: %s\nimages:\n' \
        "$PWD" "$PWD" "$(settings)" "${start[*]}"
    sed -n 's/^  [a-z]*: &[a-z]* \(.*:.*\)/  \1/p' compose.yaml | sort
    exit 0
fi
make_secrets secrets
chosen=$(settings)
printf '%s\n' "$chosen" > .env
"${start[@]}"
if [ "$domain" = localhost ]; then
    docker compose exec -T caddy cat /data/caddy/pki/authorities/local/root.crt > secrets/ca.pem
fi
cat <<TEXT
Grafana:   https://$domain/   user admin, password in $PWD/secrets/grafana_admin_password
Training:  export OTEL_EXPORTER_OTLP_ENDPOINT=https://$domain:4318
           export OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20\$(cat $PWD/secrets/otlp_token)"
TEXT
if [ "$domain" = localhost ]; then
    echo "           export OTEL_EXPORTER_OTLP_CERTIFICATE=$PWD/secrets/ca.pem"
fi
