"""`--eval.chat-every-steps`: ChatCORE as a curve while a stage trains."""

import json

import pytest

import runs
from gchat.__main__ import main

FEW = ("--eval.chat-max-per-task", "6", "--eval.chat-max-written", "4", "--eval.chat-max-tokens")
TASKS = ("arc_easy={own}", "letters")


@pytest.fixture(scope="module")
def wide(data_dir, tmp_path_factory):
    """A base run of one step whose rows hold a question with choices."""
    folder = tmp_path_factory.mktemp("wide") / "run"
    args = runs.arguments(data_dir, folder, steps=1)
    for name, value in {"seq-len": 160, "depth": 1, "dropout": 0}.items():
        args[args.index(f"--model.{name}") + 1] = str(value)
    args[args.index("--warmup") + 1] = "1"
    assert main(["train", *args]) == 0
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "arc_easy.jsonl"
    rows = [{"query": f"q{i}", "choices": list("wxyz"), "gold": i % 4} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def curve(run, *more):
    """(step, values) of each evaluation."""
    kept = [r for r in runs.logged(run) if "eval/partial_chatcore" in r]
    return [(r["step"], {k: v for k, v in r.items() if k.startswith("eval/chat")}) for r in kept]


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [(), ("--lora-rank", "2")], ids=["whole", "lora"])
def test_its_last_point_is_what_the_command_says(adapters, wide, own, chats, tmp_path, capsys):
    run, tasks = tmp_path / "run", [task.format(own=own) for task in TASKS]
    args = ["sft", "--base", str(wide), "--data", str(chats), "--max-steps", "7", "--lr", "2e-2"]
    args += ["--run-dir", str(run), "--eval.chat-every-steps", "3", "--eval.chat-tasks", *tasks]
    assert main([*args, *FEW, "8", "--eval.sample-tokens", "2", *adapters]) == 0
    assert "chat: 10 items (6 of arc_easy, 4 of letters)" in capsys.readouterr().out
    points = curve(run)
    assert [step for step, _ in points] == [0, 3, 6, 7]
    command = ["eval", "chat", "--run", str(run), "--out", str(tmp_path / "out"), "--json"]
    command += ["--max-tokens", "8", "--max-per-task", "6", "--tasks"]
    assert main([*command, tasks[0]]) == 0
    figures = json.loads(capsys.readouterr().out)
    last = points[-1][1]
    assert last["eval/chat/arc_easy"] == figures["tasks"]["arc_easy"]["accuracy"]
    assert last["eval/partial_chatcore"] == pytest.approx(figures["partial_chatcore"])
    assert main([*command[:-5], "--max-tokens", "8", "--max-per-task", "4", "--tasks",
                 "letters"]) == 0  # fmt: skip
    figures = json.loads(capsys.readouterr().out)
    assert last["eval/chat/letters"] == figures["tasks"]["letters"]["accuracy"]


def test_it_is_refused_where_no_conversations_are_trained(base, tmp_path, capfd):
    text = tmp_path / "more.txt"
    text.write_text("\n\n".join(f"{i} {runs.TEXT[:300]}" for i in range(40)), encoding="utf-8")
    args = ["midtrain", "--base", str(base), "--data", str(text), "--max-steps", "4"]
    run = tmp_path / "mid"
    assert main([*args, "--run-dir", str(run), "--eval.chat-every-steps", "2"]) == 2
    assert "eval.chat_every_steps is 2, and the data is text" in capfd.readouterr().err
    assert not (run / "config.yaml").exists()
