#!/usr/bin/env bash
# Makes a certificate that signs itself, where there is none, so that nginx can start before certbot
# has been able to ask for a real one:
#     bash certificate.sh /etc/letsencrypt chat.example.org
set -euo pipefail
folder=${1:?"usage: certificate.sh FOLDER DOMAIN"}
domain=${2:?"usage: certificate.sh FOLDER DOMAIN"}
[[ $domain =~ ^[A-Za-z0-9.-]+$ ]] || { echo "certificate.sh: $domain is no domain" >&2; exit 2; }
live=$folder/live/$domain
if [ -e "$live/fullchain.pem" ]; then
    echo "$live holds a certificate already; it stays"
    exit 0
fi
mkdir -p "$live"
umask 077
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 \
    -subj "/CN=$domain" -addext "subjectAltName=DNS:$domain" \
    -keyout "$live/privkey.pem" -out "$live/fullchain.pem" 2>/dev/null
echo "$live holds a certificate for 30 days, which browsers warn of; certbot's comes next"
