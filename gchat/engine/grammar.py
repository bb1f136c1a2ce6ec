"""Grammars that an answer must follow: a JSON schema, a regular expression, or a choice of texts.

`llguidance` (extra `grammar`) keeps a parser per answer and says which ids may come next; the
engine adds that mask to the logits. Bytes count, not characters: a character may take several
tokens. Where the answer may end the stop ids are allowed, and they alone where nothing may follow.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np

from gaia.errors import ConfigError, GaiaError
from gaia.extras import install
from gchat.tokenizer import Tokenizer

Kind = Literal["json", "regex", "choice"]
# One layout: a small model that may choose its white space can go on with it for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# What compiling may cost, and each token after it: llguidance's own limits let `(a{1000}){1000}`
# take 2 s and 170 MB. With these nothing that was tried took more than 8 MB and 0.2 s, and schemas
# of 1,000 properties or 2,000 texts still compile.
_FUEL = {"initial_lexer_fuel": 50_000, "step_lexer_fuel": 50_000}
_KEPT = 16  # compiled grammars: at 8 MB each
_MOST_STATES = 10_000
"""States of `multipleOf`, which llguidance counts late: 1,000,003 takes 17 s and 270 MB."""


@dataclass(frozen=True)
class Grammar:
    """One grammar without a vocabulary; made by `json_schema`, `regex` or `choice`."""

    kind: Kind
    text: str


def json_schema(schema: dict[str, Any] | bool | str) -> Grammar:
    """JSON that fits a schema (draft 2020-12, what llguidance knows of it).

    Raises:
        ConfigError: the text is not JSON, or not a schema.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
            json.dumps(schema, ensure_ascii=False).encode()
        except UnicodeError:
            raise ConfigError("the schema holds half a character", "mend it") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the schema is not JSON ({error})", "mend it") from None
    if not isinstance(schema, dict | bool):
        raise ConfigError(f"the schema is a {type(schema).__name__}", "give a JSON object")
    if schema is False:
        raise ConfigError("no text fulfils the schema `false`", "give a JSON object")
    return Grammar("json", json.dumps({} if schema is True else schema))


def regex(pattern: str) -> Grammar:
    """A whole answer that matches a regular expression (Rust's syntax, no look-around)."""
    return Grammar("regex", pattern)


def choice(texts: Sequence[str]) -> Grammar:
    """One of these texts, whole.

    Raises:
        ConfigError: there is none, or one is empty.
    """
    if not texts or not all(texts):
        raise ConfigError(f"the choices are {list(texts)}", "give at least one text, none empty")
    return Grammar("choice", json.dumps(list(texts)))


