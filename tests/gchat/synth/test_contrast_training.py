"""A tiny model learns facts, not places, from binary choices in both orders; from one order places.

Made-up armies and generals, so that nothing can be known from elsewhere. Held-out pairs offer the
right general beside another wrong one than training does, in phrasings that training lacks.
"""

import json
import random

import pytest

from gchat.__main__ import main
from gchat.evals.counts import Count
from gchat.synth import contrasts

ARMIES = 160
_FIRST = tuple("AnBoCaDuElFiGoHuIsJaKaLoMiNeOsPa"[i : i + 2] for i in range(0, 32, 2))
_LAST = ("bel", "dor", "fan", "gar", "hin", "jul", "kel", "lom", "min", "nor")
NAMES = [f"General {a}{b}" for a in _FIRST for b in _LAST][:ARMIES]

_RECORDS = ("--kinds", "contrast", "--heldout", "0", "--heldout-styles", "0.1", "--pairs", "32")
_TRAINING = ("--max-steps", "160", "--training.batch-size", "16", "--model.seq-len", "128",
             "--model.depth", "2", "--model.aspect-ratio", "64", "--data.packing", "best_fit",
             "--eval.every-steps", "160")  # fmt: skip


def corpus(path):
    """Sentences on who led which army, eight to an article, in an order of their own."""
    order = random.Random(5).sample(range(ARMIES), ARMIES)
    articles = []
    for start in range(0, ARMIES, 8):
        lines = [f"The army number {100 + order[i]} was led by {NAMES[i]} in the war."
                 for i in range(start, start + 8)]  # fmt: skip
        articles.append({"title": f"Front {start}", "text": "\n".join(lines)})
    path.write_text("\n".join(map(json.dumps, articles)))


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(training records, held-out records by order) of choices between generals."""
    folder = tmp_path_factory.mktemp("contrast")
    corpus(folder / "armies.jsonl")
    trained = []
    for seed in range(12):  # each with other phrasings beside the same facts
        out = folder / f"records-{seed}"
        words = ["synth", "generate", str(folder / "armies.jsonl"), "--out", str(out)]
        assert main([*words, *_RECORDS, "--seed", str(seed)]) == 0
        trained += [r for r in rows(out / "train.jsonl") if r["right"] in NAMES]
        held = [r for r in rows(out / "heldout_phrasing.jsonl") if r["right"] in NAMES]
    phrasings = {r["phrasing"] for r in held}
    trained = [r for r in trained if r["phrasing"] not in phrasings]
    known = {frozenset(r["choices"]) for r in trained}
    return folder, trained, [r for r in held if frozenset(r["choices"]) not in known]


def accuracy(folder, name, trained, held):
    """Held-out choices that a model trained on these records gets right, by their order."""
    here = folder / name
    here.mkdir()
    pairs = [{"question": r["question"], "answer": r["answer"]} for r in trained]
    (here / "train.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    text = [{"text": f"{r['question']} {r['answer']}"} for r in trained]
    (here / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    (here / "terms.txt").write_text("\n".join(n.split()[1] for n in NAMES))
    tokenizer, data, run = here / "tokenizer.json", here / "data", here / "run"
    words = ["tokenizer", "train", "--input", str(here / "text.jsonl"), "--out", str(tokenizer)]
    main(
        [*words, "--vocab-size", "1400", "--digits", "3", "--forced-terms", str(here / "terms.txt")]
    )
    words = ["data", "chat", str(here / "train.jsonl"), "--out", str(data), "--workers", "1"]
    main([*words, "--tokenizer", str(tokenizer), "--seq-len", "128"])
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
    assert len(held) >= 80
    balanced = accuracy(folder, "balanced", trained, held)
    for order, counted in balanced.items():
        assert counted.interval.low > 0.5, (order, counted)
    one_order = [r for r in trained if r["order"] == "right-first"]
    unbalanced = accuracy(folder, "unbalanced", one_order, held)
    assert unbalanced["wrong-first"].interval.low <= 0.5, unbalanced
