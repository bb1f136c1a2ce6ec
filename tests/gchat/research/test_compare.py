"""`gchat compare` on real branches of this repository, trained for a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import image

from gchat.research import cells, ideas

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow
TINY = [
    "model.dim=32", "model.head_dim=16", "model.hidden=64", "model.depth=1", "model.seq_len=32",
    "optim.name=adamw", "optim.lr=0.003", "optim.warmup_steps=2", "training.batch_size=4",
    "eval.tokens=400", "eval.sample_tokens=1",
]  # fmt: skip


def git(folder, *words):
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    subprocess.run(["git", "-C", str(folder), *author, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with a branch that changes the activation, and one that does not start."""
    root = tmp_path_factory.mktemp("compare") / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    git(root, "checkout", "-q", "-B", "main")
    for branch, file, old, new in (
        ("wider", "gaia/layers.py", "jax.nn.silu", "jax.nn.gelu"),
        ("broken", "gchat/model.py", "import jax\n", "import jax\nimport no_such_module\n"),
    ):
        git(root, "checkout", "-q", "-B", branch, "main")
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))
        git(root, "commit", "-qam", branch)
    git(root, "checkout", "-q", "main")
    return root


@pytest.fixture
def compare(clone, data_dir, user_environment):
    def run(*words, folder=".", length=("--tokens", "1024")):
        command = [sys.executable, "-m", "gchat", "compare", *words, "--data", str(data_dir)]
        command += ["--set", *TINY, *length, "--seeds", "1", "2"]
        environment = user_environment | {"PYTHONPATH": os.fspath(clone)}
        return subprocess.run(
            command,
            cwd=clone / folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_branch_is_compared_and_a_broken_one_is_reported(clone, compare):
    done = compare("main", "wider", "broken", "no-such-branch", "--json", "--axes", "tokens")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    rows = {row["branch"]: row for row in facts["rows"]}
    assert rows["main"]["status"] == rows["wider"]["status"] == ["done", "done"]
    assert rows["wider"]["difference"]["degrees_of_freedom"] == 1
    assert rows["wider"]["diff"] == {"files": 1, "added": 1, "removed": 1}
    assert rows["main"]["bpb"] != rows["wider"]["bpb"]
    assert rows["broken"]["status"] == ["failed", "failed"]
    assert any("no-such-branch is left out" in note for note in facts["notes"])
    out = clone / "runs" / "compare" / "main-vs-wider-vs-broken-vs-no-such-branch"
    results = cells.read_results(out / "results.jsonl").values()
    assert {len(r.curve) for r in results if r.status == "done"} == {9}  # of 8 steps
    picture = image.imread(out / "curves.png")
    assert picture.shape[1] == 1012  # two panels: over tokens, and the difference
    assert "data:image/png" in (out / "report.html").read_text()
    again = compare("main", "wider", "broken", "no-such-branch", "--axes", "tokens")
    assert "4 of 6 cells are there already" in again.stderr
    assert "±" in again.stdout


def test_a_commit_compared_with_itself_is_equal(compare):
    done = compare("main", "main~0", "--json")
    facts = json.loads(done.stdout)
    for row in facts["rows"][1:]:
        if row["branch"] == "main~0":
            assert row["difference"]["mean"] == 0


def test_every_fault_of_the_plateau_page_trains_and_changes_the_run(compare):
    """All but positions in bf16, which are exact up to 256: these rows have 32."""
    faults = [f"+{name}" for name in ideas.names() if name.startswith("fault-")]
    done = compare("main", *faults, "--axes", "tokens", "--json")
    assert done.returncode == 0, done.stderr
    main, *rows = json.loads(done.stdout)["rows"]
    assert [row["branch"] for row in rows] == faults
    assert {status for row in rows for status in row["status"]} == {"done"}
    same = [row["branch"] for row in rows if row["bpb"] == main["bpb"]]
    assert same == ["+fault-bf16-positions"]


def test_the_same_minutes_are_the_same_cells_again(clone, compare):
    """From a folder below the root too, with a preset that is a file there; two names, one tree."""
    (clone / "docs" / "mine.yaml").write_text((clone / "gchat/configs/cpu.yaml").read_text())
    words = ("main", "main~0", "--axes", "tokens", "--preset", "mine.yaml", "--json")
    begun = compare(*words, folder="docs", length=("--minutes", "0.5"))
    assert begun.returncode == 0, begun.stderr
    again = compare(*words, folder="docs", length=("--minutes", "0.5"))
    assert again.returncode == 0 and "2 of 2 cells are there already" in again.stderr
    assert json.loads(again.stdout)["rows"] == json.loads(begun.stdout)["rows"]
