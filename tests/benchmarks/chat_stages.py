"""Measures the speedrun's stages: what each takes, and what the model can do after it.

    python tests/benchmarks/chat_stages.py [--quick] [--depth N]

Runs `gchat speedrun` on this machine's offline corpus, as `bash gchat/speedrun.sh` does on a plain
CPU, in a process of its own and a folder that is removed. Each row is a step of it: `seconds` from
start to end (start of the program, compiling, evaluation and checkpoints included), the `tokens`
that it trained on (null where it trains nothing), and a `metric` with its `value`: bits per byte of
held-out text after the base stage, of held-out answers after the others, and the mean share of
right answers over the tasks that the model was taught.

The limit of a training stage is its steps alone, at the speed of this machine's matrix product:
`step_share` is the time of the steps over that of the run, `mfu` their model FLOPs over that
product's (timed by the run itself, beside it). `--quick` trains depth 2 for 16 steps.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

QUICK = ("--depth", "2", "--model.dim", "64", "--training.steps", "16", "--eval.tokens", "4096")


def main(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="gaia-stages-") as name:
        folder = Path(name) / "run"
        words = ["--run-dir", str(folder), "--offline"]
        words += QUICK if args.quick else ()
        words += ["--depth", str(args.depth)] if args.depth else []
        environment = os.environ | {"PYTHONPATH": str(harness.ROOT), "PYTHONSAFEPATH": "1"}
        command = [sys.executable, "-m", "gchat", "speedrun", *words]
        if status := harness.finish(command, environment):
            sys.exit(f"gchat speedrun ended with status {status}")
        rows = read_rows(folder)
    print(f"{'step':16} {'seconds':>8} {'tokens':>10} {'steps':>6} {'MFU':>6}  metric")
    for row in rows:
        tokens = "-" if row["tokens"] is None else f"{row['tokens']:,}"
        share, mfu = (_percent(row.get(key)) for key in ("step_share", "mfu"))
        value = "-" if row["value"] is None else f"{row['metric']} {row['value']:.4f}"
        print(f"{row['stage']:16} {row['seconds']:8.1f} {tokens:>10} {share:>6} {mfu:>6}  {value}")
    return {"rows": rows, "stages_seconds": round(sum(row["seconds"] for row in rows), 1)}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of a finished speedrun, in the order in which its steps ran."""
    rows = []
    for step, seconds in json.loads((folder / "speedrun.json").read_text())["seconds"].items():
        row = {"stage": step, "seconds": round(seconds, 2), "tokens": None} | _outcome(folder, step)
        rows.append(row)
    return rows


def _outcome(folder: Path, step: str) -> dict[str, Any]:
    """The tokens, metric and value of one step."""
    trained = (folder if step == "base" else folder / step) / "summary.json"
    if trained.is_file():
        summary = json.loads(trained.read_text())
        return {
            "tokens": summary["tokens"],
            "metric": "val_bpb",
            "value": summary["val_bpb"],
            "step_share": round(summary["step_seconds"] / summary["wall_seconds"], 4),
            "mfu": summary["mfu"],
        }
    if step.startswith("ChatCORE of "):
        scored = json.loads((folder / "evals" / f"chat-{step.split()[-1]}.json").read_text())
        tasks = {name: task["accuracy"] for name, task in scored["tasks"].items()}
        mean = sum(tasks.values()) / len(tasks)
        return {"metric": "share of right answers", "value": mean, "tasks": tasks}
    return {"metric": None, "value": None}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--depth", type=int, help="of the model; the speedrun's own by default")


if __name__ == "__main__":
    harness.run(main, __doc__, _arguments)
