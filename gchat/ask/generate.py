"""`gchat generate`: answers to a file of questions, gone on with after any kind of end."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.ask.answers import Answers
from gchat.ask.options import Drawing, Model
from gchat.ask.questions import Line, read
from gchat.client import Answer, Budget, Client, Question, Usage
from gchat.data.work import progress_bar


class LinesFailed(GaiaError):
    """Some lines have an error in place of an answer."""

    exit_status = 1


@dataclass(frozen=True)
class Generate(Drawing, Model):
    """Answer a file of questions, one JSON object per line.

    A line has "prompt" or "messages", and may have max_tokens, temperature, top_k, top_p, min_p,
    repetition_penalty, seed, stop, n, logprobs, schema, regex, choice, id and meta. Line i is drawn
    with seed + i. Run again after an interruption, it goes on where it stopped.

    gchat generate questions.jsonl answers.jsonl --run runs/cpu --max-tokens 100
    gchat generate questions.jsonl answers.jsonl --endpoint http://127.0.0.1:8000/v1
    """

    questions: tyro.conf.Positional[Path]
    """File of questions."""
    answers: tyro.conf.Positional[Path]
    """File of answers, with the number of the question's line."""
    slots: int = 8
    """Answers that a run decodes at once."""
    concurrency: int | None = None
    """Requests that are open at once at an endpoint; 8 when left out."""
    max_requests: int | None = None
    """Cap on requests to an endpoint, repetitions included."""
    max_total_tokens: int | None = None
    """Cap on the tokens of prompts and answers of an endpoint."""
    retry_errors: bool = False
    """Ask lines again that ended with an error."""
    dry_run: bool = False
    """Check the questions, say how many are to be asked, and ask none."""
    json: bool = False
    """Print the summary as one JSON object."""

    def generate(self) -> None:
        """Runs the job.

        Raises:
            DataError: a line of the questions is none.
            LinesFailed: some lines have an error, which stands in their place.
        """
        self.check()
        if self.slots < 1:
            raise ConfigError(f"slots is {self.slots}", "use at least 1")
        defaults = Question(
            prompt="", max_tokens=self.max_tokens, sampling=self.sampling(),
            stop=self.stop, grammar=self.grammar(),
        )  # fmt: skip
        defaults.check()
        defaults = replace(defaults, prompt=None)
        both = self.answers.exists() and self.questions.exists()
        if both and self.answers.samefile(self.questions):
            raise ConfigError("questions and answers are one file", "name another for the answers")
        count, tokens = _counted(self.questions, defaults)
        if self.dry_run:
            return _say_plan(count, tokens, as_json=self.json)
        with Answers(self.answers, retry_errors=self.retry_errors) as answers:
            client = self._open()
            try:
                summary = _Job(self.questions, defaults, answers, client, count).run()
            finally:
                client.close()
        _report(summary, self.answers, as_json=self.json)

    def _open(self) -> Client:
        if self.run is not None:
            return self.open_run(self.slots)
        budget = Budget(self.max_requests, self.max_total_tokens)
        wide = 8 if self.concurrency is None else self.concurrency
        return self.open_endpoint(concurrency=wide, budget=budget)


def _counted(questions: Path, defaults: Question) -> tuple[int, int]:
    """Lines, and the limit of all their answers in tokens; every line is checked."""
    count = tokens = 0
    for line in read(questions, defaults):
        count += 1
        tokens += line.question.max_tokens * line.question.n
    if not count:
        raise DataError(f"{str(questions)!r} holds no questions", "write one JSON object per line")
    return count, tokens


def _say_plan(count: int, tokens: int, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"lines": count, "max_completion_tokens": tokens}))
    else:
        print(f"{count:,} questions, answers of up to {tokens:,} tokens together; none was asked")


