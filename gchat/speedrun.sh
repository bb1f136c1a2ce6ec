#!/usr/bin/env bash
# From text to a model to chat with, in one command, on whatever this machine is:
#
#     bash gchat/speedrun.sh                         # CPU: ~9 minutes; TPU or GPU: --hours 3
#     bash gchat/speedrun.sh --stages base           # the trainer alone; --stages base,mid,sft,chat,rl
#     bash gchat/speedrun.sh --dry-run               # print the plan, train nothing
#     bash gchat/speedrun.sh --resume                # go on where the last run stopped
#     bash gchat/speedrun.sh gchat/configs/my_run.yaml --training.steps 200
#
# Sets up .venv from the committed locks, then: corpus -> tokenizer -> shards -> base -> midtraining
# -> fine-tuning -> ChatCORE -> answers -> runs/NAME/report.md. `--help` lists every option.
set -euo pipefail
cd "$(dirname "$0")/.."
. requirements/venv.sh

# The lock decides which JAX is installed, so the hardware is asked before JAX exists.
gaia_venv "$(gaia_platform)"
exec .venv/bin/python -m gchat speedrun "$@"
