"""The local form: what is logged is in the run folder, whatever happens to the process."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import gaia_metrics
from gaia_metrics.storage import jsonl, segments
from tests.disks import fill, small_disk


def lines(folder):
    return [jsonl.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


@pytest.fixture
def make(tmp_path):
    runs = []

    def start(**kwargs):
        kwargs = {"project": "gchat", "name": "cpu", "dir": tmp_path / "run"} | kwargs
        runs.append(gaia_metrics.init(**kwargs))
        return runs[-1]

    yield start
    for run in runs:
        run.finish()


def child(code, *args, **options):
    """A Python process that runs `code` with `gaia_metrics` imported."""
    source = "import gaia_metrics, os, sys, time\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", source, *map(str, args)],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def test_import_is_light():
    code = "import sys, gaia_metrics; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = ["jax", "numpy", "pandas", "pyarrow", "duckdb", "grpc", "opentelemetry", "typer"]
    out = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


def test_one_line_per_step_in_order(make, tmp_path):
    run = make(config={"lr": 3e-4})
    for step in range(20):
        run.log(step, {"train/loss": 5.0 - step, "lr": 1e-3})
        if step >= 2:
            run.log(step - 2, {"train/grad_norm": float(step - 2)})  # two steps late
        if step == 10:
            run.log(step, {"eval/val_bpb": 1.5})
    run.finish()
    got = lines(tmp_path / "run")
    assert [line["step"] for line in got] == list(range(20))
    assert got[3] | {"time": 0} == {
        "step": 3, "time": 0, "train/loss": 2.0, "lr": 1e-3, "train/grad_norm": 3.0
    }  # fmt: skip
    assert got[10]["eval/val_bpb"] == 1.5
    assert abs(got[0]["time"] - time.time()) < 60
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert info["id"] == run.id and info["status"] == "finished" and info["config"] == {"lr": 3e-4}


def test_late_values_join_their_written_line(make, tmp_path):
    run = make()
    for step in range(10):
        run.log(step, {"a": 1.0})
    assert run.wait_durable(9)
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(10))
    run.log(8, {"eval/val_bpb": 1.25})  # evals after the checkpoint of a step
    run.log(10, {"a": 2.0})
    assert run.wait_durable(10)
    got = lines(tmp_path / "run")
    assert [line["step"] for line in got] == list(range(11))
    assert got[8]["eval/val_bpb"] == 1.25 and got[8]["a"] == 1.0 and got[9]["a"] == 1.0
    for step in range(11, 300):
        run.log(step, {"a": 3.0})
    assert run.wait_durable(299)
    run.log(20, {"late": 7.0})  # far back: the line is mended when the run ends
    run.finish()
    got = lines(tmp_path / "run")
    assert [line["step"] for line in got] == list(range(300))
    assert got[20]["late"] == 7.0 and got[20]["a"] == 3.0


def test_lines_appear_without_a_next_step(make, tmp_path):
    run = make()
    run.log(0, {"a": 1.0})
    deadline = time.time() + 10
    while not lines(tmp_path / "run") and time.time() < deadline:
        time.sleep(0.05)
    assert lines(tmp_path / "run")[0]["a"] == 1.0


def test_resume_cuts_both_files(make, tmp_path):
    folder = tmp_path / "run"
    first = make()
    for step in range(100):
        first.log(step, {"a": 1.0})
        first.text(step, "samples", f"text {step}")
    first.finish("stopped")
    with open(folder / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 100, "a"')  # torn
    with open(segments.paths(folder / "metrics")[-1], "ab") as file:
        file.write(b"\x40\0\0\0torn")
    second = make(resume="must", resume_step=60)
    assert second.id == first.id and second.attempt == 2 and second.resume_step == 60
    assert [line["step"] for line in lines(folder)] == list(range(61))
    for step in range(61, 81):
        second.log(step, {"a": 2.0})
    second.finish()
    got = lines(folder)
    assert [line["step"] for line in got] == list(range(81))
    assert got[60]["a"] == 1.0 and got[61]["a"] == 2.0
    records = list(segments.read_all(folder / "metrics"))
    assert max(r.step for r in records) == 80
    assert sum(r.kind == "text" for r in records) == 61


def test_not_finite_values_stay_valid_json(make, tmp_path):
    run = make()
    run.log(1, {"nan": float("nan"), "up": float("inf"), "down": -float("inf"), "one": 1.0})
    run.finish()
    raw = (tmp_path / "run/metrics.jsonl").read_text()
    line = json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (line["nan"], line["up"], line["down"]) == ("NaN", "Infinity", "-Infinity")
    assert jsonl.loads(raw)["down"] == -float("inf")


class LazyArray:
    """Behaves as a jax.Array: converting it early would wait for the device."""

    def __init__(self, value):
        self.value, self.ready, self.early = value, False, 0

    def is_ready(self):
        return self.ready

    def __float__(self):
        self.early += not self.ready
        return self.value


def test_log_never_waits_for_a_device_and_durable_does(make, tmp_path):
    run = make()
    array = LazyArray(4.5)
    run.log(0, {"train/loss": array})
    run.log(1, {"train/loss": 1.0})
    assert not run.wait_durable(0, timeout=0.3)
    array.ready = True
    assert run.wait_durable(1)
    assert array.early == 0
    assert [line["train/loss"] for line in lines(tmp_path / "run")] == [4.5, 1.0]


def test_a_hanging_device_does_not_hang_finish(make, tmp_path):
    run = make()
    run.log(0, {"train/loss": 1.0})
    run.log(1, {"train/loss": LazyArray(2.0), "lr": 0.5})
    start = time.monotonic()
    run.finish()
    assert time.monotonic() - start < 9
    assert lines(tmp_path / "run")[1] | {"time": 0} == {"step": 1, "time": 0, "lr": 0.5}


def test_bad_values_warn_once_and_training_goes_on(make, tmp_path, capfd):
    run = make()
    for step in range(3):
        run.log(step, {"ok": 1, "text": "no", "list": [1, 2], "huge": 10**400, "step": 4.0})
    run.log("five", {"ok": 1.0})
    run.log(-1, {"ok": 1.0})
    run.log(7, 3.0)
    run.log(8, {"ok": True})
    run.finish()
    run.log(9, {"ok": 1.0})
    got = lines(tmp_path / "run")
    assert [(line["step"], line["ok"]) for line in got] == [(0, 1), (1, 1), (2, 1), (8, 1)]
    assert all(set(line) == {"step", "time", "ok"} for line in got)
    err = capfd.readouterr().err
    for part in (
        "text=str",
        "list=list",
        "huge=int",
        "'step' is taken",
        "log(step=",
        "after finish()",
    ):
        assert err.count(part) == 1, (part, err)


def test_resume_modes(make, tmp_path):
    with pytest.raises(gaia_metrics.MetricsError, match="holds no run"):
        make(resume="must")
    make().finish()
    with pytest.raises(gaia_metrics.MetricsError, match="resume='never'"):
        make(resume="never")
    with pytest.raises(gaia_metrics.MetricsError, match="choose another dir"):
        make(run_id="20200101-other")
    with pytest.raises(gaia_metrics.MetricsError, match="YYYYMM"):
        make(run_id="d12", dir=tmp_path / "other")


def test_two_processes_with_one_folder(make, tmp_path, capfd):
    code = """
        run = gaia_metrics.init("p", "n", dir=sys.argv[1], system_interval=0)
        run.log(0, {"a": 1.0})
        print(run.id, flush=True)
        sys.stdin.readline()
        run.finish()
    """
    with child(code, tmp_path / "run", stdin=subprocess.PIPE) as first:
        first_id = first.stdout.readline().strip()
        second = make()
        assert "another process" in capfd.readouterr().err
        assert second.dir != tmp_path / "run"
        # A run of its own: as an attempt of the first it would void the first one's values.
        assert second.id != first_id and (second.attempt, second.resume_step) == (1, -1)
        assert json.loads((second.dir / "run.json").read_text())["id"] == second.id
        second.log(0, {"a": 2.0})
        second.finish()
        first.communicate("go on\n")
    assert lines(tmp_path / "run")[0]["a"] == 1.0
    assert lines(second.dir)[0]["a"] == 2.0


def test_unwritable_folder_does_not_stop_training(make, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    run = make(dir=tmp_path / "file/run")
    run.log(0, {"a": 1.0})
    assert not run.wait_durable(0, timeout=1)
    run.finish()
    assert capfd.readouterr().err.count("cannot be written") == 1


LOOP = """
    run = gaia_metrics.init(
        "p", "n", dir=sys.argv[1], resume_step=int(sys.argv[2]) if sys.argv[2] != "-" else None
    )
    start = run.resume_step + 1
    for step in range(start, start + 100_000):
        run.log(step, {"loss": float(step), "attempt": float(run.attempt)})
        if step % 50 == 0:
            assert run.wait_durable(step)
            print(step, flush=True)
        time.sleep(0.0005)
