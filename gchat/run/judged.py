"""The judge's history of a run, beside its loss: RUN/judge.jsonl and RUN/judge.png."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gaia.errors import DataError
from gchat.run.names import JUDGE_GROUP
from gchat.run.series import read_series, smooth

HISTORY, PICTURE = "judge.jsonl", "judge.png"
METRICS = {"rate": "eval/judge", "low": "eval/judge_low", "high": "eval/judge_high",
           "raw": "eval/judge_raw"}  # fmt: skip
"""Names of a judgement's figures as metrics."""


def history(run: Path) -> list[dict[str, Any]]:
    """Judgements of a run by step; of two that differ in nothing but their time, the newer.

    Raises:
        DataError: a line is none.
    """
    path = run / HISTORY
    if not path.exists():
        return []
    latest = {}
    raw = path.read_bytes()
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
        try:
            one = json.loads(line)
            key = int(one["step"]), str(one["judge"]), str(one["verdicts"])
            latest[key] = one
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{path}:{number} is no judgement", "take the line out") from None
    return sorted(latest.values(), key=lambda one: (one["step"], one["time"]))


def add(run: Path, judgement: Mapping[str, Any]) -> None:
    """Appends a judgement; on disk when this returns."""
    path = run / HISTORY
    path.touch()
    with open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)  # without a line that a kill has torn
        file.seek(0, os.SEEK_END)
        file.write(json.dumps(dict(judgement)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def metrics(judgement: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a judgement as metrics by name; those that it could not give are left out."""
    named = {METRICS[key]: judgement.get(key) for key in METRICS}
    for field, groups in (judgement.get("groups") or {}).items():
        for group, figures in groups.items():
            named[f"{JUDGE_GROUP}{field}/{group}"] = figures.get("rate")
    return {name: float(value) for name, value in named.items() if value is not None}


def draw_judgements(axes: Any, judgements: list[dict[str, Any]]) -> None:
    """Corrected rates with their intervals over steps, one line for each judge."""
    for number, judge in enumerate(sorted({one["judge"] for one in judgements})):
        mine = [one for one in judgements if one["judge"] == judge]
        known = [one for one in mine if one.get("rate") is not None]
        color = f"C{number + 2}"
        if known:
            steps, rates = [one["step"] for one in known], [one["rate"] for one in known]
            below = [one["rate"] - one["low"] for one in known]
            above = [one["high"] - one["rate"] for one in known]
            axes.errorbar(
                steps, rates, yerr=[below, above], marker="o", capsize=3, color=color, label=judge
            )
        raw = [one for one in mine if one.get("raw") is not None]
        axes.plot([one["step"] for one in raw], [one["raw"] for one in raw], ":", color=color,
                  alpha=0.5, label=f"{judge}, raw")  # fmt: skip
    axes.set(title="judge: share right, 95%", xlabel="steps", ylim=(-0.02, 1.02))
    axes.grid(alpha=0.3)
    if judgements:
        axes.legend(fontsize=8)


def picture(run: Path) -> Path:
    """Draws RUN/judge.png: loss and bits per byte, and the judge's rates beside them."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    log = run / "metrics.jsonl"
    series = read_series(log) if log.exists() else {}
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, bpb, judged = figure.subplots(1, 3, sharex=True)
    points = series.get("train/loss", [])
    steps = [step for step, _ in points]
    loss.plot(steps, [value for _, value in points], alpha=0.3, color="C0")
    loss.plot(steps, smooth([value for _, value in points]), color="C0", label="train, smoothed")
    for axes, name, label in ((loss, "eval/val_loss", "validation"),
                              (bpb, "eval/val_bpb", "validation")):  # fmt: skip
        known = series.get(name, [])
        axes.plot([s for s, _ in known], [v for _, v in known], "o-", color="C1", label=label)
    loss.set(title="loss (nats per token)", xlabel="steps")
    bpb.set(title="bits per byte", xlabel="steps")
    for axes in (loss, bpb):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    draw_judgements(judged, history(run))
    path = run / PICTURE
    save_atomically(figure, path)
    return path


def save_atomically(figure: Any, path: Path, dpi: int = 110) -> None:
    """Writes a PNG that nobody ever reads half of."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(partial, dpi=dpi, format="png", metadata={"Software": None})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
