"""Prompt styles: data files that say which windows a style fits and what is asked of a model.

group: questions
styles:
  when:
    needs: {date: 1}                     # applicability: features that a window must have
    ask: Ask when something happened …   # told to a model
    form: open                           # open, boolean, choice, list or rewrite
    wrong: false                         # it may name what is not in the text
    pick: date                           # the offline generator: the fact that it takes,
    change: typos                        # what is done to the question in the end,
    question: "When was it? “{blank}”"   # and its sentences
    answer: "It was {value}."
"""

import functools
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from gaia import unique_yaml
from gaia.errors import ConfigError

FORMS = ("open", "boolean", "choice", "list", "rewrite")
CHANGES = ("", "typos", "small", "capitals")
NEEDS = (
    "person", "place", "event", "date", "number", "name", "names", "any", "figure", "subject",
    "two", "cause", "long", "dates", "sentences",
)  # fmt: skip
"""Facts that a style may need; `gchat.synth.facts` counts them."""
PICKS = (*NEEDS[:-1], "sentence", "pair", "three", "whole", "outsider")
FIELDS = {
    "feature": ("value", "blank", "dots", "around", "sentence", "opening", "topic", "json"),
    "wrong": ("wrong", "altered", "options", "letter", "value_or_wrong"),
    "subject": ("predicate",),
    "two": ("other",),
    "cause": ("effect", "cause"),
    "long": ("half", "rest"),
    "dates": ("one", "two", "cut_one", "cut_two", "early", "late", "early_year", "late_year"),
    "sentence": ("sentence", "opening", "topic"),
    "pair": ("next",),
    "three": ("next", "third"),
    "whole": (
        "first", "last", "opening", "closing", "topic", "list_names", "list_dates",
        "list_numbers", "keywords", "main",
    ),
    "outsider": ("wrong", "opening", "topic"),
}  # fmt: skip
"""Names that stand in braces in question and answer, by what is picked."""
_FEATURES = ("person", "place", "event", "date", "number", "name", "names", "any", "figure")
_KEYS = {
    "needs": dict, "ask": str, "form": str, "wrong": bool, "pick": str, "change": str,
    "question": str, "answer": str,
}  # fmt: skip
_REQUIRED = ("needs", "ask", "pick", "question", "answer")


@dataclass(frozen=True)
class Style:
    """One way to ask."""

    name: str
    group: str
    needs: tuple[tuple[str, int], ...]
    ask: str
    pick: str
    question: str
    answer: str
    form: str = "open"
    wrong: bool = False
    change: str = ""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Style":
        """Reads back the fields that `dataclasses.asdict` gave, also through JSON."""
        return cls(**{**fields, "needs": tuple((name, least) for name, least in fields["needs"])})

    def fits(self, counts: Mapping[str, int]) -> bool:
        """True for a window that has what the style needs."""
        return all(counts.get(name, 0) >= least for name, least in self.needs)


def load(paths: Sequence[str] = ()) -> dict[str, Style]:
    """Styles by name, in the order of their files: those that ship with gchat, or of `paths`.

    Raises:
        ConfigError: one line naming file, style and field.
    """
    return dict(_loaded(tuple(paths)))


@functools.lru_cache(maxsize=4)
def _loaded(paths: tuple[str, ...]) -> dict[str, Style]:
    styles: dict[str, Style] = {}
    for name, text in _files(paths):
        for style in _read(name, text):
            if style.name in styles:
                raise ConfigError(
                    f"{name}: style {style.name!r} is defined twice", "rename one of the two"
                )
            styles[style.name] = style
    return styles


def chosen(styles: Mapping[str, Style], names: Iterable[str]) -> dict[str, Style]:
    """Styles by their own names or those of groups; all where none is named.

    Raises:
        ConfigError: a name is neither.
    """
    wanted = list(names)
    groups = {style.group for style in styles.values()}
    for name in wanted:
        if name not in styles and name not in groups:
            raise ConfigError(f"style {name!r} is unknown", _near(name, [*styles, *groups]))
    if not wanted:
        return dict(styles)
    return {k: s for k, s in styles.items() if k in wanted or s.group in wanted}


