"""Contrastive pairs: a binary choice in both orders, with the same answer.

A model writes the right choice first more often than not, and who learns from it learns to take the
first. So each choice is there twice, right first and wrong first, or not at all; and answers whose
meaning depends on the order ("the former") are dropped.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gchat.synth.facts import Draw, Facts
from gchat.synth.features import Feature
from gchat.synth.filters.reason import Reason
from gchat.synth.identity import texts
from gchat.synth.records import record_id
from gchat.synth.styles import Style
from gchat.synth.windows import Window

STYLE = "contrast"
ORDERS = ("right-first", "wrong-first")
_POSITION = re.compile(
    r"\b(?:the )?(?:former|latter)\b"
    r"|\b(?:the )?(?:first|second|last|other)(?:ly)?[- ](?:one|option|choice|name|answer|mentioned|"
    r"named|listed|of the two|alternative)\b"
    r"|\b(?:option|choice|answer) [ab12]\b|\bthe one (?:on the )?(?:left|right)\b"
    r"|\b(?:both|neither|either) (?:of them|are|is|were|was|names|options)\b"
    r"|\b(?:named|mentioned|listed|given) (?:first|second|last)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pair:
    """One binary choice: the fields of its two records."""

    name: str
    orders: tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Rejected:
    """A choice that cannot be asked in both orders."""

    fields: dict[str, Any]
    reason: tuple[str, Reason]


@dataclass(frozen=True)
class Phrasings:
    """Templates of choices, and those that are held out."""

    trained: tuple[str, ...]
    heldout: tuple[str, ...] = field(default=())


def phrasings() -> dict[str, str]:
    """Templates by name."""
    return texts("contrast")


def depends_on_order(text: str) -> str | None:
    """The words of a text that mean something else when the choices are swapped."""
    match = _POSITION.search(text)
    return match[0] if match else None


Ask = Callable[[Style], dict[str, Any] | Reason]


def write(
    window: Window,
    others: Mapping[str, Sequence[str]],
    settings: Mapping[str, Any],
    ask: Ask | None = None,
) -> Iterator[Pair | Rejected]:
    """Binary choices of a window, for each feature that has a counterpart of its kind.

    Args:
        window: the sentences.
        others: values of each kind from elsewhere.
        settings: "heldout_phrasings": names of held-out templates; "pairs": limit per window.
        ask: the model; templates write where it is left out.
    """
    facts = Facts(window, others)
    heldout = settings.get("heldout_phrasings", ())
    trained = [name for name in phrasings() if name not in heldout]
    count = 0
    for feature in facts.features:
        draw = Draw(f"{window.id} {feature.sentence} {feature.value}")
        wrong = facts.wrong(feature, draw, 2)
        if not wrong or count >= settings["pairs"]:
            continue
        count += 1
        name = draw.of(trained)
        if ask is None:
            yield _offline(facts, feature, wrong[0], name, "")
            if heldout and len(wrong) > 1:
                # The same fact beside another name, in words that training does not have.
                yield _offline(facts, feature, wrong[1], draw.of(list(heldout)), "heldout_phrasing")
        else:
            yield _by_model(facts, feature, wrong[0], ask)


def _offline(facts: Facts, feature: Feature, wrong: str, phrasing: str, split: str) -> Pair:
    sentence = facts.window.sentences[feature.sentence]
    given = {"blank": feature.blanked(sentence), "topic": facts.topic}
    template = phrasings()[phrasing]
    questions = (
        template.format(a=feature.value, b=wrong, **given),
        template.format(a=wrong, b=feature.value, **given),
    )
    return _pair(facts, feature, wrong, questions, sentence, phrasing, split)


def _by_model(facts: Facts, feature: Feature, wrong: str, ask: Ask) -> Pair | Rejected:
    right = feature.value
    sentence = facts.window.sentences[feature.sentence]
    style = Style(
        name=STYLE, group=STYLE, needs=(), pick="any", question="", answer="", wrong=True,
        ask=f"Ask a question about this fact: {sentence} The question ends with the choice "
        f'"{right} or {wrong}?" in these very words. The answer is one full sentence that says '
        f"{right}, and does not say {wrong}.",
    )  # fmt: skip
    made = ask(style)
    if isinstance(made, Reason):
        return Rejected({"text": sentence}, ("form", made))
    question, answer = made["question"], made["answer"]
    fields = {"question": question, "answer": answer, "choices": [right, wrong]}
    either = f"{right} or {wrong}"
    swapped = f"{wrong} or {right}"
    if question.count(either) + question.count(swapped) != 1 or (
        question.count(right) != 1 or question.count(wrong) != 1
    ):
        why = Reason("swap", f"the question does not offer {either!r} once")
        return Rejected(fields, ("question", why))
    if right not in answer or wrong in answer:
        return Rejected(
            fields, ("answer", Reason("swap", f"the answer does not say {right!r} alone"))
        )
    for name in ("question", "answer"):
        if words := depends_on_order(made[name]):
            return Rejected(fields, (name, Reason("swap", f"{words!r} depends on the order")))
    first = question.replace(swapped, either)
    return _pair(
        facts, feature, wrong, (first, first.replace(either, swapped)), answer, "model", ""
    )


def _pair(
    facts: Facts, feature: Feature, wrong: str, questions: tuple[str, str], answer: str,
    phrasing: str, split: str,
) -> Pair:  # fmt: skip
    window = facts.window
    fact = f"{window.start + feature.sentence}:{feature.kind}:{feature.value}"
    pair = record_id(window.article, STYLE, fact, wrong, phrasing)
    choices = ([feature.value, wrong], [wrong, feature.value])
    shared = {"answer": answer, "right": feature.value, "fact": fact, "pair": pair,
              "phrasing": phrasing} | ({"split": split} if split else {})  # fmt: skip
    rows = [
        {"question": question, **shared, "choices": both, "order": order}
        for question, both, order in zip(questions, choices, ORDERS, strict=True)
    ]
    return Pair(pair, (rows[0], rows[1]))


def balance(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Number of records by the place of the right choice."""
    return {order: sum(r.get("order") == order for r in records) for order in ORDERS}


def unpaired(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """Pairs of which only one order is there."""
    orders: dict[str, set[str]] = {}
    for record in records:
        if record["kind"] == "contrast":
            orders.setdefault(record["pair"], set()).add(record["order"])
    return {pair for pair, both in orders.items() if len(both) != len(ORDERS)}
