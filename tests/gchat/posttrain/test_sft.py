"""`gchat sft` and `gchat midtrain`: what they inherit, learn, keep and refuse."""

import json
import random
import signal

import numpy as np
import pytest

import runs
from gchat.__main__ import main
from gchat.chat_format import read_format
from gchat.run.folder import read_config
from gchat.run.loading import load_run
from gchat.tokenizer import Tokenizer


def series(run, name):
    return [record[name] for record in runs.logged(run) if name in record]


@pytest.fixture(scope="module")
def tuned(base, chats, tmp_path_factory):
    """The command as the seed writes it, with adapters."""
    run = tmp_path_factory.mktemp("sft") / "run"
    args = ["sft", "--base-checkpoint", base, "--data", chats, "--epochs", "3", "--lr", "2e-2"]
    args += ["--output", run, "--lora-rank", "4", "--eval.sample-tokens", "4"]
    assert main([str(word) for word in args]) == 0
    return run


def test_the_loss_on_held_out_answers_falls(tuned):
    losses = series(tuned, "eval/val_loss")
    assert losses[-1] < 0.9 * losses[0]
    assert np.isfinite(losses).all()


def test_it_takes_over_what_was_not_given(tuned, base):
    ours, theirs = read_config(tuned), read_config(base)
    assert ours.model.without_adapters() == theirs.model
    for name in ("batch_size", "seed", "loss_chunk"):
        assert getattr(ours.training, name) == getattr(theirs.training, name)
    assert ours.optim.beta2 == theirs.optim.beta2
    # Given was lr; the other groups keep their ratio to it.
    assert ours.optim.lr == 2e-2 and ours.optim.embed_lr == pytest.approx(2e-2)
    assert ours.data.dir != theirs.data.dir and ours.data.packing == "best_fit"


def test_the_folder_says_where_it_comes_from(tuned, base):
    config = read_config(tuned)
    assert config.training.init_from == str(base) and config.stage.base_step == 60
    assert config.stage.name == "sft" and config.stage.chat == "native"
    summary = json.loads((tuned / "summary.json").read_text())
    assert summary["stage"] == "sft" and summary["base"] == str(base) and summary["finished"]
    assert "| stage | sft, begun with step 60" in (tuned / "report.md").read_text()
    # A run that was trained on chats is asked with tags, one that was not is asked with text.
    for run, kind in ((tuned, "native"), (base, "text")):
        assert read_format(run, Tokenizer.load(run)).kind == kind


def test_others_see_a_plain_model_with_the_adapters_merged(tuned, base):
    ours, theirs = load_run(str(tuned)), load_run(str(base))
    assert ours.config.model == theirs.config.model
    kernels = [run.params["blocks"]["attn"]["q"]["kernel"] for run in (ours, theirs)]
    assert not np.array_equal(*kernels)
    np.testing.assert_array_equal(ours.params["embed"]["table"], theirs.params["embed"]["table"])


def test_midtraining_on_plain_text_goes_on_with_the_base(base, tmp_path):
    text = tmp_path / "more.txt"
    rng = np.random.default_rng(2)
    words = [" ".join(rng.choice(runs.TEXT.split(), size=60)) for _ in range(60)]
    text.write_text("\n\n".join(words), encoding="utf-8")
    run = tmp_path / "mid"
    args = ["midtrain", "--base", base, "--data", text, "--max-steps", "4", "--output", run]
    assert main([str(word) for word in [*args, "--eval.sample-tokens", "2"]]) == 0
    config = read_config(run)
    assert config.stage.chat is None and config.data.packing == "split"
    assert not (run / "chat.json").exists()
    # It begins where the base ended: far below a model that has learned nothing (ln 300 = 5.7).
    assert series(run, "train/loss")[0] < 4.5


def test_half_of_the_conversations_longer_than_a_row(base, tmp_path, capfd):
    """Cut between turns or left out, and counted: no row without a target, no NaN."""
    path, run = tmp_path / "long.jsonl", tmp_path / "run"
    with open(path, "w", encoding="utf-8") as file:
        for i in range(60):
            turns = 1 if i % 2 else 12
            pair = [
                {"role": "user", "content": f"words {i}"},
                {"role": "assistant", "content": "the small model"},
            ]
            file.write(json.dumps({"messages": pair * turns}) + "\n")
    args = ["sft", "--base", base, "--data", path, "--epochs", "2", "--lr", "2e-2"]
    args += ["--output", run, "--lora-rank", "4", "--eval.sample-tokens", "2"]
    assert main([str(word) for word in args]) == 0
    losses = series(run, "train/loss")
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert all(0 < share < 1 for share in series(run, "data/fill"))
    assert "cut between turns" in capfd.readouterr().err


def broken(folder, name, *rows):
    path = folder / name
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


