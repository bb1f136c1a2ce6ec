"""`gchat rl` and `gchat dpo` as people run them: what they write and refuse, and kills."""

import json
import random
import re
import signal
import sys
from dataclasses import replace
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest

import runs
from gaia.errors import ConfigError
from gaia_metrics.reading.local import LocalSource
from gchat.__main__ import main
from gchat.config import TrainConfig
from gchat.posttrain.dpo import Preferences
from gchat.posttrain.rl import _held_out
from gchat.reward_config import RLConfig
from gchat.run import names
from gchat.run.folder import read_config

REWARD = """
def vowels(text, item):
    return sum(c in "aeiou" for c in text) / 10


def constant(text, item):
    return 1.0


def broken(text, item):
    raise KeyError("gold")
"""
FEW = (
    "--rl.max-new-tokens", "6", "--rl.prompts", "2", "--rl.samples", "4", "--rl.slots", "4",
    "--lr", "1e-2", "--checkpoint.every-minutes", "0", "--log-interval", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """questions.jsonl, rewards.py and pairs.jsonl."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "rewards.py").write_text(REWARD, encoding="utf-8")
    with open(folder / "questions.jsonl", "w", encoding="utf-8") as file:
        for word in ("small", "model", "reads", "writes", "text"):
            file.write(json.dumps({"question": f"the {word}", "answer": word}) + "\n")
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for i in range(24):
            pair = {"prompt": f"words {i}", "chosen": "the small model", "rejected": "old books"}
            file.write(json.dumps(pair) + "\n")
    return folder


def rl(base, files, run, *more, reward="vowels"):
    return [
        "rl", "--base", str(base), "--task", f"json:{files}/questions.jsonl", "--reward",
        f"{files}/rewards.py:{reward}", "--run-dir", str(run), *FEW, *map(str, more),
    ]  # fmt: skip


def dpo(base, files, run, *more):
    return [
        "dpo", "--base", str(base), "--data", f"{files}/pairs.jsonl", "--run-dir", str(run),
        "--batch-size", "4", "--lr", "3e-3", "--checkpoint.every-minutes", "0",
        "--log-interval", "1", *map(str, more),
    ]  # fmt: skip


def test_rl_earns_more_and_writes_what_its_answers_earned(base, files, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(rl(base, files, run, "--max-steps", 12, "--eval.every-steps", 6)) == 0
    log = [record for record in runs.logged(run) if "rl/reward" in record]
    assert [record["step"] for record in log] == list(range(1, 13))
    rewards = [record["rl/reward"] for record in log]
    assert np.mean(rewards[-3:]) > 1.5 * np.mean(rewards[:3])
    for record in log:
        known = [n for n in record if any(fnmatch(n, k) for k in names.METRICS)]
        assert set(record) - set(known) == {"step", "time"}
        assert {n for n in names.METRICS if n.startswith("rl/")} <= set(record)
        assert record["rl/logprob_gap"] < 1e-4 and record["rl/ratio"] == pytest.approx(1)
        assert 1 <= record["rl/answer_tokens"] <= 6 and record["rl/ungraded"] == 0
        assert record["train/grad_norm"] > 0
    shown = (run / "samples.txt").read_text()
    assert re.search(r"── step 12\n\d+: the \w+\n  \[0(\.\d+)?\] '", shown)
    *_, last = LocalSource(tmp_path).texts("run")  # as dashboards show them
    assert (last["step"], last["text"]) == (12, shown.split("── step 12\n")[1].strip())
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stage"], summary["steps"], summary["finished"]) == ("rl", 12, True)
    config = read_config(run)
    assert config.rl.task == f"json:{files}/questions.jsonl" and config.training.batch_size == 8
    assert config.optim.weight_decay == 0 and config.stage.chat == "native"
    assert "prompts: 5 items, 2 a step" in capsys.readouterr().out
    questions = files / "questions.jsonl"
    before = questions.read_text()
    questions.write_text(before.replace("the", "a", 1))
    assert main(["rl", "--resume", "--run-dir", str(run)]) == 2
    assert "are not those that the run began with; put the old ones" in capsys.readouterr().err
    questions.write_text(before)


def test_nothing_is_held_out_of_a_single_file(tmp_path):
    """A file has no splits: as its own test it would be measured on what is trained."""
    rows = [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(8)]
    for name in ("all", "train", "test"):
        path = tmp_path / ("" if name == "all" else "both") / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def held_out(task, named=None):
        settings = RLConfig(task=task, held_out_task=named)
        return _held_out(replace(TrainConfig(), rl=settings))

    whole, both = f"gsm8k={tmp_path}/all.jsonl", f"gsm8k={tmp_path}/both"
    assert held_out(whole) is None and len(held_out(both)) == 8
    assert len(held_out(whole, both)) == 8 and held_out("sums").name == "sums"
    with pytest.raises(ConfigError, match=r"held_out_task json:.* reads what rl\.task gsm8k=.*"):
        held_out(whole, f"json:{tmp_path}/all.jsonl")


def test_dpo_learns_what_is_chosen(base, files, tmp_path):
    run = tmp_path / "run"
    assert main(dpo(base, files, run, "--epochs", "2", "--dpo.held-out", "4")) == 0
    log = runs.logged(run)
    first, last = (r for r in (log[0], log[-1]))
    assert first["eval/dpo_loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert last["eval/dpo_loss"] < 0.6 and last["eval/dpo_accuracy"] == 1
    steps = [record for record in log if "dpo/margin" in record]
    assert len(steps) == 10  # two epochs of 20 pairs, four a step
    assert steps[0]["train/loss"] == pytest.approx(np.log(2), abs=1e-5)
    assert steps[-1]["dpo/chosen_reward"] > steps[-1]["dpo/rejected_reward"]
    assert (run / "reference.npz").exists() and not list(run.glob("*partial*"))
    assert json.loads((run / "summary.json").read_text())["stage"] == "dpo"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--top-k", "50"], "--top-k changes which tokens are sampled"),
        (["--rl.min-p=0.1"], "--min-p changes which tokens are sampled"),
        (["--rl.samples", "1"], "rl.samples is 1; use at least 2"),
        (["--rl.temperature", "0"], "rl.temperature is 0"),
        (["--rl.temperature", "nan"], "rl.temperature is nan"),
        (["--batch-size", "6"], "rl has rl.prompts 2 x rl.samples 4 rows"),
        (["--rl.max-new-tokens", "47"], "no prompt of json:"),
        (["--task", "gsm9k"], "there is no task 'gsm9k'"),
        (
            ["--task", "sums", "--rl.split", "test", "--rl.held-out-task", "sums"],
            "rl.held_out_task sums reads what rl.task sums trains on (rl.split test)",
        ),
        (["--reward", "missing.py:f"], "missing.py', which does not exist"),
        (["--guards.spike-factor", "3"], "guards.spike_factor is 3"),
        (["--dpo.beta", "1"], "--dpo.beta is of `gchat dpo`"),
        (["--batch", "auto"], "--batch auto is not of gchat rl"),
        (["--data-dir", "x"], "--data.dir is of pretraining; use --rl.task"),
    ],
    ids=lambda x: "".join(x) if isinstance(x, list) else "",
)
def test_rl_refuses_in_one_line_and_writes_nothing(base, files, tmp_path, capsys, more, says):
    assert main(rl(base, files, tmp_path / "run", "--max-steps", 2, *more)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("left", [None, b"", b"PK\x03\x04", b"half of it"])
def test_a_reference_that_a_full_disk_cut_is_computed_again(tmp_path, left):
    session = SimpleNamespace(resume=True, folder=SimpleNamespace(path=tmp_path))
    preferences = object.__new__(Preferences)
    preferences._started = SimpleNamespace(session=session)
    if left is not None:
        (tmp_path / "reference.npz").write_bytes(left)
    assert preferences._known() == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--dpo.held-out", "24"], "dpo.held_out is 24, and there are 24 pairs"),
        (["--beta", "0"], "dpo.beta is 0"),
        (["--data", "none.jsonl"], "does not exist"),
        (["--rl.prompts", "2"], "--rl.prompts is of `gchat rl`"),
    ],
    ids=lambda x: "".join(x) if isinstance(x, list) else "",
)
def test_dpo_refuses_in_one_line_and_writes_nothing(base, files, tmp_path, capsys, more, says):
    assert main(dpo(base, files, tmp_path / "run", *more)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_task_grades_its_own_items(base, tmp_path):
    """The items of `letters` have no numbers that the grader of `sums` could read."""
    words = ["rl", "--base", str(base), "--task", "sums", "--rl.held-out-task", "letters"]
    words += ["--run-dir", str(tmp_path / "run"), *FEW, "--max-steps", "1", "--model.seq-len", "96"]
    assert main([*words, "--eval.every-steps", "1"]) == 0
    assert any("eval/reward" in record for record in runs.logged(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rl", "dpo"])
def test_in_bf16_with_one_table_for_both_ends(verb, data_dir, files, tmp_path):
    """All targets of a step in one chunk of the loss, whose products are others than in many."""
    base, run = tmp_path / "base", tmp_path / "run"
    options = ("--model.compute-dtype", "bfloat16", "--model.tied", "true", "--model.dropout", "0")
    args = runs.arguments(data_dir, base, *options, "--model.seq-len", "48", steps=10)
    assert main(["train", *args]) == 0
    command = rl if verb == "rl" else dpo
    more = ("--max-steps", 3, "--training.loss-chunk", 4096)
    assert main(command(base, files, run, *more)) == 0
    log = [record for record in runs.logged(run) if "train/grad_norm" in record]
    assert [record["step"] for record in log] == [1, 2, 3]
    assert all(np.isfinite(record["train/loss"]) for record in log)
    assert any(record["train/grad_norm"] > 0 for record in log)
    if verb == "rl":
        assert all(record["rl/logprob_gap"] < 0.05 for record in log)


@pytest.mark.slow
def test_rl_stops_and_says_so_where_nothing_differs(base, files, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("--max-steps", 9, "--rl.stall-steps", 3)
    assert main(rl(base, files, run, *more, reward="constant")) == 0
    said = capsys.readouterr().out
    assert "stopping after step 3: in each of the last 3 steps all answers to a prompt had" in said
    assert "--resume" in said  # it is saved, and can go on
    before, after = runs.arrays(run, 3), None
    log = [record for record in runs.logged(run) if "rl/reward" in record]
    assert [record["rl/groups_kept"] for record in log] == [0, 0, 0]
    # Nothing has moved the parameters: not decay, not momentum.
    from gchat.run.loading import load_run

    after = load_run(str(base)).params
    assert np.array_equal(before[".params['head']['kernel']"], after["head"]["kernel"])
    # The count goes on where it was: one more such step, and a resumed run stops again.
    args = rl(base, files, run, "--resume", reward="constant")
    args = [a for a in args if a != "--base" and a != str(base)]
    assert main(args) == 0
    assert "stopping after step 4" in capsys.readouterr().out


@pytest.mark.slow
def test_a_reward_that_fails_always_ends_the_run_in_one_line(base, files, tmp_path, capsys):
    assert main(rl(base, files, tmp_path / "run", "--max-steps", 4, reward="broken")) == 1
    said = capsys.readouterr()
    assert "rl.reward graded none of a step's 8 answers: KeyError: 'gold'" in said.err
    assert said.out.count("reward broken: KeyError") == 1


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["rl", "rl with adapters", "dpo", "dpo with adapters"])
def test_kill_9_resumes_to_the_same_result(verb, base, files, tmp_path, user_environment):
    command = dpo if verb.startswith("dpo") else rl
    adapters = ("--lora-rank", 2) if "adapters" in verb else ()
    more = ("--max-steps", 12, "--checkpoint.every-steps", 3, "--rl.passes", 2, *adapters)
    more = [m for i, m in enumerate(more) if command is rl or i not in (4, 5)]

    def start(run, *extra):
        args = [sys.executable, "-m", "gchat", *command(base, files, run, *more, *extra)]
        return runs.Process(args, user_environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    assert process.end() == 0, process.text
    process = start(killed)
    assert process.step_reached(random.randint(5, 10)), process.text
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    resumed = runs.Process(
        [sys.executable, "-m", "gchat", command.__name__, "--resume", "--run-dir", str(killed)],
        user_environment,
    )
    assert resumed.end() == 0, resumed.text
    assert "resumed from step" in resumed.text
    expected, final = runs.arrays(whole, 12), runs.arrays(killed, 12)
    assert all((expected[path] == array).all() for path, array in final.items())
    timed = ("time", "perf", "run/", "train/seconds", "rl/rollout_")
    cut = [
        [{k: v for k, v in r.items() if not k.startswith(timed)} for r in runs.logged(run)]
        for run in (whole, killed)
    ]
    assert cut[0] == cut[1]
    assert (whole / "samples.txt").exists() == (killed / "samples.txt").exists()
    if command is rl:
        assert (whole / "samples.txt").read_text() == (killed / "samples.txt").read_text()
