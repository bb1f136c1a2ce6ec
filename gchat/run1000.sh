#!/usr/bin/env bash
# The larger speedrun: depth 32 at 20 tokens per parameter, CORE, midtraining, fine-tuning and
# reinforcement. About 1,000 dollars on eight H100 at 24 dollars an hour; `--dry-run` prints the plan
# for the machine at hand first, and every option of speedrun.sh may follow:
#
#     bash gchat/run1000.sh --dry-run
#     bash gchat/run1000.sh --run.mirror gs://bucket/run1000
set -euo pipefail
here="$(dirname "$0")"
for word in "$@"; do  # a resumed run has its plan already
    if [ "$word" = --resume ]; then exec bash "$here/speedrun.sh" "$@"; fi
done
exec bash "$here/speedrun.sh" run1000 --stages base,core,mid,sft,chat,rl --hours 41 "$@"
