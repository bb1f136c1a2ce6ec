"""The dashboard as one static page: results for a family of depths, and nothing to ask for.

Everything is in `index.html`, styles and script included; it works from file:// and its policy
forbids every request. What the sliders would compute is computed here, for each depth once.
"""

import os
import sys
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError
from gaia.hardware import dated
from gaia.storage import make_folder
from gchat.model import GPTConfig
from gchat.scaling.dashboard import SLIDERS, STYLE, WEB, Controls, templates, view

PAGE = "index.html"
MARK = "<!-- written by gchat dashboard --export -->"
DEPTHS = (4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
"""Depths on the page; width and heads follow from them as in training."""


def export(folder: Path, controls: Controls) -> Path:
    """Writes the page; a page written before is replaced, another's file never.

    Args:
        folder: made where it is missing.
        controls: the plan that the page opens with; the others differ in size alone.

    Raises:
        ConfigError: a file of somebody else has the page's name, or the plan cannot work.
    """
    page = folder / PAGE
    if page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"{str(page)!r} is not a page of gchat", "choose another --export DIR")
    plans = _plans(controls)
    opened = plans.index(controls)
    views = []
    for number, plan in enumerate(plans, start=1):
        views.append(_shown(plan))
        if sys.stderr.isatty():
            print(f"\rdepth {plan.depth} ({number} of {len(plans)})", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if problem := views[opened]["problem"]:
        raise ConfigError(problem, "mend --plan")
    text = (
        templates()
        .get_template("static.html")
        .render(
            mark=MARK,
            style=(WEB / STYLE).read_text(encoding="utf-8"),
            views=views,
            opened=opened,
            controls=controls.model_dump(),
            sliders=SLIDERS,
            dated=dated(),
        )
    )
    make_folder(folder)
    partial = folder / f".{PAGE}.{os.getpid()}.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, page)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {str(page)!r} ({error.strerror})", "make room") from error
    return page


def _plans(controls: Controls) -> list[Controls]:
    """The plan that was asked for among the family of depths, from small to large."""
    sizes = {controls.depth: controls}
    for depth in DEPTHS:
        model = GPTConfig(depth=depth).derive(controls.vocab, controls.vocab).sizes
        size = {"depth": depth, "width": model.dim, "heads": model.heads}
        sizes.setdefault(depth, controls.model_copy(update=size))
    return [sizes[depth] for depth in sorted(sizes)]


def _shown(plan: Controls) -> dict[str, Any]:
    return view(plan) | {"static": True}
