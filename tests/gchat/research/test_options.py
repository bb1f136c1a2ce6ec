"""Options of the research verbs: each one typed has its effect, or is refused in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from gaia import runtime
from gaia.errors import ConfigError, GaiaError
from gchat.__main__ import main
from gchat.research import length, sweep
from gchat.research.cells import preset_hash
from gchat.research.cli import compare_main, research_main
from gchat.research.ladder_cli import ladder_main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        (compare_main, ["training.tokens=5000"], "use --tokens or --minutes"),
        (compare_main, ["max-steps=9"], "--set training.steps is given; use --tokens or"),
        (compare_main, ["optim.lr=1", "lr=2"], "--set optim.lr is given twice"),
        (ladder_main, ["model.depth=9"], "--set model.depth is given; use --depths"),
        (ladder_main, ["depth=9"], "--set model.depth is given; use --depths"),
        (ladder_main, ["training.tokens-per-param=7"], "use --tokens-per-param"),
        (ladder_main, ["training.tokens=7"], "use --tokens-per-param"),
        (ladder_main, ["data.vocab-size=9", "--data", "d"], "use it without --data"),
        (compare_main, ["data.source=text", "--data", "d"], "use it without --data"),
    ],
)
def test_a_field_that_the_verb_decides_is_refused(verb, words, said):
    branches = ["HEAD", "+relu2", "--dry-run"] if verb is compare_main else ["--dry-run"]
    with pytest.raises(ConfigError, match=said):
        verb([*branches, "--set", *words])


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        (["3"], r"--seeds is \[3\]; give two different ones"),
        (["3", "3"], r"--seeds is \[3, 3\]; give two different ones"),
        (["1", "-2"], "--seeds has -2; use 0 to 4294967295"),
        (["1", str(2**32)], "--seeds has 4294967296; use 0 to 4294967295"),
    ],
)
def test_seeds_that_no_training_takes_are_refused(seeds, said):
    with pytest.raises(ConfigError, match=said):
        compare_main(["HEAD", "+relu2", "--dry-run", "--seeds", *seeds])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["main", ""], r"the branches are \['main', ''\]; leave no name empty"),
        (["HEAD", "+relu2", "--axes", "time", "time"], r"--axes are \['time', 'time'\]"),
        (["nowhere", "+relu2"], "'nowhere' is no branch or commit"),
        (["HEAD", "+relu2", "--set", "data.text=x"], "data.text is given; use --data"),
        (
            ["HEAD", "+relu2", "--on", "v6e-1", "--set", f"training.init_from={ROOT}"],
            "names a file of this machine",
        ),
        (["HEAD", "+relu2", "--on", "v6e-1", "--set", "eval.core_bundle=tests"], "into a bucket"),
    ],
)
def test_what_no_comparison_can_hold_is_refused_before_anything_is_measured(
    words, said, monkeypatch
):
    monkeypatch.chdir(ROOT)
    for name in ("chosen", "evaluations"):
        monkeypatch.setattr(length, name, lambda *_, **__: pytest.fail("it measured"))
    with pytest.raises(GaiaError, match=said):
        compare_main(words)


def test_a_preset_may_not_bring_text_of_its_own(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("base: cpu\ndata: {text: some.txt}\n")
    with pytest.raises(ConfigError, match=r"data.text of .*mine.yaml is set; use --data"):
        preset_hash([str(preset)])


@pytest.mark.parametrize("words", [["--minutes", "-1"], ["--margin=-1"], ["--seed", "-1"]])
def test_an_experiment_that_cannot_be_prepares_no_corpus(words, monkeypatch):
    monkeypatch.setattr(sweep, "data_of", lambda *_: pytest.fail("it prepared a corpus"))
    with pytest.raises(ConfigError, match=f"{words[0].partition('=')[0]} (is|has) -1"):
        research_main(words)


def test_each_set_adds_to_the_ones_before(capsys):
    words = ["--set", "model.dim=64", "--set=eval.tokens=8192", "--seeds", "1", "--seeds", "5"]
    assert main(["ladder", "--dry-run", "--json", *words]) == 0
    rungs = json.loads(capsys.readouterr().out)["rungs"]
    assert [rung["size"] for rung in rungs] == ["d2", "d3", "d4", "d5"]
    for rung in rungs:
        assert {"--model.dim=64", "--eval.tokens=8192"} < {*rung["arguments"]}
        assert rung["seeds"] == [1, 5] and rung["params"] > 0 and rung["tokens"] > 0


def test_a_dry_run_of_a_comparison_is_json(capsys):
    words = ["HEAD", "+relu2", "--tokens", "81920", "--seeds", "1", "2", "--set", "depth=3"]
    assert main(["compare", *words, "--dry-run", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["arguments"] == ["cpu", "--depth=3", "--training.tokens=81920"]
    assert (facts["branches"], facts["seeds"]) == (["HEAD", "+relu2"], [1, 2])


def test_a_field_that_an_idea_sets_is_named(capsys):
    words = ["--set", "optim.clip_norm=1", "--tokens", "81920", "--dry-run"]
    assert main(["compare", "HEAD", "+fault-tight-clip", *words]) == 0
    said = "--set optim.clip_norm counts for the others: +fault-tight-clip sets it itself\n"
    assert capsys.readouterr().err == said
    for both in (["+fault-tight-clip", "+relu2"], ["+fault-tight-clip", "HEAD+fault-tight-clip"]):
        assert main(["compare", *both, *words]) == 2
        assert "each branch sets it; leave it out" in capsys.readouterr().err


def test_a_dry_run_of_a_sweep_prepares_nothing(monkeypatch, tmp_path, capsys):
    home = tmp_path / "home"
    monkeypatch.setenv("GAIA_HOME", str(home))
    file = tmp_path / "sweep.yaml"
    file.write_text("preset: cpu\nvariants: {main: {}, wide: {model.dim: 96}}\nseeds: [1]\n")
    assert main(["sweep", str(file), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert [line.partition(":")[0] for line in printed.out.splitlines()] == ["main-s1", "wide-s1"]
    assert "prepared by the first run" in printed.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_dry_run_of_a_sweep_knows_prepared_data(data_dir, tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    file.write_text(f"data: {data_dir}\nvariants: {{main: {{}}}}\nseeds: [1, 2]\n")
    assert main(["sweep", str(file), "--dry-run", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [f"main-s{row['seed']}-{row['id'][:6]}" for row in rows]
    assert rows[0]["arguments"] == ["cpu"] and len({row["id"] for row in rows}) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["compare", "HEAD", "+relu2", "--tokens", "81920", "--data", "nowhere"],
        ["ladder", "--data", "nowhere"],
        ["sweep", "sweep.yaml"],
        ["research", "run", "--judge", ".", "--data", "nowhere"],
    ],
)
def test_a_parent_of_trainings_stays_on_the_host(tmp_path, words):
    (tmp_path / "sweep.yaml").write_text("variants: {main: {}}\ndata: nowhere\n")
    words = [str(tmp_path / word) if word == "sweep.yaml" else word for word in words]
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "cuda")
    try:
        assert main(words) == 2  # only the data is missing
        assert jax.config.jax_platforms == "cpu"
    finally:
        jax.config.update("jax_platforms", before)


PARENT = """
import sys
from pathlib import Path
from gchat.research import cli, ladder_cli, length, machine, sweep
from gaia.runtime import Machine
machine.ask = lambda *words: (Machine("tpu", "TPU v6 lite", 1, 0, 1), 918e12)
data = sys.argv[1]
words = ["HEAD", "+relu2", "--minutes", "60", "--dry-run", "--out", "nowhere"]
cli.compare_main(words)
length.evaluations(["cpu", "--training.tokens=81920"], data)
ladder_cli.ladder_main(["--dry-run"])
sweep._plan_of_data(["cpu"]).data_dir()
import jax
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized() or jax.default_backend() == "cpu"
"""


@pytest.mark.slow
def test_a_parent_of_trainings_leaves_the_accelerator_to_them(data_dir):
    """JAX is told to take a device that isn't there: whoever asks for it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda"}
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(data_dir)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_data_is_found_and_prepared_without_a_device(monkeypatch, data_dir):
    def start(**_):
        raise AssertionError("a parent has asked for devices")

    monkeypatch.setattr(runtime, "start", start)
    monkeypatch.setattr("gchat.speedrun_plan.Plan.data_dir", lambda self: data_dir)
    monkeypatch.setattr("gchat.speedrun_plan.prepare", lambda **_: None)
    assert sweep.data_of(["cpu"], None) == sweep.found_data(["cpu"], None) == str(data_dir)
