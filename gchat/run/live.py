"""RUN/live.png: what matters of a run in one picture, while it trains and after.

    python -m gchat.run.live RUN EVERY_S PARENT

draws whenever the files of the run have changed, until the process PARENT is gone: a process of its
own, at a low priority and without jax. No step waits for it, and whatever becomes of it, training
goes on. Every picture replaces the one before whole. `gchat picture` draws once.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from gchat.evals.progress_line import clock
from gchat.run import judged
from gchat.run.series import Series, read_series, smooth

PICTURE, FACTS, LOG = "live.png", "live.json", "live.log"
_MOST_POINTS = 3000
_WATCHED = ("metrics.jsonl", judged.HISTORY, FACTS)


# ── In the process that trains ──────────────────────────────────────────────────────────────────


class LivePicture:
    """Starts and ends the process that draws.

    Args:
        run: folder of the run.
        every_s: seconds between two pictures; 0 draws none.
        facts: what the run's other files do not say: params, device, steps, commit.
    """

    def __init__(self, run: Path, every_s: float, facts: Mapping[str, Any]) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if not every_s:
            return
        words = [sys.executable, "-m", "gchat.run.live", str(run), f"{every_s}", str(os.getpid())]
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
        try:
            (run / FACTS).write_text(json.dumps(dict(facts)) + "\n", encoding="utf-8")
            with open(run / LOG, "wb") as log:
                self._process = subprocess.Popen(
                    words,
                    env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # a terminal's Ctrl-C is for the trainer
                )
        except OSError as error:  # a full disk: the run does not need its picture
            print(f"no live picture in {run}: {error.strerror}", flush=True)

    def close(self) -> None:
        """Asks for a last picture, and does not wait for it."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            threading.Thread(target=process.wait, daemon=True).start()  # no zombie stays


# ── In the process that draws ───────────────────────────────────────────────────────────────────


