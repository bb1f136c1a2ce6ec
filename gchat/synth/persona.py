"""A persona: its name, and the facts of its file.

A friendly model that answers short questions.        <- prose: what it says about itself

- maker: the gaia project
- kind: a small language model
- purpose: answer short questions
- built on: English docstrings
"""

import re
from dataclasses import dataclass, fields
from pathlib import Path

from gaia.errors import ConfigError, DataError
from gchat.evals.identity import check_name

_FACT = re.compile(r"^\s*(?:[-*]\s*)?(\w[\w ]{0,30}?)\s*:\s+(.+?)\s*$")


@dataclass(frozen=True)
class Persona:
    """Facts that a model is to know about itself; each stands within a sentence."""

    name: str
    maker: str
    """Person or group that made it: "the gaia project"."""
    kind: str = "a small language model"
    purpose: str = "answer questions"
    """Follows "I am here to"."""
    built_on: str = "a lot of text"
    """Follows "I was trained on"."""
    about: str = ""
    """Sentences that it says about itself."""


def read_persona(name: str, path: Path) -> Persona:
    """Reads a persona's file.

    Raises:
        ConfigError: `name` is none.
        DataError: the file cannot be read, names no maker, or a fact that is not known.
    """
    check_name(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise DataError(f"persona {str(path)!r}: {reason}", "check --about") from None
    known = [field.name for field in fields(Persona) if field.name not in ("name", "about")]
    facts: dict[str, str] = {}
    prose: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        listed = line.lstrip().startswith(("-", "*"))
        fact = _FACT.match(line) if listed or _is_fact(line, known) else None
        if fact is None:
            if line.strip() and not line.startswith("#"):
                prose.append(line.strip())
            continue
        key = fact[1].lower().replace(" ", "_")
        if key not in known:
            said = ", ".join(one.replace("_", " ") for one in known)
            raise DataError(
                f"{path} line {number}: {fact[1]!r} is no fact", f"use {said}, or prose"
            )
        facts[key] = fact[2].rstrip(".")
    if "maker" not in facts:
        raise DataError(f"{path} names no maker", "add a line such as `- maker: the gaia project`")
    if any(brace in value for value in (name, *facts.values()) for brace in "{}"):
        raise ConfigError("a fact of the persona holds a brace", "leave { and } out")
    made = Persona(name, **facts)
    about = " ".join(prose) or f"I was made by {made.maker} to {made.purpose}."
    return Persona(name, **facts, about=about)


def _is_fact(line: str, known: list[str]) -> bool:
    return line.partition(":")[0].strip().lower().replace(" ", "_") in known
