"""The report of a speedrun: a row for each stage, cost and hours, a picture, real answers.

Everything in it is read back from the stages' folders.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gaia.storage.files import atomic_path
from gchat.lifecycle.recipe import Speedrun
from gchat.lifecycle.steps import summary_of
from gchat.run.folder import write_atomically
from gchat.run.progress import clock
from gchat.run.report import environment
from gchat.run.series import read_series

REPORT, BASE_REPORT, PICTURE = "report.md", "base.md", "stages.png"
TRAINED = ("base", "mid", "sft", "rl")
_STAGES = "## Stages"
TASKS = {
    "arc_easy": "ARC-E", "arc_challenge": "ARC-C", "mmlu": "MMLU", "gsm8k": "GSM8K",
    "humaneval": "HumanEval", "sums": "sums", "spelling": "spelling",
}  # fmt: skip


def rows_of(speedrun: Speedrun) -> list[dict[str, Any]]:
    """A row of figures for each stage that has trained, in order."""
    rows = []
    for stage in TRAINED:
        summary = summary_of(speedrun.run(stage))
        if not summary:
            continue
        row: dict[str, Any] = {
            "stage": stage,
            "steps": summary["steps"],
            "loss": summary["train_loss"],
            "val loss": summary["val_loss"],
            "bpb": summary["val_bpb"],
            "seconds": summary["seconds"],
            "cost": summary["cost_usd"],
        }
        core = _json(speedrun.folder / "evals" / "core.json") if stage == "base" else {}
        row["CORE"] = core.get("core_v1", summary.get("core_v1"))
        chat = _json(speedrun.folder / "evals" / f"chat-{stage}.json")
        row["ChatCORE"] = chat.get("chatcore")
        for name, title in TASKS.items():
            row[title] = ((chat.get("tasks") or {}).get(name) or {}).get("accuracy")
        rows.append(row)
    return rows


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def write(speedrun: Speedrun) -> dict[str, Any]:
    """Writes report.md, its picture and summary.json; returns the summary."""
    rows, folder = rows_of(speedrun), speedrun.folder
    total = sum(speedrun.seconds.values())
    summary = {
        "run": str(speedrun.run(speedrun.last)),
        "stages": rows,
        "seconds": round(total, 1),
        "seconds_by_step": {name: round(value, 1) for name, value in speedrun.seconds.items()},
        "cost_usd": round(sum(row["cost"] for row in rows), 4),
    }
    draw(speedrun, rows, folder / PICTURE)
    base = (folder / REPORT).read_text(encoding="utf-8") if (folder / REPORT).exists() else ""
    if base and _STAGES not in base:  # that of the base stage, which lies in the same folder
        write_atomically(folder / BASE_REPORT, base)
    write_atomically(folder / REPORT, _markdown(speedrun, rows, summary))
    return summary


def _markdown(
    speedrun: Speedrun, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> str:
    times = [f"| {name} | {clock(value)} |" for name, value in summary["seconds_by_step"].items()]
    places = {row["stage"]: f"{row['stage']}/" for row in rows} | {"base": ""}
    details = [
        f"- [{stage}]({places[stage]}{REPORT if places[stage] else BASE_REPORT}): "
        f"![curves]({places[stage]}curves.png)"
        for stage in (row["stage"] for row in rows)
    ]
    return "\n".join(
        [
            f"# {speedrun.folder.name}\n",
            f"{clock(summary['seconds'])} in all, ${summary['cost_usd']:.2f}. Talk with it: "
            f"`gchat chat --run {summary['run']}`\n",
            f"![loss by stage, bits per byte, tasks]({PICTURE})\n",
            f"{_STAGES}\n",
            *table(rows),
            "\nLoss is of the last training step, in nats per target; validation is of text that "
            "was held out, after the base stage of answers that were held out. Tasks are shares of "
            "right answers.\n",
            "## Answers\n",
            *answers(speedrun),
            "\n## Time\n\n| step | time |\n|---|---|",
            *times,
            "\n## Curves of each stage\n",
            *details,
            "\n## Environment\n\n| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in environment().items()),
            "",
        ]
    )


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as a Markdown table, without the columns that no stage has."""
    columns = ["steps", "loss", "val loss", "bpb", "CORE", *TASKS.values(), "ChatCORE"]
    columns = [name for name in columns if any(row[name] is not None for row in rows)]
    head = ["stage", *columns, "time", "cost"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["stage"], *(_cell(name, row[name]) for name in columns)]
        cells += [clock(row["seconds"]), f"${row['cost']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if name == "steps" else f"{value:.4f}"


def answers(speedrun: Speedrun) -> list[str]:
    """Questions with the model's answers and the references, as lines of Markdown."""
    path = speedrun.answers
    if not path.exists():
        return ["(none)"]
    # Of bytes: as text, an answer's U+2028 or U+0085 would end a line too.
    asked = [json.loads(line) for line in speedrun.made("questions").read_bytes().splitlines()]
    lines = ["| question | answer | reference |", "|---|---|---|"]
    for line in path.read_bytes().splitlines():
        said = json.loads(line)
        question = asked[said["line"] - 1]
        meta = question.get("meta") or {}
        cells = (
            f"{question['messages'][-1]['content']} *({meta.get('kind', 'asked')})*",
            said.get("text", said.get("error", "")),
            meta.get("reference", ""),
        )
        lines.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    return lines


def _escaped(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|") or " "


def draw(speedrun: Speedrun, rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss of every stage over its training time, bits per byte, and the tasks."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    loss, bpb, tasks = figure.subplots(1, 3)
    began = 0.0
    for number, row in enumerate(rows):
        series = read_series(speedrun.run(row["stage"]) / "metrics.jsonl")
        minutes = {step: value / 60 for step, value in series.get("train/seconds", [])}
        color = f"C{number}"
        for axes, name, style in (
            (loss, "train/loss", {"alpha": 0.35}),
            (loss, "eval/val_loss", {"marker": "o", "markersize": 3, "label": row["stage"]}),
            (bpb, "eval/val_bpb", {"marker": "o", "markersize": 3, "label": row["stage"]}),
        ):
            points = [(began + minutes.get(s, 0.0), v) for s, v in series.get(name, [])]
            axes.plot([x for x, _ in points], [y for _, y in points], color=color, **style)
        began += max(minutes.values(), default=0.0)
    shown = [t for t in (*TASKS.values(), "ChatCORE") if any(r[t] is not None for r in rows)]
    measured = [(number, row) for number, row in enumerate(rows) if any(row[t] for t in shown)]
    width = 0.8 / max(1, len(measured))
    for place, (number, row) in enumerate(measured):
        heights = [row[t] or 0.0 for t in shown]
        at = [i + place * width for i in range(len(shown))]
        tasks.bar(at, heights, width, color=f"C{number}", label=row["stage"])
    tasks.set_xticks([i + 0.4 - width / 2 for i in range(len(shown))], shown)
    loss.set(title="loss: training (pale), validation", xlabel="minutes of training")
    bpb.set(title="validation, bits per byte", xlabel="minutes of training")
    tasks.set(title="tasks: share of right answers", ylim=(0, 1))
    for axes in (loss, bpb, tasks):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
