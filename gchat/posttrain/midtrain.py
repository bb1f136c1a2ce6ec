"""`gchat midtrain`: continues a base run on plain text, or on a mixture of tasks and conversations.

On plain text it is continued pretraining, the baseline of all that adapts a model to a domain. On
conversations it teaches their format before `gchat sft` polishes the answers.
"""

from collections.abc import Sequence
from typing import Any

from gchat.posttrain import start
from gchat.posttrain.data import text_or_conversations
from gchat.posttrain.supervised import supervised

VERB = start.Verb(
    "mid",
    "gchat midtrain",
    """Continue a base run on text, or on a mixture of tasks and conversations.

    gchat midtrain --base runs/cpu --data manual.txt notes.md --epochs 2
    gchat midtrain --base runs/cpu --data smoltalk mmlu@3 gsm8k@4 chats.jsonl --epochs 1

--data takes text (.txt, .md, and .jsonl or .parquet with a field "text": files, folders and globs,
which make one text), or conversations and names of tasks as `gchat sft` does. What is not given is
the base run's. --resume continues the run in --run-dir; --allow-unfinished begins with a base run
that has not reached its last step. All fields of the trainer:""",
    stage=supervised,
    data=text_or_conversations,
    defaults={"optim": {"schedule": "wsd", "decay_fraction": 0.2, "final_lr_fraction": 0.0}},
)


def run(args: Sequence[str]) -> dict[str, Any]:
    """Runs `gchat midtrain` with these arguments; returns the summary."""
    return start.run(VERB, args)
