"""Records out of one item of work: by a model, or by templates; filtered as they come.

An item holds all that it needs, so that a worker far away needs an endpoint and nothing else.
"""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from gaia.errors import GaiaError
from gchat.client import Client, Usage
from gchat.queue import Failed
from gchat.synth import contrasts, offline, prompting, styles
from gchat.synth.failures import failed
from gchat.synth.filters import checks
from gchat.synth.filters.reason import Reason
from gchat.synth.records import record_id, source_of
from gchat.synth.styles import Style
from gchat.synth.windows import Window

TRIES = 2
"""Answers asked for until one has the form that was asked for."""


Price = Callable[[Usage], float]


def priced(prompt: float, completion: float) -> Price:
    """US dollars of tokens, from the prices of a million of each kind."""
    return lambda usage: (usage.prompt_tokens * prompt + usage.completion_tokens * completion) / 1e6


def packed(style: Style) -> Any:
    """A style as an item carries it: its name where it ships with gchat."""
    return style.name if styles.load().get(style.name) == style else asdict(style)


def unpacked(given: Any) -> Style:
    """Reads back what `packed` wrote.

    Raises:
        Failed: this version of gchat has no such style.
    """
    if isinstance(given, dict):
        return Style.from_json(given)
    try:
        return styles.load()[given]
    except KeyError:
        raise Failed(f"style: {given!r} is unknown to this version of gchat", fatal=True) from None


FREE = priced(0.0, 0.0)


