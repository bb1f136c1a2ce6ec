#!/bin/sh
# Restarts a unit whose /health does not answer: health.sh UNIT PORT. For the health timers in chat/
# and serve/. A unit that is stopped, or that failed for good, is left to whoever looks after it, and
# one younger than GRACE seconds may still be loading its model: a restart would begin that anew.
set -eu
unit=${1:?"usage: health.sh UNIT PORT"}
port=${2:?"usage: health.sh UNIT PORT"}
# A server that loads or drains answers 503, or not at all: three looks, 20 s apart.
for _ in 1 2 3; do
    curl -fsS -o /dev/null --max-time 10 "http://127.0.0.1:$port/health" && exit 0
    sleep 20
done
shown() { systemctl show --property "$1" --value "$unit"; }
state=$(shown ActiveState)
if [ "$state" != active ]; then
    echo "$unit is $state; it stays so"
    exit 0
fi
now=$(cut -d. -f1 /proc/uptime)
age=$((now - $(shown ActiveEnterTimestampMonotonic) / 1000000))
if [ "$age" -lt "${GRACE:-900}" ]; then
    echo "$unit was started $age s ago; it may still be loading"
    exit 0
fi
echo "$unit runs, and does not answer; it is restarted"
# Not `restart`, which would start what somebody has stopped in this moment.
exec systemctl try-restart "$unit"
