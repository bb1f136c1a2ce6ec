"""A run mirrored as an offline run of W&B: `wandb sync RUN/mirrors/wandb/offline-run-*` uploads it.

Each attempt is an offline run of its own, in a group that is called like the run: offline runs
cannot be rewound to the step that training resumes from. `step` is the x axis of every metric,
because values of one step come in several calls, and late, which W&B's own counter does not allow.
W&B notes the command line, the git remote, the packages and the host by itself; all of this is
turned off, since it may hold secrets, and none of it is measured twice.
"""

from __future__ import annotations

import html
import importlib
from pathlib import Path
from typing import Any

from gaia_metrics.recording.histogram import edges
from gaia_metrics.storage.folder import Attempt

EXIT_CODES = {"finished": 0, "stopped": 143, "crashed": 1}
LEVELS = {"info": "INFO", "warn": "WARN", "error": "ERROR"}
INIT_TIMEOUT_S = 20.0
FLUSH_S = 2.0  # kill -9 loses what W&B's process holds back: 15 s of its own


class WandbRun:
    """Takes records into an offline run of W&B.

    Args:
        folder: W&B makes its `wandb/offline-run-*` in it.
        info: run.json's content.
        attempt: this start.
    """

    def __init__(self, folder: Path, info: dict, attempt: Attempt) -> None:
        wandb: Any = importlib.import_module("wandb")  # an extra, absent in a base install
        self._wandb = wandb
        self._run = wandb.init(
            dir=str(folder),
            mode="offline",
            project=info["project"],
            id=info["id"] + (f"-{attempt.attempt}" if attempt.attempt > 1 else ""),
            name=info["name"],
            group=info["id"],
            tags=info.get("tags", []),
            notes=info.get("notes") or None,
            config=info["config"]
            | {
                "gaia_run": info["id"],
                "gaia_attempt": attempt.attempt,
                "gaia_resume_step": attempt.resume_step,
            },
            reinit="create_new",  # a W&B run of the user's own stays as it is
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=INIT_TIMEOUT_S,
                x_transaction_log_flush_interval=FLUSH_S,
                disable_git=True,
                disable_code=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("*", step_metric="step")

    def values(self, step: int, time_ns: int, values: dict[str, float], system: bool) -> None:
        """Log values with their step and time."""
        self._run.log({**values, "step": max(0, step), "_timestamp": time_ns / 1e9})

    def record(self, record: dict) -> None:
        """Log a text as a page, a histogram, or an alert."""
        name, wandb = record["name"], self._wandb
        if record["kind"] == "alert":
            level = LEVELS.get(record.get("level", ""), "INFO")
            self._run.alert(title=name, text=record["text"], level=level, wait_duration=0)
            return
        if record["kind"] == "text":
            # A page, not a table: W&B keeps the rows of tables outside of the run's folder.
            page = f"<pre>{html.escape(record['text'], quote=False)}</pre>"
            value = wandb.Html(page, inject=False)
        else:
            bounds, counts = edges(record)
            value = wandb.Histogram(np_histogram=(counts, bounds))
        self._run.log({name: value, "step": record["step"], "_timestamp": record["time_ns"] / 1e9})

    def flush(self) -> None:
        """W&B's own process flushes its file every FLUSH_S."""

    def close(self, status: str) -> None:
        """Finish the run with the exit code that stands for the status."""
        self._run.finish(exit_code=EXIT_CODES.get(status, 1))
