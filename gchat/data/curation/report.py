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
    """What report.json holds.

    Raises:
        DataError: it is damaged.
    """
    try:
        return json.loads(storage.read_text(folder / JSON))
    except ValueError as error:
        raise DataError(f"{folder / JSON} is damaged ({error})", "use --overwrite") from error


def write(folder: Path, found: dict[str, Any], removed: Removed) -> None:
    """Writes all three, report.json last."""
    _picture(folder / PICTURE, found, removed)
    storage.write_text(folder / MARKDOWN, markdown(found))
    storage.write_text(folder / JSON, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def summary(found: dict[str, Any]) -> str:
    """One line."""
    read, written = found["read"], found["written"]
    share = written["different"] / max(1, read["documents"])
    return (
        f"{written['different']:,} of {read['documents']:,} documents stay ({share:.1%}), "
        f"{written['documents']:,} written, {written['bytes'] / 1e6:,.1f} of "
        f"{read['bytes'] / 1e6:,.1f} MB"
    )


def markdown(found: dict[str, Any]) -> str:
    """The report for people."""
    read = found["read"]
    lines = [
        "# Curation report",
        "",
        summary(found) + ".",
        "",
        f"![removed by rule]({PICTURE})",
        "",
    ]
    lines += ["| removed by | documents | share | MB |", "|---|---|---|---|"]
    for rule in found["removed"]:
        share = rule["documents"] / max(1, read["documents"])
        lines.append(
            f"| {rule['rule']} | {rule['documents']:,} | {share:.2%} | {rule['bytes'] / 1e6:.2f} |"
        )
    if found["edits"]:
        lines += ["", "| edited in documents | times |", "|---|---|"]
        lines += [f"| {name} | {count:,} |" for name, count in found["edits"].items()]
    lines += ["", *_notes(found)]
    lines += ["## Samples of what was removed", ""]
    for rule in found["removed"]:
        lines += [f"### {rule['rule']}", ""]
        for sample in rule["samples"]:
            text = " ".join(sample["text"].split()).replace("`", "'")
            lines.append(f"- ({sample['value']:.3g}) `{text[:300]}`")
        lines.append("")
    return "\n".join(lines)


def _notes(found: dict[str, Any]) -> list[str]:
    notes = [f"Read from: {', '.join(found['sources'][:5])}" + " …" * (len(found["sources"]) > 5)]
    if found["invalid_utf8"]:
        notes.append(f"{found['invalid_utf8']:,} invalid UTF-8 sequences became U+FFFD.")
    if found["eval_items"]:
        items = found["eval_items"]
        notes.append(
            f"Evaluation texts compared: {items['used']:,}; {items['short']:,} have fewer than "
            "8 words and cannot be recognised."
        )
    if found["max_bpb"] is not None:
        notes.append(f"Documents above {found['max_bpb']:.3f} bits per byte were dropped.")
    for item in found["parameters"]["upsample"]:
        pattern, _, times = item.rpartition("=")
        count = found["upsampled"].get(pattern, 0)
        notes.append(f"{pattern}: {count:,} documents written {times} times.")
    return [f"{note}  " for note in notes] + [""]


def _picture(path: Path, found: dict[str, Any], removed: Removed) -> None:
    """Bars of documents by rule."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rules = removed.ordered()[:_BARS]
    bars = [("kept", found["written"]["different"])] + [(r, count) for r, count, *_ in rules]
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
