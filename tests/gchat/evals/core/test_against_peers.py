"""The same weights through nanochat's core_eval.py and through lm_eval, item for item.

GAIA_PARITY_PYTHON=…/bin/python (torch, jinja2, lm_eval)  GAIA_NANOCHAT=… (holds core_eval.py)
GAIA_CORE_RUN=RUN (a trained run; by default one of a few steps)  GAIA_CORE_ITEMS=100
GAIA_CORE_TASKS=copa,winograd (by default all that are there)
"""

import json
import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

import runs
import small_core
from gchat.__main__ import main
from gchat.evals.core import bundle, questions
from gchat.evals.core.tasks import TASKS, chosen

PYTHON, NANOCHAT = os.environ.get("GAIA_PARITY_PYTHON"), os.environ.get("GAIA_NANOCHAT")
ITEMS = int(os.environ.get("GAIA_CORE_ITEMS", "12"))
NAMES = os.environ.get("GAIA_CORE_TASKS")
SHARED = Path(__file__).parents[5] / "shared/data/core"
HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="needs GAIA_PARITY_PYTHON, a Python with torch"),
]


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    if given := os.environ.get("GAIA_CORE_RUN"):
        return Path(given)
    folder = tmp_path_factory.mktemp("runs") / "run"
    args = runs.arguments(data_dir, folder, steps=60)
    args[args.index("--model.seq-len") + 1] = "128"
    assert main(["train", *args]) == 0
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published tasks where they are, else made-up ones."""
    return SHARED if SHARED.exists() else small_core.write(tmp_path_factory.mktemp("bundle"), 14)


def theirs(script, *args):
    command = [PYTHON, HERE / script, *args]
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ours(run, folder, capsys, *more):
    """{task: {item: line of the results}}."""
    capsys.readouterr()
    args = ["eval", "core", "--run", str(run), "--bundle", str(folder), "--json", *more]
    assert main(args) == 0
    lines = Path(json.loads(capsys.readouterr().out)["results"]).read_text().splitlines()
    found = {}
    for line in map(json.loads, lines[1:]):
        found.setdefault(line["task"], {})[line["item"]] = line
    return found


@pytest.mark.skipif(not NANOCHAT, reason="needs GAIA_NANOCHAT, a folder with core_eval.py")
def test_nanochats_core_eval(run, folder, capsys):
    more = ("--tasks", NAMES) if NAMES else ()
    found = ours(run, folder, capsys, "--max-per-task", str(ITEMS), *more)
    packages = sysconfig.get_path("purelib")
    names = [t.name for t in TASKS if t.name in found and (not NAMES or t.name in NAMES.split(","))]
    answers = theirs("nanochat_core.py", NANOCHAT, run, folder, ITEMS, packages, *names)
    assert [line["task"] for line in answers] == names
    differ = {
        line["task"]: items
        for line in answers
        if (items := [
            found[line["task"]][i]
            for i, right in enumerate(line["right"])
            if found[line["task"]][i]["correct"] != right
        ])
    }  # fmt: skip
    print({line["task"]: (sum(line["right"]), len(line["right"])) for line in answers})
    assert not differ


def test_lm_eval_on_local_files(run, folder, tmp_path, capsys):
    """By sums, as lm_eval's acc is: what the choices have in common does not move them."""
    made = bundle.read(str(folder), chosen(["copa", "lambada_openai"]))
    for task in made.tasks:
        items, count = questions.subset(task, made.items[task.name], max(ITEMS, 50))
        name = task.name.removesuffix("_openai")
        text = "".join(json.dumps(item) + "\n" for item in items[:count])
        (tmp_path / f"{name}.jsonl").write_text(text)
    (right,) = theirs("lm_eval_core.py", run, tmp_path, sysconfig.get_path("purelib"))
    options = ("--tasks", "copa,lambada_openai", "--max-per-task", str(max(ITEMS, 50)))
    found = ours(run, folder, capsys, *options)
    copa, lambada = found["copa"], found["lambada_openai"]
    by_sum = [copa[i]["nats"].index(max(copa[i]["nats"])) == copa[i]["gold"] for i in sorted(copa)]
    assert by_sum == right["copa"]
    assert [lambada[i]["correct"] for i in sorted(lambada)] == right["lambada"]
