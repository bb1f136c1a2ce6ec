#!/usr/bin/env bash
# Rewrites the lock files from pyproject.toml: exact versions and hashes for Linux (x86-64, Arm)
# and macOS (Arm), and no index address, so that any mirror serves. Needs uv.
#     bash requirements/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # lock NAME EXTRA...
    local name=$1
    shift
    local extras=()
    for extra in "$@"; do extras+=(--extra "$extra"); done
    uv pip compile pyproject.toml "${extras[@]}" \
        --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --quiet ${UPGRADE:-} \
        ${CONSTRAINT:+--constraint "$CONSTRAINT"} \
        --output-file "requirements/$name.txt"
    echo "requirements/$name.txt: $(grep -c '==' "requirements/$name.txt") packages"
}

UPGRADE=${1:-} lock cpu train
# The others share cpu.txt's versions, so that a model behaves alike everywhere.
export CONSTRAINT=requirements/cpu.txt
lock tpu train tpu gcs
lock cuda train cuda gcs
lock test train aot gcs metrics ui google cluster curate tokenizers wiki dashboard test