def make_do(
    client: Client | None, price: Price = FREE
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The work of one item: payload to result.

    Args:
        client: of the model; None writes offline.
        price: US dollars of its tokens.

    A result holds "records", "rejects", "tokens" (of prompts and of answers), and "cost" in US
    dollars.
    """

    def do(payload: dict[str, Any]) -> dict[str, Any]:
        made = _Made(payload, client, price)
        if payload["kind"] == "contrast":
            made.contrast()
        elif client is None:
            made.offline()
        else:
            for style in map(unpacked, payload["styles"]):
                made.by_model(style)
        return made.result()

    return do


class _Made:
    """Records and rejects of one item."""

    def __init__(self, payload: dict[str, Any], client: Client | None, price: Price) -> None:
        self._payload, self._price = payload, price
        self._client = client
        self._window = Window.from_json(payload["window"])
        self._settings = payload["settings"]
        self._filters = checks.Settings(self._settings["language"], self._settings["profile"])
        self._source = f"{self._window.title}\n{self._window.text}"
        self._records: list[dict[str, Any]] = []
        self._rejects: list[dict[str, Any]] = []
        self._usage = Usage()

    def result(self) -> dict[str, Any]:
        return {
            "records": self._records,
            "rejects": self._rejects,
            "tokens": [self._usage.prompt_tokens, self._usage.completion_tokens],
            "cost": self._price(self._usage),
        }

    def offline(self) -> None:
        """All styles of the item, without a model."""
        chosen = [unpacked(given) for given in self._payload["styles"]]
        made = offline.write(self._window, chosen, self._payload["others"])
        for style in chosen:
            if style.name in made:
                self._keep(self._record(style.name, made[style.name]), style)

    def contrast(self) -> None:
        """Both orders of each binary choice; one that a filter drops takes its pair with it."""
        ask = None if self._client is None else self._ask_pair
        before = self._usage
        for pair in contrasts.write(self._window, self._payload["others"], self._settings, ask):
            spent = None if ask is None else _difference(self._usage, before)
            before = self._usage
            if isinstance(pair, contrasts.Rejected):
                name = pair.fields["fact"]
                record = self._record(contrasts.STYLE, pair.fields, name, usage=spent)
                self._reject(record, *pair.reason)
                continue
            # What the question cost stands with its first order.
            usages = (spent, None if spent is None else Usage())
            both = [
                self._record(contrasts.STYLE, fields, pair.name, usage=usage)
                for fields, usage in zip(pair.orders, usages, strict=True)
            ]
            problems = (checks.of_record(r, self._source, self._filters, wrong=True) for r in both)
            problem = next(filter(None, problems), None)
            for one in both:
                if problem is None:
                    self._records.append(one)
                else:
                    self._reject(one, *problem)

    def _ask_pair(self, style: Style) -> dict[str, Any] | Reason:
        """A binary choice as the model writes it."""
        made, _, _ = self._answer(style, ("question", "answer"))
        return made

    def by_model(self, style: Style) -> None:
        """One style, asked for until the answer has its form."""
        chain = self._settings["chain"]
        fields = prompting.fields_of(style)
        asked, before = "", Usage()
        if chain:  # the question first, checked before its answer is paid for
            first, text, before = self._answer(style, ("question",))
            if isinstance(first, Reason):
                reject = self._record(style.name, {"text": text}, usage=before)
                return self._reject(reject, "question", first)
            asked = first["question"]
            if reason := checks.of_text(asked, "question", self._filters):
                reject = self._record(style.name, first, usage=before)
                return self._reject(reject, "question", reason)
            fields = tuple(name for name in fields if name != "question")
        made, text, usage = self._answer(style, fields, asked=asked)
        usage += before
        if isinstance(made, Reason):
            fields_made = {"question": asked} if asked else {}
            return self._reject(
                self._record(style.name, fields_made | {"text": text}, usage=usage), "form", made
            )
        if asked:
            made = {"question": asked, **made}
        if style.form == "choice":
            lettered = prompting.with_choices(made)
            if isinstance(lettered, Reason):
                return self._reject(self._record(style.name, made, usage=usage), "form", lettered)
            made = lettered
        return self._keep(self._record(style.name, made, usage=usage), style)

    def _answer(
        self, style: Style, fields: tuple[str, ...], asked: str = ""
    ) -> tuple[dict[str, Any] | Reason, str, Usage]:
        """The fields of an answer, its text and its tokens.

        Raises:
            Failed: no answer came.
        """
        assert self._client is not None
        read: dict[str, Any] | Reason = Reason("schema", "no answer")
        text, usage = "", Usage()
        for attempt in range(TRIES):
            question = prompting.question(
                self._window, style, self._settings, attempt=attempt, fields=fields, asked=asked
            )
            try:
                answer = self._client.complete(question)
            except GaiaError as error:
                raise failed(error, self._price(self._usage)) from None
            text, usage = answer.text, usage + answer.usage
            self._usage += answer.usage
            read = prompting.read(text, fields)
            if not isinstance(read, Reason):
                break
            if answer.choices[0].finish == "length":
                read = Reason("schema", "the answer broke off at the limit of tokens")
        return read, text, usage

    def _record(
        self, style: str, fields: dict[str, Any], name: str = "", usage: Usage | None = None
    ) -> dict[str, Any]:
        payload = self._payload
        more = (name, fields.get("order", "")) if name else ()
        record = {
            "id": record_id(self._window.id, style, self._settings["seed"], *more),
            "kind": payload["kind"],
            "source": source_of(self._window),
            "style": style,
            "split": payload["parts"].get(style, payload["part"]),
            **fields,
            "model": self._client.model if self._client is not None else offline.MODEL,
        }
        if usage is not None:
            record["tokens"] = [usage.prompt_tokens, usage.completion_tokens]
            record["cost"] = self._price(usage)
        return record

    def _keep(self, record: dict[str, Any], style: Style) -> None:
        problem = checks.of_record(record, self._source, self._filters, wrong=style.wrong)
        if problem is None:
            self._records.append(record)
        else:
            self._reject(record, *problem)

    def _reject(self, record: dict[str, Any], phase: str, reason: Reason) -> None:
        self._rejects.append(record | {"phase": phase, "filter": reason.filter, "why": reason.why})


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        after.prompt_tokens - before.prompt_tokens,
        after.completion_tokens - before.completion_tokens,
        after.cached_tokens - before.cached_tokens,
    )
