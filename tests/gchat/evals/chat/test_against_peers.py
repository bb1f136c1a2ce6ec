"""ChatCORE of SmolLM2 item for item: choices as transformers makes them, grades as plain rules do.

GAIA_TRANSFORMERS=…/bin/python (torch, transformers, gguf)  GAIA_CHAT_ITEMS=50 (of each task)
"""

import gzip
import json
import os
import subprocess
from pathlib import Path

import pytest

import plain_grades
import smollm2
from gchat.__main__ import main
from gchat.tasks.opening import named

PYTHON, ITEMS = os.environ.get("GAIA_TRANSFORMERS"), int(os.environ.get("GAIA_CHAT_ITEMS", "10"))
SHARED = Path(__file__).parents[5] / "shared/data"
WORLD = SHARED / "core/eval_data/world_knowledge"
CHOICES = {
    "arc_easy": WORLD / "arc_easy.jsonl",
    "arc_challenge": WORLD / "arc_challenge.jsonl",
    "mmlu": SHARED / "mmlu",
}
WRITTEN = {"gsm8k": SHARED / "gsm8k", "humaneval": SHARED / "humaneval/HumanEval.jsonl.gz"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(smollm2.path() is None, reason=smollm2.MISSING),
    pytest.mark.skipif(not SHARED.exists(), reason="needs ../shared/data"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(GGUF in F32, the run imported from it)."""
    place = tmp_path_factory.mktemp("smollm2")
    smollm2.write_f32(smollm2.path(), place / "f32.gguf")
    command = ["import", "gguf", str(place / "f32.gguf"), "--out", str(place / "run")]
    assert main([*command, "--seq-len", "1024"]) == 0
    return place / "f32.gguf", place / "run"


def records(run, out, tasks, *more):
    """{(task, item): outcome} of `gchat eval chat`."""
    command = ["eval", "chat", "--run", str(run), "--out", str(out)]
    command += ["--max-per-task", str(ITEMS), "--tasks", *(f"{n}={p}" for n, p in tasks.items())]
    assert main([*command, *more]) == 0
    (path,) = out.glob("*.jsonl")
    return {(r["task"], r["item"]): r for r in map(json.loads, path.read_text().splitlines()[1:])}


@pytest.mark.skipif(not PYTHON, reason="GAIA_TRANSFORMERS is not set")
def test_every_choice_is_that_of_transformers(model, tmp_path):
    file, run = model
    ours = records(run, tmp_path / "out", CHOICES)
    asked, keys = tmp_path / "items.jsonl", []
    with open(asked, "w", encoding="utf-8") as lines:
        for name, source in CHOICES.items():
            task = named(f"{name}={source}", limit=ITEMS)
            for i in range(len(task)):
                messages = [{"role": m.role, "content": m.content} for m in task[i].question]
                row = {"messages": messages, "letters": list(task[i].choices)}
                lines.write(json.dumps(row) + "\n")
                keys.append((name, task[i].id))
    script = Path(__file__).with_name("plain_choices.py")
    done = subprocess.run([str(PYTHON), str(script), str(file), str(asked)], stdout=-1, check=True)
    theirs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    assert set(keys) == set(ours) and len(theirs) == len(keys) == ITEMS * len(CHOICES)
    worst = 0.0
    for key, their in zip(keys, theirs, strict=True):
        assert ours[key]["chosen"] == their["chosen"], (key, ours[key], their)
        gaps = [abs(a - b) for a, b in zip(ours[key]["nats"], their["nats"], strict=True)]
        worst = max(worst, *gaps)
    print(f"{len(keys)} items, the largest difference of a letter's nats is {worst:.2g}")
    assert worst < 1e-3


def test_grades_are_those_of_plain_rules_on_equal_texts(model, tmp_path):
    """The model's own answers, the references, and references with one digit or line wrong."""
    written = records(model[1], tmp_path / "out", WRITTEN, "--max-tokens", "96")
    text = (SHARED / "gsm8k/test.jsonl").read_text(encoding="utf-8")
    raw = [json.loads(line) for line in text.split("\n") if line]
    answers = {row["question"]: row["answer"] for row in raw}
    with gzip.open(WRITTEN["humaneval"], "rt", encoding="utf-8") as lines:
        problems = {row["task_id"]: row for row in map(json.loads, lines)}
    seen = {0.0: 0, 1.0: 0}
    for name, source in WRITTEN.items():
        task = named(f"{name}={source}", limit=ITEMS)
        for item in (task[i] for i in range(len(task))):
            outcome = written[name, item.id]
            said = outcome["answers"][0]["text"]
            if name == "gsm8k":
                right = answers[item.question[0].content]
                texts = [said, right, f"{right}0", right.replace("####", "So")]
                grades = [plain_grades.gsm8k(right, text) for text in texts]
            else:
                problem = problems[item.id]
                right = problem["prompt"] + problem["canonical_solution"]
                fenced = f"Here it is:\n```python\n{right}\n```\nIt works."
                texts = [said, right, fenced, problem["prompt"] + "    return None\n"]
                grades = [plain_grades.humaneval(problem, text) for text in texts]
            ours = [task.grade(item, text) for text in texts]
            assert ours == grades, (name, item.id, texts)
            assert ours[0] == outcome["grade"] and ours[1] == 1
            for grade in ours:
                seen[grade] += 1
    print(seen)
    assert min(seen.values()) >= 2 * ITEMS
