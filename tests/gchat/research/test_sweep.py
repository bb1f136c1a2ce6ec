"""Sweeps: what they train, what becomes a result, and that nothing is trained twice."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaia.writer_lock import FolderInUse, WriterLock
from gchat.__main__ import main
from gchat.research import cells, sweep
from gchat.research.source_tree import Code
from sweeps import result, written

ROOT = Path(__file__).parents[3]


def test_results_survive_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    cells.append_result(path, result())
    with path.open("a") as file:
        file.write('{"id": "torn", "vari')
    cells.append_result(path, result(id="j"))
    assert set(cells.read_results(path)) == {"i", "j"}


def test_only_what_is_far_behind_is_stopped():
    stop = sweep.EarlyStop(at=0.5, behind=0.1)
    reference = result(curve=[[0, 0, 0, 4.0], [50, 0, 0, 3.0], [100, 0, 0, 2.0]])
    assert not stop.ends(result(curve=[[49, 0, 0, 9.0]]), reference)
    assert not stop.ends(result(curve=[[50, 0, 0, 3.05]]), reference)
    assert stop.ends(result(curve=[[50, 0, 0, 3.2]]), reference)
    assert not stop.ends(result(curve=[[50, 0, 0, 3.2]]), None)


def run_again(monkeypatch, tmp_path, cell, kept, stop=None):
    """Results of a sweep of one cell of which a line is there; training it gives 1.0."""
    cells.append_result(tmp_path / sweep.RESULTS, kept)
    monkeypatch.setattr(sweep, "_check_unchanged", lambda cell: None)
    monkeypatch.setattr(cells, "run_cell", lambda cell, *_, **__: result(id=cell.id, bpb=1.0))
    return sweep.run_cells([cell], tmp_path, early_stop=stop, say=lambda line: None)


def test_a_result_is_shown_under_the_name_that_its_variant_has_now(monkeypatch, tmp_path):
    cell = cells.Cell("old", "d2", 1, (), Code("/x", "c" * 40), "data", "d")
    kept = result(id=cell.id, variant="main")
    (again,) = run_again(monkeypatch, tmp_path, cell, kept)
    assert (again.variant, again.size, again.bpb) == ("old", "d2", 2.0)


def test_two_variants_of_one_identity_are_trained_once(monkeypatch, tmp_path):
    """`gchat compare main .` where nothing has changed."""
    code, trained = Code("/x", "c" * 40), []

    def train(cell, *_, **__):
        trained.append(cell.name)
        return result(id=cell.id, variant=cell.variant)

    monkeypatch.setattr(sweep, "_check_unchanged", lambda cell: None)
    monkeypatch.setattr(cells, "run_cell", train)
    wanted = [cells.Cell(name, "", seed, (), code, "data", "d")
              for seed in (1, 2) for name in ("main", ".")]  # fmt: skip
    ended = sweep.run_cells(wanted, tmp_path, say=lambda line: None)
    assert [cell.split("-")[0] for cell in trained] == ["main", "main"]
    assert [one.variant for one in ended] == ["main", ".", "main", "."]


def test_what_was_stopped_early_goes_on_where_nothing_stops_it_now(monkeypatch, tmp_path):
    cell = cells.Cell("idea", "", 1, (), Code("/x", "c" * 40), "data", "d")
    (again,) = run_again(monkeypatch, tmp_path, cell, result(id=cell.id, status="stopped"))
    assert again.bpb == 1.0


@pytest.mark.parametrize(
    ("action", "code", "status"),
    [("stop", 1, "diverged"), ("skip", 1, "failed"), ("stop", -9, "failed")],
)
def test_only_a_bad_step_that_ended_a_training_is_divergence(tmp_path, action, code, status):
    (tmp_path / "bad_steps.jsonl").write_text(json.dumps({"step": 3, "action": action}) + "\n")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    log = tmp_path / "log"
    log.write_text("gchat: the last word\n")
    assert cells._judge(cell, tmp_path, log, code, "").status == status


@pytest.mark.parametrize("saved", [False, True])
def test_nothing_trains_beside_a_training_that_outlived_its_sweep(tmp_path, saved):
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    run = tmp_path / "run"
    with WriterLock(run / cells.LOCK, "a training"):
        (run / "metrics.jsonl").write_text("{}")
        if saved:
            (run / "checkpoints" / "20").mkdir(parents=True)
        with pytest.raises(FolderInUse, match=f"is being written by process {os.getpid()}"):
            cells.run_cell(cell, run)
    assert (run / "metrics.jsonl").exists()
    assert not (tmp_path / "run.log").exists()


def ended(run, *lines, attempts=(), **summary):
    """The result of a training that wrote these lines to its log and ended well."""
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "run.json").write_text(json.dumps({"attempts": list(attempts)}))
    (run / "summary.json").write_text(json.dumps({"finished": True} | summary))
    (run / "config.yaml").write_text("{}")
    (run / "log").write_text("")
    cell = cells.Cell("a", "", 1, (), Code(str(run), "c" * 40), "data", "d")
    return cells._judge(cell, run, run / "log", 0, "")


def step(number, seconds, step_ms=1000.0, **more):
    values = {"train/tokens": 32.0 * number, "train/seconds": seconds, "perf/step_ms": step_ms}
    return {"step": number, "time": 1.0} | values | more


@pytest.mark.parametrize(
    ("first", "last", "status", "bpb"),
    [(3.0, 2.0, "done", 2.0), (3.0, "NaN", "diverged", None), ("NaN", "NaN", "diverged", None)],
)
def test_an_earlier_evaluation_does_not_pass_for_the_last_one(tmp_path, first, last, status, bpb):
    values = [{"eval/val_bpb": value} for value in (first, last)]
    done = ended(tmp_path / "run", step(1, 9.0, **values[0]), step(2, 10.0, **values[1]))
    assert (done.status, done.bpb) == (status, bpb)
    assert ("not finite" in sweep._outcome(done)) is (status == "diverged")


def test_every_start_of_a_training_is_left_out_of_its_time(tmp_path):
    """Steps take a second; the first waits nine for the compiler, and that after a kill four."""
    steps = [step(1, 10.0, 9000.0), step(2, 11.0), step(3, 12.0), step(4, 17.0, 5000.0)]
    steps.append(step(5, 18.0, **{"eval/val_bpb": 2.0}))
    attempts = [{"resume_step": number} for number in (0, 3, 3)]
    done = ended(tmp_path / "run", *steps, attempts=attempts)
    assert (done.seconds, done.start_seconds) == (18.0, 14.0)


def test_a_result_says_what_device_it_was_trained_on(tmp_path):
    last = step(1, 9.0, **{"eval/val_bpb": 2.0})
    done = ended(tmp_path / "run", last, device="1 x NVIDIA H200")
    assert done.machine["device"] == "1 x NVIDIA H200" and done.machine["jax"]
    assert "device" not in ended(tmp_path / "older", last).machine


WAITS = """import signal, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir()
def stop(*_):
    (run / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(run / "begun").touch()
until = time.monotonic() + 60
while time.monotonic() < until:
    time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_ends_with_the_sweep_that_is_told_to(tmp_path, number):
    """In place of the training: a process that saves when it is asked to stop, as that does."""
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text(WAITS)
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    before, run = signal.getsignal(number), tmp_path / "run"

    def watch(_so_far):
        if (run / "begun").exists():
            os.kill(os.getpid(), number)
        return False

    with pytest.raises(SystemExit) as ended:
        cells.run_cell(cell, run, watch=watch)
    assert ended.value.code == 128 + number
    assert (run / "saved").exists()
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_a_training_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text(WAITS.replace("sys.exit(0)", "pass"))
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    monkeypatch.setattr(cells, "KILL_S", 1.0)
    run = tmp_path / "run"
    deaf = cells.run_cell(cell, run, watch=lambda _: (run / "begun").exists())
    assert deaf.status == "stopped" and (run / "saved").exists()


def test_a_cell_killed_in_its_first_save_begins_again(tmp_path):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    (tmp_path / "run" / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert cells.run_cell(cell, tmp_path / "run").error.endswith("--resume --allow-restart")


def test_a_training_that_says_nothing_is_a_result_too(tmp_path):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text("")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    silent = cells.run_cell(cell, tmp_path / "run")
    assert (silent.status, silent.error) == ("interrupted", "exit status 0")


SWEEP = """
preset: cpu
data: {data}
set:
  model: {{dim: 32, head_dim: 16, hidden: 64, depth: 1, seq_len: 32}}
  optim: {{name: adamw, lr: 0.003, warmup_steps: 2}}
  training: {{batch_size: 4, steps: 6}}
  eval: {{every_steps: 3, tokens: 400, sample_tokens: 1}}
seeds: [1]
variants:
  main: {{}}
  broken: {{optim.lr: 1.0e+30, guards.policy: stop}}
"""


TRAINS = """import json, sys
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir(parents=True)
broken = any(word.startswith("--optim.lr=1e+30") for word in sys.argv)
lines = [{"step": n, "time": 1.0, "train/tokens": 128 * n, "train/seconds": n, "perf/step_ms": 1.0}
         | ({"eval/val_bpb": 4.0 - n / 6} if n % 3 == 0 else {}) for n in range(7)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(run / "config.yaml").write_text("{}")
(run / "summary.json").write_text(json.dumps({"finished": not broken}))
if broken:
    (run / "bad_steps.jsonl").write_text(json.dumps({"step": 3, "action": "stop"}) + "\\n")
    sys.exit("the loss is nan")
"""


@pytest.mark.parametrize("trained", ["in its place", pytest.param("truly", marks=pytest.mark.slow)])
def test_a_killed_sweep_goes_on_and_repeats_nothing(
    trained, clone, data_dir, tmp_path, user_environment, monkeypatch, capsys
):
    """One variant diverges: it is kept and marked, and the rest goes on."""
    file, out = written(tmp_path, SWEEP.format(data=data_dir)), tmp_path / "out"
    words, root = ["sweep", str(file), "--out", str(out)], ROOT
    if trained != "truly":  # in a clone whose trainer only writes what one writes
        root = clone
        (root / "gchat" / "train.py").write_text(TRAINS)
        user_environment = user_environment | {"PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gchat", *words], cwd=root, env=user_environment,
        start_new_session=True,
    )  # fmt: skip
    while not (out / "results.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "results.jsonl").read_text()
    monkeypatch.chdir(root)
    for name in os.environ.keys() - user_environment.keys():
        monkeypatch.delenv(name)
    assert main([*words, "--json"]) == 0
    after = (out / "results.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [(r["variant"], r["seed"], r["status"]) for r in rows] == [
        ("main", 1, "done"),
        ("broken", 1, "diverged"),
    ]
    assert all(len(r["curve"]) == 3 and r["tokens"] == 6 * 4 * 32 for r in rows if r["bpb"])
    assert (out / "curves.png").stat().st_size > 10_000
    assert main(words) == 0
    assert "2 of 2 cells are there already" in capsys.readouterr().err
    assert (out / "results.jsonl").read_text() == after
