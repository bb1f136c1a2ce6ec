"""A tiny model learns facts from binary choices in both orders, and places from those in one order.

Made-up armies and generals, so that nothing can be known from elsewhere. Each fact is told several
times, in other company, and so is offered beside several wrong generals; of those, some pairs are
held out. Where each fact has one wrong name only, who learns the pairs by heart needs no fact.
"""

import json
import random
import zlib

import pytest

from gchat.__main__ import main
from gchat.evals.counts import Count
from gchat.synth import contrasts

ARMIES, TOLD = 160, 8
_FIRST = tuple("AnBoCaDuElFiGoHuIsJaKaLoMiNeOsPa"[i : i + 2] for i in range(0, 32, 2))
_LAST = ("bel", "dor", "fan", "gar", "hin", "jul", "kel", "lom", "min", "nor")
NAMES = [f"General {a}{b}" for a in _FIRST for b in _LAST]

_RECORDS = ("--kinds", "contrast", "--heldout", "0", "--heldout-styles", "0", "--pairs", "32")
# One table for input and output makes names easy to copy, and so the place easy to learn.
_TRAINING = ("--max-steps", "200", "--training.batch-size", "16", "--model.seq-len", "128",
             "--model.depth", "2", "--model.aspect-ratio", "64", "--model.tied",
             "--optim.head-lr", "0.02", "--data.packing", "best_fit",
             "--eval.every-steps", "200")  # fmt: skip


def corpus(path):
    """Sentences on who commanded which army, eight to an article, each in `TOLD` articles."""
    general = dict(enumerate(random.Random(1).sample(NAMES, ARMIES), 100))
    articles = []
    for seed in range(TOLD):
        order = random.Random(seed).sample(sorted(general), ARMIES)
        for start in range(0, ARMIES, 8):
            lines = [f"{general[n]} commanded the army with number {n} at that time of the war."
                     for n in order[start : start + 8]]  # fmt: skip
            articles.append({"title": f"Front {seed} {start}", "text": "\n".join(lines)})
    path.write_text("\n".join(map(json.dumps, articles)))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_held_out(record):
    """True for a sixth of the pairs of names, in whatever order and phrasing."""
    return zlib.crc32(" ".join(sorted(record["choices"])).encode()) % 6 == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, training records, one held-out pair for each fact that has one, in both orders)."""
    folder = tmp_path_factory.mktemp("contrast")
    corpus(folder / "armies.jsonl")
    words = ["synth", "generate", str(folder / "armies.jsonl"), "--out", str(folder / "records")]
    assert main([*words, *_RECORDS]) == 0
    records = [r for r in rows(folder / "records" / "train.jsonl") if r["right"] in NAMES]
    held = {(r["right"], r["order"]): r for r in records if is_held_out(r)}
    return folder, [r for r in records if not is_held_out(r)], list(held.values())


def accuracy(folder, name, trained, held):
    """Held-out choices that a model trained on these records gets right, by their order."""
    here = folder / name
    here.mkdir()
    pairs = [{"question": r["question"], "answer": r["answer"]} for r in trained]
    random.Random(0).shuffle(pairs)
    (here / "train.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    text = [{"text": f"{r['question']} {r['answer']}"} for r in trained]
    (here / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    (here / "terms.txt").write_text("\n".join(n.split()[1] for n in NAMES))
    tokenizer, data, run = here / "tokenizer.json", here / "data", here / "run"
    words = ["tokenizer", "train", "--input", str(here / "text.jsonl"), "--out", str(tokenizer)]
    more = ["--vocab-size", "1400", "--digits", "1", "--forced-terms", str(here / "terms.txt")]
    assert main([*words, *more]) == 0
    words = ["data", "chat", str(here / "train.jsonl"), "--out", str(data), "--workers", "1"]
    assert main([*words, "--tokenizer", str(tokenizer), "--seq-len", "128"]) == 0
    words = ["train", "cpu", "--data-dir", str(data), "--run-dir", str(run)]
    assert main([*words, *_TRAINING]) == 0
    asked = [{"messages": [{"role": "user", "content": r["question"]}]} for r in held]
    (here / "asked.jsonl").write_text("\n".join(map(json.dumps, asked)))
    words = ["generate", str(here / "asked.jsonl"), str(here / "answers.jsonl"), "--run", str(run)]
    assert main([*words, "--temperature", "0", "--format", "chat", "--max-tokens", "32"]) == 0
    answers = [r["text"] for r in rows(here / "answers.jsonl")]
    counted = {}
    for order in contrasts.ORDERS:
        hits = [r["right"] in answer for r, answer in zip(held, answers, strict=True)
                if r["order"] == order]  # fmt: skip
        counted[order] = Count(sum(hits), len(hits))
        print(f"{name}, {order}: {counted[order]}, 95% {counted[order].interval}")
    return counted


@pytest.mark.slow
def test_both_orders_teach_the_fact_and_one_order_teaches_the_place(made):
    folder, trained, held = made
    assert len(held) >= 160
    assert contrasts.balance(held)["right-first"] * 2 == len(held)
    balanced = accuracy(folder, "balanced", trained, held)
    for order, counted in balanced.items():
        assert counted.interval.low > 0.5, (order, counted)
    one_order = [r for r in trained if r["order"] == "right-first"]
    unbalanced = accuracy(folder, "unbalanced", one_order, held)
    assert unbalanced["wrong-first"].interval.low <= 0.5, unbalanced
    assert unbalanced["wrong-first"].interval.high < 0.5 < unbalanced["right-first"].interval.low
