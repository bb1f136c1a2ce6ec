"""Pictures of comparisons, sweeps and ladders: one PNG, and a page that holds all it shows."""

import base64
import html
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gaia.storage.files import atomic_path
from gchat.research.cells import Result
from gchat.run.folder import write_atomically

_BESIDE, _FEW = 36, 6
"""Letters of a name, and names, that leave a panel room for its lines."""
_PER_INCH = 11
"""Letters of the legend to an inch."""
_X = {"tokens": (0, 1e6, "million tokens"), "flops": (1, 1e12, "TFLOP"), "time": (2, 60, "minutes")}


def curves(
    groups: Mapping[str, Sequence[Result]],
    path: Path,
    title: str = "",
    axes: Sequence[str] = tuple(_X),
    *,
    against: str | None = None,
) -> None:
    """Bits per byte over tokens, FLOPs and time: one thin line a seed, one thick one the mean.

    Args:
        groups: results by label; those without a curve are left out.
        path: of the PNG.
        title: above it.
        axes: quantities to draw bits per byte over, a panel each.
        against: label whose curves the others are subtracted from, seed by seed and at equal
            tokens, in one more panel.
    """
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(axis, _lines(groups)) for axis in axes]
    if against is not None:
        panels.append(("tokens", _lines(groups, against)))
    width = 4.6 * max(len(panels), 2)
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(1, len(panels), squeeze=False)[0]
    for place, (axis, lines) in zip(places, panels, strict=True):
        _draw(place, lines, *_X[axis])
        place.set_ylabel("validation, bits per byte")
    if against is not None:
        places[-1].axhline(0, color="black", lw=0.8)
        whose = f"{against}'s" if len(against) <= _BESIDE else "the first one's"
        places[-1].set_ylabel(f"bits per byte minus {whose}\n(below 0 is better)")
    _name_lines(figure, places, width)
    if title:
        figure.suptitle("\n".join(textwrap.wrap(title, int(width * _PER_INCH))))
    save(figure, path)


def _name_lines(figure: Any, places: Sequence[Any], width: float) -> None:
    """The legend: in each panel where names are few and short, else once, below all of them."""
    handles, labels = places[0].get_legend_handles_labels()
    longest = max(map(len, labels), default=0)
    if longest <= _BESIDE and len(labels) <= _FEW:
        for place in places:
            if place.get_legend_handles_labels()[1]:
                place.legend(fontsize="small")
        return
    room = int(width * _PER_INCH)
    columns = max(1, room // (longest + 8))
    wrapped = [
        "\n".join(textwrap.wrap(label.replace("+", " +"), room)) if len(label) > room else label
        for label in labels
    ]
    rows = sum(label.count("\n") + 1 for label in wrapped) / columns
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)
    figure.legend(handles, wrapped, loc="outside lower center", ncols=columns, fontsize="small")


def save(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG that is there whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})


def _lines(
    groups: Mapping[str, Sequence[Result]], against: str | None = None
) -> dict[str, list[np.ndarray]]:
    """Each seed's points [tokens, FLOPs, seconds, bits per byte], without the untrained one."""
    curves = {
        name: {r.seed: np.array(r.curve)[1:] for r in results if len(r.curve) > 1}
        for name, results in groups.items()
    }
    if against is not None:
        base = curves[against]
        for name, seeds in curves.items():
            curves[name] = {
                seed: _less(points, base[seed])
                for seed, points in seeds.items()
                if seed in base and name != against
            }
    return {name: [p for p in seeds.values() if len(p)] for name, seeds in curves.items()}


def _less(points: np.ndarray, base: np.ndarray) -> np.ndarray:
    """A curve less another one, at its own tokens where the other one goes."""
    shared = points[(points[:, 0] >= base[0, 0]) & (points[:, 0] <= base[-1, 0])]
    less = shared[:, 3] - np.interp(shared[:, 0], base[:, 0], base[:, 3])
    return np.column_stack([shared[:, :3], less])


def _draw(
    place: Any, lines: Mapping[str, Sequence[np.ndarray]], column: int, unit: float, axis: str
) -> None:
    from matplotlib import colormaps

    colors = colormaps["tab10" if len(lines) <= 10 else "tab20"].colors  # pyright: ignore[reportAttributeAccessIssue]
    for color, (name, seeds) in zip(itertools.cycle(colors), lines.items()):
        for points in seeds:
            place.plot(points[:, column] / unit, points[:, 3], color=color, lw=0.7, alpha=0.4)
        if seeds:
            x, mean = _mean(seeds, column)
            label = f"{name} ({len(seeds)} seed{'s' * (len(seeds) > 1)})"
            place.plot(x / unit, mean, color=color, lw=2, label=label)
    place.set_xlabel(axis)
    place.grid(alpha=0.3)


def _mean(seeds: Sequence[np.ndarray], column: int) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the seeds, evaluation by evaluation, as far as all of them came."""
    shared = min(len(points) for points in seeds)
    mean = np.mean([points[:shared] for points in seeds], axis=0)
    return mean[:, column], mean[:, 3]


def page(path: Path, title: str, lines: Sequence[str], picture: Path, facts: Any) -> None:
    """An HTML page without any link to a network: the table, the picture and the facts as JSON.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
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
