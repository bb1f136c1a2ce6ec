"""`gchat sft`: fine-tunes a run on conversations, of which the answers are learned."""

from collections.abc import Sequence
from typing import Any

from gchat.posttrain import start
from gchat.posttrain.data import conversations
from gchat.posttrain.supervised import supervised

VERB = start.Verb(
    "sft",
    "gchat sft",
    """Fine-tune a run on conversations, of which the answers are learned.

    gchat sft --base runs/cpu --data chats.jsonl --epochs 3 --lr 1e-5

--data takes .jsonl files (messages, prompt and completion, instruction and response), folders of
them, prepared data sets, and names of tasks; @N behind one takes it N times. What is not given is
the base run's. --resume continues the run in --run-dir; --allow-unfinished begins with a base run
that has not reached its last step. All fields of the trainer:""",
    stage=supervised,
    data=conversations,
    defaults={"optim": {"schedule": "wsd", "decay_fraction": 1.0, "final_lr_fraction": 0.0}},
    lr_share=0.1,
)


def run(args: Sequence[str]) -> dict[str, Any]:
    """Runs `gchat sft` with these arguments; returns the summary."""
    return start.run(VERB, args)
