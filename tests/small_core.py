"""A bundle of CORE's shape with made-up items, small enough to evaluate in a second."""

import json

import numpy as np

import runs
from gchat.evals.core.tasks import TASKS

# Choices of the published items of each task (language identification: 4 of 11 languages).
CHOICES = {"copa": 2, "piqa": 2, "boolq": 2, "agi_eval_lsat_ar": 4}
FIXED = {"boolq": ["no", "yes"], "commonsense_qa": ["A", "B", "C", "D"]}


def words(rng, low, high):
    return " ".join(rng.choice(runs.TEXT.split(), size=rng.integers(low, high)))


def make_item(task, rng):
    if task.kind == "language_modeling":
        return {"context": words(rng, 3, 9) + " \n"[: rng.integers(0, 3)], "continuation": "every"}
    count = 2 if task.kind == "schema" else CHOICES.get(task.name, 4)
    gold = int(rng.integers(count))
    if task.kind == "schema":
        start = words(rng, 3, 7)
        options = [f"{start} {words(rng, 1, 3)}" for _ in range(count)]
        return {"context_options": options, "continuation": words(rng, 2, 5), "gold": gold}
    choices = FIXED.get(task.name) or [words(rng, 1, 6) for _ in range(count)]
    if rng.random() < 0.2:  # one begins as another does, and in the tokens too
        choices = [*choices[:-1], choices[0] + " " + words(rng, 1, 3)]
    return {"query": words(rng, 4, 12), "choices": choices, "gold": gold}


def write(folder, items=12, seed=0, names=None):
    """Files of the tasks, or of those named, below folder/eval_data."""
    for task in TASKS:
        if names is not None and task.name not in names:
            continue
        rng = np.random.default_rng([seed, *task.name.encode()])
        path = folder / "eval_data" / f"{task.file}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(make_item(task, rng)) + "\n" for _ in range(items)))
    return folder