def _files(paths: Sequence[str]) -> list[tuple[str, str]]:
    """(name, text) of each file."""
    if not paths:
        folder = files("gchat.synth") / "styles"
        inside = [file for file in folder.iterdir() if file.name.endswith(".yaml")]
        inside.sort(key=lambda file: file.name)
        return [(file.name, file.read_text(encoding="utf-8")) for file in inside]
    listed: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"styles = {str(path)!r} holds no .yaml file", "check the path")
        listed += inside
    made = []
    for file in listed:
        try:
            made.append((str(file), file.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"styles file {str(file)!r}: {reason}", "check the path") from None
    return made


def _read(file: str, text: str) -> list[Style]:
    try:
        tree = unique_yaml.load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise ConfigError(f"{file}{line}: {problem}", "mend the file") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("styles"), dict):
        raise ConfigError(f"{file}: styles is missing", "write group: NAME and styles: {…}")
    group = tree.get("group")
    if not isinstance(group, str) or not group:
        raise ConfigError(f"{file}: group is {group!r}", "give the styles' group a name")
    if extra := sorted(map(str, tree.keys() - {"group", "styles"})):
        raise ConfigError(f"{file}: unknown field {extra[0]!r}", "use group and styles")
    for name in tree["styles"]:
        if not isinstance(name, str):
            raise ConfigError(f"{file}: style {name!r}: name is no text", "put it into quotes")
    return [_style(file, group, name, given) for name, given in tree["styles"].items()]


def _style(file: str, group: str, name: str, given: Any) -> Style:
    def wrong(field: str, problem: str, remedy: str) -> ConfigError:
        return ConfigError(f"{file}: style {name!r}: {field} {problem}", remedy)

    if not isinstance(given, dict):
        raise wrong("fields", "are missing", f"give {', '.join(_REQUIRED)}")
    for field, value in given.items():
        if field not in _KEYS:
            raise wrong(repr(field), "is no field of a style", _near(str(field), _KEYS))
        if not isinstance(value, _KEYS[field]):
            raise wrong(field, f"is {value!r}", f"give a {_KEYS[field].__name__}")
    for field in _REQUIRED:
        if given.get(field) in (None, ""):
            raise wrong(field, "is missing", "add it")
    for field, allowed in (("form", FORMS), ("pick", PICKS), ("change", CHANGES)):
        if given.get(field, allowed[0]) not in allowed:
            raise wrong(
                field, f"is {given[field]!r}", f"use one of {', '.join(filter(None, allowed))}"
            )
    for need, least in given["needs"].items():
        if need not in NEEDS:
            raise wrong(f"needs.{need}", "is unknown", _near(str(need), NEEDS))
        if not isinstance(least, int) or isinstance(least, bool) or least < 1:
            raise wrong(f"needs.{need}", f"is {least!r}", "use a whole number from 1")
    for field in ("question", "answer"):
        _check_braces(wrong, field, given)
    needs = tuple((str(k), int(v)) for k, v in given["needs"].items())
    rest = {k: v for k, v in given.items() if k != "needs"}
    return Style(name=name, group=group, needs=needs, **rest)


def _check_braces(wrong: Any, field: str, given: dict[str, Any]) -> None:
    """Raises where a template names what its pick does not give."""
    known = fields_of(given["pick"], bool(given.get("wrong")))
    try:
        named = [part[1] for part in string.Formatter().parse(given[field]) if part[1] is not None]
    except ValueError as error:
        raise wrong(field, f"cannot be read ({error})", "write {{ for a brace") from None
    for name in named:
        if name not in known:
            raise wrong(field, f"names {{{name}}}", _near(name, known))


def fields_of(pick: str, wrong: bool) -> list[str]:
    """Names that question and answer of a style may hold in braces."""
    names: list[str] = []
    if pick in (*_FEATURES, "subject", "two"):
        names += FIELDS["feature"]
        names += FIELDS["wrong"] if wrong else ()
    if pick in ("sentence", "pair", "three", "cause", "long"):
        names += FIELDS["sentence"]
    if pick == "dates":
        names.append("topic")
    return [*names, *(FIELDS[pick] if pick in FIELDS and pick != "sentence" else ())]


def _near(name: str, known: Iterable[str]) -> str:
    listed = list(known)
    near = get_close_matches(name, listed, n=1)
    return f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(listed)}"
