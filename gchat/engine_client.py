"""A `Client` of the engine in this process."""

import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from gaia.errors import ConfigError, GaiaError
from gchat.chat_format import ChatFormat, Message
from gchat.client import Answer, ClientError, Delta, Question, Token, Usage, joined
from gchat.engine.engine import Engine
from gchat.engine.grammar import Grammar, Matcher, Vocabulary
from gchat.engine.requests import Event, Request
from gchat.engine.tools import Piece, Tools, ToolStream
from gchat.engine.window import Span, fit
from gchat.tokenizer import Tokenizer

_AHEAD = 4  # questions per row of the cache that are queued: a row that ends finds the next ready

News = Event | Piece


@dataclass(frozen=True)
class _Asked:
    """A question that the engine works on."""

    question: Question
    prompt_tokens: int
    cancel: Callable[[], None]


class EngineClient:
    """Asks the engine in this process; any thread that waits for an answer drives it.

    Args:
        engine: made with `decode_bytes`.
        tokenizer: of the model.
        chat_format: for questions that are conversations.
        model: name for records.
        slots: rows of the engine's cache.
        tools: lets answers call these; None where a call is mere text.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        chat_format: ChatFormat,
        *,
        model: str,
        slots: int = 8,
        tools: Tools | None = None,
    ) -> None:
        self.model, self.converses = model, chat_format.kind != "text"
        self._engine, self._tokenizer, self._format = engine, tokenizer, chat_format
        self.chat_format = chat_format
        self._ahead, self._tools = slots * _AHEAD, tools
        ends = () if chat_format.end_id is None else (chat_format.end_id,)
        self._stop_ids = tuple(dict.fromkeys((*engine.stop_ids, *ends)))
        self._vocabulary = Vocabulary(tokenizer, self._stop_ids)

    @property
    def tokens_per_step(self) -> float | None:
        """Tokens that a step of decoding gave an answer on average; None without speculation."""
        return self._engine.tokens_per_step if self._engine.speculate else None

    def ids(self, question: Question) -> list[int]:
        """Ids that the model reads for a question."""
        if question.prompt is not None:
            return [self._tokenizer.bos_id, *self._tokenizer.encode(question.prompt)]
        return self._format.prompt(question.messages)

    def check(self, question: Question) -> None:
        """Raises ConfigError where the question cannot be asked here, however long its prompt is.

        A prompt without room for an answer is the error of its own question, when it is asked.
        """
        question.check()
        if question.grammar is not None:
            Matcher(question.grammar, self._vocabulary)
        placeholder = self._request(question, [self._tokenizer.bos_id])
        placeholder.check(self._tokenizer.padded_vocab_size, self._engine.seq_len)

    def fit(self, question: Question) -> tuple[Question, int, bool]:
        """The question without the oldest turns that leave no room for an answer.

        Returns:
            The question, how many messages went, and if the middle of one was cut.

        Raises:
            ConfigError: the system message alone leaves no room.
        """
        limit = self._engine.seq_len - min(question.max_tokens, self._engine.seq_len // 2)
        messages, form = question.messages, self._format
        if not messages or len(form.prompt(messages)) <= limit:
            return question, 0, False
        spans = [
            Span(message.role, len(form.message(message)), form.frame(message.role))
            for message in messages
        ]
        around = len(form.prompt(messages)) - sum(span.tokens for span in spans)
        kept = fit(spans, limit - around)
        stay = {i: messages[i] for i in kept.messages}
        if kept.cut is not None:
            i, first, last = kept.cut
            frame, body = spans[i].frame, self._tokenizer.encode(messages[i].content)
            left = [*body[: first - frame], *body[last - frame :]]
            stay[i] = Message(messages[i].role, self._tokenizer.decode(left))
        fitted = replace(question, messages=tuple(stay.values()))
        return fitted, kept.dropped, kept.cut is not None

    def _request(self, question: Question, ids: list[int]) -> Request:
        return Request(
            ids,
            question.max_tokens,
            question.sampling,
            self._stop_ids,
            question.stop,
            question.n,
            question.logprobs,
            self._mask(question.grammar),
        )

    def _mask(self, grammar: Grammar | None) -> Callable[[], Matcher] | None:
        return None if grammar is None else lambda: Matcher(grammar, self._vocabulary)

    def _submit(self, question: Question, listener: Callable[[News], None]) -> _Asked:
        question.check()
        ids = self.ids(question)
        request = self._request(question, ids)
        if self._tools is not None and question.messages and question.grammar is None:
            stream = ToolStream(self._engine, self._tools, request, listener)
            return _Asked(question, len(ids), stream.cancel)
        return _Asked(question, len(ids), self._engine.submit(request, listener).cancel)

    def complete(self, question: Question) -> Answer:
        """Asks, and waits for the whole answer."""
        return joined(self.stream(question), question.n, self.model)

    def stream(self, question: Question) -> Iterator[Delta]:
        """Asks, and yields pieces as they come; closing the iterator ends the answer."""
        news: queue.SimpleQueue[News] = queue.SimpleQueue()
        asked = self._submit(question, news.put)
        left, counted, cached = question.n, 0, 0
        try:
            while left:
                one = self._next(news)
                left -= one.finish is not None
                counted, cached = counted + len(one.ids), max(cached, one.cached)
                usage = Usage(asked.prompt_tokens, counted, cached) if not left else None
                yield self._delta(one, usage)
        finally:
            if left:
                asked.cancel()
                self._engine.step()  # the row is free at once, whoever waits next

    def _next(self, news: "queue.SimpleQueue[News]") -> News:
        """The next news, working for them while there are none."""
        while True:
            try:
                return news.get_nowait()
            except queue.Empty:
                self._engine.step()

    def _delta(self, news: News, usage: Usage | None = None) -> Delta:
        if news.finish == "error":
            raise ClientError(f"the answer ended: {news.error}", "ask again")
        kind = news.kind if isinstance(news, Piece) else "text"
        show = self._tokenizer.decode
        tokens = tuple(
            Token(show([t.id]), t.logprob, tuple((show([i]), p) for i, p in t.top))
            for t in news.logprobs
        )
        return Delta(news.index, news.text, kind, news.finish, tokens, usage)

    def batch(self, questions: Iterable[Question]) -> Iterator[tuple[int, Answer | GaiaError]]:
        """Asks many at once: as many as the cache has rows are decoded together."""
        news: queue.SimpleQueue[tuple[int, News]] = queue.SimpleQueue()
        waiting, open_questions = enumerate(questions), dict[int, _Batched]()
        more = True
        try:
            while True:
                while more and len(open_questions) < self._ahead:
                    index, question = next(waiting, (-1, None))
                    if question is None:
                        more = False
                        break
                    try:
                        asked = self._submit(question, lambda one, i=index: news.put((i, one)))
                    except ConfigError as error:
                        yield index, error
                        continue
                    open_questions[index] = _Batched(asked, question.n)
                if not open_questions:
                    return
                while news.empty():
                    self._engine.step()
                while not news.empty():
                    index, one = news.get_nowait()
                    batched = open_questions[index]
                    batched.take(one)
                    if not batched.left:
                        yield index, self._answer(open_questions.pop(index))
        finally:
            for batched in open_questions.values():
                batched.asked.cancel()

    def _answer(self, batched: "_Batched") -> Answer | GaiaError:
        usage = batched.usage()
        try:
            deltas = [self._delta(one, usage) for one in batched.news]
            return joined(deltas, batched.asked.question.n, self.model)
        except ClientError as error:
            return error

    def close(self) -> None:
        """Nothing to let go of."""


class _Batched:
    """News of one question of a batch."""

    def __init__(self, asked: _Asked, n: int) -> None:
        self.asked, self.left = asked, n
        self.news: list[News] = []

    def take(self, one: News) -> None:
        self.news.append(one)
        self.left -= one.finish is not None

    def usage(self) -> Usage:
        return Usage(
            self.asked.prompt_tokens,
            sum(len(one.ids) for one in self.news),
            max(one.cached for one in self.news),
        )
