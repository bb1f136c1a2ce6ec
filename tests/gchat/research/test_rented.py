"""A rented comparison: its cost, the clone that is sent, the line that the machine runs."""

import subprocess

import pytest

from gaia.errors import ConfigError
from gchat.research import rented
from gchat.research.worktrees import TreeError


def git(folder, *words):
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *author, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.mark.parametrize("minutes", [None, 1.0, 600.0])
@pytest.mark.parametrize("budget", ["10USD", "$10", "10", "10.5 USD"])
def test_the_budget_cannot_be_exceeded(budget, minutes):
    spent = rented.rental("v6e-1 --spot", budget, minutes)
    hours = spent.lifetime_minutes / 60
    assert hours * spent.max_price <= spent.budget < hours * (spent.max_price + 0.01)
    assert spent.lifetime_minutes >= 1.5 * spent.minutes
    words = spent.words()
    assert words[:3] == ["--instance-type", "v6e-1", "--spot"]
    assert words[3:] == [
        "--timeout", f"{spent.lifetime_minutes}m", "--max-price", f"{spent.max_price:.2f}"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("on", "budget", "said"),
    [
        ("v6e-1", None, "has no --budget"),
        ("v6e-1", "ten", "'ten'"),
        ("v6e-1", "0USD", "'0USD'"),
        ("v6e-1", "10EUR", "'10EUR'"),
        (" ", "10USD", "--on is empty"),
        ("v6e-1 --count 4", "10USD", "--on has --count, and the budget is that of one"),
        ("v6e-1 -n4", "10USD", "--on has -n"),
        ("--node=abc", "10USD", "--on has --node"),
        ("v6e-1 --max-price 90", "10USD", "--on has --max-price, which this decides"),
        ("'v6e-1", "10USD", "close the quotation mark"),
    ],
)
def test_what_says_no_amount_is_refused(on, budget, said):
    with pytest.raises(ConfigError, match=said):
        rented.rental(on, budget, None)


def test_rented_results_leave_those_of_this_machine_alone(tmp_path, monkeypatch):
    def rent(command, **_):
        home = tmp_path / "sent" / "results"
        home.mkdir(parents=True)
        (home / "results.jsonl").write_text("remote")
        return subprocess.CompletedProcess(command, 0)

    (tmp_path / "results.jsonl").write_text("local")
    monkeypatch.setattr(rented.worktrees, "repository", lambda: tmp_path)
    monkeypatch.setattr(rented, "send_clone", lambda *_: {})
    monkeypatch.setattr(rented.subprocess, "run", rent)
    spent = rented.rental("v6e-1 --spot", "10USD", None)
    assert rented.compare_on(spent, ["main"], [], tmp_path, data=None, dry_run=False) == 0
    assert (tmp_path / "results.jsonl").read_text() == "local"
    home = rented.of_machine(tmp_path, spent)
    assert home.name == "on-v6e-1-spot"
    assert [file.name for file in home.iterdir()] == ["results.jsonl"]
    assert (home / "results.jsonl").read_text() == "remote"


@pytest.fixture
def clone(tmp_path):
    """main, two branches that share no tip, and an uncommitted change."""
    root = tmp_path / "clone"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "a.py").write_text("a = 1\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "main")
    for branch in ("one", "two"):
        git(root, "checkout", "-q", "-b", branch, "main")
        (root / f"{branch}.py").write_text("b = 1\n")
        git(root, "add", "-A")
        git(root, "commit", "-qm", branch)
    git(root, "checkout", "-q", "main")
    (root / "a.py").write_text("a = 2\n")
    return root


def test_one_history_holds_all_that_is_compared(clone, tmp_path, monkeypatch):
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Ada")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
    place = tmp_path / "sent"
    names = ["main", "one", "one+two", "+relu2", "."]
    commits = rented.send_clone(clone, names, place)
    assert set(commits) == {"main", "one", "two", "."}
    assert (place / "a.py").read_text() == "a = 1\n"
    only = tmp_path / "only"  # what a push of the checked-out branch brings
    git(tmp_path, "clone", "-q", "--single-branch", "--branch", "compare", str(place), str(only))
    for name, commit in commits.items():
        assert git(only, "cat-file", "-t", commit) == "commit", name
    assert git(only, "show", f"{commits['.']}:a.py") == "a = 2"
    assert git(clone, "status", "--porcelain") == "M a.py"
    line = rented.remote_line(names, commits, ["--set", "model.depth=2"], with_data=True)
    done = subprocess.run(["bash", "-n", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    branches = "\n".join(part for part in line.splitlines() if part.startswith("git branch"))
    subprocess.run(["bash", "-ec", branches], cwd=only, check=True, capture_output=True)
    assert git(only, "rev-parse", "one", "two", "working-tree").split() == [
        commits["one"], commits["two"], commits["."]
    ]  # fmt: skip
    assert "compare main one one+two +relu2 working-tree --set model.depth=2" in line
    with pytest.raises((TreeError, ConfigError), match="nothing"):
        rented.send_clone(clone, ["main", "nothing"], place)
