#!/usr/bin/env bash
# Debian packages that some tests use; what is missing is installed where that is possible.
set -euo pipefail
packages=(
    chromium
)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q >&2 || true
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        "${missing[@]}" >&2 || echo "could not install: ${missing[*]}; their tests are skipped" >&2
else
    echo "not installed: ${missing[*]}; their tests are skipped" >&2
fi
