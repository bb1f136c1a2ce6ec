"""Shipped presets mean what they meant, and a preset may start from another one."""

from dataclasses import replace

import pytest
import yaml

from gaia.config import differences, load_preset, to_dict
from gaia.errors import ConfigError
from gchat.config import CONFIG_DIR, TrainConfig, load
from gchat.vocab import forced
from golden.make_presets import FOLDER, resolved

NAMES = sorted(p.stem for p in CONFIG_DIR.glob("*.yaml"))


@pytest.mark.parametrize("preset", NAMES)
def test_every_derived_field_is_the_golden_one(preset, monkeypatch):
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "0")  # restored after the maker has removed it
    golden = yaml.safe_load((FOLDER / f"{preset}.yaml").read_text())
    changed = differences(golden, yaml.safe_load(resolved(preset)))
    told = "; ".join(f"{name}: {old!r} -> {new!r}" for name, (old, new) in changed.items())
    assert not changed, f"{preset}: {told}. If that is meant, run tests/golden/make_presets.py"


def test_no_golden_preset_is_left_behind():
    assert sorted(p.stem for p in FOLDER.glob("*.yaml")) == NAMES


def test_the_baseline_is_adamw_as_the_defaults_but_for_two_rates_and_the_others_say_muon():
    for preset in ("baseline", "v6e-1"):
        optim = load([preset]).optim
        assert optim.name == "adamw"
        # Born with a deviation of 1 and of almost none, tables and head need rates of their own.
        assert optim.embed_lr > 100 * optim.lr and optim.head_lr > 10 * optim.lr
        assert replace(optim, embed_lr=None, head_lr=None) == TrainConfig().optim
    for preset in ("cpu", "speedrun"):
        first = (CONFIG_DIR / f"{preset}.yaml").read_text().splitlines()[0]
        assert load([preset]).optim.name == "muon" and "Muon" in first


def test_a_preset_overrides_its_base_field_by_field(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "base: speedrun\nmodel: {depth: 6}\neval: {files: {b: b.txt}}\n"
    )
    mine, base = load([str(tmp_path / "mine.yaml")]), load(["speedrun"])
    changed = differences(to_dict(base), to_dict(mine))
    assert set(changed) == {"model.depth", "eval.files", "eval.files.b"}
    assert load([str(tmp_path / "mine.yaml"), "--model.depth", "5"]).model.depth == 5


def test_a_base_beside_the_file_comes_before_a_shipped_one(tmp_path):
    (tmp_path / "cpu.yaml").write_text("eval: {files: {a: a.txt}}\ntraining: {steps: 7}\n")
    (tmp_path / "mine.yaml").write_text("base: cpu.yaml\neval: {files: {b: b.txt}}\n")
    tree = load_preset(tmp_path / "mine.yaml", CONFIG_DIR)
    assert tree == {"eval": {"files": {"b": "b.txt"}}, "training": {"steps": 7}}


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        ("base: speedrum", "'speedrum', which does not exist"),
        ("base: [speedrun]", "['speedrun']"),
        ("base:", "is None"),
        ("base: mine", "is that file itself"),
        ("base: other", "'other', which has a base itself ('mine')"),  # a cycle of two
        ("base: v6e-1", "'v6e-1', which has a base itself ('baseline')"),
    ],
)
def test_a_base_that_cannot_be_inherited_is_refused_in_one_line(tmp_path, base, problem):
    (tmp_path / "mine.yaml").write_text(f"{base}\nmodel: {{depth: 6}}\n")
    (tmp_path / "other.yaml").write_text("base: mine\n")
    with pytest.raises(ConfigError) as error:
        load([str(tmp_path / "mine.yaml")])
    assert problem in str(error.value) and "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_ww2_is_llamas_block_and_says_so():
    first = (CONFIG_DIR / "ww2.yaml").read_text().splitlines()[0]
    assert "Llama's block, not GPT-2's" in first
    golden = yaml.safe_load((FOLDER / "ww2.yaml").read_text())
    model, training = golden["model"], golden["training"]
    assert (model["depth"], model["dim"], model["heads"], model["seq_len"]) == (18, 768, 12, 4096)
    assert model["vocab_size"] == 32000 and training["batch_size"] // training["grad_accum"] == 3
    years, terms = forced.read(golden["data"]["forced"])
    assert "1944" in years and {"May", "Wehrmacht", "Pearl Harbor"} <= set(terms)
