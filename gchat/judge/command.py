"""`gchat judge`: answers graded by a model whose own errors are counted and taken out."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from gaia import storage
from gaia.errors import ConfigError, GaiaError
from gchat.ask.options import Model
from gchat.client import Budget, Client, Usage
from gchat.evals.counts import Count
from gchat.judge import asking, items, planted, report
from gchat.judge.asking import Judge as Asker
from gchat.judge.asking import Opinions
from gchat.judge.items import Item
from gchat.judge.planted import Planted
from gchat.judge.rates import Calibration

_FEWEST = 10
"""Right answers, and as many wrong ones, below which a judge's errors are not counted."""


class CannotTell(GaiaError):
    """The judge passes wrong answers about as often as right ones."""

    exit_status = 1


class Unjudged(GaiaError):
    """Some answers got no verdict because the judge could not be asked."""

    exit_status = 1


@dataclass(frozen=True)
class Judge(Model):
    """Grade answers against references, by a model whose own errors are counted and taken out.

    A line of ANSWERS has snippet, question, reference and answer, or is one of `gchat generate`
    with the first three in its meta. The judge is first asked about answers whose truth is known;
    where it cannot tell them apart nothing else is asked. Run again, it goes on where it stopped.

    gchat judge answers.jsonl verdicts.jsonl --endpoint http://127.0.0.1:8000/v1
    gchat judge answers.jsonl verdicts.jsonl --run runs/judge --student runs/ww2 --by split
    """

    answers: tyro.conf.Positional[Path]
    """File of answers to judge."""
    verdicts: tyro.conf.Positional[Path]
    """File of verdicts; the summary lies beside it."""
    lexical: bool = False
    """Judge by words, names and numbers in common: no model, a floor for one."""
    calibrate: int = 100
    """Right answers to plant, and as many wrong ones; 0 gives the raw share only."""
    labelled: Path | None = None
    """File of answers that people have labelled ("right": true), in place of planted ones."""
    calibration: Path | None = None
    """File of the verdicts on them, shared between calls; VERDICTS.calibration.jsonl when left
    out."""
    by: tuple[str, ...] = ()
    """Fields, such as split and style, by whose values rates are also given."""
    student: Path | None = None
    """Run whose answers these are: the result goes into its history, picture and metrics."""
    student_step: int | None = None
    """Step of the student's checkpoint; its newest when left out."""
    max_tokens: int = 300
    """Limit of the tokens of a verdict."""
    seed: int = 0
    """Seed of the planted answers."""
    slots: int = 8
    """Answers that a run judges at once."""
    concurrency: int | None = None
    """Requests that are open at once at an endpoint; 8 when left out."""
    max_requests: int | None = None
    """Cap on requests to an endpoint, repetitions included."""
    max_total_tokens: int | None = None
    """Cap on the tokens of prompts and verdicts of an endpoint."""
    retry_errors: bool = False
    """Ask again about answers without a verdict."""
    dry_run: bool = False
    """Check the answers, say how many are to be judged, and ask nothing."""
    json: bool = False
    """Print the summary as one JSON object."""

    def judge(self) -> dict[str, Any]:
        """Judges, prints and returns the summary.

        Raises:
            DataError: a line of the answers is none.
            CannotTell: the judge is no judge.
            Unjudged: an endpoint left answers open, or known ones, on which the calibration rests.
        """
        self._check()
        answers = items.read(self.answers)
        for field in self.by:
            items.grouped(answers, field)
        known = self._known(answers)
        step = self._student_step()
        if self.dry_run:
            return self._say_plan(answers, known)
        job = _Job(self, answers, known)
        summary = job.run()
        if self.student is not None:
            report.keep(self.student, step, summary)
        print(json.dumps(summary) if self.json else report.described(summary))
        _check_whole(summary, len(answers), len(known))
        return summary

    def _check(self) -> None:
        if self.lexical:
            self._check_lexical()
        else:
            self.check()
        for name in ("slots", "concurrency", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}", "use 1 or more")
        if self.calibrate < 0 or 0 < self.calibrate < _FEWEST:
            raise ConfigError(
                f"--calibrate is {self.calibrate}", f"use {_FEWEST} or more, or 0 for none"
            )
        if self.labelled is not None and self.calibrate != 100:
            raise ConfigError("--calibrate has no effect with --labelled", "drop one of them")
        if self.verdicts.suffix != ".jsonl":
            raise ConfigError(f"{str(self.verdicts)!r} ends in no .jsonl", "name it so")
        paths = [self.answers, self.verdicts, self._calibration]
        if len({path.resolve() for path in paths}) < len(paths):
            raise ConfigError("two of the files are one", "name others")
        if self.student_step is not None and self.student is None:
            raise ConfigError("--student-step has no effect without --student", "drop it")

    def _check_lexical(self) -> None:
        """Raises ConfigError where an option speaks of a model."""
        of_models = {field.name for field in fields(Model)} | {
            "slots", "concurrency", "max_requests", "max_total_tokens", "max_tokens",
        }  # fmt: skip
        for field in fields(self):
            if field.name in of_models and getattr(self, field.name) != field.default:
                option = f"--{field.name.replace('_', '-')}"
                raise ConfigError(f"{option} has no effect with --lexical", "drop one of them")

    @property
    def _calibration(self) -> Path:
        return self.calibration or self.verdicts.with_suffix(".calibration.jsonl")

    def _student_step(self) -> int:
        if self.student is None:
            return 0
        from gchat.run.checkpoints import read_run, saved_checkpoints

        config = read_run(str(self.student))
        if self.student_step is not None:
            return self.student_step
        saved = saved_checkpoints(config)
        if not saved:
            raise ConfigError(f"{str(self.student)!r} has no checkpoint", "give --student-step")
        return saved[-1].step

    def _known(self, answers: Sequence[Item]) -> list[Planted]:
        """Answers whose truth is known."""
        if self.labelled is not None:
            read = items.read(self.labelled, labelled=True)
            known = [Planted(item, bool(item.right), "labelled") for item in read]
        else:
            known = planted.plant(answers, self.calibrate, seed=self.seed)
        known = [
            replace(one, item=replace(one.item, number=place, id=one.item.id, groups={}))
            for place, one in enumerate(known, 1)
        ]
        right = sum(one.right for one in known)
        if self.calibrate and min(right, len(known) - right) < _FEWEST:
            raise ConfigError(
                f"{right} right and {len(known) - right} wrong answers are known, too few to "
                "calibrate a judge on",
                "give ten questions or more, --labelled answers, or --calibrate 0 (raw share only)",
            )
        return known

    def _say_plan(self, answers: Sequence[Item], known: Sequence[Planted]) -> dict[str, Any]:
        plan = {"answers": len(answers), "known": len(known)}
        plan["max_completion_tokens"] = (len(answers) + len(known)) * self.max_tokens
        if self.json:
            print(json.dumps(plan))
        else:
            print(
                f"{len(answers):,} answers, and {len(known):,} whose truth is known; verdicts of "
                f"up to {plan['max_completion_tokens']:,} tokens together; nothing was asked"
            )
        return plan


