"""Every number that a run can be told has a range, and a typed value wins or is refused."""

import ast
import dataclasses
import math
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import runs
from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.config import TrainConfig, derive, load, price_per_hour
from gchat.ranges import RANGES, check_ranges

ROOT = Path(__file__).resolve().parents[2]


def numeric_fields(cls=TrainConfig, prefix=""):
    """Dotted names of the fields whose type is a number, or a dictionary or list of numbers."""
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            yield from numeric_fields(kind, f"{prefix}{field.name}.")
        elif {int, float} & {kind, *(a for arg in get_args(kind) for a in (arg, *get_args(arg)))}:
            yield f"{prefix}{field.name}"


def test_every_number_has_a_range():
    assert set(numeric_fields()) == set(RANGES)


def test_no_number_is_replaced_because_it_is_zero():
    """`x or y` on an optional number takes 0 for "not given"."""
    numbers = {name.rpartition(".")[2] for name in RANGES if name != "data.weights"} | {"hours"}
    wrong = []
    for path in sorted(p for package in ("gaia", "gchat") for p in (ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = {
            id(part)
            for node in ast.walk(tree)
            if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert)
            for part in ast.walk(node.test)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.BoolOp)
                and isinstance(node.op, ast.Or)
                and id(node) not in asked
            ):
                first = node.values[0]
                if isinstance(first, ast.Attribute) and first.attr in numbers:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


def changed(name, value):
    """The default configuration with one field set."""
    group, _, field = name.partition(".")
    config = TrainConfig()
    value = {"web": value} if name == "data.weights" else value
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **{field: value})}
    )


@pytest.mark.parametrize("name", sorted(RANGES))
def test_numbers_outside_of_it_are_refused_by_name(name):
    for value in (math.nan, math.inf, -math.inf, RANGES[name].low - 1):
        with pytest.raises(ConfigError, match=rf"{name}.* is {value}; use "):
            check_ranges(changed(name, value))
    if RANGES[name].open_low:
        with pytest.raises(ConfigError):
            check_ranges(changed(name, RANGES[name].low))
    check_ranges(TrainConfig())


def lengths(*args, preset="cpu"):
    config, _ = derive(load(list(args), preset=preset), vocab_size=4096, padded_vocab_size=4096)
    return config


def test_a_typed_length_wins_over_the_presets():
    assert load([], preset="cpu").training.tokens is not None  # or this test shows nothing
    ratio = lengths("--training.tokens-per-param", "20")
    assert ratio.training.tokens_per_param == 20
    from gchat.model_shape import matmul_params

    assert ratio.training.amounts.tokens == pytest.approx(20 * matmul_params(ratio.model), rel=0.01)
    assert lengths("--training.tokens", "1000000").training.amounts.tokens == pytest.approx(
        1_000_000, rel=0.01
    )
    assert lengths("--max-steps", "7", "--warmup", "1").training.amounts.steps == 7


@pytest.mark.parametrize(
    ("option", "named"),
    [
        pytest.param(
            ("--training.tokens", "999999"),
            "training.steps was 12 and is 7,812",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("--max-steps", "13"), "training.steps was 12 and is 13", marks=pytest.mark.slow
        ),
        (("--lr", "0.5"), "optim.lr was 0.003 and is 0.5"),
    ],
)
def test_a_typed_value_that_changes_a_resumed_run_is_refused(
    data_dir, tmp_path, capsys, option, named
):
    args = runs.arguments(data_dir, tmp_path / "run", "--eval.every-steps", "0", steps=12)
    if not (tmp_path / "run").exists():
        assert main(["train", *args]) == 0
    capsys.readouterr()
    assert main(["train", "--resume", "--run-dir", str(tmp_path / "run"), *option]) == 2
    assert named in capsys.readouterr().err.replace("7812", "7,812")


def test_a_price_that_is_none_is_one_line(monkeypatch, capsys, data_dir, tmp_path):
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "abc")
    assert main(["train", *runs.arguments(data_dir, tmp_path / "run")]) == 2
    assert "GAIA_PRICE_PER_HOUR is 'abc'; use US dollars per hour" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_typed_price_of_nothing_is_a_price(monkeypatch):
    monkeypatch.setenv("GAIA_PRICE_PER_HOUR", "21.6")
    assert price_per_hour(lengths("--run.price-per-hour", "0")) == 0
    assert price_per_hour(lengths()) == 21.6
    assert lengths().run.price_per_hour is None  # the run may go on on another machine


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_that_no_key_holds_is_one_line(seed, capsys, data_dir, tmp_path):
    args = runs.arguments(data_dir, tmp_path / "run", "--training.seed", seed)
    assert main(["train", *args]) == 2
    assert f"training.seed is {seed}; use a number in [0, " in capsys.readouterr().err
