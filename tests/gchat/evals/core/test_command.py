"""`gchat eval core` and `eval.core_every_steps` as users run them."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runs
import small_core
from gchat.__main__ import main
from gchat.evals.results import Results

SEQ_LEN = 128


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_core.write(tmp_path_factory.mktemp("bundle"), names=("copa", "winograd", "boolq"))


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """(run folder, output): four steps, with CORE after the third and the last."""
    run = tmp_path_factory.mktemp("runs") / "run"
    whole = small_core.write(tmp_path_factory.mktemp("whole"))
    args = runs.arguments(
        data_dir, run, "--eval.core-every-steps", 3, "--eval.core-bundle", whole,
        "--eval.core-max-per-task", 1, "--run.target-core", -1, steps=4,
    )  # fmt: skip
    # One layer and no dropout, which cost most of the time to compile.
    changed = {"seq-len": SEQ_LEN, "depth": 1, "dropout": 0}
    for name, value in {f"--model.{k}": v for k, v in changed.items()}.items():
        args[args.index(name) + 1] = str(value)
    args[args.index("--warmup") + 1] = "1"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main(["train", *args]) == 0
    return run, said.getvalue()


def core(run, bundle, *more):
    return main(["eval", "core", "--run", str(run), "--bundle", str(bundle), *map(str, more)])


def test_training_evaluates_core_and_times_its_target(trained):
    run, said = trained
    logged = {r["step"]: r for r in runs.logged(run) if "eval/core_v1" in r}
    assert sorted(logged) == [3, 4]
    assert 0 <= logged[3]["eval/core/copa"] <= 1
    summary = json.loads((run / "summary.json").read_text())
    assert summary["core_v1"] == logged[4]["eval/core_v1"]
    assert summary["core_v2"] == logged[4]["eval/core_v2"]
    # Reached at once, so by the clock of the third step and not of the last.
    assert summary["seconds_to_target_core"] >= logged[3]["train/seconds"]
    assert summary["seconds_to_target_core"] < logged[4]["train/seconds"]
    assert "core: 22 items of 22 tasks" in said and "no CORE score" not in said
    assert "core/copa" not in said  # one line, not one of 24 numbers


def test_a_target_that_a_part_of_the_tasks_would_pass_is_refused(
    data_dir, bundle, tmp_path, capsys
):
    args = runs.arguments(
        data_dir, tmp_path / "run", "--eval.core-every-steps", 3, "--eval.core-bundle", bundle,
        "--run.target-core", -1, steps=8,
    )  # fmt: skip
    assert main(["train", *args]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.target_core is -1" in line and "has no file for 19 tasks of CORE" in line
    assert not (tmp_path / "run").exists()


def test_the_command_keeps_what_is_done(trained, bundle, capsys):
    run, _ = trained
    assert core(run, bundle, "--max-per-task", 5, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["step"] == 4 and figures["tasks"]["copa"]["items"] == 5
    name = f"core-step000004-{figures['bundle']}-max5"
    assert figures["results"] == str(run / "evals" / f"{name}.jsonl")
    assert json.loads((run / "evals" / f"{name}.json").read_text()) == figures
    metrics = json.loads((run / "evals" / f"{name}.metrics/metrics.jsonl").read_text())
    assert metrics["step"] == 4 and "eval/core_v1" not in metrics
    assert metrics["eval/partial_core_v1"] == figures["partial_core_v1"]
    before = (run / "evals" / f"{name}.jsonl").read_bytes()
    assert core(run, bundle, "--max-per-task", 5, "--tasks", "boolq,copa") == 0
    said = capsys.readouterr().out
    assert "10 of 10 items are done already" in said
    assert "mean over 2 of 22 tasks: no CORE score" in said and "boolq " in said
    assert (run / "evals" / f"{name}.jsonl").read_bytes() == before
    assert not any(path.name.endswith(".lock") for path in (run / "evals").iterdir())


def test_more_tasks_replace_the_figures_of_fewer(trained, bundle, capfd):
    """Metrics hold one row; nothing warns of a run that goes on."""
    run, _ = trained
    assert core(run, bundle, "--max-per-task", 3, "--tasks", "copa", "--json") == 0
    assert core(run, bundle, "--max-per-task", 3, "--json") == 0
    shown = capfd.readouterr()
    figures = json.loads(shown.out.splitlines()[-1])
    assert "finished" not in shown.err and "3 of 9 items are done already" in shown.err
    path = Path(figures["results"]).with_suffix(".metrics") / "metrics.jsonl"
    (row,) = map(json.loads, path.read_text().splitlines())
    assert {name for name in row if "/core/" in name} == {
        f"eval/core/{name}" for name in ("copa", "winograd", "boolq")
    }
    # Killed between the last outcome and the metrics: the same command records them.
    subprocess.run(["rm", "-r", path.parent], check=True)
    assert core(run, bundle, "--max-per-task", 3) == 0 and path.exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tasks", "copaa"], "names 'copaa', which is no task of CORE; did you mean copa?"),
        (["--tasks", ","], "--tasks names no task; name some, or leave it out for all"),
        (["--tasks", "piqa"], "has no file for piqa; add eval_data/commonsense_reasoning/piqa"),
        (["--max-per-task", "0"], "--max-per-task is 0; use 1 or more"),
        (["--bundle", "nowhere"], "'nowhere' holds no task file of CORE"),
        (["--run", "nowhere"], "'nowhere' holds no run"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(trained, bundle, capsys, options, line):
    before = sorted((trained[0] / "evals").glob("*"))
    assert core(trained[0], bundle, *options) == 2
    shown = capsys.readouterr().err.splitlines()
    assert len(shown) == 1 and line in shown[0]
    assert sorted((trained[0] / "evals").glob("*")) == before


def test_another_tokenizer_is_refused(trained, bundle, tmp_path, capsys):
    from gchat.tokenizer import train_bpe

    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", trained[0], copy], check=True)
    train_bpe([runs.TEXT * 5], 290).save(copy / "tokenizer.json")
    assert core(copy, bundle) == 2
    assert "has 290 ids, its model 300; put the tokenizer.json" in capsys.readouterr().err


def test_a_full_disk_ends_it_in_one_line(trained, bundle, capsys, monkeypatch):
    def full(_self, _lines):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "_append", full)
    assert core(trained[0], bundle, "--max-per-task", 4) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written (No space left on device); make room" in line


def test_a_target_without_evaluations_is_refused(data_dir, tmp_path, capsys):
    args = runs.arguments(data_dir, tmp_path / "run", "--run.target-core", 0.2, steps=4)
    args[args.index("--warmup") + 1] = "1"
    assert main(["train", *args]) == 2
    assert "nothing evaluates CORE; add --eval.core-every-steps N" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# Slow enough to be killed in the middle: each batch is small, and waits.
SLOWLY = """
import sys, time
import gchat.run.core, gchat.score
from gaia.errors import run_cli
from gchat.__main__ import main
stream = gchat.score.Scorer.stream
def slowly(self, params, pairs):
    for batch in stream(self, params, pairs):
        yield batch
        time.sleep(0.3)
