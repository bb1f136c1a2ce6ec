"""`gchat rl`: answers are sampled, rewarded, and made more or less likely, step by step.

A step takes `rl.prompts` items of a task, draws `rl.samples` answers to each from the parameters it
is about to change, grades them, and makes `rl.passes` updates with the policy gradient
(`gchat.posttrain.policy`). All of it is a function of (seed, step, parameters): a resumed run
repeats what it would have done.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.chat_format import ChatFormat
from gchat.config import TrainConfig
from gchat.posttrain import start
from gchat.posttrain.chat_curve import chat_curve
from gchat.posttrain.improve import Policy
from gchat.posttrain.rewards import FunctionRewards, Rewards, TaskRewards
from gchat.run.loop import Stage
from gchat.tasks.opening import JSON, named, origin
from gchat.tasks.task import Item, Task

_ROW = 128  # rows are a multiple of this long


def fitting(task: Task, chat_format: ChatFormat, config: TrainConfig) -> tuple[list[int], int]:
    """Places of the items whose prompt leaves room for an answer, and the longest prompt's tokens.

    Raises:
        ConfigError: none does.
    """
    limit = config.model.seq_len - config.rl.max_new_tokens
    sizes = [len(chat_format.prompt(task[i].question)) for i in range(len(task))]
    items = [i for i, size in enumerate(sizes) if size <= limit]
    if not items:
        raise ConfigError(
            f"no prompt of {task.name} leaves room for rl.max_new_tokens "
            f"{config.rl.max_new_tokens} within model.seq_len {config.model.seq_len} (the shortest "
            f"has {min(sizes)} tokens)",
            "lower --rl.max-new-tokens",
        )
    if len(items) < len(task):
        print(f"{len(task) - len(items)} of {len(task)} prompts are too long, and left out")
    return items, max(sizes[i] for i in items)


def _digest(task: Task, items: Sequence[int]) -> str:
    """Hash of the items that are trained on: what is asked, and what grading compares with."""
    digest = hashlib.sha256()
    for i in items:
        item = task[i]
        facts = (item.question, item.answer, item.choices, item.gold, sorted(item.meta.items()))
        digest.update(f"{item.id} {facts!r}".encode())
    return digest.hexdigest()[:16]


def _held_out(config: TrainConfig) -> Task | None:
    """The task to evaluate on; None where no other items than those of training are known.

    Raises:
        ConfigError: the task that is named has items of training.
    """
    rl = config.rl
    if not rl.held_out:
        return None
    name = rl.held_out_task or str(rl.task)
    # A file has no splits: what is read of it for the test is what is trained on.
    if not origin(name) & origin(str(rl.task), rl.split):
        return named(name, limit=rl.held_out)
    if rl.held_out_task is not None:
        raise ConfigError(
            f"rl.held_out_task {name} reads what rl.task {rl.task} trains on (rl.split {rl.split})",
            "name other files, or add --rl.held-out 0",
        )
    return None


def _whole(name: str | None) -> str | None:
    """A task's name with an absolute path of its source."""
    for mark in ("=", f"{JSON}:"):
        before, there, path = (name or "").partition(mark)
        if there and os.path.exists(path):
            return f"{before}{mark}{os.path.abspath(path)}"
    return name


def _check(config: TrainConfig) -> None:
    """Refuses what cannot work before anything is loaded."""
    rl = config.rl
    if rl.task is None:
        raise ConfigError("rl.task is not set", "add --task gsm8k, spelling, json:FILE, …")
    if rl.samples < 2:
        raise ConfigError(f"rl.samples is {rl.samples}", "use at least 2: a group is compared")
    if rl.temperature == 0:
        raise ConfigError("rl.temperature is 0, which samples nothing", "use a number above 0")
    if config.guards.spike_factor:
        raise ConfigError(
            f"guards.spike_factor is {config.guards.spike_factor}, and the loss of rl has no level",
            "leave it 0",
        )


