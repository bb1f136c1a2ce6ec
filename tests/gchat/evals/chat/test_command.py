"""`gchat eval chat` as users run it: results, resumption after kill -9, endpoints, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

import runs
from gchat.__main__ import main
from gchat.ask.evaluate import EvalChat, _Job
from gchat.evals.chat.evaluate import Writing


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """The folder of a run of one step, which answers nonsense."""
    run = tmp_path_factory.mktemp("runs") / "run"
    args = runs.arguments(data_dir, run, steps=1)
    for name, value in {"seq-len": 128, "depth": 1, "dropout": 0}.items():
        args[args.index(f"--model.{name}") + 1] = str(value)
    args[args.index("--warmup") + 1] = "1"
    assert main(["train", *args]) == 0
    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A file of choices, small enough for 128 tokens."""
    path = tmp_path_factory.mktemp("tasks") / "own.jsonl"
    rows = [{"question": "a?", "choices": ["the", "a"], "answer": i % 2} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"json:{path}"


def options(run, own, out):
    return ["eval", "chat", "--run", str(run), "--out", str(out), "--tasks", own, "letters",
            "--format", "chat", "--max-per-task", "6", "--max-tokens", "8"]  # fmt: skip


def outcomes(folder):
    (path,) = folder.glob("*.jsonl")
    first, *lines = path.read_text().splitlines()
    return json.loads(first), {(r["task"], r["item"]): r for r in map(json.loads, lines)}


def test_what_is_done_is_kept_and_a_second_attempt_gives_the_same(trained, own, tmp_path, capsys):
    command = options(trained, own, tmp_path / "a")
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    facts, whole = outcomes(tmp_path / "a")
    assert len(whole) == 12 and figures["chatcore"] is None
    assert figures["tasks"][own]["items"] == figures["tasks"]["letters"]["items"] == 6
    assert facts["format"] == "native" and facts["step"] == 1
    assert json.loads(next((tmp_path / "a").glob("*.json")).read_text()) == figures
    (path,) = (tmp_path / "a").glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]) + lines[5][:20])  # what a kill leaves
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "4 of 12 items are done already" in said and "letters" in said
    assert outcomes(tmp_path / "a") == (facts, whole)
    logged = list((tmp_path / "a").glob("*.metrics/metrics.jsonl"))
    assert logged and '"eval/chat/letters"' in logged[0].read_text()


def test_a_run_is_asked_who_it_is(trained, capsys):
    command = ["eval", "identity", "--run", str(trained), "--name", "Gaia", "--max-tokens", "2"]
    assert main([*command, "--format", "chat", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["name"] == "Gaia" and figures["named"] == figures["leaked"] == 0


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--tasks", "leters"], "did you mean letters?"),
        (["--max-per-task", "0"], "--max-per-task is 0"),
        (["--samples", "2"], "samples is 2 and temperature 0"),
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--concurrency", "2"], "--concurrency has no effect with --run"),
        (["--run", "/nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(trained, own, tmp_path, capsys, more, problem):
    assert main([*options(trained, own, tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert problem in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_dry_run_asks_nothing(own, tmp_path, capsys):
    command = ["eval", "chat", "--endpoint", "http://127.0.0.1:9/v1", "--tasks", own, "sums"]
    assert main(command) == 2 and "--out is not" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path), "--max-per-task", "5", "--dry-run"]) == 0
    assert "5 written answers of up to 512 tokens" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_kill_9_resumes_to_the_same_result(trained, own, tmp_path):
    def command(out):
        args = options(trained, own, out)
        args[args.index("--max-per-task") + 1] = "40"
        return [sys.executable, "-m", "gchat", *args, "--slots", "1"]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    killed = 0
    for _ in range(20):
        process = subprocess.Popen(command(tmp_path / "cut"), stdout=subprocess.DEVNULL)
        begun = sum(p.read_bytes().count(b"\n") for p in (tmp_path / "cut").glob("*.jsonl"))
        while process.poll() is None:
            time.sleep(0.01)
            files = list((tmp_path / "cut").glob("*.jsonl"))
            if files and files[0].read_bytes().count(b"\n") >= begun + 9:
                os.kill(process.pid, signal.SIGKILL)
        if process.wait() == 0:
            break
        killed += 1
    assert killed > 1 and process.returncode == 0
    assert outcomes(tmp_path / "cut") == outcomes(tmp_path / "whole")


def test_outcomes_of_two_servers_are_told_apart(tmp_path):
    """Both may call their model by one name; a password in an address is kept nowhere."""

    def facts(endpoint):
        job = _Job(EvalChat(endpoint=endpoint, out=tmp_path), [], Writing())
        return job._facts(SimpleNamespace(model="model"))

    one, other = facts("http://127.0.0.1:8000/v1"), facts("http://ada:secret@127.0.0.1:8001/v1/")
    assert one != other and "secret" not in str(other)
    assert facts("http://127.0.0.1:8000/v1") == one
