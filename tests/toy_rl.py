"""A toy for `gchat rl` and `gchat dpo`: which of two words comes later in a made-up order.

    PYTHONPATH=tests python -m toy_rl FOLDER        (makes the base run and the task files)

The base run answers with one of the two words at random. Held out are pairs of words, in both
orders, none of which is trained on in either: only a model that has learned the order answers them.
"""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import runs

WORDS = ["fox", "owl", "elk", "bee", "cat", "hen", "ape", "ray", "cow", "emu", "gnu", "yak"]
"""In an order that nothing of the words tells."""
HELD_OUT = 12  # unordered pairs


def split(seed=0):
    """(training, held-out) ordered pairs of places of words."""
    pairs = list(itertools.combinations(range(len(WORDS)), 2))
    # Neighbours are only learned from one another: they stay in training.
    far = [p for p in pairs if p[1] - p[0] > 1]
    picked = np.random.default_rng(seed).choice(len(far), HELD_OUT, replace=False)
    held = {far[i] for i in picked}
    both = [p for pair in pairs for p in (pair, pair[::-1])]
    return [p for p in both if tuple(sorted(p)) not in held], [
        p for p in both if tuple(sorted(p)) in held
    ]


def question(pair):
    return f"{WORDS[pair[0]]} {WORDS[pair[1]]}"


def row(pair, *, answer=None):
    return {"question": question(pair), "answer": answer or WORDS[max(pair)]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make(folder, *, steps=300, chats=6000):
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
    tokenizer = train_bpe([" ".join(rng.permutation(WORDS)) for _ in range(200)], 320)
    chat_format = format_of(tokenizer, wanted="chat")
    documents = []
    for _ in range(chats):
        pair = rng.permutation(len(WORDS))[:2]
        said = Message("assistant", WORDS[rng.choice(pair)])
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
        "--packing", "best_fit",
    )  # fmt: skip
    args = [str(a) for a in runs.arguments(data, folder / "base", *options, steps=steps)]
    done = subprocess.run([sys.executable, "-m", "gchat", "train", *args], check=False)
    assert done.returncode == 0
    return folder


if __name__ == "__main__":
    make(sys.argv[1])
