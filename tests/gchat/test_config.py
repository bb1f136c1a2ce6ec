"""Configuration: YAML and command line are one thing, and mistakes get one clear line."""

import dataclasses
import typing
from pathlib import Path

import pytest

import runs
from gaia.config import differences, load_yaml, parse, to_dict, to_yaml
from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.config import ALIASES, CONFIG_DIR, TrainConfig, derive, load, load_tree

CHANGES = {
    "--model.depth": "3",
    "--model.dim": "96",
    "--model.tied": "True",
    "--model.dropout": "0.25",
    "--model.window-pattern": "SSL",
    "--optim.name": "muon",
    "--optim.head-lr": "1e-05",
    "--training.tokens-per-param": "20.5",
    "--data.dir": "some where/else",
    "--eval.files": "wiki a.txt code b.py",
    "--eval.prompts": "one two",
    "--run.target-bpb": "1.5",
}


def changed():
    args = []
    for name, value in CHANGES.items():
        several = name in ("--eval.files", "--eval.prompts")
        args += [name, *(value.split() if several else [value])]
    return load(args)


def written(tmp_path, config):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    return str(path)


@pytest.mark.parametrize("make", [TrainConfig, changed])
def test_yaml_reads_back_as_it_was_written(tmp_path, make):
    config = make()
    assert load([written(tmp_path, config)]) == config


def test_a_derived_config_reads_back_and_stays_as_it_is(tmp_path):
    config, said = derive(changed(), vocab_size=300, padded_vocab_size=384)
    again = load([written(tmp_path, config)])
    assert again == config
    assert derive(again, vocab_size=300, padded_vocab_size=384)[0] == config
    assert len(said) >= 4 and "depth 3 -> dim 96" in said[0]


def test_typed_depth_moves_the_sizes_of_a_resolved_config(tmp_path):
    def resolved(*args, name="config.yaml"):
        config = derive(load(list(args)), vocab_size=300, padded_vocab_size=384)[0]
        (tmp_path / name).write_text(to_yaml(config))
        return str(tmp_path / name)

    def sizes(*args):
        return derive(load(list(args)), vocab_size=300, padded_vocab_size=384)[0].model.sizes

    made = ["--depth", "4", "--model.seq-len", "1024"]
    for name in ("config.yaml", "copied.yaml"):
        path = resolved(*made, name=name)
        for typed in (["--depth", "32"], ["--model.dim", "256"], ["--model.seq-len", "8192"]):
            assert sizes(path, *typed) == sizes(*made, *typed)
    # What somebody chose stays: here the width and the hidden size, and not what follows from it.
    path = resolved("--depth", "4", "--model.dim", "512", "--model.hidden", "640")
    chosen = sizes(path, "--depth", "8", "--model.head-dim", "64")
    assert (chosen.dim, chosen.heads, chosen.hidden) == (512, 8, 640)
    # A run of a version that rounded to multiples of 128.
    Path(path).write_text(Path(resolved("--depth", "32")).read_text().replace("5632", "5504"))
    assert sizes(path).hidden == 5504 and sizes(path, "--depth", "12").hidden == 2048


def test_the_command_line_overrides_a_preset(tmp_path):
    path = written(tmp_path, changed())
    config = load([path, "--model.depth", "6", "--eval.prompts", "three"])
    assert (config.model.depth, config.eval.prompts) == (6, ("three",))
    assert config.optim.name == "muon"
    assert differences(to_dict(changed()), to_dict(config)).keys() == {
        "model.depth",
        "eval.prompts",
    }


