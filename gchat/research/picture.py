"""Pictures of comparisons, sweeps and ladders: one PNG, and a page that holds all it shows."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gchat.research.cells import Result
from gchat.run.folder import write_atomically

_X = {"tokens": (0, 1e6, "million tokens"), "flops": (1, 1e12, "TFLOP"), "time": (2, 60, "minutes")}


def curves(groups: Mapping[str, Sequence[Result]], path: Path, title: str = "") -> None:
    """Bits per byte over tokens, FLOPs and time: one thin line a seed, one thick one the mean.

    Args:
        groups: results by label; those without a curve are left out.
        path: of the PNG.
        title: above it.
    """
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    colors = colormaps["tab10"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for axes, (column, unit, label) in zip(figure.subplots(1, 3), _X.values(), strict=True):
        for index, (name, results) in enumerate(groups.items()):
            color = colors[index % len(colors)]
            lines = [np.array(r.curve) for r in results if len(r.curve) > 1]
            for points in lines:
                axes.plot(points[1:, column] / unit, points[1:, 3], color=color, lw=0.7, alpha=0.4)
            if lines:
                x, mean = _mean([(p[1:, column], p[1:, 3]) for p in lines])
                axes.plot(x / unit, mean, color=color, lw=2, label=f"{name} ({len(lines)} seeds)")
        axes.set_xlabel(label)
        axes.set_ylabel("validation, bits per byte")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of curves, where all of them are."""
    low, high = max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines)
    x = np.unique(np.clip(lines[0][0], low, high))
    return x, np.mean([np.interp(x, xs, ys) for xs, ys in lines], axis=0)


def page(path: Path, title: str, lines: Sequence[str], picture: Path, facts: Any) -> None:
    """An HTML page without any link to a network: the table, the picture and the facts as JSON."""
    import json

    image = base64.b64encode(picture.read_bytes()).decode()
    text = "\n".join(html.escape(line) for line in lines)
    write_atomically(
        path,
        f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:15px/1.5 system-ui;margin:2rem auto;max-width:75rem;padding:0 1rem}}
pre{{overflow-x:auto;background:#f6f6f6;padding:1rem}}img{{max-width:100%}}</style>
<h1>{html.escape(title)}</h1>
<img alt="curves" src="data:image/png;base64,{image}">
<pre>{text}</pre>
<details><summary>Facts</summary><pre>{html.escape(json.dumps(facts, indent=1))}</pre></details>
</html>
""",
    )
