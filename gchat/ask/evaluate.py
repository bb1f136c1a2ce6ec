"""`gchat eval chat`: ChatCORE of a run or an endpoint, gone on with after any kind of end."""

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaia import storage
from gaia.errors import ConfigError, GaiaError
from gchat.ask.options import Model
from gchat.client import Budget, Client
from gchat.engine_client import EngineClient
from gchat.evals.chat import entries, summary
from gchat.evals.chat.evaluate import Progress, Writing, answered, asked, evaluate, scored
from gchat.evals.progress_line import ProgressLine, clock
from gchat.evals.results import Record, Results
from gchat.tasks.task import Task

if TYPE_CHECKING:
    from gchat.run.loading import LoadedRun


class Unanswered(GaiaError):
    """Some questions got no answer; the others are kept."""

    exit_status = 1


@dataclass(frozen=True)
class EvalChat(Model):
    """ChatCORE of a trained run, or of an endpoint: five tasks asked as conversations.

    Choices (ARC, MMLU) go by the likelihood of their letters, answers (GSM8K, HumanEval) by what is
    written. What is done is kept, and the same command goes on with it.

    gchat eval chat --run runs/chat --max-per-task 100
    gchat eval chat --run runs/chat --tasks gsm8k=data/gsm8k mmlu=data/mmlu spelling
    """

    tasks: tuple[str, ...] = entries.CHATCORE
    """NAME or NAME=SOURCE of each: a file, a folder, or hf://ORG/NAME; json:FILE is one's own."""
    split: str = "test"
    """Part of the data that is evaluated."""
    max_per_task: int | None = None
    """Evaluate this many items of each task instead of all: the first after a fixed shuffle."""
    max_tokens: int = 512
    """Limit of the tokens of a written answer."""
    temperature: float = 0.0
    """0 always takes the most likely token."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    samples: int = 1
    """Answers to each written question, for pass@k; needs a temperature."""
    seed: int = 0
    """Same seed, same answers."""
    slots: int = 8
    """Answers that a run decodes at once."""
    concurrency: int | None = None
    """Requests that are open at once at an endpoint; 8 when left out."""
    max_requests: int | None = None
    """Cap on requests to an endpoint, repetitions included."""
    max_total_tokens: int | None = None
    """Cap on the tokens of prompts and answers of an endpoint."""
    out: str | None = None
    """Folder of the results; RUN/evals when left out, needed with --endpoint."""
    dry_run: bool = False
    """Check the tasks, say how much is to be asked, and ask nothing."""
    json: bool = False
    """Print one JSON object."""

    def main(self) -> dict[str, Any]:
        """Evaluates, prints and returns the summary.

        Raises:
            GaiaError: the run, the endpoint, a task or an option cannot be used.
            Unanswered: an endpoint left questions open.
        """
        self.check()
        writing = Writing(self.max_tokens, self.temperature, self.top_k, self.samples, self.seed)
        writing.check()
        self._check_numbers()
        if self.run is not None:
            from gchat.run.checkpoints import read_run

            read_run(self.run)  # named before anything is downloaded
        tasks = entries.opened(self.tasks, self.max_per_task, split=self.split)
        if self.dry_run:
            return self._say_plan(tasks)
        job = _Job(self, tasks, writing)
        return job.run()

    def _check_numbers(self) -> None:
        for name in ("max_per_task", "slots", "concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}", "use 1 or more")
        if self.endpoint is not None and self.out is None:
            raise ConfigError("--endpoint is given and --out is not", "name a folder for results")

    def _say_plan(self, tasks: Sequence[Task]) -> dict[str, Any]:
        counts = {task.name: len(task) for task in tasks}
        written = sum(len(task) for task in tasks if task.kind == "generate") * self.samples
        plan = {"items": counts, "max_completion_tokens": written * self.max_tokens}
        if self.json:
            print(json.dumps(plan))
        else:
            listed = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
            print(f"{listed}; {written:,} written answers of up to {self.max_tokens} tokens each; "
                  "nothing was asked")  # fmt: skip
        return plan


class _Job:
    """One evaluation."""

    def __init__(self, options: EvalChat, tasks: Sequence[Task], writing: Writing) -> None:
        self._options, self._tasks, self._writing = options, tasks, writing
        self._entries = entries.entries(tasks)
        self._records: dict[tuple[str, str], Record] = {}
        self._say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
        self._run: LoadedRun | None = None

    def run(self) -> dict[str, Any]:
        options, began = self._options, time.perf_counter()
        client = self._open()
        try:
            facts = self._facts(client)
            folder = Path(options.out) if options.out else Path(options.run or "") / "evals"
            path = folder / _name(facts, options.max_per_task)
            with Results(path, facts, self._take) as results:
                if self._records:
                    kept = f"{len(self._records):,} of {len(self._entries):,}"
                    self._say(f"{kept} items are done already")
                unanswered = self._evaluate(client, results)
        finally:
            client.close()
        figures = facts | summary.summary(self._tasks, self._records.values())
        seconds = round(time.perf_counter() - began, 2)
        figures |= {"seconds": seconds, "results": str(path)}
        if unanswered:
            raise Unanswered(
                f"{unanswered} of {len(self._entries):,} questions got no answer",
                f"the others are in {path}; the same command asks these again",
            )
        storage.write_text(path.with_suffix(".json"), json.dumps(figures, indent=1) + "\n")
        if self._run is not None:
            _record(self._run, path.with_suffix(".metrics"), figures)
        print(json.dumps(figures) if options.json else _described(figures))
        return figures

    def _open(self) -> Client:
        options = self._options
        if options.run is None:
            budget = Budget(options.max_requests, options.max_total_tokens)
            wide = 8 if options.concurrency is None else options.concurrency
            return options.open_endpoint(concurrency=wide, budget=budget)
        from gchat.run.loading import load_run

        self._run = load_run(options.run)
        client = options.client_of(self._run, options.slots)
        if not client.chat_format.trained:
            self._say("this run was trained on no conversation; --format chat uses its tags anyway")
        return client

    def _take(self, record: Record) -> None:
        float(record["grade"])
        self._records[record["task"], record["item"]] = record

    def _facts(self, client: Client) -> dict[str, Any]:
        """Everything that decides an outcome, for the first line of the results."""
        facts: dict[str, Any] = {"evaluation": "chat", "model": client.model}
        if self._run is None:  # another server may give its model the same name
            address = str(self._options.endpoint).rpartition("@")[2]  # a password is no fact
            facts |= {"endpoint": address.rstrip("/"), "server": self._options.server}
        else:
            run = self._run
            assert isinstance(client, EngineClient)
            facts |= {
                "step": run.step,
                "weights": run.digest,
                "tokenizer": run.tokenizer.sha256[:16],
                "seq_len": run.config.model.seq_len,
                "format": client.chat_format.kind,
                "tools": self._options.tools,
                "formats": [self._options.weights, self._options.kv],
                "slots": self._options.slots,
            }
        items = {task.name: entries.digest(task) for task in self._tasks}
        return facts | {"writing": asdict(self._writing), "items": items}

    def _evaluate(self, client: Client, results: Results) -> int:
        left = [entry for entry in self._entries if entry.key not in self._records]
        choices = [entry for entry in left if entry.task.kind == "choice"]
        written = [entry for entry in left if entry.task.kind == "generate"]
        if self._run is None:
            chosen = asked(choices, client)
        else:
            assert isinstance(client, EngineClient)
            chosen = scored(choices, _stream(self._run), client.chat_format)
        line = ProgressLine(self._say)

        def shown(state: Progress) -> None:
            done = f"{state.part} {state.items:,}/{state.of:,} items"
            line.show(lambda: f"{done}  ETA {clock(state.seconds_left)}")

        def keep(records: list[Record]) -> None:
            results.add(records)
            for record in records:
                self._take(record)

        parts = [("choices", len(choices), chosen),
                 ("answers", len(written), answered(written, client, self._writing))]  # fmt: skip
        try:
            return evaluate([part for part in parts if part[1]], record=keep, progress=shown)
        finally:
            line.end()


def _stream(run: "LoadedRun") -> Any:
    from gaia.parallel import make_mesh
    from gchat.score import Scorer

    return partial(Scorer(run.graph, run.config, make_mesh()).stream, run.params)


def _name(facts: Mapping[str, Any], limit: int | None) -> str:
    some = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    step = f"-step{facts['step']:06d}" if "step" in facts else ""
    return f"chat{step}-{some}{'' if limit is None else f'-max{limit}'}.jsonl"


def _record(run: "LoadedRun", folder: Path, figures: Mapping[str, Any]) -> None:
    """Keeps the figures as metrics: a run of their own, since training's may still be written."""
    import gaia_metrics

    recorded = gaia_metrics.init(
        "gchat", f"{run.config.run.name}-chat", dir=folder, system_interval=0,
        resume_step=figures["step"] - 1,
    )  # fmt: skip
    recorded.log(figures["step"], summary.metrics(figures))
    recorded.finish("finished")


def _described(figures: Mapping[str, Any]) -> str:
    return f"{summary.table(figures)}\nresults: {figures['results']}"