def prepared(setting: start.Setting) -> start.Prepared:
    """The length of a run: epochs of the task's items to steps of `rl.prompts`."""
    config = setting.config
    _check(config)
    rl = config.rl
    if rl.reward is not None:
        path, colon, name = rl.reward.rpartition(":")
        rl = replace(rl, reward=f"{os.path.abspath(path)}{colon}{name}")
    rl = replace(rl, task=_whole(rl.task), held_out_task=_whole(rl.held_out_task))
    task = named(str(rl.task), rl.split)
    items, _ = fitting(task, setting.format, config)
    if _held_out(replace(config, rl=rl)) is None and rl.held_out:
        print(
            f"no item is held out: {rl.task} has none besides those of training (name some with "
            "--rl.held-out-task)"
        )
    rows, training, stage = rl.prompts * rl.samples, config.training, config.stage
    if "--training.batch-size" in setting.typed and training.batch_size != rows:
        raise ConfigError(
            f"training.batch_size is {training.batch_size}: rl has rl.prompts {rl.prompts} x "
            f"rl.samples {rl.samples} rows",
            "leave it out",
        )
    steps = training.steps
    if steps is None:
        passes = 1 if stage.epochs is None else stage.epochs
        steps = max(1, round(passes * len(items) / rl.prompts))
    epochs = round(steps * rl.prompts / len(items), 4)
    training = replace(
        training, batch_size=rows, steps=steps, grad_accum=math.gcd(rows, training.grad_accum)
    )
    warmup = config.optim.warmup_steps if "--optim.warmup-steps" in setting.typed else 0
    config = replace(
        config,
        rl=rl,
        training=training,
        optim=replace(config.optim, warmup_steps=warmup),
        stage=replace(stage, epochs=epochs),
        data=replace(config.data, fingerprint=_digest(task, items)),
    )
    return start.Prepared(None, True, config)


def stage(started: start.Started) -> Stage:
    """Builds the stage that the loop trains."""
    config, session = started.config, started.session
    _check(config)
    if session.group.count > 1:
        raise ConfigError(
            f"gchat rl runs in one process, not in {session.group.count}", "use one host"
        )
    assert started.format is not None
    rl, task = config.rl, named(str(config.rl.task), config.rl.split)
    items, longest = fitting(task, started.format, config)
    if config.data.fingerprint not in (None, _digest(task, items)):  # older runs have none
        raise DataError(
            f"the items of rl.task {rl.task} are not those that the run began with",
            "put the old ones back, or start a new run",
        )
    room = longest
    length = min(config.model.seq_len, -(-(longest + rl.max_new_tokens) // _ROW) * _ROW)
    rewards: Rewards = TaskRewards(task)
    if rl.reward is not None:
        rewards = FunctionRewards(rl.reward, rl.reward_seconds)
    held_out: list[Item] = []
    their_rewards = rewards
    if test := _held_out(config):
        places, longest_there = fitting(test, started.format, config)
        held_out, room = [test[i] for i in places], max(longest, longest_there)
        if rl.reward is None:  # another task grades its own items
            their_rewards = TaskRewards(test)
    room += rl.max_new_tokens
    improver = Policy(started, task, items, length, room, rewards, (held_out, their_rewards))
    rows, progress = config.training.amounts.batch_size, session.progress
    progress.flops_per_step *= rows * length / progress.tokens_per_step
    progress.tokens_per_step = rows * length
    return Stage(
        mesh=started.mesh,
        init=started.init,
        blank=started.blank,
        update=improver.update,
        batches=improver.prompts,
        evaluate=improver.evaluate,
        sample=improver.sample,
        chat=chat_curve(started),
        stop=improver.stop,
    )


_TRUNCATING = ("--top-k", "--top-p", "--min-p", "--repetition-penalty")

VERB = start.Verb(
    "rl",
    "gchat rl",
    """Improve a run by rewards: sample answers to a task, and make the better ones likelier.

    gchat rl --base runs/sft --task gsm8k --max-steps 100
    gchat rl --base runs/sft --task json:questions.jsonl --reward rewards.py:polite

What is not given is the base run's; learning rates are a twentieth of its. --resume continues the
run in --run-dir. All fields of the trainer:""",
    stage=stage,
    data=prepared,
    defaults={
        "optim": {
            "schedule": "wsd", "decay_fraction": 1.0, "final_lr_fraction": 0.0,
            "weight_decay": 0.0, "embed_weight_decay": 0.0, "matrix_weight_decay": 0.0,
        },
        "eval": {"every_steps": 10, "sample_every": 10},
        "guards": {"spike_factor": 0.0},
    },
    lr_share=0.05,
)  # fmt: skip


def run(args: Sequence[str]) -> dict[str, Any]:
    """Runs `gchat rl` with these arguments; returns the summary.

    Raises:
        ConfigError: an option cuts off what is sampled.
    """
    for word in args:
        option = word.partition("=")[0].replace("_", "-").replace("--rl.", "--")
        if option in _TRUNCATING:
            raise ConfigError(
                f"{option} changes which tokens are sampled, and ratios of probabilities would be "
                "of another distribution than the loss's",
                "leave it out; --rl.temperature is in both",
            )
    return start.run(VERB, args)
