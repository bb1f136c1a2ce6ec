"""Helpers of the whole-process tests: a run that takes a second, started as a user starts it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

STEPS = 160
SAVE_EVERY = 20

TEXT = (
    "the a small model reads and writes text one token at time because every byte counts so that "
    "loss falls while steps go on over data from many old books with simple words in plain order"
)


def make_data(folder, *, vocab_size, documents=120, seed=0):
    from gaia.data.shards import write_shards
    from gchat.tokenizer import train_bpe

    rng = np.random.default_rng(seed)
    texts = [
        " ".join(rng.choice(TEXT.split(), size=rng.integers(20, 90))) for _ in range(documents)
    ]
    tokenizer = train_bpe(texts, vocab_size)
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(text)]) for text in texts]
    write_shards(folder, ids[10:], ids[:10], tokenizer.info, shard_tokens=2000)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def arguments(data_dir, run_dir, *more, steps=STEPS, prompts=()):
    """A tiny model with dropout, evaluation and checkpoints on the way.

    Without prompts no evaluation writes samples, and no process has to compile the engine.
    """
    options = {
        "--data-dir": data_dir,
        "--run-dir": run_dir,
        "--model.depth": 2,
        "--model.dim": 32,
        "--model.head-dim": 16,
        "--model.hidden": 64,
        "--model.seq-len": 32,
        "--model.compute-dtype": "float32",
        "--model.dropout": 0.1,
        "--batch-size": 4,
        "--max-steps": steps,
        "--warmup": 5,
        "--log-interval": 1,
        "--lr": 0.003,
        "--checkpoint.every-steps": SAVE_EVERY,
        "--checkpoint.every-minutes": 0,
        "--eval.every-steps": 50,
        "--eval.tokens": 400,
        "--eval.sample-tokens": 4,
    }
    pairs = [x for pair in options.items() for x in pair]  # the data's folder comes first
    return [str(x) for x in (*pairs[:2], "--eval.prompts", *prompts, *pairs[2:], *more)]


class Process:
    """A command whose output is read line by line."""

    def __init__(self, command, environment):
        if isinstance(command, str):
            words = shlex.split(command)
            assert words[0] == "python"
            command = [sys.executable, *words[1:]]
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines = []

    @classmethod
    def recorded(cls, record, args, environment):
        """Training that notes in the file `record` which rows it takes."""
        script = Path(__file__).with_name("recorded_train.py")
        return cls([sys.executable, script, str(record), *args], environment)

    @classmethod
    def train(cls, args, environment):
        return cls([sys.executable, "-m", "gchat.train", *args], environment)

    def step_reached(self, step):
        """Reads until the given step was printed; False if the process ended before."""
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("step ") and int(line.split()[1].split("/")[0].rstrip(":")) >= step:
                return True
        return False

    def signal(self, number):
        self._process.send_signal(number)

    def end(self):
        """Reads the rest; returns the exit status."""
        with self._process.stdout as output:
            self.lines += output.read().splitlines()
        return self._process.wait()

    @property
    def pid(self):
        return self._process.pid

    @property
    def text(self):
        return "\n".join(self.lines)


def logged(run_dir):
    """metrics.jsonl as a list of records."""
    return [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir):
    return {r["step"]: r["train/loss"] for r in logged(run_dir) if "train/loss" in r}


def newest(run_dir):
    """Folder of the newest checkpoint that is in place, or None."""
    steps = [p for p in (Path(run_dir) / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, key=lambda p: int(p.name), default=None)


def arrays(run_dir, step=STEPS, checkpoint_dir=None):
    """Every array of a checkpoint, by path."""
    import jax

    from gaia import parallel
    from gaia.checkpoint import Checkpointer
    from gchat.run.folder import read_config
    from gchat.train_state import init_state

    config = read_config(Path(run_dir))
    state = init_state(config, parallel.make_mesh())
    checkpoints = Checkpointer(checkpoint_dir or str(Path(run_dir) / "checkpoints"))
    assert checkpoints.damage(step) is None
    restored = checkpoints.restore(step, state).state
    checkpoints.close()
    leaves = jax.tree_util.tree_leaves_with_path(restored)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
