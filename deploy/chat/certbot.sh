#!/bin/sh
# Asks for the site's certificate, and renews it when a month of it is left. certbot's options follow:
#     bash certbot.sh /etc/letsencrypt chat.example.org --deploy-hook "systemctl reload nginx"
# certificate.sh's own stands aside meanwhile, as certbot writes over no certificate but its own, and
# comes back where certbot fails: without one nginx would not start again.
set -eu
folder=${1:?"usage: certbot.sh FOLDER DOMAIN [OPTION]…"}
domain=${2:?"usage: certbot.sh FOLDER DOMAIN [OPTION]…"}
shift 2
case $domain in
    -* | .* | *[!A-Za-z0-9.-]*) echo "certbot.sh: $domain is no domain" >&2; exit 2 ;;
esac
live=$folder/live/$domain
aside=$folder/signed-by-itself-$domain
if [ -e "$live" ] && [ ! -e "$folder/renewal/$domain.conf" ]; then
    rm -rf "$aside"
    mv "$live" "$aside"
fi
put_back() {
    if [ -d "$aside" ] && [ ! -e "$live/fullchain.pem" ]; then
        rm -rf "$live"
        mv "$aside" "$live"
        echo "certbot.sh: $live holds the certificate that was there before" >&2
    fi
}
trap put_back EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
certbot certonly --webroot -w /var/www/certbot -d "$domain" "$@"
rm -rf "$aside"