class _Job:
    """One file of verdicts."""

    def __init__(self, options: Judge, answers: list[Item], known: list[Planted]) -> None:
        self._options, self._answers, self._known = options, answers, known

    def run(self) -> dict[str, Any]:
        options, began = self._options, time.monotonic()
        client = self._open()
        try:
            asker = Asker(client, options.max_tokens)
            planted_opinions = self._calibrate(asker)
            calibration = _counted(self._known, planted_opinions, asker.model)
            if calibration is not None and not calibration.discriminates:
                raise self._cannot_tell(asker, calibration)
            opinions = asking.judge(
                asker, self._answers, options.verdicts, label="verdicts",
                retry_errors=options.retry_errors,
            )  # fmt: skip
        finally:
            if client is not None:
                client.close()
        summary = report.summary(self._answers, opinions, calibration, options.by)
        summary |= {
            "judge": asker.model,
            "calibration": report.of_calibration(calibration, self._known, planted_opinions),
            "tokens": _tokens(opinions.usage + planted_opinions.usage),
            "asked": opinions.asked + planted_opinions.asked,
            "seconds": round(time.monotonic() - began, 2),
            "answers_file": str(options.answers),
            "verdicts": str(options.verdicts),
        }
        path = options.verdicts.with_suffix(".summary.json")
        storage.write_text(path, json.dumps(summary, indent=1) + "\n")
        return summary

    def _calibrate(self, asker: Asker) -> Opinions:
        if not self._known:
            return Opinions()
        by_number = {one.item.number: one for one in self._known}
        return asking.judge(
            asker,
            [one.item for one in self._known],
            self._options._calibration,
            label="calibration",
            extra=lambda item: {
                "right": by_number[item.number].right,
                "how": by_number[item.number].how,
                "answer": item.answer,
            },
            retry_errors=True,
        )

    def _cannot_tell(self, asker: Asker, calibration: Calibration) -> CannotTell:
        low, high = calibration.youden_interval
        return CannotTell(
            f"{asker.model} is no judge of these answers: it passes "
            f"{calibration.sensitivity:.0%} of right ones and {1 - calibration.specificity:.0%} of "
            f"wrong ones (difference {calibration.youden:+.2f}, 95% {low:+.2f} to {high:+.2f})",
            f"ask a larger model; its verdicts are in {self._options._calibration}",
        )

    def _open(self) -> Client | None:
        options = self._options
        if options.lexical:
            return None
        if options.run is not None:
            return options.open_run(options.slots)
        budget = Budget(options.max_requests, options.max_total_tokens)
        wide = 8 if options.concurrency is None else options.concurrency
        return options.open_endpoint(concurrency=wide, budget=budget)


