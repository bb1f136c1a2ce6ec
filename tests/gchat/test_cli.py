"""The commands as a user types them, one after the other, on a corpus of this repository's text."""

import json
import math
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path

import jax
import pytest

from gaia.checkpoint import Checkpointer
from gchat.__main__ import main
from gchat.run import names
from gchat.run.loading import load_run

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--depth",
    "1",
    "--model.dim",
    "32",
    "--model.head-dim",
    "16",
    "--model.seq-len",
    "32",
    "--model.hidden",
    "64",
    "--model.compute-dtype",
    "float32",
    "--batch-size",
    "4",
    "--warmup",
    "1",
    "--lr",
    "0.01",
    "--eval.tokens",
    "500",
    "--eval.sample-tokens",
    "4",
    "--eval.prompts",
    "The",
]
NEW_RUN = ["train", "--data-dir", "{data}", "--run-dir", "{new}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set and a finished run, made by the commands themselves."""
    folder = tmp_path_factory.mktemp("cli")
    text = folder / "text.md"
    text.write_text("".join(f.read_text() for f in sorted((ROOT / "gchat").glob("*.py"))))
    data, run = folder / "data", folder / "run"
    prepare = ["data", "prepare", "--source", "text", "--input", str(text), "--out", str(data)]
    assert main([*prepare, "--vocab-size", "400"]) == 0
    train = ["train", "--data-dir", str(data), "--run-dir", str(run), "--max-steps", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAIA_GRAFANA_URL", "https://metrics.example.org")
        assert main([*train, *SMALL, "--eval.files", "readme", str(ROOT / "README.md")]) == 0
    return data, run


def test_the_run_folder_explains_itself(trained):
    _, run = trained
    names = {p.name for p in run.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "checkpoints", "samples.txt", "report.md"} <= names
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((run / "summary.json").read_text())
    keys = (
        "preset device params steps tokens seconds tokens_per_s mfu train_loss val_bpb unigram_bpb "
        "bigram_bpb seconds_to_target_bpb cost_usd commit checkpoint"
    )
    assert set(keys.split()) <= summary.keys()
    assert summary["finished"] and summary["steps"] == 4 and summary["tokens"] == 4 * 4 * 32
    assert Path(summary["checkpoint"]).is_dir()
    report = (run / "report.md").read_text()
    assert "| readme |" in report and "| val |" in report and "bigram" in report
    run_id = json.loads((run / "run.json").read_text())["id"]
    assert f"<https://metrics.example.org/d/gaia-run?var-run_id={run_id}>" in report


def test_metrics_have_one_line_per_step_with_each_evaluation(trained):
    _, run = trained
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for line in (lines[0], lines[-1]):
        for name in ("val", "readme"):
            loss, perplexity = line[f"eval/{name}_loss"], line[f"eval/{name}_perplexity"]
            assert perplexity == pytest.approx(math.exp(loss))
            assert line[f"eval/{name}_bpb"] > 0


def test_every_metric_and_summary_key_is_in_the_list(trained):
    """gchat/run/names.py: what a name means is said in one place."""
    _, run = trained
    lines = (run / "metrics.jsonl").read_text().splitlines()
    logged = {name for line in lines for name in json.loads(line)} - {"step", "time", "samples"}
    assert not {n for n in logged if not any(fnmatch(n, known) for known in names.METRICS)}
    assert set(json.loads((run / "summary.json").read_text())) == set(names.SUMMARY)


def test_sample_is_the_same_text_for_the_same_seed(trained, capsys):
    _, run = trained
    texts = []
    for seed in ("1", "1", "2"):
        command = ["sample", "--run", str(run), "--prompt", "The", "--max-tokens", "12", "--json"]
        assert main([*command, "--seed", seed]) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1] != texts[2]


def test_a_bad_seed_is_said_before_the_prompt_is_printed(trained, capsys):
    assert main(["sample", "--run", str(trained[1]), "--prompt", "a", "--seed", str(2**32)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "seed is 4294967296; use 0 to 4294967295" in printed.err


def test_a_prompt_beyond_the_window_is_said_before_it_is_printed(trained, capsys):
    assert main(["sample", "--run", str(trained[1]), "--prompt", "long " * 500]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "; shorten the prompt" in printed.err


def test_sample_prints_prompt_and_continuation(trained, capsys):
    _, run = trained
    command = ["sample", "--run", str(run), "--prompt", "The", "--max-tokens", "5"]
    assert main([*command, "--temperature", "0", "--json"]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert main([*command, "--temperature", "0"]) == 0
    assert capsys.readouterr().out == f"The{text}\n"


def test_sample_stops_at_texts_and_takes_formats(trained, capsys):
    _, run = trained
    command = ["sample", "--run", str(run), "--prompt", "The", "--max-tokens", "9", "--json"]
    command += ["--temperature", "0"]
    assert main(command) == 0
    whole = json.loads(capsys.readouterr().out)
    stop = whole["text"][3:5]
    formats = ["--weights", "int8", "--kv", "int8"]
    assert main([*command, *formats, "--stop", stop, "\x00", "--min-p", "0.5"]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert stop not in cut["text"] and len(cut["tokens"]) <= len(whole["tokens"])
    assert main([*command, "--stop", stop]) == 0
    text = json.loads(capsys.readouterr().out)["text"]
    assert text == whole["text"][: whole["text"].index(stop)]


def test_eval_bpb_agrees_with_the_evaluation_during_training(trained, capsys):
    _, run = trained
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    command = ["eval", "bpb", "--run", str(run), "--text", str(ROOT / "README.md"), "--json"]
    assert main(command) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["bpb"] == pytest.approx(last["eval/readme_bpb"], rel=1e-6)
    assert score["bytes"] == len((ROOT / "README.md").read_bytes())


def test_data_count_and_verify(trained, capsys):
    data, _ = trained
    assert main(["data", "count", str(data)]) == 0
    assert "tokens across 1 shard" in capsys.readouterr().out
    assert main(["data", "verify", str(data)]) == 0
    assert "verified" in capsys.readouterr().out


def test_answers_of_another_run_of_that_name_and_step_are_refused(trained, tmp_path, capsys):
    """Every speedrun has its `sft`, and a run that is trained anew keeps its name."""
    _, run = trained
    same, other = (tmp_path / name / run.name for name in ("same", "other"))
    shutil.copytree(run, same)
    shutil.copytree(run, other)
    loaded, before = load_run(str(run)), Checkpointer(str(run / "checkpoints"), read_only=True)
    meta = before.read_meta(4)
    before.close()
    shutil.rmtree(other / "checkpoints/4")
    checkpoints = Checkpointer(str(other / "checkpoints"))
    assert (
        checkpoints.save(4, {"params": jax.tree.map(lambda x: x + 1, loaded.params)}, meta) is None
    )
    assert checkpoints.close() is None
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked.write_text('{"prompt": "The"}\n')
    generate = ["generate", str(asked), str(out), "--max-tokens", "3", "--slots", "1", "--run"]
    assert main([*generate, str(run)]) == 0 == main([*generate, str(same)])
    assert "(0 now)" in capsys.readouterr().out
    for words in ([str(other)], [str(run), "--kv", "int8"]):
        assert main([*generate, *words]) == 2
        assert "another question, other options or another model" in capsys.readouterr().err


def test_a_run_is_asked_for_forms_in_a_chat_and_in_files(trained, tmp_path, capsys):
    _, run = trained
    where = ["--run", str(run)]
    assert main(["sample", *where, "--prompt", "x", "--choice", "yes", "no", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] in ("yes", "no")
    assert main(["chat", *where, "-p", "The", "--max-tokens", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("\n") and "not been trained on conversations" in printed.err
    asked, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [{"prompt": "The"}, {"prompt": "word " * 90}, {"messages": [
        {"role": "user", "content": "Is it so?"}], "regex": "[0-9]{3}"}]  # fmt: skip
    asked.write_text("".join(json.dumps(line) + "\n" for line in lines))
    generate = ["generate", str(asked), str(out), *where, "--max-tokens", "6", "--slots", "1"]
    assert main([*generate, "--format", "chat"]) == 1
    assert "1 of 3 lines have an error" in capsys.readouterr().err
    first, long, form = map(json.loads, out.read_text().splitlines())
    assert first["completion_tokens"] <= 6 and re.fullmatch("run@4-[0-9a-f]{8}", first["model"])
    assert "the model's seq_len is 32" in long["error"] and long["line"] == 2
    assert re.fullmatch("[0-9]{3}", form["text"]) and form["finish"] == "stop"


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "usage: gchat"),
        (["fly"], "unknown command `gchat fly`; use one of speedrun, train"),
        (["trian"], "unknown command `gchat trian`; did you mean `gchat train`?"),
        (["data", "fly"], "unknown command `gchat data fly`"),
        (["data"], "no command is given after `gchat data`"),
        (["eval", "fly"], "unknown command `gchat eval fly`"),
        (["sample", "--run", "/nowhere", "--prompt", "x"], "/nowhere"),
        (["sample", "--run", "{run}", "--prompt", "x", "--top-p", "0"], "top_p is 0"),
        (["sample", "--run", "{run}", "--prompt", "x", "--min-p", "2"], "min_p is 2.0"),
        (["sample", "--run", "{run}", "--prompt", "x", "--stop", ""], "1 of them empty"),
        (["sample", "--run", "{run}", "--prompt", "x", "--max-tokens", "0"], "max_new_tokens is 0"),
        (["sample", "--run", "{run}", "--prompt", "x", "--regex", "("], "the regex grammar"),
        (["chat", "--run", "{run}", "-p", "x", "--regex", "("], "the regex grammar"),
        (["chat", "--run", "{run}", "-p", "x", "--model", "m"], "--model has no effect"),
        (["chat", "-p", "x"], "neither --run nor --endpoint"),
        (["generate", "/nowhere", "{new}", "--run", "{run}"], "cannot read '/nowhere'"),
        (["eval", "bpb", "--run", "{run}", "--text", "/nowhere"], "/nowhere"),
        (["train", "--run-dir", "{run}", "--data-dir", "{data}"], "already holds a run"),
        (["train", "--run-dir", "{new}"], "data.dir is not set"),
        (["train", "--resume", "--run-dir", "{new}"], "holds no run to resume"),
        ([*NEW_RUN, "--batch-size", "9999"], "less than one batch"),
        ([*NEW_RUN, "--model.seq-len", "0"], "model.seq_len is 0"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(trained, tmp_path, capsys, args, named):
    data, run = trained
    new = tmp_path / "new"
    args = [a.format(run=run, data=data, new=new) for a in args]
    small = SMALL if "9999" in args else []
    assert main([*args[:1], *small, *args[1:]] if small else args) == 2
    captured = capsys.readouterr()
    said = captured.err or captured.out
    assert named in said
    assert not args or captured.err.count("\n") == 1
    assert not new.exists()


def test_a_run_scores_many_documents_as_it_scores_each(trained, tmp_path):
    """Curation's scorer packs documents into rows; `eval bpb` reads one file as one document."""
    from gchat.run.loading import load_run
    from gchat.run.scorer import Run

    _, run = trained
    words = (ROOT / "README.md").read_text().split()
    texts = [" ".join(words[:n]) for n in (5, 150, 20, 60)]
    bits = Run(str(run))()(texts)
    loaded = load_run(str(run))
    for i, text in enumerate(texts):
        (tmp_path / "one.txt").write_text(text)
        assert bits[i] == pytest.approx(loaded.score_file(str(tmp_path / "one.txt")).bpb, rel=1e-5)


@pytest.mark.parametrize("group", ["data", "eval", "export", "models", "synth", "tokenizer"])
def test_a_group_of_commands_tells_what_it_has(group, capsys):
    with pytest.raises(SystemExit) as end:
        main([group, "--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith(f"usage: gchat {group} COMMAND")
    assert "\ncommands: " in said and f"\n  {group}" in said


@pytest.mark.parametrize(
    "words, typo, meant",
    [
        ("train --resum", "--resum", "--resume"),
        ("train --proccess-id 1", "--proccess-id", "--process-id"),
        ("sft --bas run", "--bas", "--base"),
        ("rl --resum --run-dir run", "--resum", "--resume"),
        ("plan --sk v6e-8", "--sk", "--sku"),
        ("plan --sku v6e-8 --verfy", "--verfy", "--verify"),
        ("speedrun --stages base --offlin", "--offlin", "--offline"),
        ("speedrun --nam Marlow", "--nam", "--name"),
    ],
)
def test_an_option_of_a_verb_itself_is_the_nearest_of_a_typo(capsys, words, typo, meant):
    """Verbs take their own options out before the fields of the configuration are read."""
    assert main(words.split()) == 2
    said = f"gchat: unknown option {typo}; perhaps you meant {meant} (--help lists all)\n"
    assert capsys.readouterr().err == said