def field_type(name):
    group, _, field = name.removeprefix("--").replace("-", "_").partition(".")
    owner = typing.get_type_hints(TrainConfig)[group]
    return group, field, str(typing.get_type_hints(owner)[field])


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("equals", [False, True])
def test_aliases(alias, equals, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if alias == "--init-from":  # its model is read at once
        (tmp_path / "7").mkdir()
        (tmp_path / "7/config.yaml").write_text("model: {}")
    group, field, kind = field_type(ALIASES[alias])
    value = {"int": 7, "float": 7.0}.get(kind.split("'")[1] if "'" in kind else "", "7")
    if "int" in kind:
        value = 7
    elif "float" in kind:
        value = 7.0
    elif kind.startswith("typing.Literal"):
        value = kind.split("'")[-2]
    config = load([f"{alias}={value}"] if equals else [alias, str(value)])
    assert getattr(getattr(config, group), field) == value
    assert differences(to_dict(TrainConfig()), to_dict(config)).keys() == {f"{group}.{field}"}


@pytest.mark.parametrize("path", sorted(CONFIG_DIR.glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_can_be_named_and_derived(path):
    config = load([str(path)])
    assert load([path.stem]) == config != TrainConfig()
    derive(config, vocab_size=8192, padded_vocab_size=8192)


def test_every_field_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        load(["--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for group in dataclasses.fields(TrainConfig):
        assert f"--{group.name}." in shown
    assert "Optimizer steps" in shown


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--model.dept", "4"], ["--model.dept", "perhaps you meant --model.depth"]),
        (["--dept", "4"], ["--dept"]),
        (["--model.depth", "four"], ["--model.depth", "four"]),
        (["--optim.name", "sgd"], ["sgd"]),
        (["--model.depth"], ["--model.depth"]),
        (["nowhere.yaml"], ["'nowhere.yaml' does not exist"]),
    ],
)
def test_mistakes_on_the_command_line(args, parts):
    with pytest.raises(ConfigError) as error:
        load(args)
    assert "\n" not in str(error.value)
    assert all(part in str(error.value) for part in parts), str(error.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("model: [", "is not YAML"),
        ("- 1\n- 2\n", "is not a mapping"),
        ("model:\n  depht: 3\n", "--model.depht"),
        ("modle:\n  depth: 3\n", "--modle.depth"),
        ("\xff\xfe\x00", "is not YAML"),
        ("model:\n  depth: 3\n  dim: 64\n  'depth': 4\n", "the key 'depth' is given twice"),
        ("model: {depth: 3}\nmodel: {dim: 64}\n", "the key 'model' is given twice"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, part):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        load([str(path)])
    assert part in str(error.value) and "\n" not in str(error.value)


def test_a_mapping_may_take_another_ones_keys_and_change_them(tmp_path):
    path = tmp_path / "good.yaml"
    path.write_text("model: {<<: {depth: 3, dim: 64}, depth: 4}\n")
    assert load([str(path)]).model.depth == 4


def test_each_file_that_is_typed_is_trained_on():
    typed = ["--stage.data", "a", "b", "--stage.data=c"]
    config = load_tree({"stage": {"data": ["preset's"]}}, typed, prog="gchat sft")
    assert config.stage.data == ("a", "b", "c")


def test_an_empty_file_is_all_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_yaml(path) == {}
    assert load([str(path)]) == TrainConfig()


BAD = {
    "seq_len 0": (["--model.seq-len", "0"], "model.seq_len is 0"),
    "batch 0": (["--batch-size", "0"], "training.batch_size is 0"),
    "steps 0": (["--max-steps", "0"], "training.steps is 0"),
    "accumulation": (["--training.grad-accum", "3"], "training.grad_accum 3 does not divide"),
    "window": (["--model.window-pattern", "SSL"], "'SSL' does not tile depth 2"),
    "unknown field": (["--model.layers", "3"], "--model.layers"),
    "not a number": (["--lr", "fast"], "fast"),
    "lr": (["--lr", "-1"], "optim.lr is -"),
    "warm-up": (["--warmup", "500"], "optim.warmup_steps is 500"),
    "missing data": (["--data-dir", "/nowhere/at/all"], "'/nowhere/at/all' does not exist"),
    "corpus too small": (["--batch-size", "4000"], "less than one batch of 4000"),
    "stride": (["--eval.stride-fraction", "1.5"], "eval.stride_fraction is 1.5"),
    "evaluation file": (["--eval.files", "wiki", "/nowhere.txt"], "'/nowhere.txt'"),
    "precision": (["--model.matmul-precision", "best"], "best"),
    "in flight": (["--run.in-flight", "-1"], "run.in_flight is -1"),
    "keep": (["--checkpoint.keep", "0"], "checkpoint.keep is 0"),
    "every": (["--checkpoint.every-steps", "-5"], "checkpoint.every_steps is -5"),
    "log interval": (["--log-interval", "0"], "run.log_interval is 0"),
    "mesh": (["--mesh.tensor", "3"], "sequence 1 x tensor 3 does not make 1 devices"),
    "profile": (["--profile", "13:10"], "run.profile is '13:10'"),
    "long prompt": (["--eval.prompts", "the small model " * 30], "eval.prompts"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(case, data_dir, tmp_path, capsys):
    args, part = BAD[case]
    folder = tmp_path / "run"
    status = main(["train", *runs.arguments(data_dir, folder), *args])
    said = capsys.readouterr()
    assert status == 2, said.err
    assert part in said.err, said.err
    assert said.err.count("\n") == 1 and "Traceback" not in said.err
    assert not folder.exists()


def test_no_data_at_all(capsys, tmp_path):
    assert main(["train", "--run-dir", str(tmp_path / "run")]) == 2
    assert "data.dir is not set" in capsys.readouterr().err


def test_a_folder_that_holds_a_run_is_not_written_over(data_dir, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine")
    assert main(["train", *runs.arguments(data_dir, folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert [p.name for p in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "mine"


def test_checkpoints_of_another_run_are_not_deleted(data_dir, tmp_path, capsys):
    """A new run given a checkpoint folder that is in use."""
    taken = tmp_path / "elsewhere" / "40"
    taken.mkdir(parents=True)
    (taken / "precious").write_text("weights")
    args = runs.arguments(data_dir, tmp_path / "run", "--checkpoint.dir", taken.parent)
    assert main(["train", *args]) == 2
    assert "already holds checkpoints" in capsys.readouterr().err
    assert (taken / "precious").read_text() == "weights"


def test_resume_without_a_run(data_dir, tmp_path, capsys):
    assert main(["train", *runs.arguments(data_dir, tmp_path / "run"), "--resume"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["train", "--resume"]) == 2
    assert "--run-dir" in capsys.readouterr().err
    assert not Path(tmp_path / "run").exists()


def test_debug_shows_the_traceback(data_dir, tmp_path):
    args = runs.arguments(data_dir, tmp_path / "run", "--model.seq-len", 0)
    with pytest.raises(ConfigError, match="seq_len is 0"):
        main(["train", *args, "--debug"])


def test_an_unknown_verb(capsys):
    assert main(["trian"]) == 2
    assert "trian" in capsys.readouterr().err


def test_a_sink_that_is_not_installed_is_told_before_anything_is_made(tmp_path, monkeypatch):
    from gaia_metrics.recording import mirror
    from gchat.run.session import Session

    monkeypatch.setattr(mirror, "installed", lambda package: package != "wandb")
    folder = tmp_path / "run"
    args = ["--metrics.sinks", "tensorboard", "wandb", "--run.dir", str(folder)]
    config = parse(TrainConfig, args)
    assert config.metrics.sinks == ("tensorboard", "wandb")
    with pytest.raises(ConfigError) as raised:
        Session(config, None, None)
    assert str(raised.value).startswith("metrics.sinks: wandb is not installed; run `pip install")
    assert not folder.exists()


def test_a_folder_is_no_preset(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load([str(tmp_path)])


@pytest.mark.parametrize(
    "typed",
    ["--optim.normuon-beta2=0.9", "--optim.newton_schulz=quintic", "--optim.momentum-final=0.9"],
)
def test_muon_s_options_are_refused_where_they_would_do_nothing(typed):
    """Typed ones: a preset of Muon's may be trained with AdamW by one option."""
    with pytest.raises(ConfigError, match="is typed but optim"):
        load(["baseline", typed])
    assert load(["cpu", "--optim.name=adamw"]).optim.name == "adamw"
    assert load(["cpu", typed]).optim.name == "muon"
