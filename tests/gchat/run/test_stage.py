"""A second stage on the loop: the one that docs/adding-a-stage.md shows, taken from that page."""

import random
import re
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

import runs
from gaia.data.lengths import write_lengths
from gaia.data.manifest import load_manifest
from gaia.data.packing import Example
from gaia.data.shards import write_shards
from gchat.__main__ import main
from gchat.tokenizer import Tokenizer

PAGE = Path(__file__).parents[3] / "docs/adding-a-stage.md"
STEPS = 24


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The page's code as the file it says it is."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path_factory.mktemp("stage") / "finetune.py"
    path.write_text(code, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def chats(data_dir, tmp_path_factory):
    """Shards of which every third word is learned, in the base run's vocabulary."""
    folder = tmp_path_factory.mktemp("chats")
    tokenizer, rng = Tokenizer.load(str(data_dir)), np.random.default_rng(3)
    examples = []
    for _ in range(60):
        words = rng.choice(runs.TEXT.split(), size=rng.integers(10, 30))
        ids = np.array([tokenizer.bos_id, *tokenizer.encode(" ".join(words))])
        examples.append(Example(ids, np.arange(len(ids)) % 3 == 2))
    write_shards(folder, examples[5:], examples[:5], tokenizer.info, shard_tokens=500)
    write_lengths(folder, load_manifest(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(data_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "run"
    assert main(["train", *runs.arguments(data_dir, folder, steps=60)]) == 0
    return folder


def test_it_resumes_bit_for_bit_after_kill_9(program, base, chats, tmp_path, user_environment):
    def start(folder, *more):
        options = ("--packing", "best_fit", "--checkpoint.every-steps", "5", *more)
        args = runs.arguments(chats, folder, *options, steps=STEPS)
        return runs.Process([sys.executable, program, base, *args], user_environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).end() == 0
    process = start(killed)
    assert process.step_reached(random.randint(12, 20)), process.text
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    resumed = start(killed, "--resume")
    assert resumed.end() == 0, resumed.text
    assert "resumed from step" in resumed.text
    expected, final = runs.arrays(whole, STEPS), runs.arrays(killed, STEPS)
    assert all((expected[path] == array).all() for path, array in final.items())
    assert runs.losses(whole) == runs.losses(killed)
    assert list(runs.losses(killed)) == list(range(1, STEPS + 1))
    # It began where the base ended: far below the loss of a model that has learned nothing.
    assert runs.losses(whole)[1] < 0.9 * runs.losses(base)[1]


def test_only_masked_targets_are_learned(base, chats):
    """A third of the places has a target: the share that the log calls data/fill."""
    from gaia.data.loader import make_loader

    with make_loader(chats, seq_len=32, batch_size=4, seed=0, packing="best_fit") as loader:
        batch = next(loader)
    learned = (batch.targets_BT >= 0).sum() / (batch.segments_BT > 0).sum()
    assert 0.25 < learned < 0.4
