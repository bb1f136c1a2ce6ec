"""A rented comparison: its cost, the clone that is sent, its results, its interruption."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gaia.errors import ConfigError, DataError
from gaia.writer_lock import FolderInUse, WriterLock
from gchat.research import child, cli, rented, sent_clone, worktrees
from gchat.research.worktrees import TreeError
from gml.options import options_of
from gml.request import NodeRequest
from gml.run import RunRequest


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
        ("v6e-1", "9" * 400, "write US dollars"),
        ("v6e-1", "0.01USD", "less than a cent an hour over 120 minutes; give more, or fewer"),
        (" ", "10USD", "--on is empty"),
        ("--spot", "10USD", "--on has no instance type"),
        ("v6e-1 -n4", "10USD", "--on has -n4, which may not stand there"),
        ("v6e-1 v6e-8", "10USD", "--on has v6e-8, which may not"),
        ("v6e-1 -t v6e-8", "10USD", "--on has --instance-type twice"),
        ("v6e-1 --zone --spot", "10USD", "--on has --zone without a value"),
        ("v6e-1 --zone=", "10USD", "--on has --zone without a value"),
        ("v6e-1 --spot=yes", "10USD", "--on has --spot, which may not"),
        ("v6e-1 -- --spot", "10USD", "--on has --, which may not"),
        ("'v6e-1", "10USD", "close the quotation mark"),
    ],
)
def test_what_says_no_amount_is_refused(on, budget, said):
    with pytest.raises(ConfigError, match=said):
        rented.rental(on, budget, None)


def test_no_other_option_of_gml_may_stand_behind_on():
    """Also none that gml will have: whoever adds one says here whether the budget still holds."""
    declared = [*options_of(NodeRequest).values(), *options_of(RunRequest).values()]
    flags = {word for item in declared for flag in item.flags for word in flag.split("/")}
    allowed = {*rented.VALUED, *rented.PLAIN, *rented.SHORT}
    assert allowed - flags == {"--yes", "-y"}
    for flag in [*sorted(flags - allowed), "--json", "--dry-run", "--debug", "--help", "-h"]:
        for on in (f"v6e-1 {flag} box", f"v6e-1 {flag}=box", f"-t v6e-1 {flag}"):
            with pytest.raises(ConfigError, match=f"--on has {flag}, which may not stand there"):
                rented.rental(on, "10USD", None)
    decided = {"--name", "--node", "--timeout", "--max-price", "--limit", "--unsafe", "--keep"}
    assert decided | {"--recover", "--detach", "--no-sync", "--no-git"} < flags - allowed
    on = "-t v6e-1 -p google --zone=us-east5-b --spot --disk-gb 200 --env A=-1 --env B=2 -y"
    assert rented.rental(on, "10USD", None).words()[:-4] == on.split()


def test_what_gml_needs_is_missed_before_anything_is_rented(monkeypatch):
    monkeypatch.setattr(rented.shutil, "which", {"ssh": "/bin/ssh"}.get)
    spent = rented.rental("v6e-1", "10USD", None)
    with pytest.raises(ConfigError, match="--on needs rsync, which is not installed"):
        rented.compare_on(spent, ["main", "one"], [], Path("none"), data=None, dry_run=False)
    monkeypatch.setattr(rented.importlib.util, "find_spec", {"gml": 1, "typer": 1}.get)
    with pytest.raises(ConfigError, match=r"httpx2 is not installed; run `pip install -e \.`"):
        rented.compare_on(spent, ["main", "one"], [], Path("none"), data=None, dry_run=False)


@pytest.fixture
def renting(tmp_path, monkeypatch):
    """Comparisons on a machine that brings `files` home; the words that gml was given."""
    spent, calls = rented.rental("v6e-1 --spot", "10USD", None), []

    def rent(names=("main", "one"), files=(), *, ended=child.Ended(0), dry_run=False, data=None):  # noqa: B008
        def run(command, *_):
            calls.append(command)
            there = Path(command[command.index("--folder") + 1]) / "results"
            for name in files:
                there.mkdir(parents=True, exist_ok=True)
                (there / name).write_text(f"{name} of run {len(calls)}")
            return ended

        monkeypatch.setattr(rented.child, "run", run)
        return rented.compare_on(spent, names, [], tmp_path, data=data, dry_run=dry_run)

    sent = sent_clone.Sent("h", "", {}, {})
    monkeypatch.setattr(rented.shutil, "which", lambda program: program)
    monkeypatch.setattr(rented.worktrees, "repository", lambda: tmp_path)
    monkeypatch.setattr(rented.sent_clone, "commits_of", lambda *_: {})
    monkeypatch.setattr(rented.sent_clone, "send_clone", lambda *_: sent)
    rent.calls, rent.home = calls, rented.of_machine(tmp_path, spent)
    return rent


ALL = ("results.jsonl", "curves.png", "report.html", "comparison.json")


def test_rented_results_leave_all_others_alone(renting, tmp_path):
    (tmp_path / "results.jsonl").write_text("local")
    assert renting(files=ALL) == renting.home
    assert (tmp_path / "results.jsonl").read_text() == "local"
    assert renting.home.name == "on-v6e-1-spot"
    assert sorted(path.name for path in renting.home.iterdir()) == sorted(ALL)
    # A machine that is lost in the middle leaves what there is; nor are the two mixed.
    failed = child.Ended(6)
    with pytest.raises(rented.RentedFailure, match=r"lies in .*/unfinished; none was to be had"):
        renting(files=ALL[:1], ended=failed)
    assert {(renting.home / name).read_text() for name in ALL} == {f"{n} of run 1" for n in ALL}
    unfinished = renting.home / "unfinished"
    assert [path.name for path in unfinished.iterdir()] == ["results.jsonl"]
    with pytest.raises(rented.RentedFailure, match=r"status 8; .*gml run --attach ID"):
        renting(files=("unknown",), ended=child.Ended(8))
    assert (renting.home / "sent").exists()
    with pytest.raises(ConfigError, match=r"more than \$5.00 an hour needs more --budget"):
        renting(files=("unknown",), ended=child.Ended(2))
    assert not (renting.home / "sent").exists()
    with pytest.raises(rented.RentedFailure, match=r"sent no comparison\.json home; what it"):
        renting(files=ALL[:2])
    assert renting(files=(ALL[0], ALL[3])) == renting.home
    kept = sorted(path.name for path in renting.home.iterdir())
    assert kept == ["comparison.json", "results.jsonl", "unfinished"]


def test_an_interrupted_comparison_ends_like_one_and_can_be_taken_home_later(renting):
    with pytest.raises(KeyboardInterrupt):
        renting(ended=child.Ended(130, signal.SIGINT))
    with pytest.raises(SystemExit) as left:
        renting(ended=child.Ended(130, signal.SIGTERM))
    assert left.value.code == 143
    place = renting.home / "sent" / "results"  # `gml run --attach` brings them there
    place.mkdir(parents=True)
    for name in ALL:
        (place / name).write_text("attached")
    with pytest.raises(rented.RentedFailure):
        renting(ended=child.Ended(8))
    assert {(renting.home / name).read_text() for name in ALL} == {"attached"}


def test_two_comparisons_at_once_do_not_share_a_folder(renting):
    assert renting(files=ALL) == renting.home
    with (
        WriterLock(renting.home / ".rented.lock", "another"),
        pytest.raises(FolderInUse, match="a rented comparison in"),
    ):
        renting(files=ALL)
    assert len(renting.calls) == 1
    long = rented.rental(f"v6e-1 --setup '{'echo a; ' * 100}'", "10USD", None)
    assert len(rented.of_machine(renting.home, long).name) < 100


def test_a_dry_run_leaves_nothing_behind(renting, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert renting(dry_run=True) is None
    assert "--dry-run" in renting.calls[0] and sorted(tmp_path.rglob("*")) == before
    with pytest.raises(rented.RentedFailure, match="the plan failed with status 3"):
        renting(dry_run=True, ended=child.Ended(3))


def test_data_that_cannot_be_sent_is_refused_before_anything_is_rented(
    renting, tmp_path, monkeypatch
):
    with pytest.raises(DataError, match="nowhere"):
        renting(data=str(tmp_path / "nowhere"))
    monkeypatch.setattr(rented.cells, "data_hash", lambda _: "")
    with pytest.raises(ConfigError, match="'my data' cannot be a folder's name"):
        renting(data=str(tmp_path / "my data"))
    assert renting.calls == []
    monkeypatch.chdir(tmp_path)
    renting(data="./notes/..", files=ALL)
    assert renting.calls[0][renting.calls[0].index("--data") + 1] == str(tmp_path)
    assert renting.calls[0][-1].endswith('--data "$GAIA_DATA"')


@pytest.mark.parametrize("brings", [True, False])
def test_only_what_this_run_brought_is_printed(brings, tmp_path, monkeypatch, capfd):
    home = tmp_path / "out" / "on-v6e-1"
    home.mkdir(parents=True)
    (home / "comparison.json").write_text('{"rows": []}')
    asked = []

    def compare_on(*_, **options):
        asked.append(options)
        return home if brings else None

    monkeypatch.setattr(rented, "compare_on", compare_on)
    words = ["main", "one", "--on", "v6e-1", "--budget", "10USD", "--out", str(home.parent)]
    cli.compare_main([*words, "--json", *["--dry-run"] * (not brings)])
    assert asked == [{"data": None, "dry_run": not brings, "log_to_stderr": True}]
    out = capfd.readouterr().out
    assert json.loads(out) == {"rows": []} if brings else out == ""


STAND_IN = """
import signal, sys, time
def interrupt(*_):
    raise KeyboardInterrupt
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, interrupt)
try:
    print("machine made", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(0.6)
    print("machine deleted", flush=True)
    sys.exit(130)
"""
PARENT = """
import sys
from gaia.errors import run_cli
from gchat.research import child
command = [sys.executable, "-c", sys.argv[1]]
say = lambda: print("waiting", flush=True)
def rent(_):
    ended = child.run(command, on_signal=say)
    print("status", ended.status)
    ended.raise_if_interrupted()
sys.exit(run_cli("rent", rent, []))
"""


def test_signals_let_the_child_tidy_up():
    """Ctrl-C reaches the whole process group, twice even; the others the parent alone."""
    statuses = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
    parents = {
        number: subprocess.Popen(
            [sys.executable, "-c", PARENT, STAND_IN], stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )
        for number in statuses
    }  # fmt: skip
    for number, parent in parents.items():
        assert parent.stdout and parent.stdout.readline() == "machine made\n"
        send = os.killpg if number == signal.SIGINT else os.kill
        send(parent.pid, number)
    for number, parent in parents.items():
        assert parent.stdout and parent.stdout.readline() == "waiting\n"
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        assert parent.communicate()[0] == "machine deleted\nstatus 130\n", number
        assert parent.returncode == statuses[number]


@pytest.fixture
def clone(tmp_path):
    """main, branches that share no tip, and uncommitted changes; `one` is checked out."""
    root = tmp_path / "clone"
    (root / "gaia").mkdir(parents=True)
    git(root, "init", "-q", "-b", "main")
    (root / "gaia" / "a.py").write_text("a = 1\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "main")
    for branch in ("compare", "two", "one"):
        git(root, "checkout", "-q", "-b", branch, "main")
        (root / f"{branch}.py").write_text("b = 1\n")
        git(root, "add", "-A")
        git(root, "commit", "-qm", branch)
    git(root, "tag", "v1", "two")
    git(root, "update-ref", "refs/remotes/origin/main", "two")
    (root / "gaia" / "a.py").write_text("a = 2\n")
    (root / "gaia" / "new.py").write_text("c = 1\n")
    return root


def arrived(place, machine, sent):
    """The clone on a machine, as gml brings it, after the git commands of the line."""
    git(place.parent, "init", "-q", "-b", "compare", str(machine))
    git(machine, "fetch", "-q", str(place), "HEAD")
    git(machine, "update-ref", "--no-deref", "HEAD", "FETCH_HEAD")
    git(machine, "reset", "-q", "--hard")
    line = sent_clone.remote_line(["main"], sent, [], with_data=True)
    assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0
    line = line.partition(". requirements/venv.sh")[0]
    return subprocess.run(["bash", "-c", line], cwd=machine, capture_output=True, text=True)


@pytest.mark.parametrize("detached", [False, True])
def test_names_mean_there_what_they_mean_here(clone, tmp_path, detached):
    if detached:
        git(clone, "checkout", "-q", "--detach")
    place, machine = tmp_path / "out" / "sent", tmp_path / "machine"
    short = git(clone, "rev-parse", "--short", "two")
    names = ["main", "HEAD", "HEAD~1", "@", "compare", "one^", "v1", "v1~1", "origin/main", short]
    sent = sent_clone.send_clone(clone, [*names, "one+two", "+relu2", "."], place)
    assert set(sent.commits) == {*names, "one", "two"}
    assert git(place, "rev-parse", "--abbrev-ref", "HEAD") == "HEAD"  # no branch, so gml makes none
    done = arrived(place, machine, sent)
    assert done.returncode == 0, done.stderr
    for name in sent.commits:
        assert git(machine, "rev-parse", f"{name}^{{commit}}") == git(
            clone, "rev-parse", f"{name}^{{commit}}"
        ), name
    assert git(machine, "rev-parse", "--abbrev-ref", "HEAD") == ("HEAD" if detached else "one")
    if detached:
        return
    here, there = (
        worktrees.make_tree(root, ".", root / ".git" / "code", None) for root in (clone, machine)
    )
    assert there.notes == here.notes and "HEAD with uncommitted changes" in here.notes[0]
    assert there.code.said == here.code.said
    assert git(clone, "status", "--porcelain") == "M gaia/a.py\n?? gaia/new.py"


def test_a_name_that_only_this_clone_knows_is_refused(clone, tmp_path):
    place, hash_ = tmp_path / "sent", git(clone, "rev-parse", "one")
    with pytest.raises(ConfigError, match=f"in this clone alone.*; write {hash_[:10]}"):
        sent_clone.send_clone(clone, ["main", "one@{0}"], place)
    for name in ("nothing", "one+nothing", "HEAD~9"):
        with pytest.raises(TreeError, match=r"nothing|HEAD~9"):
            sent_clone.send_clone(clone, ["main", name], place)
    assert not place.exists()


def test_a_history_that_would_not_arrive_is_refused(clone, tmp_path, monkeypatch):
    place, machine = tmp_path / "sent", tmp_path / "machine"
    sent = sent_clone.send_clone(clone, ["main", "two"], place)
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{clone}", str(machine))  # it came cut off
    done = subprocess.run(
        ["bash", "-c", sent_clone.remote_line(["main"], sent, [], with_data=False)],
        cwd=machine, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and "the git history did not come along" in done.stderr
    monkeypatch.setattr(sent_clone, "_LARGEST", 10)
    with pytest.raises(TreeError, match=r"this clone's history is .* run `git gc --prune=now`"):
        sent_clone.send_clone(clone, ["main", "two"], place)
    assert not place.exists()


def test_a_full_disk_is_named_and_leaves_no_half_clone(clone, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sent_clone.worktrees, "copy_changes", full)
    place = tmp_path / "sent"
    with pytest.raises(TreeError, match=r"cannot be made in .* \(No space left on device\); make"):
        sent_clone.send_clone(clone, ["main", "two"], place)
    assert not place.exists()


def test_typed_words_reach_the_machine_as_they_are():
    sent = sent_clone.Sent("h", "refs/heads/main", {"refs/heads/a b": "x"}, {"a b": "x"})
    names, words = ["a b", "HEAD~1", "."], ["--set", "run.name=it's"]
    lines = sent_clone.remote_line(names, sent, words, with_data=False).splitlines()
    last = "compare 'a b' 'HEAD~1' . --set 'run.name=it'\"'\"'s' --out runs/compare-here"
    assert lines[-1].endswith(last)
    assert "git update-ref 'refs/heads/a b' x" in lines