class _Job:
    """The questions that have no answer yet, asked and written down."""

    def __init__(
        self, path: Path, defaults: Question, answers: Answers, client: Client, count: int
    ) -> None:
        self._path, self._defaults, self._answers = path, defaults, answers
        self._client, self._count = client, count
        self._asked: list[Line] = []
        self._usage, self._before = Usage(), 0

    def run(self) -> dict[str, Any]:
        self._check_all()
        self._before = len(self._answers.keys)
        began = time.monotonic()
        with progress_bar("answers", self._count, None, "") as bar:
            bar.update(self._before)
            try:
                for index, result in self._client.batch(self._questions()):
                    line = self._asked[index]
                    self._asked[index] = None  # type: ignore[call-overload]  # let go of its text
                    self._answers.write(self._record(line, result))
                    bar.set_postfix_str(f"{self._usage.completion_tokens:,} tokens", refresh=False)
                    bar.update()
            except BaseException as stop:
                bar.close()
                self._say_stopped(stop)
                raise
        self._answers.in_order()
        seconds, per_step = time.monotonic() - began, self._client.tokens_per_step
        return {
            "lines": self._count,
            "answered": len(self._answers.keys) - self._before,
            "answered_before": self._before,
            "errors": self._answers.errors,
            "prompt_tokens": self._usage.prompt_tokens,
            "completion_tokens": self._usage.completion_tokens,
            "cached_tokens": self._usage.cached_tokens,
            "seconds": round(seconds, 3),
            "tokens_per_s": round(self._usage.completion_tokens / max(seconds, 1e-9), 1),
            "model": self._client.model,
        } | ({} if per_step is None else {"tokens_per_step": round(per_step, 2)})

    def _check_all(self) -> None:
        """Every question is checked by the client, and those answered must be these."""
        numbers = set()
        for line in self._lines():
            numbers.add(line.number)
            try:
                self._client.check(line.question)
            except ConfigError as error:
                raise DataError(
                    f"{self._path}:{line.number}: {error.problem}", error.remedy
                ) from None
            key = self._answers.keys.get(line.number)
            if key not in (None, line.key(self._client.model)):
                self._refuse(line.number, "another question, other options or another model")
        if beyond := sorted(self._answers.keys.keys() - numbers):
            self._refuse(beyond[0], "a line that holds no question now")

    def _refuse(self, number: int, what: str) -> None:
        raise DataError(
            f"{self._answers.path} holds an answer to line {number} of {what}",
            "name another file, or run it with what it was begun with",
        )

    def _lines(self) -> Iterator[Line]:
        return read(self._path, self._defaults)

    def _questions(self) -> Iterator[Question]:
        """Questions without an answer; their lines are noted in order."""
        for line in self._lines():
            if line.number not in self._answers.keys:
                self._asked.append(line)
                yield line.question

    def _record(self, line: Line, result: Answer | GaiaError) -> dict[str, Any]:
        record: dict[str, Any] = {"line": line.number}
        if line.id is not None:
            record["id"] = line.id
        if isinstance(result, GaiaError):
            record["error"] = str(result)
        else:
            self._usage += result.usage
            first = result.choices[0]
            record |= {"text": first.text, "finish": first.finish}
            if line.question.n > 1 or line.question.logprobs is not None or first.parts:
                record["choices"] = [_choice(choice) for choice in result.choices]
            record |= {
                "prompt_tokens": result.usage.prompt_tokens,
                "completion_tokens": result.usage.completion_tokens,
                "model": result.model,
            }
        if line.meta is not None:
            record["meta"] = line.meta
        return record | {"key": line.key(self._client.model)}

    def _say_stopped(self, stop: BaseException) -> None:
        if isinstance(stop, KeyboardInterrupt | GaiaError):
            print(
                f"gchat generate: {len(self._answers.keys):,} of {self._count:,} answers are in "
                f"{self._answers.path}; the same command goes on",
                file=sys.stderr,
            )


def _choice(choice: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"text": choice.text, "finish": choice.finish}
    if choice.parts:
        shown["parts"] = [{"kind": part.kind, "text": part.text} for part in choice.parts]
    if choice.tokens:
        shown["logprobs"] = [
            {"token": token.text, "logprob": token.logprob, "top": [list(one) for one in token.top]}
            for token in choice.tokens
        ]
    return shown


def _report(summary: dict[str, Any], path: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary))
    else:
        per_step = summary.get("tokens_per_step")
        drafted = "" if per_step is None else f", {per_step:.2f} a step"
        print(
            f"{path}: {summary['lines']:,} answers ({summary['answered']:,} now), "
            f"{summary['completion_tokens']:,} tokens in {summary['seconds']:.1f} s "
            f"({summary['tokens_per_s']:,.1f}/s{drafted})"
        )
    if summary["errors"]:
        raise LinesFailed(
            f"{summary['errors']:,} of {summary['lines']:,} lines have an error in {path}",
            "--retry-errors asks them again",
        )
