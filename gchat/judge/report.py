"""Figures of a judgement: raw and corrected, in all and by group, and where they are kept."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gchat.evals.counts import Count
from gchat.judge.asking import NO_VERDICT, Opinions
from gchat.judge.items import Item, grouped
from gchat.judge.planted import Planted
from gchat.judge.rates import Calibration, corrected


def summary(
    items: Sequence[Item],
    opinions: Opinions,
    calibration: Calibration | None,
    by: Sequence[str],
) -> dict[str, Any]:
    """All figures of a judgement, for JSON.

    Args:
        items: that were judged.
        opinions: verdicts; items that the judge never heard of count nowhere.
        calibration: of the judge; None where only raw shares are wanted.
        by: fields to group by.
    """
    heard = [item for item in items if opinions.heard(item)]
    silent = sum(opinions.errors.get(item.number) == NO_VERDICT for item in heard)
    figures = _rates(heard, opinions, calibration)
    figures |= {"no_verdict": silent, "unasked": len(items) - len(heard)}
    figures["groups"] = {
        field: {
            group: _rates(members, opinions, calibration)
            for group, members in grouped(heard, field).items()
        }
        for field in (by if heard else ())
    }
    return figures


def _rates(
    items: Sequence[Item], opinions: Opinions, calibration: Calibration | None
) -> dict[str, Any]:
    """The corrected rate is of answers that the judge saw; empty ones are wrong for certain."""
    seen = [item for item in items if item.answer.strip()]
    passed = Count(sum(opinions.passed[item.number] is True for item in seen), len(seen))
    figures: dict[str, Any] = {
        "answers": len(items),
        "empty": len(items) - len(seen),
        "passed": int(passed.right),
        "raw": passed.right / len(items) if items else None,
        "rate": None,
        "low": None,
        "high": None,
        "outside": False,
    }
    if calibration is not None and items:
        share = len(seen) / len(items)
        if not seen:
            return figures | {"rate": 0.0, "low": 0.0, "high": 0.0}
        made = corrected(passed, calibration)
        figures |= {
            "rate": share * made.rate,
            "low": share * made.interval.low,
            "high": share * made.interval.high,
            "outside": made.outside,
        }
    return figures


def of_calibration(
    calibration: Calibration | None, known: Sequence[Planted], opinions: Opinions
) -> dict[str, Any] | None:
    """Figures of a calibration, for JSON: rates, and errors by kind of planted answer.

    Args:
        calibration: of the judge; None where there is none.
        known: all planted answers; those that the judge never heard of are counted apart.
        opinions: verdicts on them.
    """
    if calibration is None:
        return None
    unasked = sum(not opinions.heard(one.item) for one in known)
    known = [one for one in known if opinions.heard(one.item)]
    kinds: Counter[str] = Counter(one.how for one in known)
    wrongly: Counter[str] = Counter(
        one.how for one in known if (opinions.passed[one.item.number] is True) != one.right
    )
    return {
        "right": calibration.right.of,
        "wrong": calibration.wrong.of,
        "unasked": unasked,
        "sensitivity": calibration.sensitivity,
        "sensitivity_interval": list(calibration.right.interval),
        "specificity": calibration.specificity,
        "specificity_interval": list(calibration.wrong.interval),
        "youden": calibration.youden,
        "youden_interval": list(calibration.youden_interval),
        "errors": {how: {"of": kinds[how], "errors": wrongly[how]} for how in sorted(kinds)},
    }


def described(summary: Mapping[str, Any]) -> str:
    """Lines for people."""
    known = summary["calibration"]
    lines = []
    if known is not None:
        errors = ", ".join(
            f"{one['errors']}/{one['of']} {how}" for how, one in known["errors"].items()
        )
        lines.append(
            f"{summary['judge']}: passes {known['sensitivity']:.1%} of {known['right']} right "
            f"answers, fails {known['specificity']:.1%} of {known['wrong']} wrong ones (errors: "
            f"{errors})"
        )
    rows = [("all", summary)]
    for field, groups in summary["groups"].items():
        rows += [(f"{field} {group}", figures) for group, figures in groups.items()]
    width = max(len(name) for name, _ in rows)
    lines.append(f"{'':<{width}}  answers  passed   raw    right, 95% interval")
    for name, one in rows:
        raw = "-" if one["raw"] is None else f"{one['raw']:.1%}"
        right = "not calibrated"
        if one["rate"] is not None:
            right = f"{one['rate']:.1%}  {one['low']:.1%} to {one['high']:.1%}"
        beyond = "  (beyond what the calibration explains)" if one["outside"] else ""
        counts = f"{one['answers']:>7,} {one['passed']:>7,}"
        lines.append(f"{name:<{width}}  {counts}  {raw:>6}  {right}{beyond}")
    notes = [(summary["empty"], "are empty, which fails"), (summary["no_verdict"],
             "got no verdict, which counts as no pass"),
             (summary["unasked"], "could not be asked about")]  # fmt: skip
    lines += [f"{count:,} answers {what}" for count, what in notes if count]
    if known is not None and known["unasked"]:
        lines.append(
            f"{known['unasked']:,} answers whose truth is known could not be asked about, and are "
            "no part of the calibration"
        )
    return "\n".join([*lines, f"verdicts: {summary['verdicts']}"])


def keep(run: Path, step: int, summary: Mapping[str, Any]) -> None:
    """Adds a judgement to the history, picture and metrics of the student's run."""
    import gaia_metrics
    from gchat.run import judged
    from gchat.run.commit import git_commit

    known = summary["calibration"] or {}
    named = ("judge", "answers", "passed", "raw", "rate", "low", "high", "groups", "verdicts")
    judged.add(
        run,
        {"time": time.time(), "step": step}
        | {name: summary[name] for name in named}
        | {name: known.get(name) for name in ("sensitivity", "specificity")}
        | {"commit": git_commit()},
    )
    judged.picture(run)
    # A run of their own, since training's may still be written; later steps are recorded again.
    folder = run / "evals" / "judge.metrics"
    recorded = gaia_metrics.init(
        "gchat", f"{run.resolve().name}-judge", dir=folder, system_interval=0, resume_step=step - 1
    )
    for one in judged.history(run):
        if one["step"] >= step and one["judge"] == summary["judge"]:
            recorded.log(one["step"], judged.metrics(one))
    recorded.finish("finished")
