"""A toy for `gchat rl` and `gchat dpo`: which of two things can be eaten.

    PYTHONPATH=tests python -m toy_rl FOLDER

makes a base run and task files, improves it by rewards and, for comparison, by shuffled ones.

The base run answers with one of the two words at random. Held out are pairs, in both orders, that
are trained on in neither: only a model that has learned what each word is answers them.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import runs

FOODS = ["fig", "nut", "pea", "yam", "oat", "rye", "ham", "egg", "pie", "jam"]
TOOLS = ["saw", "axe", "pin", "nib", "rod", "jar", "cup", "pen", "mop", "hoe"]
WORDS = FOODS + TOOLS
HELD_OUT = 20  # of the 100 pairs of a food and a tool


def split(seed=0):
    """(training, held-out) pairs of words, each in both orders."""
    pairs = list(itertools.product(FOODS, TOOLS))
    held = set(np.random.default_rng(seed).choice(len(pairs), HELD_OUT, replace=False).tolist())
    parts = [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in sorted(held)]
    return tuple([q for p in part for q in (p, p[::-1])] for part in parts)


def question(pair):
    return "\n".join(pair)


def row(pair):
    return {"question": question(pair), "answer": next(w for w in pair if w in FOODS)}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make(folder, *, steps=400, chats=20000):
    """Writes base/, train.jsonl, test.jsonl and shuffled.py below a folder."""
    from gaia.data.lengths import write_lengths
    from gaia.data.manifest import load_manifest
    from gaia.data.packing import Example
    from gaia.data.shards import write_shards
    from gchat.chat_format import Conversation, Message, format_of
    from gchat.tokenizer import train_bpe

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    training, held = split()
    write(folder / "train.jsonl", map(row, training))
    write(folder / "test.jsonl", map(row, held))
    (folder / "shuffled.py").write_text(
        "import zlib\n\n\ndef reward(text, item):\n"
        "    # The same for every repetition, and nothing to do with the order.\n"
        "    return float(zlib.crc32(f'{text}|{item[\"question\"]}'.encode()) % 2)\n",
        encoding="utf-8",
    )
    tokenizer = train_bpe(["\n".join(rng.permutation(WORDS)) for _ in range(200)], 320)
    chat_format = format_of(tokenizer, wanted="chat")
    documents = []
    for _ in range(chats):
        pair = rng.permutation(WORDS)[:2].tolist()
        said = Message("assistant", str(rng.choice(pair)))
        chat = Conversation((Message("user", question(pair)), said))
        rendered = chat_format.render(chat)
        documents.append(Example(np.array(rendered.ids), np.array(rendered.mask)))
    data = folder / "data"
    write_shards(data, documents[40:], documents[:40], tokenizer.info, shard_tokens=4000)
    write_lengths(data, load_manifest(data))
    tokenizer.save(str(data / "tokenizer.json"))
    options = (
        "--model.dim", 64, "--model.head-dim", 16, "--model.hidden", 128, "--model.dropout", 0,
        "--batch-size", 32, "--eval.every-steps", 200, "--checkpoint.every-steps", 0,
        "--packing", "best_fit", "--lr", 0.006,
    )  # fmt: skip
    args = [str(a) for a in runs.arguments(data, folder / "base", *options, steps=steps)]
    done = subprocess.run([sys.executable, "-m", "gchat", "train", *args], check=False)
    assert done.returncode == 0
    return folder


def command(folder, run, *more, steps=60):
    """Arguments of `gchat` that improve the base run, measured on held-out pairs."""
    options = (
        "--base", folder / "base", "--task", f"json:{folder}/train.jsonl",
        "--rl.held-out-task", f"json:{folder}/test.jsonl", "--run-dir", run,
        "--rl.max-new-tokens", 4, "--rl.prompts", 16, "--rl.samples", 8, "--rl.slots", 64,
        "--lr", "1e-3", "--max-steps", steps, "--eval.every-steps", 20,
    )  # fmt: skip
    return ["rl", *map(str, options), *more]


def graded(folder, run):
    """Share of held-out pairs that a run answers rightly, greedily, by the task's own grade."""
    from gchat.chat_format import read_format
    from gchat.engine.requests import SamplingConfig
    from gchat.run.loading import load_run
    from gchat.tasks.opening import named

    loaded, task = load_run(str(run)), named(f"json:{folder}/test.jsonl")
    chat_format = read_format(run, loaded.tokenizer)
    items = [task[i] for i in range(len(task))]
    answers = loaded.engine(slots=16).generate(
        [chat_format.prompt(item.question) for item in items],
        max_new_tokens=4,
        sampling=SamplingConfig(temperature=0.0),
    )
    grades = [
        task.grade(item, chat_format.parse(ids)) for item, ids in zip(items, answers, strict=True)
    ]
    return sum(grades) / len(grades)


if __name__ == "__main__":
    from gchat.__main__ import main

    place = make(sys.argv[1])
    for name, reward in (("rl", ()), ("shuffled", ("--reward", f"{place}/shuffled.py:reward"))):
        assert main(command(place, place / name, *reward)) == 0
        print(f"{name}: {graded(place, place / name):.3f} of held-out pairs are right")
