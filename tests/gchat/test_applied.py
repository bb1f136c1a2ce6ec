"""Ideas that are applied to the code: recorded with a run, and needed by whoever reads it."""

import jax
import pytest

import exported
from gaia import layers
from gaia.config import load_yaml
from gaia.errors import CheckpointError, ConfigError
from gchat import applied
from gchat.__main__ import main
from gchat.config import CONFIG, load
from gchat.exporting.source import ExportRefused, Run
from gchat.posttrain.base_run import handed_down, open_base
from gchat.run.folder import check_resumable
from gchat.run.loading import load_run
from gchat.run.session import Session


def test_main_has_no_ideas():
    assert applied.applied() == {} and applied.recorded() == ""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of code with an idea of each kind, by the kind."""
    made, folder, runs = exported.tokenizer(), tmp_path_factory.mktemp("runs"), {}
    for kind in ("model", "training"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layers, "IDEA_X0_SCALARS", kind, raising=False)
            runs[kind] = exported.make_run(folder / kind, made, depth=1)
    return runs


@pytest.fixture(scope="module")
def opened(runs):
    with Run(str(runs["training"])) as run:
        yield run


def test_a_run_says_which_ideas_its_code_had(runs):
    assert load_yaml(runs["model"] / CONFIG)["ideas"] == {"x0-scalars": "model"}
    assert handed_down(runs["model"])["model"]["depth"] == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda run: load_run(str(run)),
        lambda run: open_base(str(run), step=None, allow_unfinished=True),
        lambda run: Run(str(run)),
        lambda run: load([str(run / CONFIG)]),
    ],
    ids=["sample, chat, serve, eval", "--base", "export", "a new run like it"],
)
def test_a_model_of_other_code_is_refused(read, runs):
    with pytest.raises(CheckpointError) as refused:
        read(runs["model"])
    said = "that this code lacks: x0-scalars; use gchat research with +x0-scalars VERB"
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_model_of_this_code_is_read(runs, opened, monkeypatch):
    """Whatever trained it, and with its ideas."""
    assert opened.config.model.depth == 1
    monkeypatch.setattr(layers, "IDEA_X0_SCALARS", "model", raising=False)
    applied.check(runs["model"] / CONFIG)


def test_going_on_takes_every_idea(runs, monkeypatch):
    for run in runs.values():
        with pytest.raises(CheckpointError, match="lacks: x0-scalars"):
            check_resumable(run)
    monkeypatch.setattr(layers, "IDEA_X0_SCALARS", "training", raising=False)
    for run in runs.values():
        check_resumable(run)


def test_phases_are_not_extended(opened, monkeypatch):
    monkeypatch.setattr(layers, "IDEA_X0_SCALARS", "phases", raising=False)
    with pytest.raises(ConfigError, match="--extend is given, and x0-scalars trains by shares"):
        Session(opened.config, None, opened.tokenizer, resume=True, extend=True)


def test_code_with_ideas_exports_nothing(runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(layers, "IDEA_X0_SCALARS", "model", raising=False)
    out = tmp_path / "out"
    assert main(["export", "hf", "--run", str(runs["model"]), "--out", str(out)]) == 2
    assert "this code has x0-scalars, which Llama and Qwen3 do not" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


RELU2 = {"blocks.mlp.up.kernel": (1, 64, 144), "blocks.mlp.down.kernel": (1, 144, 64)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"blocks.blend.scale": (1,)}, "blocks.blend.scale of this code has no place"),
        (RELU2, r"blocks.mlp.down.kernel is \[64, 144\] in this code and \[64, 96\]"),
        ({"blocks.mlp.gate.kernel": None}, "lacks model.layers.0.mlp.gate_proj.weight"),
    ],
)
def test_a_model_that_code_has_changed_is_not_exported(opened, changes, said, monkeypatch):
    """Also without any idea: a branch may change the block."""
    shapes = {name: s and jax.ShapeDtypeStruct(s, "float32") for name, s in changes.items()}
    leaves = {name: leaf for name, leaf in (opened._leaves() | shapes).items() if leaf is not None}
    opened._check_known()
    monkeypatch.setattr(opened, "_leaves", lambda: leaves)
    with pytest.raises(ExportRefused, match=said):
        opened._check_known()
