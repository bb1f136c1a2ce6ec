"""Text stays text, whatever it looks like: typed, joined with =, or in a preset."""

import dataclasses
from pathlib import Path

import pytest
import tyro
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.config import load_yaml, parse
from gaia.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    """A group."""

    prompts: tuple[str, ...] = ("a",)
    """Texts."""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    """Texts by name."""
    name: str | None = None
    """A text, or none."""
    out: Path | None = None
    """A path, or none."""
    inputs: tuple[Path, ...] = ()
    """Paths."""
    places: dict[str, Path] = dataclasses.field(default_factory=dict)
    """Paths by name."""


@dataclasses.dataclass(frozen=True)
class Options:
    """A command."""

    prompt: str = ""
    """A text."""
    loud: bool = False
    """A flag."""
    n: int = 1
    """A number."""
    folder: Path = Path("a")
    """A path."""
    eval: Inner = dataclasses.field(default_factory=Inner)
    """A group."""


TEXT = st.text(
    st.characters(exclude_categories=("Cs",), exclude_characters="\x00\x02"), max_size=12
)
LOOKS_LIKE_AN_OPTION = st.sampled_from(
    [
        "True",
        "false",
        "on",
        "None",
        "-h",
        "--help",
        "--x",
        "--no-loud",
        "-1",
        "--",
        "---",
        "a=b",
        "",
        "/",
        "/x/",
    ]
)
ANY = LOOKS_LIKE_AN_OPTION | TEXT


@given(ANY)
def test_a_typed_text_is_that_text(text):
    assert parse(Options, [f"--prompt={text}"]).prompt == text
    assert parse(Options, ["--loud", "--prompt", text, "--n", "2"]) == Options(text, True, 2)


@settings(max_examples=30)
@given(ANY)
def test_a_typed_path_is_that_path(text):
    path = Path(text)
    assert parse(Options, [f"--folder={text}"]).folder == path
    assert parse(Options, ["--folder", text, "--n", "2"]) == Options(folder=path, n=2)
    joined = parse(Options, [f"--eval.inputs={text}"]).eval.inputs
    assert joined == (path,)
    if not text.startswith("--"):  # in a list of several, an option begins the next
        assert parse(Options, ["--eval.places=a", text]).eval.places == {"a": path}
    if text != "None":
        assert parse(Options, ["--eval.out", text]).eval.out == path


@settings(max_examples=30)
@given(ANY.filter(lambda t: t != "None"), st.lists(ANY, min_size=1, max_size=3))
def test_a_path_in_a_preset_is_that_path(text, several):
    preset = {"folder": text, "eval": {"out": text, "inputs": several, "places": {text: text}}}
    options = parse(Options, [], preset=preset)
    assert (options.folder, options.eval.out) == (Path(text), Path(text))
    assert options.eval.inputs == tuple(map(Path, several))
    assert options.eval.places == {text: Path(text)}


@given(st.lists(ANY, min_size=1, max_size=3), ANY, ANY.filter(lambda t: t != "None"))
def test_a_text_in_a_preset_is_that_text(prompts, prompt, name):
    tree = yaml.safe_load(
        yaml.safe_dump({"prompt": prompt, "eval": {"prompts": prompts, "name": name}})
    )
    parsed = parse(Options, [], preset=tree)
    assert parsed.prompt == prompt
    assert parsed.eval.prompts == tuple(prompts) and parsed.eval.name == name


def test_an_option_in_place_of_a_text_is_said():
    with pytest.raises(ConfigError, match="--prompt has no value; write --prompt=--loud"):
        parse(Options, ["--prompt", "--loud"])
    with pytest.raises(ConfigError, match="unknown option --lou; "):
        parse(Options, ["--eval.prompts", "x", "--lou"])


@pytest.mark.parametrize("value", ["True", "true", "False"])
def test_flags_take_a_truth_value_too(value):
    assert parse(Options, ["--loud", value]).loud == (value != "False")
    assert parse(Options, [f"--loud={value}", "--n", "3"]).n == 3


def test_texts_by_name():
    parsed = parse(Options, ["--eval.files", "a", "True", "b", "-h", "--n", "2"])
    assert parsed.eval.files == {"a": "True", "b": "-h"} and parsed.n == 2


def test_yamls_truth_values_are_no_texts(tmp_path):
    (tmp_path / "a.yaml").write_text("prompt: on\n")
    with pytest.raises(ConfigError, match="prompt is true, a truth value to YAML; put it in quo"):
        parse(Options, [], preset=load_yaml(tmp_path / "a.yaml"))


def test_a_preset_is_utf_8_in_any_locale(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_bytes("prompt: 日本\n".encode())
    monkeypatch.setattr("locale.getpreferredencoding", lambda *_: "ascii")
    assert parse(Options, [], preset=load_yaml(tmp_path / "a.yaml")).prompt == "日本"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Needy:
    """A command that needs two of its options."""

    out: Path
    """A path."""
    count: int
    """A number."""
    dry_run: bool = False
    """A flag."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """A group."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ou", "r", "--count", "1"], "unknown option --ou; perhaps you meant --out ("),
        (["--ou=r"], "unknown option --ou; perhaps you meant --out ("),
        (["--out", "r", "--numbers", "1"], "unknown option --numbers; --help lists"),
        (["--out", "r", "--mount", "1"], "unknown option --mount; perhaps you meant --amount ("),
        (["--no-dry-rum"], "unknown option --no-dry-rum; perhaps you meant --no-dry-run ("),
        (["--inner.outt", "x"], "unknown option --inner.outt; perhaps you meant --inner.out ("),
        (["--out", "--ou", "--no-dry-run", "--dry_run"], "Missing from"),
        (["--inner.name", "--ou", "--inner.prompts", "a", "--inner.out=--x"], "Missing from"),
    ],
)
def test_a_mistyped_option_is_named_before_the_missing_one(words, said):
    with pytest.raises(ConfigError) as error:
        parse(Needy, words, aliases={"--amount": "--count"})
    assert said in str(error.value) and "\n" not in str(error.value)


@dataclasses.dataclass(frozen=True)
class Verb:
    """A command with options of several values."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Words without an option."""
    set: tuple[str, ...] = ()
    """Texts."""
    seeds: tuple[int, ...] = (1,)
    """Numbers."""
    each: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Texts, one at a time."""
    text: str = ""
    """A text."""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--set a=1 --set b=2", Verb(set=("a=1", "b=2"))),
        ("a --set=--x --seeds 1 --text t --set b", Verb(("a",), ("--x", "b"), (1,), text="t")),
        ("--seeds 1 -2 --set a b --seeds=3 --set c", Verb(set=("a", "b", "c"), seeds=(1, -2, 3))),
        ("--each a --set x --each b", Verb(set=("x",), each=("a", "b"))),
        ("--text a --text b", Verb(text="b")),
    ],
)
def test_an_option_of_several_values_adds_to_what_was_typed(words, expected):
    assert parse(Verb, words.split()) == expected


def test_fields_of_a_preset_are_overridden_but_for_those_that_add():
    preset, words = {"set": ["a"], "seeds": [1]}, ["--set", "b", "--set", "c", "--seeds", "2"]
    assert parse(Verb, [*words, "--seeds", "3"], preset=preset) == Verb(set=("c",), seeds=(3,))
    typed = parse(Verb, words, preset=preset, adding=("set",))
    assert typed == Verb(set=("b", "c"), seeds=(2,))
