#!/usr/bin/env bash
# The test suite: static checks, then tests on three processes.
#
#     bash tests/run.sh                  # the default suite
#     bash tests/run.sh --slow           # the slow members of each family too
#     bash tests/run.sh tests/gaia -k attention        # any further arguments go to pytest
#     XLA_FLAGS= bash tests/run.sh       # XLA's own code generation, not the one that compiles fast
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=()
locks=(test)
marker="not slow" limit=600  # the longest default test takes two minutes
for argument in "$@"; do
    if [ "$argument" = --slow ]; then
        marker="" limit=3600 locks=(test slow smollm2)
    else
        arguments+=("$argument")
    fi
done

. requirements/venv.sh
gaia_venv "${locks[@]}"
# Every tool below lives in .venv; tests that start `gchat` or `gml` find them there as well.
PATH="$PWD/.venv/bin:$PATH"
export PATH
[ ! -f tests/system_packages.sh ] || bash tests/system_packages.sh

set_up=$SECONDS

# Kept bytecode: else each worker rewrites the assertions of all test files before its first test,
# and each command that a test starts compiles our packages. The static checks leave a core for it.
unset PYTHONDONTWRITEBYTECODE
if [ ${#arguments[@]} -eq 0 ]; then
    python -m pytest --collect-only -q >/dev/null 2>&1 &
    bash tests/static.sh
    wait "$!" || true  # what is wrong there is said below
fi
# loadscope keeps a module on one worker, so what a module compiles once is compiled once; modules
# are begun in the order of conftest.py. A third worker uses the time in which others wait.
# A test that waits for ever fails after `limit` seconds and says where it waited (time_limit.py).
began=$SECONDS status=0
export GAIA_TEST_LIMIT_S=$limit
python -m pytest -n 3 --dist loadscope --no-loadscope-reorder -m "$marker" \
    -o faulthandler_timeout=$((2 * limit)) -o faulthandler_exit_on_timeout=true \
    ${arguments[@]+"${arguments[@]}"} || status=$?
printf 'time: set-up %d s, static checks %d s, pytest %d s\n' \
    "$set_up" $((began - set_up)) $((SECONDS - began))
exit "$status"
