#!/usr/bin/env bash
# The static checks: all, or those named (ruff, imports, types, shell). tests/run.sh and
# .pre-commit-config.yaml run them from here.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

for check in "${@:-all}"; do
    case $check in
    all) "$0" ruff imports types shell ;;
    ruff)
        ruff check --quiet .
        ruff format --check --quiet .
        ;;
    # Its report of kept contracts is long; only a broken one is worth reading.
    imports) lint-imports --no-cache >/dev/null || lint-imports --no-cache ;;
    types) basedpyright --level error ;;
    shell) git ls-files '*.sh' .ci/run | xargs shellcheck --severity=warning ;;
    *)
        echo "tests/static.sh: no check is named '$check'; use ruff, imports, types or shell" >&2
        exit 2
        ;;
    esac
done
