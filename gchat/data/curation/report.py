"""report.json, report.md and report.png: what each rule took, with samples to look at."""

import json
from pathlib import Path
from typing import Any

from gaia import storage
from gaia.errors import DataError
from gchat.data.curation.removed import Removed

JSON = "report.json"
MARKDOWN = "report.md"
PICTURE = "report.png"
_BARS = 20


def load(folder: Path) -> dict[str, Any]:
    """Content of report.json.

    Raises:
        DataError: it is damaged.
    """
    try:
        return json.loads(storage.read_text(folder / JSON))
    except ValueError as error:
        raise DataError(f"{folder / JSON} is damaged ({error})", "use --overwrite") from error


def write(folder: Path, figures: dict[str, Any], removed: Removed) -> None:
    """Writes all three, report.json last."""
    _picture(folder / PICTURE, figures, removed)
    storage.write_text(folder / MARKDOWN, markdown(figures))
    storage.write_text(folder / JSON, json.dumps(figures, indent=1, ensure_ascii=False) + "\n")


def summary(figures: dict[str, Any]) -> str:
    """One line."""
    read, written = figures["read"], figures["written"]
    share = written["different"] / max(1, read["documents"])
    return (
        f"{written['different']:,} of {read['documents']:,} documents stay ({share:.1%}), "
        f"{written['documents']:,} written, {written['bytes'] / 1e6:,.1f} of "
        f"{read['bytes'] / 1e6:,.1f} MB"
    )


def markdown(figures: dict[str, Any]) -> str:
    """The report for people."""
    read = figures["read"]
    lines = [
        "# Curation report",
        "",
        summary(figures) + ".",
        "",
        f"![removed by rule]({PICTURE})",
        "",
    ]
    lines += ["| removed by | documents | share | MB |", "|---|---|---|---|"]
    for rule in figures["removed"]:
        share = rule["documents"] / max(1, read["documents"])
        lines.append(
            f"| {rule['rule']} | {rule['documents']:,} | {share:.2%} | {rule['bytes'] / 1e6:.2f} |"
        )
    if figures["edits"]:
        lines += ["", "| edited in documents | times |", "|---|---|"]
        lines += [f"| {name} | {count:,} |" for name, count in figures["edits"].items()]
    lines += ["", *_notes(figures)]
    lines += ["## Samples of what was removed", ""]
    for rule in figures["removed"]:
        lines += [f"### {rule['rule']}", ""]
        for sample in rule["samples"]:
            text = " ".join(sample["text"].split()).replace("`", "'")
            lines.append(f"- ({sample['value']:.3g}) `{text[:300]}`")
        lines.append("")
    return "\n".join(lines)


def _notes(figures: dict[str, Any]) -> list[str]:
    notes = [
        f"Read from: {', '.join(figures['sources'][:5])}" + " …" * (len(figures["sources"]) > 5)
    ]
    notes += [f"{sentence}." for sentence in figures.get("oddities", [])]
    if figures["eval_items"]:
        items = figures["eval_items"]
        notes.append(
            f"Evaluation texts compared: {items['used']:,}; {items['short']:,} have fewer than "
            "8 words and cannot be recognised."
        )
    if figures["max_bpb"] is not None:
        notes.append(f"Documents above {figures['max_bpb']:.3f} bits per byte were dropped.")
    for item in figures["parameters"]["upsample"]:
        pattern, _, times = item.rpartition("=")
        count = figures["upsampled"].get(pattern, 0)
        notes.append(f"{pattern}: {count:,} documents written {times} times.")
    return [f"{note}  " for note in notes] + [""]


def _picture(path: Path, figures: dict[str, Any], removed: Removed) -> None:
    """Bars of documents by rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rules = removed.ordered()[:_BARS]
    bars = [("kept", figures["written"]["different"])] + [(r, count) for r, count, *_ in rules]
    figure, axes = plt.subplots(figsize=(8, 1 + 0.3 * len(bars)))
    colors = ["tab:green"] + ["tab:red"] * len(rules)
    drawn = axes.barh([name for name, _ in bars], [count for _, count in bars], color=colors)
    axes.bar_label(drawn, [f" {count:,}" for _, count in bars])
    axes.invert_yaxis()
    axes.set_xlabel("documents")
    axes.margins(x=0.15)
    with storage.atomic_path(path) as tmp:
        figure.savefig(tmp, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
