# Sourced after secrets.sh, by up.sh, smoke.sh and k8s/install.sh.
# shellcheck shell=bash

# saved FILE NAME DEFAULT: what NAME was set to by the last run that wrote FILE.
saved() {
    local value=""
    if [ -f "$1" ]; then value=$(sed -n "s/^$2=//p" "$1"); fi
    printf '%s\n' "${value:-$3}"
}

# files_hash PATH…: one word that changes with the files there; absent ones count as nothing. As a
# label or annotation it has the containers made anew that read those files only when they start.
files_hash() {
    { find "$@" -type f 2>/dev/null || true; } | LC_ALL=C sort | while IFS= read -r file; do
        printf '%s\n' "${file##*/}"
        cat "$file"
    done | sha256_of /dev/stdin | sed 's/^\(.\{16\}\).*/sha256-\1/'
}

# Checks what up.sh and install.sh were given: check_settings PROGRAM DOMAIN KEEP_DAYS.
check_settings() {
    if [[ ! $2 =~ ^[A-Za-z0-9.-]+$ ]]; then
        echo "$1: --domain $2 is no host name; give a name such as metrics.example.org" >&2
        exit 2
    fi
    if [[ ! $3 =~ ^[0-9]{0,5}$ ]]; then
        echo "$1: --keep-days $3 is no number of days; give one such as 400, or 0" >&2
        exit 2
    fi
}
