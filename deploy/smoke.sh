#!/usr/bin/env bash
# Starts the whole stack, logs a run through gaia_metrics, and looks for it in Grafana's API.
# Needs docker with compose, curl, and a Python with gaia installed (PYTHON=…). With --dry-run it
# checks what it needs, shows what up.sh would do, and starts nothing.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-../.venv/bin/python}
dry=${1:-}
if [ -n "$dry" ] && [ "$dry" != --dry-run ]; then
    echo "smoke.sh: unknown option $dry; it takes --dry-run only" >&2
    exit 2
fi
for need in curl "$python"; do
    if ! command -v "$need" >/dev/null; then
        echo "smoke.sh: $need is not there; install it, or set PYTHON" >&2
        exit 2
    fi
done
# shellcheck source=settings.sh
. ./settings.sh
domain=$(saved .env GAIA_DOMAIN localhost)
if [ "$domain" != localhost ]; then
    echo "smoke.sh: this stack serves $domain, which a try on localhost would take off the net;" \
        "use another checkout on another machine" >&2
    exit 2
fi
PYTHONPATH=.. "$python" -c 'import gaia_metrics'
./up.sh --domain localhost ${dry:+"$dry"}
if [ -n "$dry" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OTEL_EXPORTER_OTLP_ENDPOINT=https://localhost:4318
export OTEL_EXPORTER_OTLP_CERTIFICATE=$PWD/secrets/ca.pem
OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20$(cat secrets/otlp_token)"
export OTEL_EXPORTER_OTLP_HEADERS
run=$(PYTHONPATH=.. "$python" - "$work/run" <<'PYTHON'
import sys

import gaia_metrics

run = gaia_metrics.init("smoke", "smoke", {"a": 1}, dir=sys.argv[1])
for step in range(100):
    run.log(step, {"train/loss": 100.0 - step})
run.finish()
print(run.id)
PYTHON
)
echo "logged $run; asking Grafana for it"
cat > "$work/query.json" <<JSON
{"from": "now-1h", "to": "now", "queries": [{"refId": "A", "format": 1, "queryType": "table",
 "editorType": "sql",
 "datasource": {"type": "grafana-clickhouse-datasource", "uid": "gaia-clickhouse"},
 "rawSql": "SELECT count() AS n, min(value) AS least FROM gaia.metrics WHERE run_id = '$run'"}]}
JSON
# The password goes through a file, not through the arguments.
printf 'user = "admin:%s"\n' "$(cat secrets/grafana_admin_password)" > "$work/curl"
for _ in $(seq 60); do
    answer=$(curl --silent --config "$work/curl" --cacert secrets/ca.pem \
        --header 'content-type: application/json' --data @"$work/query.json" \
        https://localhost/api/ds/query || true)
    if printf '%s' "$answer" | "$python" -c '
import json, sys
values = json.load(sys.stdin)["results"]["A"]["frames"][0]["data"]["values"]
sys.exit(not (float(values[0][0]) == 100 and float(values[1][0]) == 1))' 2>/dev/null; then
        echo "ok: Grafana shows the 100 points of $run"
        exit 0
    fi
    sleep 2
done
echo "smoke.sh: the points did not appear in Grafana; its last answer: $answer" >&2
exit 1
