"""The same prompts to several models, one loaded after another: a table, and a page."""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, GaiaError
from gchat.archive.card import Card
from gchat.ask.options import Model
from gchat.chat_format import Message
from gchat.client import Question
from gchat.engine.requests import SamplingConfig

_FIGURES = ("status", "stage", "step", "params", "tokens", "data", "val_bpb", "core_v1", "chatcore",
            "judge")  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Answers by model, in the order of the prompts."""

    prompts: list[str]
    answers: dict[str, list[str]]
    cards: dict[str, Card | None]


def prompts(given: Sequence[str], file: Path | None) -> list[str]:
    """Prompts of the command line, and of a file: lines of text, or JSON with "prompt".

    Raises:
        ConfigError: the file cannot be read, or there is no prompt.
    """
    texts = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # no other mark ends a line
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"--prompts {str(file)!r}: {reason}", "check the path") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                texts.append(_prompt(file, number, line))
    if not texts:
        raise ConfigError("no prompt is given", "add --prompt TEXT or --prompts FILE")
    return texts


def _prompt(file: Path, number: int, line: str) -> str:
    if file.suffix != ".jsonl":
        return line.strip()
    try:
        data = json.loads(line)
        text = data.get("prompt") or data["messages"][-1]["content"]
        if not isinstance(text, str):
            raise TypeError
        return text
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ConfigError(f"{file}:{number} has no prompt", 'write {"prompt": "…"}') from None


def ask(run: str, texts: Sequence[str], sampling: SamplingConfig, max_tokens: int) -> list[str]:
    """A model's answers: to messages where it was trained on conversations, else as texts go on."""
    client = Model(run=run).open_run(slots=min(8, len(texts)))
    try:
        talks = client.chat_format.trained
        questions = [
            Question(
                prompt=None if talks else text,
                messages=(Message("user", text),) if talks else (),
                max_tokens=max_tokens,
                sampling=sampling,
            )
            for text in texts
        ]
        answers = [""] * len(texts)
        for index, answer in client.batch(questions):
            failed = isinstance(answer, GaiaError)
            answers[index] = f"(no answer: {answer})" if failed else answer.text
        return answers
    finally:
        client.close()


def described(compared: Compared) -> str:
    """Figures side by side, then each prompt with the answers below it."""
    names = list(compared.answers)
    rows = {
        figure: [_figure(compared.cards[name], figure) for name in names] for figure in _FIGURES
    }
    rows = {"": names} | {figure: values for figure, values in rows.items() if any(values)}
    widths = [max(len(values[i]) for values in rows.values()) for i in range(len(names))]
    lines = []
    for figure, values in rows.items():
        cells = (f"{v or '-':<{width}}" for v, width in zip(values, widths, strict=True))
        lines.append(f"{figure:<10} {'  '.join(cells)}".rstrip())
    width = max(len(name) for name in names)
    for number, prompt in enumerate(compared.prompts):
        answers = {name: compared.answers[name][number] for name in names}
        same = " (all alike)" if len(set(answers.values())) == 1 and len(names) > 1 else ""
        lines += ["", f"[{number + 1}] {prompt}{same}"]
        lines += [f"  {name:<{width}}  {' '.join(text.split())}" for name, text in answers.items()]
    return "\n".join(lines)


def _figure(card: Card | None, name: str) -> str:
    if card is None:
        return ""
    value: Any = {"status": card.status, **card.facts, **card.metrics}.get(name)
    if value is None:
        return ""
    if name == "judge":
        return f"{value['rate']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def page(compared: Compared) -> str:
    """The same as HTML, without any link to a network; all texts are escaped."""
    names = list(compared.answers)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    figures = "".join(
        f"<tr><th>{figure}</th>{''.join(f'<td>{html.escape(v)}</td>' for v in values)}</tr>"
        for figure in _FIGURES
        if any(values := [_figure(compared.cards[name], figure) for name in names])
    )
    rows = "".join(
        f"<tr><td class=prompt>{html.escape(prompt)}</td>"
        + "".join(f"<td>{html.escape(compared.answers[name][i])}</td>" for name in names)
        + "</tr>"
        for i, prompt in enumerate(compared.prompts)
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(" and ".join(names))}</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:15px/1.5 system-ui;margin:2rem auto;max-width:90rem;padding:0 1rem;
color-scheme:light dark}}table{{border-collapse:collapse;width:100%;margin:1rem 0}}
td,th{{border:1px solid #8886;padding:.5rem;text-align:left;vertical-align:top;
white-space:pre-wrap;overflow-wrap:anywhere}}.prompt{{font-weight:600;width:20%}}</style>
<h1>{html.escape(" and ".join(names))}</h1>
<table><tr><th></th>{head}</tr>{figures}</table>
<table><tr><th>prompt</th>{head}</tr>{rows}</table>
</html>
"""