def main(arguments: list[str]) -> None:
    """Draws as long as the parent lives."""
    run = Path(arguments[0])
    every_s, parent = float(arguments[1]), int(arguments[2])
    os.nice(10)
    ended: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: ended.append(number))
    seen: list[Any] = []
    drawn_at = -every_s
    while True:
        over = bool(ended) or os.getppid() != parent
        now = [_mark(run / name) for name in _WATCHED]
        if now != seen and (over or time.monotonic() - drawn_at >= every_s):
            seen, drawn_at = now, time.monotonic()
            try:
                draw(run)
            except (OSError, ValueError) as error:  # a line that is being written, a full disk
                print(f"no picture: {error}", flush=True)
                seen = []
        if over:
            return
        time.sleep(min(0.5, every_s))


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def draw(run: Path) -> Path:
    """Draws RUN/live.png from the run's files; its path."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    log = run / "metrics.jsonl"
    series = read_series(log) if log.exists() else {}
    judgements = judged.history(run)
    figure = Figure(figsize=(14, 8.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 3, height_ratios=[0.62, 2.2, 1.5])
    head = figure.add_subplot(grid[0, :])
    head.axis("off")
    facts = _read_facts(run)
    head.text(0.0, 1.0, config["run"]["name"], fontsize=19, weight="bold", va="top")
    head.text(0.0, 0.52, "\n".join(lines(config, facts, series, judgements)), fontsize=10.5,
              va="top", family="monospace")  # fmt: skip
    loss, bpb = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2])
    _draw_loss(loss, series)
    _draw(
        bpb, series, "eval/val_bpb", "validation, bits per byte", "C1", style="o-", name_last=True
    )
    judge, rate, speed = (figure.add_subplot(grid[2, column]) for column in range(3))
    judged.draw_judgements(judge, judgements)
    if not judgements:
        judge.text(0.5, 0.5, "not judged yet", ha="center", transform=judge.transAxes, color="gray")
    _draw(rate, series, "train/lr_share", "learning rate, share of its peak", "C4")
    rate.set_ylim(0, 1.05)
    _draw(speed, series, "perf/tokens_per_s", "tokens per second", "C2")
    speeds = sorted(value for _, value in series.get("perf/tokens_per_s", []))
    # Steps that were read together look instantaneous; their peaks would hide all others.
    speed.set_ylim(0, 1.3 * speeds[len(speeds) * 9 // 10] if speeds else None)
    if series.get("train/loss"):
        judge.set_xlim(
            0, 1.02 * max(series["train/loss"][-1][0], *(j["step"] for j in judgements), 1)
        )
    path = run / PICTURE
    judged.save_atomically(figure, path, dpi=100)
    return path


def _read_facts(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def lines(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    series: Series,
    judgements: list[dict[str, Any]],
) -> list[str]:
    """The facts above the curves."""
    model, optim, training, data = (config[n] for n in ("model", "optim", "training", "data"))
    rows, length = training["batch_size"], model["seq_len"]
    step = series["train/loss"][-1][0] if series.get("train/loss") else 0
    steps = facts.get("steps") or training.get("steps") or 0
    params = f", {_count(facts['params'])} parameters" if facts.get("params") else ""
    pieces = training["grad_accum"]
    split = f" ({rows // pieces} at a time x {pieces})" if pieces > 1 else ""
    split += f", ramp {' '.join(training['batch_ramp'])}" if training.get("batch_ramp") else ""
    norm, tied = ("QK-norm, " if model["qk_norm"] else ""), ("tied" if model["tied"] else "untied")
    decay = " ".join([f"{optim['weight_decay']:g}", *(optim.get("weight_decay_steps") or ())])
    matrix = f", matrices {optim['matrix_lr']:g}" if optim["name"] == "muon" else ""
    place = data.get("dir") or data.get("text") or " ".join(data.get("mixture") or ()) or "?"
    return [
        _progress(step, steps, rows * length, series) + _scores(series, judgements),
        f"model  {model['depth']} layers x {model['dim']} wide, {model['heads']} heads of "
        f"{model['head_dim']}, {norm}{tied}, context {length:,}, vocabulary "
        f"{model['vocab_size']:,}{params}",
        f"batch  {rows:,} rows x {length:,} tokens = {rows * length:,}{split}, packing "
        f"{data['packing']}; {optim['name']} lr {optim['lr']:g}{matrix}, {optim['schedule']}, "
        f"warm-up {optim['warmup_steps']}, decay {decay}, clip {optim['clip_norm']:g}",
        f"data   {place}; {facts.get('device', 'device unknown')}; commit "
        f"{facts.get('commit') or 'unknown'}; seed {training['seed']}; drawn "
        f"{time.strftime('%Y-%m-%d %H:%M:%S')}",
    ]


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f}M" if number >= 1e6 else f"{number:,}"


def _progress(step: int, steps: int, per_step: int, series: Series) -> str:
    seconds = series.get("train/seconds")
    spent = f", {clock(seconds[-1][1])}" if seconds else ""
    times = [value for _, value in series.get("perf/step_ms", [])[-50:]]
    left = (steps - step) * sum(times) / len(times) / 1000 if times else 0.0
    eta = f" (about {clock(left)} of steps left)" if left else ""
    tokens = f"{step * per_step / 1e6:,.1f}M of {steps * per_step / 1e6:,.1f}M tokens"
    share = f" ({step / steps:.1%})" if steps else ""
    return f"step   {step:,} of {steps:,}{share}, {tokens}{spent}{eta}"


def _scores(series: Series, judgements: list[dict[str, Any]]) -> str:
    said = ""
    if series.get("eval/val_bpb"):
        said += f"; val {series['eval/val_bpb'][-1][1]:.4f} bpb"
    known = [one for one in judgements if one.get("rate") is not None]
    if known:
        last = known[-1]
        said += f"; judge {last['rate']:.1%} [{last['low']:.1%}, {last['high']:.1%}]"
    return said


def _draw_loss(axes: Any, series: Series) -> None:
    points = series.get("train/loss", [])
    _draw(axes, series, "train/loss", "loss, nats per token", "C0", alpha=0.3)
    if points:
        every = _every(len(points))
        smoothed = smooth([value for _, value in points])[::every]
        axes.plot([s for s, _ in points[::every]], smoothed, color="C0", label="train, smoothed")
        # The first steps' fall would press all that follows into a line.
        later = [value for _, value in points[len(points) // 20 :]]
        axes.set_ylim(min(later) - 0.1, max(later) + 0.1)
    known = series.get("eval/val_loss", [])
    axes.plot([s for s, _ in known], [v for _, v in known], "o-", color="C1", label="validation")
    axes.legend(loc="upper right")


def _draw(
    axes: Any,
    series: Series,
    name: str,
    title: str,
    color: str,
    *,
    style: str = "-",
    alpha: float = 1.0,
    name_last: bool = False,
) -> None:
    points = series.get(name, [])
    points = points[:: _every(len(points))] + points[-1:]
    steps, values = [s for s, _ in points], [v for _, v in points]
    axes.plot(steps, values, style, color=color, alpha=alpha)
    axes.set(title=title, xlabel="steps")
    axes.grid(alpha=0.3)
    if name_last and points:
        axes.annotate(f"{values[-1]:.4f}", (steps[-1], values[-1]), xytext=(-8, 10),
                      textcoords="offset points", ha="right")  # fmt: skip


def _every(count: int) -> int:
    return max(1, count // _MOST_POINTS)


if __name__ == "__main__":
    main(sys.argv[1:])
