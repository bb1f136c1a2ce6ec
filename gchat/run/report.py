"""Results for people and scripts: report.md with its picture, and summary.json.

Everything in it is read back from metrics.jsonl, so a resumed run reports the whole curve.
"""

import json
import math
import platform
import statistics
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import gaia_metrics
from gaia.config import to_yaml
from gaia.storage.files import atomic_path
from gchat.config import TrainConfig, price_per_hour
from gchat.evals.ngram import Baselines
from gchat.evals.progress_line import clock
from gchat.model_shape import flops_per_token, matmul_params
from gchat.run.commit import git_commit
from gchat.run.folder import write_atomically
from gchat.run.goodput import goodput
from gchat.run.names import SUMMARY
from gchat.run.series import Series, read_series, smooth
from gchat.run.session import Session


def write_report(
    session: Session,
    data: str,
    *,
    params: int,
    epochs: float | None,
    baselines: Baselines | None,
    finished: bool,
    checkpoint: str,
) -> dict[str, Any]:
    """Writes curves.png, report.md and summary.json; returns the summary.

    Args:
        session: of the run.
        data: a sentence on what it was trained on.
        params: all parameters, embeddings included.
        epochs: times that the whole run sees its training tokens; None for a mixture.
        baselines: n-gram bits per byte of the same tokens, or None when stopped early.
        finished: whether the last step was reached.
        checkpoint: path of the last checkpoint.
    """
    folder = session.folder
    series = read_series(folder.path / "metrics.jsonl")
    summary = _summary(session, series, params, baselines) | {
        "epochs": epochs and round(epochs, 4),
        "finished": finished,
        "checkpoint": checkpoint,
    }
    summary = {key: summary[key] for key in SUMMARY}
    plot(series, summary, folder.path / "curves.png")
    text = _markdown(session, data, series, summary)
    write_atomically(folder.path / "report.md", text)
    write_atomically(folder.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def _summary(
    session: Session, series: Series, params: int, baselines: Baselines | None
) -> dict[str, Any]:
    """The values of summary.json that follow from the log."""
    folder, config, machine = session.folder, session.config, session.machine
    progress = session.progress
    rates = [v for _, v in series.get("perf/tokens_per_s", [])]
    mfus = [v for _, v in series.get("perf/mfu", [])]
    waits = [v for _, v in series.get("perf/data_wait_ms", [])]
    times = [v for _, v in series.get("perf/step_ms", [])]
    steps = len(times)  # not of the losses: one that is not finite is no number of the log
    info = gaia_metrics.run_info(folder.path)
    good = goodput(
        series,
        info.get("attempts", []),
        began=progress.began,
        ended=time.time(),
        idle=progress.idle,
    )
    return {
        "preset": config.run.name,
        "stage": config.stage.name,
        "base": None if config.stage.name == "base" else config.training.init_from,
        "run_dir": str(folder.path),
        "device": f"{machine.devices} x {machine.device_kind}",
        "params": params,
        "matmul_params": matmul_params(config.model),
        "steps": steps,
        "tokens": steps * progress.tokens_per_step,
        "seconds": round(progress.seconds, 1),
        "goodput": good and round(good.share, 4),
        "step_seconds": good and round(good.step_seconds, 3),
        "wall_seconds": good and round(good.wall_seconds, 3),
        "restarts": good and good.restarts,
        "tokens_per_s": round(statistics.median(rates), 1) if rates else None,
        "mfu": round(statistics.median(mfus), 4) if mfus else None,
        "mfu_peak": progress.peak_source,
        "data_wait_share": round(sum(waits) / sum(times), 6) if times else None,
        "packing": config.data.packing,
        "fill": _mean(series, "data/fill", 4),
        "examples_per_step": _mean(series, "data/examples", 1),
        "train_loss": _last(series, "train/loss"),
        "val_bpb": _last(series, "eval/val_bpb"),
        "val_loss": _last(series, "eval/val_loss"),
        "unigram_bpb": baselines and round(baselines.unigram_bpb, 4),
        "bigram_bpb": baselines and round(baselines.bigram_bpb, 4),
        "seconds_to_target_bpb": progress.seconds_to_target,
        "core_v1": _last(series, "eval/core_v1"),
        "core_v2": _last(series, "eval/core_v2"),
        "chatcore": _last(series, "eval/chatcore"),
        "seconds_to_target_core": progress.seconds_to_target_core,
        "cost_usd": round(progress.cost, 4),
        "commit": git_commit(),
        "dashboard": gaia_metrics.dashboard_url(info.get("id", "")) or None,
    }


def _last(series: Series, name: str) -> float | None:
    return series[name][-1][1] if series.get(name) else None


def _mean(series: Series, name: str, digits: int) -> float | None:
    values = [value for _, value in series.get(name, [])]
    return round(statistics.fmean(values), digits) if values else None


def plot(series: Series, summary: Mapping[str, Any], path: Path) -> None:
    """Loss, bits per byte with the n-gram baselines, and throughput, over tokens."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    per_step = summary["tokens"] / max(1, summary["steps"]) / 1e6
    figure = Figure(figsize=(13, 3.8))
    # Fixed margins: the constrained layout takes as long as all of the drawing.
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.135, top=0.9, wspace=0.17)
    FigureCanvasAgg(figure)
    loss, bpb, rate = figure.subplots(1, 3)
    for axes, name, label, style in (
        (loss, "train/loss", "train", {"alpha": 0.35, "color": "tab:blue"}),
        (loss, "eval/val_loss", "validation", {"marker": "o", "color": "tab:orange"}),
        (bpb, "eval/val_bpb", "validation", {"marker": "o", "color": "tab:orange"}),
        (rate, "perf/tokens_per_s", "per step", {"color": "tab:green"}),
    ):
        points = series.get(name, [])
        axes.plot([s * per_step for s, _ in points], [v for _, v in points], label=label, **style)
    smoothed = smooth([v for _, v in series.get("train/loss", [])])
    steps = [s * per_step for s, _ in series.get("train/loss", [])]
    loss.plot(steps, smoothed, color="tab:blue", label="train, smoothed")
    for name, style in (("unigram", "--"), ("bigram", ":")):
        if summary[f"{name}_bpb"]:
            value = summary[f"{name}_bpb"]
            bpb.axhline(value, linestyle=style, color="gray", label=f"{name} {value:.2f}")
    loss.set(title="loss (nats per token)", xlabel="million tokens")
    bpb.set(title="bits per byte", xlabel="million tokens")
    rate.set(title="tokens per second", xlabel="million tokens", ylim=(0, None))
    rate.yaxis.set_major_formatter(EngFormatter(sep=""))  # 1.2M fits into the margin
    for axes in (loss, bpb):
        axes.legend()
    for axes in (loss, bpb, rate):
        axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _markdown(
    session: Session,
    data: str,
    series: Series,
    summary: Mapping[str, Any],
) -> str:
    folder, config = session.folder, session.config
    rows = [
        *([("stage", _stage(config))] if config.stage.name != "base" else []),
        ("validation", _number(summary["val_bpb"], 4, " bits per byte")),
        ("bigram model of the same tokens", _number(summary["bigram_bpb"], 4, " bits per byte")),
        ("unigram model of the same tokens", _number(summary["unigram_bpb"], 4, " bits per byte")),
        ("training loss, last step", _number(summary["train_loss"], 4, " nats per token")),
        ("steps, tokens", f"{summary['steps']:,}, {summary['tokens']:,}"),
        ("epochs", _number(summary["epochs"], 2, " of the training tokens, in the whole run")),
        *([("packing", _packing(summary))] if summary["fill"] is not None else []),
        ("parameters", f"{summary['params']:,} ({summary['matmul_params']:,} in matrix products)"),
        ("time", clock(summary["seconds"])),
        ("goodput", _goodput(summary)),
        ("throughput (median)", _number(summary["tokens_per_s"], 0, " tokens/s")),
        ("MFU (median)", f"{_number(summary['mfu'], 3, '')} of {summary['mfu_peak']}"),
        ("waiting for data", f"{_number(summary['data_wait_share'], 5, '')} of step time"),
        ("FLOPs", f"{flops_per_token(config.model) * summary['tokens']:.3g}"),
        ("cost", f"${summary['cost_usd']:.2f} at ${price_per_hour(config):.2f}/h"),
        ("device", summary["device"]),
        ("checkpoint", summary["checkpoint"]),
        *([("dashboard", f"<{summary['dashboard']}>")] if summary["dashboard"] else []),
    ]
    files = sorted({n for n in series if n.startswith("eval/") and n.endswith("_perplexity")})
    evals = [
        f"| {n.removeprefix('eval/').removesuffix('_perplexity')} "
        f"| {_last(series, n.replace('_perplexity', '_loss')):.4f} "
        f"| {_last(series, n):.2f} | {_last(series, n.replace('_perplexity', '_bpb')):.4f} |"
        for n in files
    ]
    state = (
        "" if summary["finished"] else f"\nStopped early; go on with `{session.resume_command}`.\n"
    )
    return "\n".join(
        [
            f"# {config.run.name}",
            state,
            "![loss, bits per byte, throughput](curves.png)\n",
            "| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in rows),
            "\n## Evaluation\n\n| text | loss | perplexity | bits per byte |\n|---|---|---|---|",
            *evals,
            f"\n{_protocol(config)}",
            "\n## Samples\n\n```",
            _samples(folder.path / "samples.txt"),
            "```\n\n## Data\n",
            f"{data}\n",
            "## Environment\n\n| | |\n|---|---|",
            *(f"| {name} | {value} |" for name, value in environment().items()),
            "\n## Configuration\n\n```yaml",
            to_yaml(config).strip(),
            "```\n",
        ]
    )


def _samples(path: Path) -> str:
    """All samples; a full disk may have cut the last one inside a letter."""
    return path.read_text("utf-8", "replace").strip() if path.exists() else "(none)"


def _protocol(config: TrainConfig) -> str:
    """One sentence on how the texts are scored."""
    windows = (
        f"windows of {config.model.seq_len} tokens advance by {config.eval.stride_fraction:.0%} of "
        "that; every byte is scored once."
    )
    if config.stage.chat:
        return (
            "val: the answers of held-out conversations, with the tokens that end them in the loss "
            f"but not in bits per byte. Other texts: {windows}"
        )
    return f"Each document begins with BOS; {windows}"


def _stage(config: TrainConfig) -> str:
    stage = config.stage
    commit = f", commit {stage.base_commit}" if stage.base_commit else ""
    return f"{stage.name}, begun with step {stage.base_step} of {config.training.init_from}{commit}"


def _goodput(summary: Mapping[str, Any]) -> str:
    if summary["goodput"] is None:
        return "not measured"
    restarts = summary["restarts"]
    return (
        f"{summary['goodput']:.1%}: {clock(summary['step_seconds'])} of steps in "
        f"{clock(summary['wall_seconds'])} since the first start, compiling and "
        f"{restarts} restart{'' if restarts == 1 else 's'} included"
    )


def _packing(summary: Mapping[str, Any]) -> str:
    return (
        f"{summary['packing']}: rows {summary['fill']:.2%} full, "
        f"{summary['examples_per_step']:,.1f} documents or pieces a step; tokens count padding"
    )


def _number(value: float | None, digits: int, unit: str) -> str:
    return "not measured" if value is None or math.isnan(value) else f"{value:,.{digits}f}{unit}"


def environment() -> dict[str, str]:
    """Commit, system, Python and the packages that decide results."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "commit": git_commit() or "not in a repository",
        "system": platform.platform(),
        "python": platform.python_version(),
    } | {name: metadata.version(name) for name in packages}