"""


def test_kill_9_at_any_moment(tmp_path):
    folder = tmp_path / "run"
    resume = "-"
    for attempt in range(1, 5):
        process = child(LOOP, folder, resume)
        for _ in range(3 * attempt):
            durable = int(process.stdout.readline())
        time.sleep(0.003 * attempt)
        process.kill()
        process.wait()
        process.stdout.close()
        raw = (folder / "metrics.jsonl").read_bytes()
        whole = [jsonl.loads(line) for line in raw.splitlines(keepends=True) if b"\n" in line]
        steps = [line["step"] for line in whole]
        assert steps == list(range(len(steps))) and steps[-1] >= durable
        resume = durable - 20
    run = gaia_metrics.init("p", "n", dir=folder, resume_step=resume)
    run.finish()
    got = lines(folder)
    assert [line["step"] for line in got] == list(range(resume + 1))
    assert all(line["loss"] == line["step"] for line in got)
    assert [line["attempt"] for line in got] == sorted(line["attempt"] for line in got)
    assert got[-1]["attempt"] == 4


@pytest.mark.parametrize(
    ("ending", "status", "code"),
    [
        ("", "finished", 0),
        ("raise ValueError('boom')", "crashed", 1),
        ("os.kill(os.getpid(), 15)", "stopped", -signal.SIGTERM),
    ],
)
def test_exits_flush(tmp_path, ending, status, code):
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import gaia_metrics, os, sys\n"
            "run = gaia_metrics.init('p', 'n', dir=sys.argv[1])\n"
            f"run.log(0, {{'a': 1.0}})\n{ending}",
            str(tmp_path / "run"),
        ],
        capture_output=True,
    )
    assert process.returncode == code
    assert lines(tmp_path / "run")[0]["a"] == 1.0
    assert json.loads((tmp_path / "run/run.json").read_text())["status"] == status


def test_forked_child_is_harmless(make, tmp_path):
    run = make()
    run.log(0, {"a": 1.0})
    assert run.wait_durable(0)
    child_pid = os.posix_spawn(
        sys.executable, [sys.executable, "-c", "pass"], dict(os.environ)
    )  # posix_spawn runs no fork hooks: the run goes on
    os.waitpid(child_pid, 0)
    run.log(1, {"a": 2.0})
    run.finish()
    assert len(lines(tmp_path / "run")) == 2


def test_a_disk_that_stays_full(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "256k") as disk:
        run = gaia_metrics.init("p", "n", dir=disk / "run", system_interval=0)
        run.log(0, {"a": 1.0})
        assert run.wait_durable(0)
        fill(disk, leave=0)
        for step in range(1, 3000):
            run.log(step, {"a": 1.0, "b": 2.0})
        run.finish()
        assert lines(disk / "run")[0]["a"] == 1.0
    assert not run._worker.alive and run._worker.dropped > 0
    err = capfd.readouterr().err
    assert err.count("No space left") == 1 and err.count("records are lost") == 1
    assert "gave up" not in err and "internal error" not in err


def test_a_disk_that_refuses_is_tried_again(make, tmp_path, monkeypatch, capfd):
    run = make()
    run.log(0, {"a": 1.0})
    assert run.wait_durable(0)
    real = os.pwrite

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    run.log(1, {"a": 2.0})
    assert not run.wait_durable(1, timeout=5)
    monkeypatch.setattr(os, "pwrite", real)
    assert run.wait_durable(1)
    run.finish()
    assert [line["a"] for line in lines(tmp_path / "run")] == [1.0, 2.0]
    assert capfd.readouterr().err.count("No space left") == 1
