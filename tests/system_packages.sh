#!/usr/bin/env bash
# Debian packages that some tests use: a browser for pages, sshd and rsync for machines. What is
# missing is installed where that can be done (root, apt); else the tests that need it skip.
set -euo pipefail
packages=(
    chromium
    git
    openssh-client
    openssh-server
    rsync
)
missing=()
for package in "${packages[@]}"; do
    dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q >&2 || true
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -q --no-install-recommends \
        "${missing[@]}" >&2 || echo "could not install: ${missing[*]}; their tests are skipped" >&2
else
    echo "not installed: ${missing[*]}; their tests are skipped" >&2
fi