def _counted(known: Sequence[Planted], opinions: Opinions, judge: str) -> Calibration | None:
    """Verdicts on known answers; no verdict is no pass, as it is for the student's.

    A request that failed is no opinion of the judge: counted as one it would lower the sensitivity,
    and the correction would raise the student's rate by as much.

    Raises:
        Unjudged: so many requests failed that too few are left to count errors on.
    """
    if not known:
        return None
    heard = [one for one in known if opinions.heard(one.item)]
    right = [opinions.passed[one.item.number] for one in heard if one.right]
    wrong = [opinions.passed[one.item.number] for one in heard if not one.right]
    if min(len(right), len(wrong)) < _FEWEST:
        raise Unjudged(
            f"{judge} could not be asked about {len(known) - len(heard):,} of {len(known):,} "
            f"answers whose truth is known; {len(right)} right and {len(wrong)} wrong ones are too "
            "few to calibrate it on",
            "run again, which asks about them again, or --calibrate 0 (raw share only)",
        )
    return Calibration(
        Count(sum(passed is True for passed in right), len(right)),
        Count(sum(passed is not True for passed in wrong), len(wrong)),
    )


def _check_whole(summary: dict[str, Any], answers: int, known: int) -> None:
    """Raises Unjudged where answers, or known ones, could not be asked about."""
    missing, remedies = [], []
    if count := summary["unasked"]:
        missing.append(f"{count:,} of {answers:,} answers")
        remedies.append("--retry-errors asks again")
    if count := (summary["calibration"] or {}).get("unasked"):
        missing.append(f"{count:,} of {known:,} answers whose truth is known")
        remedies.append("run again, which asks about the known ones again")
    if missing:
        raise Unjudged(f"{' and '.join(missing)} could not be asked about", "; ".join(remedies))


def _tokens(usage: Usage) -> dict[str, int]:
    return {"prompt": usage.prompt_tokens, "completion": usage.completion_tokens}


def main(args: list[str]) -> None:
    """Runs the verb."""
    from gaia.config import parse
    from gaia.interrupt import raise_on_interrupt

    options = parse(Judge, args, prog="gchat judge", description=Judge.__doc__)
    raise_on_interrupt()
    try:
        options.judge()
    except KeyboardInterrupt:
        print(
            f"gchat judge: verdicts so far are in {options.verdicts}; the same command goes on",
            file=sys.stderr,
        )
        raise