gchat.score.Scorer.stream = slowly
gchat.score.Scorer.__init__.__kwdefaults__["batch_tokens"] = 512
sys.exit(main(sys.argv[1:]))
"""


def lines_of(figures):
    return Path(figures["results"]).read_text().splitlines()


def started(run, bundle, *more, env=None):
    command = [sys.executable, "-c", SLOWLY, "eval", "core", "--run", str(run)]
    command += ["--bundle", str(bundle), "--json", *more]
    return subprocess.Popen(
        command, env=os.environ | (env or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_kill_9_loses_at_most_one_batch(trained, bundle):
    run, _ = trained
    whole = started(run, bundle)
    first = json.loads(whole.communicate(timeout=200)[0])
    lines = lines_of(first)
    os.unlink(first["results"])
    killed = started(run, bundle)
    while not os.path.exists(first["results"]) or len(lines_of(first)) < 9:
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    kept = lines_of(first)
    assert 9 <= len(kept) < len(lines)
    again = json.loads(started(run, bundle).communicate(timeout=200)[0])
    after = lines_of(first)
    assert after[: len(kept)] == kept and sorted(after) == sorted(lines)
    assert again["tasks"] == first["tasks"]
    assert again["tokens_forwarded"] < first["tokens_forwarded"]


def two(run, bundle, *limits):
    """Output of the processes of one evaluation, which have these limits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    both = [
        started(
            run, bundle, "--max-per-task", limit, "--coordinator", address, "--num-processes", "2",
            "--process-id", str(i),
        )
        for i, limit in enumerate(limits)
    ]  # fmt: skip
    out = [process.communicate(timeout=200) for process in both]
    return [process.returncode for process in both], out


@pytest.mark.slow
def test_two_processes_agree_with_one(trained, bundle):
    """They go on with what one process began."""
    run, _ = trained
    alone = json.loads(started(run, bundle, "--max-per-task", "11").communicate(timeout=200)[0])
    lines = lines_of(alone)
    begun = lines[:6]
    Path(alone["results"]).write_text("".join(f"{line}\n" for line in begun))
    codes, out = two(run, bundle, "11", "11")
    assert codes == [0, 0], out
    assert "{" not in out[1][0]  # Gloo says there, below Python, who is connected
    assert "5 of 33 items are done already" in out[0][1]
    figures = json.loads(out[0][0].splitlines()[-1])
    assert figures["tasks"] == alone["tasks"]
    again = lines_of(figures)
    assert again[:6] == begun and len(again) == len(lines) == 34
    single, shared = (
        {(r["task"], r["item"]): r for r in map(json.loads, each[1:])} for each in (lines, again)
    )
    assert single.keys() == shared.keys()
    for item, result in single.items():
        nats = pytest.approx(result.pop("nats"), abs=1e-4)
        assert shared[item].pop("nats") == nats and shared[item] == result


@pytest.mark.slow
def test_two_processes_that_differ_end_in_one_line(trained, bundle):
    codes, out = two(trained[0], bundle, "8", "9")
    assert codes[1] == 2 and codes[0] not in (0, None), out
    line = "process 1 evaluates with another max per task than process 0 (9, not 8); start the same"
    assert any(line in said for said in out[1][1].splitlines()), out
    assert not any("Traceback" in stderr for _, stderr in out), out
    assert not list((trained[0] / "evals").glob("*-max[89].json"))
