# shellcheck shell=bash
# Sourced, not run: `gaia_venv NAME...` makes .venv hold what each requirements/NAME.txt locks.
# Works with bash 3.2 (macOS). uv installs (a tenth of pip's time): the one on PATH, else the one
# that requirements/uv.txt locks, put into .venv by pip; where no uv can be had, pip does it all.
# Where there is no Python 3.11+ (a TPU VM ships 3.10), uv brings one.

gaia_say() { printf 'gaia: %s\n' "$*" >&2; }

# Prints the name of the lock for this machine's hardware: cuda, tpu or cpu.
gaia_platform() {
    if [ -e /dev/nvidiactl ] || { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }; then
        echo cuda
    elif [ -e /dev/accel0 ] || [ -n "${TPU_ACCELERATOR_TYPE:-}" ] || ls /dev/vfio/[0-9]* >/dev/null 2>&1; then
        echo tpu
    else
        echo cpu
    fi
}

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
    local python
    if command -v uv >/dev/null 2>&1; then
        uv venv --quiet --python '>=3.11,<3.15' .venv
        return
    fi
    if python=$(gaia_python); then
        "$python" -m venv .venv && return
        gaia_say "$python could not make .venv (Debian: apt install python3-venv)"
        rm -rf .venv
    fi
    gaia_say "no Python 3.11+ that makes a venv and no uv here: installing uv with pip"
    python3 -m pip install --quiet --user --require-hashes -r requirements/uv.txt ||
        python3 -m pip install --quiet --user --break-system-packages \
            --require-hashes -r requirements/uv.txt || {
        gaia_say "pip could not install uv; install Python 3.11 or newer, then try again"
        return 2
    }
    PATH="$(python3 -m site --user-base)/bin:$PATH"
    export PATH
    uv venv --quiet --python 3.11 .venv
}

# True where .venv has pip; a venv that uv made gets Python's bundled one.
gaia_pip() {
    .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        .venv/bin/python -m ensurepip >/dev/null 2>&1
}

# Prints the uv to use: the one on PATH, or .venv's own, which pip installs first.
gaia_uv() {
    command -v uv 2>/dev/null && return
    if [ ! -x .venv/bin/uv ]; then
        gaia_pip && .venv/bin/python -m pip install --quiet --disable-pip-version-check \
            --require-hashes -r requirements/uv.txt >/dev/null 2>&1 || return 1
    fi
    printf '%s\n' .venv/bin/uv
}

# gaia_install ARGUMENTS...: `pip install ARGUMENTS` into .venv, by uv where uv works.
gaia_install() {
    local uv index status=0
    if uv=$(gaia_uv); then
        # uv reads none of pip's variables, so a mirror named there is passed on.
        index=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-}}}
        env ${index:+UV_DEFAULT_INDEX="$index"} \
            "$uv" pip install --quiet --python .venv/bin/python "$@" || status=$?
        # Done, or interrupted by a signal, or nothing left to try.
        if [ "$status" = 0 ] || [ "$status" -gt 127 ] || ! gaia_pip; then
            return "$status"
        fi
        gaia_say "uv could not install them (see above); trying pip"
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
}

# Does nothing for a lock that .venv already holds.
gaia_venv() {
    local name lock stamp state
    for name in "$@"; do
        lock="requirements/$name.txt" stamp=".venv/gaia-$name.stamp"
        state=$(cat "$lock" pyproject.toml | cksum)
        if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
            continue
        fi
        [ -x .venv/bin/python ] || gaia_make_venv || return $?
        gaia_say "installing $(grep -c '==' "$lock") pinned packages from $lock into .venv (once)"
        # The lock is whole, or leaves something out on purpose (smollm2.txt), so its packages come
        # alone. The project comes last, editable, so that `gchat` and `gml` are commands. No
        # dependency resolution and no build isolation: nothing but the lock decides versions.
        if ! gaia_install --no-deps --require-hashes -r "$lock" ||
            ! gaia_install --no-deps --no-build-isolation -e .; then
            gaia_say "could not install the packages of $lock; see above, then run this again"
            return 2
        fi
        printf '%s' "$state" >"$stamp"
    done
}
