"""`gchat eval identity`: the share of held-out questions that a model answers with its name."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.ask.options import Model
from gchat.evals.identity import Identity, evaluate, held_out, shared


class NotReached(GaiaError):
    """A share is not what was asked for."""

    exit_status = 1


@dataclass(frozen=True)
class EvalIdentity(Model):
    """Ask who it is, in words that were never trained, and other things.

    Counted are the answers that hold the name: those about itself, which should, and those about
    anything else, which must not. Answers take the most likely tokens: the same each time.

    gchat eval identity --run runs/kibo --identity identity.jsonl
    """

    identity: Path | None = None
    """File of `gchat synth identity`, which gives the name; checked to hold no question that is
    asked here."""
    name: str | None = None
    """Name, in place of --identity."""
    max_tokens: int = 48
    """Limit of an answer."""
    slots: int = 16
    """Answers that a run decodes at once."""
    at_least: float | None = None
    """End with status 1 where a smaller share of the answers about itself holds the name."""
    leak_at_most: float | None = None
    """End with status 1 where a larger share of the other answers holds it."""
    answers: bool = False
    """Print every question and answer."""
    json: bool = False
    """Print one JSON object."""

    def evaluate(self) -> Identity:
        """Asks and prints.

        Raises:
            ConfigError: options that do not go together.
            DataError: the file cannot be used.
            NotReached: a share misses its limit; the table was printed.
        """
        self.check()
        for option in ("at_least", "leak_at_most"):
            share = getattr(self, option)
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"--{option.replace('_', '-')} is {share}", "use 0 to 1")
        if self.slots < 1 or self.max_tokens < 1:
            raise ConfigError(f"slots {self.slots}, max_tokens {self.max_tokens}", "use 1 or more")
        name = self._wanted_name()
        client = self.open_run(self.slots) if self.run is not None else self.open_endpoint()
        try:
            result = evaluate(client, name, max_tokens=self.max_tokens)
        finally:
            client.close()
        figures = result.figures()
        print(json.dumps(figures) if self.json else _table(result, answers=self.answers))
        self._limits(figures)
        return result

    def _wanted_name(self) -> str:
        if (self.identity is None) == (self.name is None):
            given = "both" if self.name else "neither"
            raise ConfigError(f"{given} of --identity and --name is given", "give one")
        if self.name is not None:
            held_out(self.name)
            return self.name
        assert self.identity is not None
        return read_name(self.identity)

    def _limits(self, figures: dict[str, Any]) -> None:
        if self.at_least is not None and figures["named"] < self.at_least:
            raise NotReached(
                f"{figures['named']:.1%} of the answers about itself hold {figures['name']}, "
                f"less than --at-least {self.at_least}"
            )
        if self.leak_at_most is not None and figures["leaked"] > self.leak_at_most:
            raise NotReached(
                f"{figures['leaked']:.1%} of the other answers hold {figures['name']}, more than "
                f"--leak-at-most {self.leak_at_most}"
            )


def read_name(path: Path) -> str:
    """The name in a file of `gchat synth identity`.

    Raises:
        DataError: the file is none, or it holds a question that is kept for evaluation.
    """
    names: set[str] = set()
    said: set[str] = set()
    try:
        for line in path.read_bytes().splitlines():  # of bytes: U+2028 in a text ends no line
            row = json.loads(line)
            names |= {row["identity"]} - {None}
            said |= {m["content"] for m in row["messages"] if m["role"] == "user"}
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror})", "check it") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} is no file of `gchat synth identity`", "give --name instead"
        ) from None
    if len(names) != 1:
        raise DataError(f"{path} names {len(names)} models", "give --name instead")
    name = names.pop()
    questions = held_out(name)
    if pairs := shared([*questions.about_itself, *questions.about_else], said, [name]):
        raise DataError(
            f"{path} asks {pairs[0][1]!r}, which shares a sentence frame with the held-out "
            f"{pairs[0][0]!r}",
            "word it otherwise, or the share says nothing",
        )
    return name


def _table(result: Identity, *, answers: bool) -> str:
    figures = result.figures()
    lines = [f"{result.model}: is it {result.name}?"]
    for about_itself, kind, share in (
        (True, "about itself", "named"),
        (False, "anything else", "leaked"),
    ):
        hits, count = result.named(about_itself=about_itself)
        low, high = figures[f"{share}_interval"]
        lines.append(
            f"  {kind:<14} {hits:>3} of {count:<3} answers hold the name  "
            f"{hits / count:>6.1%}  [{low:.1%}, {high:.1%}]"
        )
    wrong = [one for one in result.asked if one.named != one.about_itself]
    shown = result.asked if answers else wrong[:5]
    if shown and not answers:
        lines.append(f"  the first {len(shown)} of {len(wrong)} that are not as they should be:")
    for one in shown:
        lines.append(f"    {one.question}  ->  {' '.join(one.answer.split())[:100]!r}")
    return "\n".join(lines)
