# shellcheck shell=bash
# Sourced, not run: `gaia_venv NAME` makes .venv hold what requirements/NAME.txt locks.
# Works with bash 3.2 (macOS). Uses uv where it is on PATH, else the standard venv and pip; where
# there is neither uv nor Python 3.11+ (a TPU VM ships 3.10), installs uv, which brings a Python.

gaia_say() { printf 'gaia: %s\n' "$*" >&2; }

# Prints the newest suitable Python on PATH, if any. 3.11 comes first: it is what CI runs.
gaia_python() {
    local python
    for python in python3.11 python3.12 python3.13 python3 python; do
        if command -v "$python" >/dev/null 2>&1 &&
            "$python" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
                2>/dev/null; then
            command -v "$python"
            return 0
        fi
    done
    return 1
}

gaia_make_venv() {
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python '>=3.11,<3.15' .venv
    elif python=$(gaia_python); then
        "$python" -m venv .venv
    else
        gaia_say "no Python 3.11+ and no uv here: installing uv with pip"
        python3 -m pip install --quiet --user uv ||
            python3 -m pip install --quiet --user --break-system-packages uv || {
            gaia_say "pip could not install uv; install Python 3.11 or newer, then try again"
            return 2
        }
        PATH="$(python3 -m site --user-base)/bin:$PATH"
        export PATH
        uv venv --quiet --python 3.11 .venv
    fi
}

# gaia_venv NAME: returns 0 with .venv ready; does nothing where it already holds this lock.
gaia_venv() {
    local lock="requirements/$1.txt" stamp=".venv/gaia-$1.stamp" state
    state=$(cat "$lock" pyproject.toml | cksum)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
        return 0
    fi
    [ -x .venv/bin/python ] || gaia_make_venv || return $?
    gaia_say "installing $(grep -c '==' "$lock") pinned packages from $lock into .venv (once)"
    # The project itself comes last, editable, so that `gchat` and `gml` are commands. No
    # dependency resolution and no build isolation: nothing but the lock decides versions.
    if command -v uv >/dev/null 2>&1; then
        uv pip install --quiet --python .venv/bin/python --require-hashes -r "$lock" &&
            uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
    else
        .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --require-hashes -r "$lock" &&
            .venv/bin/python -m pip install --quiet --disable-pip-version-check \
                --no-deps --no-build-isolation -e .
    fi || {
        gaia_say "could not install the packages of $lock; see above, then run this again"
        return 2
    }
    printf '%s' "$state" >"$stamp"
}
