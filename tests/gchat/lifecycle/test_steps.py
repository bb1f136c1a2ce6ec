"""Steps of a speedrun: what is done stays done, what fails says so, what is stopped goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.factory.recipe import Factory
from gchat.factory.recipe import steps as factory_steps
from gchat.lifecycle import command, questions, report
from gchat.lifecycle.recipe import OFFLINE, Speedrun, steps
from gchat.lifecycle.steps import Step, StepFailed, _passed_on, run_all, summary_of


def measuring(folder, name, *words):
    return Step(name, "measure", lambda: words, folder / f"{name}.json")


def test_what_is_done_is_not_done_again(tmp_path, capfd):
    first = measuring(tmp_path, "first", "plan", "cpu", "--sku", "v6e-8", "--json")
    seconds, saved = {}, []
    assert run_all([first], seconds, lambda: saved.append(dict(seconds)))
    assert json.loads(first.file.read_text())
    before = first.file.stat().st_mtime_ns
    assert run_all([first], seconds, lambda: None)
    assert first.file.stat().st_mtime_ns == before
    assert list(seconds) == ["first"] and saved == [seconds]
    assert capfd.readouterr().out.count("1/1 first") == 1


def test_a_step_that_fails_leaves_nothing_and_ends_the_speedrun(tmp_path, capfd):
    wrong = measuring(tmp_path, "wrong", "eval", "chat", "--run", str(tmp_path / "none"))
    later = measuring(tmp_path, "later", "plan", "cpu", "--sku", "v6e-8", "--json")
    with pytest.raises(StepFailed, match="wrong failed with status 2"):
        run_all([wrong, later], {}, lambda: None)
    assert "holds no run" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_was_begun_is_resumed(tmp_path):
    step = Step("sft", "train", lambda: ["new"], tmp_path, ["old"])
    assert step.command() == ["new"] and not step.done
    (tmp_path / "config.yaml").write_text("")
    assert step.command() == ["old"]
    (tmp_path / "summary.json").write_text('{"finished": false}')
    assert not step.done
    (tmp_path / "summary.json").write_text('{"finished": true}')
    assert step.done and summary_of(tmp_path / "nowhere") == {}


@pytest.fixture
def asked(tmp_path):
    return Speedrun(tmp_path / "run", ("base", "mid", "sft", "chat"), True, ("--hours", "0.1"))


def test_the_steps_of_a_speedrun(asked):
    made = steps(asked, questions.write)
    assert [step.name for step in made] == [
        "base", "identity", "functions", "mid", "ChatCORE of mid", "sft", "ChatCORE of sft",
        "answers",
    ]  # fmt: skip
    by_name = {step.name: step for step in made}
    words = by_name["sft"].command()
    assert words[words.index("--base") + 1] == str(asked.run("mid"))
    assert words[words.index("--data") + 1] == f"{asked.made('functions')}@2"
    only = Speedrun(asked.folder, ("sft",), True, ())
    words = {step.name: step for step in steps(only, questions.write)}["sft"].command()
    assert words[words.index("--base") + 1] == str(only.folder)  # the base run that lies there


def test_a_file_of_answers_that_a_kill_left_is_gone_on_with(asked):
    asked.answers.parent.mkdir(parents=True)
    asked.answers.write_text('{"line": 1, "text": "the first of many"}\n')
    assert not steps(asked, questions.write)[-1].done
    factory = Factory(asked.folder, ("texts",), baseline=True)
    for name in ("qpt", "cpt"):
        factory.file(f"{name}-answers.jsonl").touch()
    made = {step.name: step for step in factory_steps(factory)}
    assert not made["qpt answers"].done and not made["cpt answers"].done


def test_its_state_is_read_back_as_it_was(asked):
    asked.folder.mkdir()
    asked.seconds["base"] = 3.5
    command._save(asked)
    assert Speedrun(**command._read(asked.folder)) == asked
    (asked.folder / command.STATE).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        command._read(asked.folder)


def trained(folder, stage, loss):
    folder.mkdir(parents=True, exist_ok=True)
    summary = {"steps": 12, "train_loss": loss, "val_loss": loss, "val_bpb": loss / 2}
    summary |= {"seconds": 61.0, "cost_usd": 0.25, "finished": True, "core_v1": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = [{"step": s, "time": s, "train/loss": loss, "train/seconds": s} for s in range(1, 13)]
    lines[-1] |= {"eval/val_loss": loss, "eval/val_bpb": loss / 2}
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "report.md").write_text(f"# {stage}\n")


def test_the_report_has_a_row_for_each_stage_and_real_answers(asked):
    for stage, loss in (("base", 4.0), ("mid", 3.0), ("sft", 2.0)):
        trained(asked.run(stage), stage, loss)
    evals, made = asked.folder / "evals", asked.made("functions")
    evals.mkdir()
    made.parent.mkdir()
    turns = [("user", "Explain a.b."), ("assistant", "Adds | up.")]
    row = {"messages": [{"role": r, "content": text} for r, text in turns], "function": "a.b"}
    made.write_text(json.dumps(row) + "\n")
    questions.write(asked)
    lines = asked.made("questions").read_text().splitlines()
    asked_of_it = [json.loads(line)["messages"][0]["content"] for line in lines]
    assert "Who are you?" in asked_of_it and "What does a.b do?" in asked_of_it
    answers = [{"line": i + 1, "text": f"answer {i}"} for i in range(len(lines))]
    (evals / "answers-sft.jsonl").write_text("".join(f"{json.dumps(a)}\n" for a in answers))
    chat = {"chatcore": None, "tasks": {"sums": {"accuracy": 0.25}}}
    (evals / "chat-sft.json").write_text(json.dumps(chat))
    asked.seconds.update(base=61.0, sft=62.0)
    summary = report.write(asked)
    text = (asked.folder / "report.md").read_text()
    assert "| stage | steps | loss | val loss | bpb | sums | time | cost |" in text
    assert "| sft | 12 | 2.0000 | 2.0000 | 1.0000 | 0.2500 | 1:01 | $0.25 |" in text
    assert "| What does a.b do? *(seen, in other words)* | answer 3 | Adds \\| up. |" in text
    assert "2:03 in all, $0.75" in text and summary["cost_usd"] == 0.75
    assert (asked.folder / "base.md").read_text() == "# base\n"
    assert (asked.folder / "stages.png").stat().st_size > 10_000
    report.write(asked)  # once more: the base's own report stays
    assert (asked.folder / "base.md").read_text() == "# base\n"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_what_a_model_writes_ends_no_line_of_the_report(asked, mark):
    """JSON leaves these marks as they are, and Python takes each for the end of a line."""
    turns = [("user", f"Explain{mark}a.b."), ("assistant", f"Adds{mark}up.")]
    row = {"messages": [{"role": r, "content": text} for r, text in turns], "function": "a.b"}
    asked.made("functions").parent.mkdir(parents=True)
    asked.made("functions").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    questions.write(asked)
    asked.answers.parent.mkdir()
    said = {"line": 4, "text": f"one{mark}two"}
    asked.answers.write_text(json.dumps(said, ensure_ascii=False) + "\n")
    assert report.answers(asked)[2:] == [
        "| What does a.b do? *(seen, in other words)* | one two | Adds up. |"
    ]


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--stages", "base,fly"], "--stages names 'fly'"),
        (["--stages"], "--stages has no value"),
        (["--about", "nowhere.md"], "nowhere.md does not exist"),
        (["--chats", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--no-such-option"], "unknown option --no-such-option"),
        (["--hours", "soon"], "--hours"),
        (["--stages", "base", "--name", "Bob"], "--name with the base stage alone"),
        (["--training.steps", "0"], "training.steps is 0"),
    ],
)
def test_bad_options_are_one_line(tmp_path, monkeypatch, capsys, args, named):
    monkeypatch.chdir(tmp_path)
    assert main(["speedrun", *args]) == 2
    message = capsys.readouterr().err
    assert named in message and message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused(tmp_path, capsys):
    command._save(Speedrun(tmp_path, (), True, ()))
    assert main(["speedrun", "--run-dir", str(tmp_path / "other"), "--stages", "sft"]) == 2
    assert "holds no base run" in capsys.readouterr().err
    assert main(["speedrun", "--run-dir", str(tmp_path)]) == 2
    assert "already holds a speedrun" in capsys.readouterr().err
    assert main(["speedrun", "--run-dir", str(tmp_path), "--resume", "--chats", __file__]) == 2
    assert "has its plan already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["--hours=9"], ["--hours", "9"], ["--name", "Bob"], ["--about", __file__], ["--depth=4"],
        ["--chats", __file__], ["--dry-run"], ["other"], ["--stages", "rl", "--name=Bob"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("folder", ["--run-dir={}", "--run_dir {}", "--run.dir {}"])
def test_an_option_that_a_resumed_speedrun_would_drop_is_refused(
    tmp_path, monkeypatch, capsys, folder, words
):
    monkeypatch.setattr(command, "run_all", lambda *given: pytest.fail("it went on"))
    command._save(Speedrun(tmp_path, ("base",), True, ()))
    before = (tmp_path / command.STATE).read_bytes()
    resume = ["speedrun", "--resume", *folder.format(tmp_path).split(" ")]
    assert main([*resume, *words]) == 2
    said = capsys.readouterr().err
    name = next(word for word in reversed(words) if word.startswith("--") or word == "other")
    assert f"{name.partition('=')[0]}" in said and "has its plan already" in said
    assert said.count("\n") == 1 and (tmp_path / command.STATE).read_bytes() == before


@pytest.mark.parametrize("words", [[], ["--allow-restart"], ["--stages", "base,sft"]])
def test_a_resumed_speedrun_takes_its_folder_and_more_stages(tmp_path, monkeypatch, words):
    gone_on = []
    monkeypatch.setattr(command, "run_all", lambda *given: gone_on.append(given))
    command._save(Speedrun(tmp_path, ("base",), True, ("--hours", "0.1")))
    assert main(["speedrun", "--resume", "--run-dir", str(tmp_path), *words]) == 0
    assert len(gone_on) == 1


@pytest.mark.slow
def test_a_killed_speedrun_goes_on_where_it_was(tmp_path, user_environment):
    """All stages, small: killed in the base stage and in fine-tuning, each goes on."""
    run = tmp_path / "run"
    options = ["--depth", "2", "--model.dim", "64", "--training.steps", "60", "--run-dir", str(run)]
    options += [
        "--checkpoint.every-steps",
        "10",
        "--run.log-interval",
        "1",
        "--eval.tokens",
        "4096",
    ]

    def start(*words):
        command = [sys.executable, "-m", "gchat", "speedrun", *words]
        return subprocess.Popen(
            command, env=user_environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def kill_at(process, line, after):
        for text in process.stdout:
            if text.startswith(line):
                time.sleep(after)
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    kill_at(start(*options), "step 20/60", 0.0)
    kill_at(start("--resume", "--run-dir", str(run)), "── 6/8 sft", 15.0)
    process = start("--resume", "--run-dir", str(run))
    said = process.communicate(timeout=1200)[0]
    assert process.returncode == 0, said
    assert "1/8" not in said  # the base stage was done
    text = (run / "report.md").read_text()
    assert all(f"\n| {stage} |" in text for stage in ("base", "mid", "sft"))
    for stage in ("", "sft"):
        lines = (run / stage / "metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line)["step"] for line in lines]
        assert logged == sorted(set(logged))
    assert len((run / "evals" / "answers-sft.jsonl").read_text().splitlines()) > 10
    assert OFFLINE.functions and Path(run / "stages.png").exists()


def test_a_speedrun_under_nohup_goes_on_when_its_terminal_closes():
    """The step ignores SIGHUP as its parent does; to take it for a wish would end the speedrun."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wait = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    try:
        with subprocess.Popen(wait, stdin=subprocess.PIPE) as process, _passed_on(process) as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            process.stdin.close()
            assert process.wait() == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert asked == []