class Matcher:
    """The state of one answer under a grammar. Not thread-safe.

    Attributes:
        finished: nothing may follow but a stop id.

    Raises:
        ConfigError: the grammar cannot be compiled, or no text fulfils it.
    """

    def __init__(self, grammar: Grammar, vocabulary: "Vocabulary") -> None:
        self._matcher = vocabulary.matcher(grammar)
        self._words, self._stop_ids = vocabulary.words, vocabulary.stop_ids
        self.finished = False

    def allowed(self) -> np.ndarray:
        """Ids that may come next, as bits: uint32 [ceil(padded vocabulary / 32)], low bit first."""
        bits_W = np.zeros(self._words, np.uint32)
        if self.finished:
            for i in self._stop_ids:
                bits_W[i // 32] |= np.uint32(1 << i % 32)
            return bits_W
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        # llguidance's has one word more where the ids fill the last one.
        count = min(len(packed), self._words)
        bits_W[:count] = packed[:count]
        _raise_if_broken(self._matcher)
        return bits_W

    def accept(self, token: int) -> None:
        """Takes the id that was chosen.

        Raises:
            GrammarError: the mask did not allow it.
        """
        if self.finished or not self._matcher.consume_token(token):
            _raise_if_broken(self._matcher)
            raise GrammarError(f"id {token} does not follow the grammar", "choose within the mask")
        self.finished = self._matcher.is_stopped()

    @property
    def complete(self) -> bool:
        """Tells whether the answer may end here."""
        return self.finished or self._matcher.is_accepting()


class GrammarError(GaiaError):
    """An answer left its grammar, or the parser met a limit of its own."""


class Vocabulary:
    """A tokenizer as grammars see it; build it once, matchers are cheap.

    Args:
        tokenizer: its ids.
        stop_ids: ids that end an answer, at least one.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Sequence[int]) -> None:
        if not stop_ids:
            raise ConfigError("a grammar has no id to end with", "give at least one stop id")
        self._tokenizer = tokenizer
        self.stop_ids = [int(i) for i in stop_ids]
        self.words = -(-tokenizer.padded_vocab_size // 32)

    @cached_property
    def _known(self) -> Any:
        library = _library()
        return library.LLTokenizer(
            library.TokenizerWrapper(_Bytes(self._tokenizer, self.stop_ids[0])),
            n_vocab=self._tokenizer.vocab_size,
            eos_token=self.stop_ids,
        )

    def matcher(self, grammar: Grammar) -> Any:
        """llguidance's matcher; its compiled start is kept for the next request of the same."""
        return self._started(grammar).deep_copy()

    @lru_cache(maxsize=_KEPT)  # noqa: B019 - a vocabulary lives as long as its engine
    def _started(self, grammar: Grammar) -> Any:
        library = _library()
        limits = library.LLParserLimits(**_FUEL, verbose_errors=False)
        matcher = library.LLMatcher(self._known, _source(grammar), log_level=0, limits=limits)
        _refuse_if_broken(matcher, grammar)
        packed = np.frombuffer(matcher.compute_bitmask(), np.uint32)
        _refuse_if_broken(matcher, grammar)
        if not packed.any():
            raise ConfigError(f"no text fulfils the {grammar.kind} grammar", "mend it")
        # A first mask within which a limit was met looks whole; the token after it tells.
        ids = np.flatnonzero(np.unpackbits(packed.view(np.uint8), bitorder="little"))
        further = next((int(i) for i in ids if i not in self.stop_ids), None)
        if further is not None:
            tried = matcher.deep_copy()
            tried.consume_token(further)
            if not tried.is_stopped():
                tried.compute_bitmask()
            _refuse_if_broken(tried, grammar)
        return matcher


def _source(grammar: Grammar) -> str:
    """The grammar as llguidance reads it."""
    matcher_class = _library().LLMatcher
    if grammar.kind == "json":
        _check_multiples(json.loads(grammar.text))
        try:
            return matcher_class.grammar_from_json_schema(grammar.text, overrides=_LAYOUT)
        except ValueError as error:  # nested deeper than its reader goes
            raise ConfigError(f"the json grammar cannot be used ({error})", "mend it") from None
    if grammar.kind == "regex":
        return matcher_class.grammar_from_regex(grammar.text)
    # One terminal: as rules of a parser, more than 2,000 texts are too many at once.
    literals = " | ".join(json.dumps(text) for text in json.loads(grammar.text))
    return matcher_class.grammar_from_lark(f"start: TEXT\nTEXT: {literals}")


def _check_multiples(schema: Any) -> None:
    """Refuses a schema whose values of `multipleOf` need too many states.

    There is one for each remainder, and two that hold at once have those of their common multiple.

    Raises:
        ConfigError: there would be too many.
    """
    states, left = 1, [schema]
    while left:
        one = left.pop()
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        value = one.get("multipleOf") if isinstance(one, dict) else None
        if isinstance(value, float) and math.isfinite(value) and value > 0:
            exact = Decimal(str(value)).normalize()
            # A multiple of 0.25 is one of 25, with the point elsewhere.
            value = int(exact.scaleb(max(0, -int(exact.as_tuple().exponent))))
        if isinstance(value, int) and value > 0:
            states = math.lcm(states, value)
        if states > _MOST_STATES:
            raise ConfigError(
                f"the schema's multipleOf needs more than {_MOST_STATES:,} states",
                f"use numbers whose least common multiple is at most {_MOST_STATES:,}",
            )


def mask_maker(
    grammar: Grammar | None, tokenizer: Tokenizer, stop_ids: Sequence[int]
) -> Callable[[], Matcher] | None:
    """The `mask` of a request that must follow a grammar; None for None.

    Raises:
        ConfigError: the grammar cannot be compiled, or no text fulfils it.
    """
    if grammar is None:
        return None
    vocabulary = Vocabulary(tokenizer, stop_ids)
    Matcher(grammar, vocabulary)
    return lambda: Matcher(grammar, vocabulary)


class _Bytes:
    """The four things that llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_id
        self.special_token_ids = sorted(tokenizer.specials.values())
        # No answer may hold a special token: its name stands after a byte that no text has.
        names = {i: b"\xff" + name.encode() for name, i in tokenizer.specials.items()}
        self.tokens = [
            names[i] if i in names else tokenizer.decode_bytes([i])
            for i in range(tokenizer.vocab_size)
        ]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _refuse_if_broken(matcher: Any, grammar: Grammar) -> None:
    if matcher.is_error():
        raise ConfigError(
            f"the {grammar.kind} grammar cannot be used ({_reason(matcher)})",
            "mend it: some text must fulfil it, and it may not be too large",
        )


def _reason(matcher: Any) -> str:
    return " ".join(matcher.get_error().replace("<non-verbose/>", "").split())[:300]


def _raise_if_broken(matcher: Any) -> None:
    if matcher.is_error():
        raise GrammarError(f"the grammar's parser stopped ({_reason(matcher)})", "simplify it")


def _library() -> Any:
    try:
        import llguidance
    except ModuleNotFoundError:
        raise GaiaError("grammars need llguidance", install("grammar")) from None
    return llguidance
