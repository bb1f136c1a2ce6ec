"""Prompts for a model, the JSON that it must answer with, and what is read out of that."""

import json
from typing import Any

from gchat.chat_format import Message
from gchat.client import Question
from gchat.data.languages import identity
from gchat.engine.grammar import json_schema
from gchat.engine.requests import SamplingConfig
from gchat.synth.filters.reason import Reason
from gchat.synth.styles import Style
from gchat.synth.windows import Window

_SYSTEM = (
    "You write questions and answers for training a language model. Take every fact from the text "
    "you are given and add none. The reader has never seen the text: name what you ask about, and "
    "never speak of a text or passage. Write in {language}. Answer with JSON alone."
)
_LETTERS = "ABCD"
_TEXT = {"type": "string", "minLength": 2, "maxLength": 400}
_NAMES = {
    "en": "English", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian",
    "pt": "Portuguese", "nl": "Dutch", "ru": "Russian", "zh": "Chinese", "ja": "Japanese",
}  # fmt: skip


def schema(style: Style, fields: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema of an answer that has these fields."""
    properties: dict[str, Any] = {name: dict(_TEXT) for name in fields}
    if "choices" in properties:
        item = {"type": "string", "minLength": 1, "maxLength": 80}
        properties["choices"] = {"type": "array", "items": item, "minItems": 4, "maxItems": 4}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def fields_of(style: Style) -> tuple[str, ...]:
    """Fields of a record of a style as a model writes them, in their order."""
    return ("question", "choices", "answer") if style.form == "choice" else ("question", "answer")


def question(
    window: Window, style: Style, settings: dict[str, Any], *, attempt: int = 0,
    fields: tuple[str, ...] = (), asked: str = "",
) -> Question:  # fmt: skip
    """The prompt for a record of a style about a window.

    Args:
        window: the text.
        style: says what to ask.
        settings: language, seed, temperature, max_tokens.
        attempt: repetition, each drawn with another seed.
        fields: of the answer's JSON; those of the style when left out.
        asked: the question that is to be answered, where the two are written apart.
    """
    fields = fields or fields_of(style)
    code = identity(settings["language"])
    title = f"Title: {window.title}\n" if window.title else ""
    task = f"Task: {style.ask}"
    if asked:
        task = f"Question: {asked}\n\nTask: answer the question from the text. {style.ask}"
    elif fields == ("question",):
        task += " Write the question only."
    form = json.dumps({name: ["…"] * 4 if name == "choices" else "…" for name in fields},
                      ensure_ascii=False)  # fmt: skip
    seed = (settings["seed"] * 1000 + attempt) % 2**31
    return Question(
        messages=(
            Message("system", _SYSTEM.format(language=_NAMES.get(code, code))),
            Message("user", f"{title}Text: {window.text}\n\n{task}\nFormat: {form}"),
        ),
        max_tokens=settings["max_tokens"],
        sampling=SamplingConfig(temperature=settings["temperature"], seed=seed),
        grammar=json_schema(schema(style, fields)),
    )


def read(text: str, fields: tuple[str, ...]) -> dict[str, Any] | Reason:
    """The fields of an answer, or why it is none."""
    try:
        row = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except (ValueError, RecursionError):
        return Reason("schema", "the answer is not JSON")
    if not isinstance(row, dict):
        return Reason("schema", "the answer is no object")
    made: dict[str, Any] = {}
    for name in fields:
        value = row.get(name)
        if name == "choices":
            listed = value if isinstance(value, list) else []
            choices = [v.strip() for v in listed if isinstance(v, str)]
            if len(choices) < 2 or len({c.lower() for c in choices}) < len(listed):
                return Reason("schema", "choices are no list of different texts")
            made[name] = choices
        elif not isinstance(value, str):
            return Reason("schema", f"{name} is missing or no text")
        else:
            made[name] = " ".join(value.split())
    return made


def with_choices(made: dict[str, Any]) -> dict[str, Any] | Reason:
    """Letters the choices, behind the question; the answer must be one of them."""
    answer, choices = made["answer"], made["choices"]
    plain = answer[2:].strip() if answer[:2] in {f"{letter})" for letter in _LETTERS} else answer
    places = [
        i for i, c in enumerate(choices) if c.lower().strip(" .") == plain.lower().strip(" .")
    ]
    if not places and answer.strip(" .)") in _LETTERS:
        places = [_LETTERS.index(answer.strip(" .)"))]
    if len(places) != 1 or places[0] >= len(choices):
        return Reason("schema", "the answer is none of the choices")
    lettered = [f"{_LETTERS[i]}) {choice}" for i, choice in enumerate(choices[: len(_LETTERS)])]
    return made | {
        "question": made["question"] + "\n" + "\n".join(lettered),
        "answer": lettered[places[0]],
    }