BAD = {
    "no_base": (["--data", "{chats}"], "needs a run to begin with"),
    "no_run": (["--base", "/nowhere", "--data", "{chats}"], "holds no run"),
    "no_data": (["--base", "{base}"], "stage.data is not set"),
    "missing": (["--base", "{base}", "--data", "{tmp}/none.jsonl"], "none.jsonl does not exist"),
    "no_task": (["--base", "{base}", "--data", "gsm9k"], "there is no task 'gsm9k'"),
    "text": (["--base", "{base}", "--data", "{tmp}/a.txt"], "is text"),
    "unlearned": (["--base", "{base}", "--data", "{tmp}/unlearned.jsonl"], "no answer that is"),
    "empty": (["--base", "{base}", "--data", "{tmp}/empty.jsonl"], "every file is empty"),
    "roles": (["--base", "{base}", "--data", "{tmp}/roles.jsonl"], "line 1"),
    "epochs": (["--base", "{base}", "--data", "{chats}", "--epochs", "0"], "stage.epochs is 0"),
    "lr": (["--base", "{base}", "--data", "{chats}", "--lr", "-1"], "optim.lr is -1"),
    "both": (["--base", "{base}", "--data", "{chats}", "--epochs", "1", "--max-steps=3"], "both"),
    "times": (["--base", "{base}", "--data", "sums@0"], "taken 0 times"),
    "stage": (["--base", "{base}", "--data", "{chats}", "--stage.name", "rl"], "follows from"),
    "rl": (["--base", "{base}", "--data", "{chats}", "--rl.steps", "3"], "rl"),
    "step": (["--base", "{base}", "--data", "{chats}", "--stage.base-step", "7"], "use one of"),
    "core": (["--base", "{base}", "--data", "{chats}", "--eval.core-every-steps", "5"],
             "--eval.core-every-steps is of pretraining"),
    "target": (["--base", "{base}", "--data", "{chats}", "--run.target-core", "0.2"],
               "--run.target-core is of pretraining"),
    "folder": (["--base", "{base}", "--data", "{chats}", "--data-dir", "x"], "use --data FILE"),
    "adapters": (["--base", "{base}", "--data", "{chats}", "--lora-rank", "99"], "lora_rank is 99"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_line(case, base, chats, tmp_path, capfd):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.jsonl").write_text("")
    question = {"role": "user", "content": "a"}
    answer = {"role": "assistant", "content": "b"}
    broken(tmp_path, "unlearned.jsonl", {"messages": [question, answer | {"weight": 0}]})
    broken(tmp_path, "roles.jsonl", {"messages": [answer, question]})
    words, said = BAD[case]
    places = {"base": base, "chats": chats, "tmp": tmp_path}
    args = ["sft", *(word.format(**places) for word in words)]
    args += [] if "--epochs" in args or case == "both" else ["--epochs", "1"]
    assert main([*args, "--output", str(tmp_path / "run")]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert said in error and "; " in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_data_of_another_tokenizer_is_refused(base, tmp_path, capfd):
    other = runs.make_data(tmp_path / "data", vocab_size=280)
    args = ["midtrain", "--base", str(base), "--data", str(other), "--max-steps", "1"]
    assert main([*args, "--output", str(tmp_path / "run")]) == 2
    assert "made with another tokenizer" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_not_finished_is_refused(base, chats, tmp_path, capfd):
    import shutil

    half = tmp_path / "half"
    shutil.copytree(base, half)
    shutil.rmtree(half / "checkpoints" / "60")
    args = ["sft", "--base", str(half), "--data", str(chats), "--max-steps", "1"]
    args += ["--output", str(tmp_path / "run"), "--eval.sample-tokens", "2"]
    assert main(args) == 2
    assert "saved at step 40 of 60" in capfd.readouterr().err
    assert main([*args, "--allow-unfinished"]) == 0


def test_the_trainer_takes_no_stage(tuned, data_dir, tmp_path, capfd):
    args = ["train", "--data-dir", str(data_dir), "--run-dir", str(tmp_path / "r")]
    assert main([*args, "--stage.name", "sft"]) == 2
    assert "use gchat midtrain, sft, dpo or rl" in capfd.readouterr().err
    assert main(["train", "--resume", "--run-dir", str(tuned)]) == 2
    assert "resume it with `gchat sft`" in capfd.readouterr().err
    assert main(["midtrain", "--resume", "--run-dir", str(tuned)]) == 2
    assert "is a run of stage sft" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["midtrain", "sft", "lora"])
def test_it_resumes_bit_for_bit_after_kill_9(verb, base, chats, tmp_path, user_environment):
    def start(folder, *more):
        command = ["python", "-m", "gchat", "sft" if verb == "lora" else verb]
        args = ["--base", base, "--data", chats, "--epochs", "12", "--run-dir", folder]
        args += ["--checkpoint.every-steps", "5", "--checkpoint.every-minutes", "0"]
        args += ["--run.log-interval", "1", "--model.dropout", "0.1", *more]
        args += ["--lora-rank", "4"] if verb == "lora" else []
        import sys

        words = [sys.executable, *command[1:], *map(str, args)]
        if "--resume" in more:
            words = [*words[:4], "--resume", "--run-dir", str(folder), "--run.log-interval", "1"]
        return runs.Process(words, user_environment)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    assert process.end() == 0, process.text
    process = start(killed)
    assert process.step_reached(random.randint(12, 25)), process.text
    process.signal(signal.SIGKILL)
    process.end()
    resumed = start(killed, "--resume")
    assert resumed.end() == 0, resumed.text
    assert "resumed from step" in resumed.text
    assert runs.losses(whole) == runs.losses(killed)
    steps = max(runs.losses(whole))
    expected, final = runs.arrays(whole, steps), runs.arrays(killed, steps)
    assert expected.keys() == final.keys()
    assert all((expected[path] == array).all() for path, array in final.items())
    adapters = [path for path in final if path.startswith(".params") and "'adapter'" in path]
    assert bool(adapters) == (verb == "lora")
