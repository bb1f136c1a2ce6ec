"""`gchat synth factory`: everything, from a corpus to a report with the held-out figures."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError
from gaia.output import may_go_away
from gaia.writer_lock import WriterLock
from gchat.factory.recipe import Factory, steps
from gchat.lifecycle.steps import StepFailed, run_all, summary_of
from gchat.run.folder import write_atomically

STATE, REPORT = "factory.json", "report.md"


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a domain model of a small corpus: records, tokenizer, Q-PT, SFT, judge, report.

    Each step is a command of gchat in a process of its own. Run again after any kind of end, it
    goes on with the step that was not finished. About 12 minutes on two cores as it stands, in
    which the small model learns 60 windows by heart; more of them need more steps.

    gchat synth factory articles/ --run-dir runs/factory
    """

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or globs of .txt, .md, .jsonl or .parquet."""
    run_dir: Path
    """Folder of everything that is made."""
    endpoint: str | None = None
    """Address of a server whose model writes the records; templates write them when left out."""
    judge_endpoint: str | None = None
    """Address of a server that judges; words in common judge when left out (gchat judge)."""
    baseline: bool = False
    """Train continued pretraining and SFT as well, on as many tokens, and judge both."""
    max_windows: int | None = 60
    """Limit of the windows, spread evenly over the corpus; None for all of them. The default steps
    read the records of 60 windows ten times, and fewer readings teach few facts."""
    per_window: int | None = 16
    """Limit of the styles that ask about one window."""
    heldout: float = 0.1
    """Share of the articles that training never sees."""
    preset: str = "cpu"
    """Preset or YAML file of the model and its optimizer."""
    vocab_size: int = 4096
    """Ids of the tokenizer; years, months and frequent names are single tokens."""
    steps: int = 150
    """Updates of Q-PT."""
    sft_steps: int = 250
    """Updates of fine-tuning on the other records."""
    batch_size: int = 8
    """Rows of an update."""
    seq_len: int = 512
    """Tokens of a row."""
    questions: int = 60
    """Questions of each held-out part that the model is judged by."""
    dry_run: bool = False
    """Print the steps, and do none."""
    json: bool = False
    """Print the report as one JSON object."""

    def run(self) -> None:
        """Runs what is not done, and writes the report."""
        if not self.inputs:
            raise ConfigError("no input is given", "name files of text")
        for name in ("steps", "sft_steps", "batch_size", "questions", "vocab_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ConfigError(f"{option} = {getattr(self, name)}", "use at least 1")
        asked = self._asked()
        todo = steps(asked)
        if self.dry_run:
            for step in todo:
                print(f"{step.kind:8} {step.name}")
            return
        with may_go_away():
            self._do(asked, todo)

    def _do(self, asked: Factory, todo: list[Any]) -> None:
        folder = self.run_dir
        folder.mkdir(parents=True, exist_ok=True)
        with WriterLock(folder / ".factory.lock", f"the factory in {folder}"):
            asked = _begun(asked)
            try:
                finished = run_all(todo, asked.seconds, lambda: _save(asked))
            except StepFailed as error:
                raise StepFailed(error.problem, "mend it; the same command goes on") from None
            if not finished:
                print(f"stopped; the same command goes on in {folder}")
                return
        facts = collected(asked)
        lines = list(described(facts))
        write_atomically(folder / "report.json", json.dumps(facts, indent=1) + "\n")
        write_atomically(folder / REPORT, "\n".join(lines) + "\n")
        print(json.dumps(facts) if self.json else "\n".join(lines))

    def _asked(self) -> Factory:
        words: list[str] = ["--heldout", f"{self.heldout:g}"]
        for name in ("per_window", "max_windows", "endpoint"):
            if (value := getattr(self, name)) is not None:
                words += [f"--{name.replace('_', '-')}", str(value)]
        judge = ("--endpoint", self.judge_endpoint) if self.judge_endpoint else ("--lexical",)
        return Factory(
            self.run_dir, tuple(self.inputs), tuple(words), self.preset, self.vocab_size,
            self.steps, self.sft_steps, self.batch_size, self.seq_len, self.questions, judge,
            self.baseline,
        )  # fmt: skip


def _begun(asked: Factory) -> Factory:
    """The factory with the times of what is done; refuses a folder of another one."""
    path = asked.folder / STATE
    if not path.exists():
        _save(asked)
        return asked
    before = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_facts(asked)))
    changed = [n for n in now if n not in ("seconds", "baseline") and now[n] != before.get(n)]
    if changed:
        raise ConfigError(
            f"{asked.folder} was begun with another {', '.join(changed)}",
            "give the options that it was begun with, or name another --run-dir",
        )
    return replace(asked, seconds=before["seconds"])


def _facts(asked: Factory) -> dict[str, Any]:
    return asdict(asked) | {"folder": None}


def _save(asked: Factory) -> None:
    write_atomically(asked.folder / STATE, json.dumps(_facts(asked), indent=1) + "\n")


def collected(asked: Factory) -> dict[str, Any]:
    """Facts of a finished factory."""

    def read(name: str) -> dict[str, Any]:
        return json.loads(asked.file(name).read_text(encoding="utf-8"))

    names = ["qpt", "cpt"] if asked.baseline else ["qpt"]
    kept = ("tokens", "train_loss", "val_loss", "val_bpb", "params", "steps")
    runs = [run for name in names for run in (name, f"{name}-sft")]
    return {
        "records": read("records/report.json"),
        "runs": {
            run: {k: v for k, v in summary_of(asked.file(run)).items() if k in kept} for run in runs
        },
        "judged": {name: read(f"{name}-judge.json") for name in names},
        "seconds": {name: round(value, 1) for name, value in asked.seconds.items()},
    }


def described(facts: dict[str, Any]) -> Iterator[str]:
    """The report as a page of markdown."""
    records = facts["records"]
    yield "# A domain model out of a small corpus"
    yield ""
    yield (
        f"{records['articles']:,} articles ({records['heldout_articles']:,} held out whole), "
        f"{records['windows']:,} windows, {records['records']:,} records by {records['model']}: "
        + ", ".join(f"{n:,} {part}" for part, n in records["parts"].items())
    )
    yield ""
    yield "| run | steps | tokens | train loss | validation bits per byte |"
    yield "|---|---:|---:|---:|---:|"
    for name, run in facts["runs"].items():
        bpb = run.get("val_bpb")
        yield (
            f"| {name} | {run.get('steps', 0):,} | {run.get('tokens', 0):,} | "
            f"{run.get('train_loss') or float('nan'):.3f} | "
            f"{'-' if bpb is None else f'{bpb:.3f}'} |"
        )
    yield ""
    for name, verdicts in facts["judged"].items():
        said = "Q-PT and SFT" if name == "qpt" else "continued pretraining and SFT"
        yield f"Judged, {said}:"
        yield ""
        yield from _judged(verdicts)
        yield ""
    total = sum(facts["seconds"].values())
    each = ", ".join(f"{name} {value:,.0f} s" for name, value in facts["seconds"].items())
    yield f"{total / 60:.1f} minutes: {each}"


_SAID = {
    "heldout_phrasing": "trained facts, other phrasings",
    "heldout_article": "articles that training never saw",
}


def _judged(verdicts: dict[str, Any]) -> Iterator[str]:
    """Pass rates of each held-out part, as the judge sees them and with its errors taken out."""
    yield f"| held out (judge: {verdicts['judge']}) | answers | passed | corrected | 95% |"
    yield "|---|---:|---:|---:|---|"
    groups = verdicts["groups"]
    rows = [*groups.get("split", {}).items(), *groups.get("kind", {}).items()]
    for name, row in rows:
        raw = "-" if row["raw"] is None else f"{row['raw']:.1%}"
        rate = "-" if row["rate"] is None else f"{row['rate']:.1%}"
        span = "-" if row["low"] is None else f"{row['low']:.1%} to {row['high']:.1%}"
        yield f"| {_SAID.get(name, name)} | {row['answers']:,} | {raw} | {rate} | {span} |"
