"""Replays runs that once went wrong: `python tests/replay_trainer_cases.py DIR` prints a table.

DIR holds a folder for each case, with a README.md that says what happened. What each says is done
again through the commands, on a small data set and runs made here; the table says what happens
now. Ends with 1 where something is not as it should be, or a folder has no check here.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import runs
from gaia.checkpoint import Checkpointer
from gaia.data.loader import iter_documents
from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.config import derive, load
from gchat.evals.ngram import ngram_baselines
from gchat.evals.periodic import validation_documents
from gchat.run.folder import read_config
from gchat.run.loading import load_run

STEPS = 20


class Outcome(NamedTuple):
    """One command: exit status and output."""

    status: int
    out: str
    err: str

    @property
    def is_refused(self) -> bool:
        """It ended with 2 and one line."""
        return self.status == 2 and self.err.count("\n") == 1


class Place:
    """A data set, a finished run on it, and the commands, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir()
        self.data = runs.make_data(folder / "data", vocab_size=300)
        self._base: Path | None = None

    def arguments(self, name: str, *more: str, steps: int = STEPS) -> list[str]:
        """Arguments of a tiny training run in the folder `name`."""
        saves = ("--checkpoint.every-steps", "10", "--eval.every-steps", "0")
        return runs.arguments(self.data, self.folder / name, *saves, *more, steps=steps)

    def run(self, *args: object, **variables: str) -> Outcome:
        """One gchat command in this process."""
        out, err = io.StringIO(), io.StringIO()
        before = dict(os.environ)
        os.environ.update(variables)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([str(arg) for arg in args])
        finally:
            os.environ.clear()
            os.environ.update(before)
        return Outcome(status, out.getvalue(), err.getvalue())

    def base(self) -> Path:
        """A finished run with checkpoints at 10 and 20."""
        if self._base is None:
            done = self.run("train", *self.arguments("runs/base"))
            assert done.status == 0, done.err
            self._base = self.folder / "runs/base"
        return self._base

    def copied(self, name: str) -> Path:
        """A copy of that run, stopped at step 10."""
        copy = shutil.copytree(self.base(), self.folder / name)
        shutil.rmtree(copy / f"checkpoints/{STEPS}")
        return copy


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file by its path."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


Verdict = tuple[str, bool]


def moved_run(place: Place, case: Path) -> Verdict:
    """Copied, moved, read from another working directory."""
    a = place.copied("runs/a")
    before = contents(a)
    fork = shutil.copytree(a, place.folder / "runs/fork")
    forked = place.run("train", "--resume", "--run-dir", fork)
    untouched = contents(a) == before
    b = Path(shutil.move(a, place.folder / "runs/b"))
    moved = place.run("train", "--resume", "--run-dir", b)
    elsewhere = place.folder / "elsewhere"
    elsewhere.mkdir()
    with contextlib.chdir(elsewhere):
        read = place.run("sample", "--run", os.path.relpath(fork), "--prompt", "x",
                         "--max-tokens", "2")  # fmt: skip
    said = f"resumed from step 10 of {STEPS}"
    good = said in forked.out and said in moved.out and untouched and not a.exists()
    good = good and (b / f"checkpoints/{STEPS}").exists() and read.status == 0
    return f"copy and moved run: {said}; the original is unchanged; sample from elsewhere ends " \
           f"with {read.status}", good and not list(elsewhere.iterdir())  # fmt: skip


def reader_deletes_save(place: Place, case: Path) -> Verdict:
    """A reader opens the folder, as sample and eval do, while a large save is under way."""
    folder = str(place.folder / "race")
    writer = Checkpointer(folder)
    writer.save(1, {"w": jnp.arange(8.0)}, {})
    writer.wait()
    rng = np.random.default_rng(0)
    large = {f"w{i}": jnp.asarray(rng.standard_normal(3_000_000, np.float32)) for i in range(8)}
    writer.save(2, large, {})
    reader = Checkpointer(folder, read_only=True)
    seen = reader.latest(report=lambda _: None)
    reader.close()
    problem = writer.close()
    sound = writer.damage(2) is None and writer.last_saved == 2 and problem is None
    return f"the reader saw step {seen}; the save under way ended whole: {sound}", sound


def baseline_of_another_text(place: Place, case: Path) -> Verdict:
    """The report's bigram model against the text that validation scores."""
    run = place.base()
    shown = json.loads((run / "summary.json").read_text())["bigram_bpb"]
    config = read_config(run)
    given = {"seq_len": config.model.seq_len, "batch_size": config.training.amounts.batch_size,
             "seed": config.training.seed}  # fmt: skip
    tokens = config.training.amounts.tokens
    whole = ngram_baselines(str(place.data), tokens, **given).bigram_bpb
    same = ngram_baselines(
        str(place.data), tokens, documents=validation_documents(config), **given
    ).bigram_bpb
    return (
        f"bigram {shown:.4f} shown, {same:.4f} on the text of val_bpb, {whole:.4f} on the split",
        round(same, 4) == shown and shown != round(whole, 4),
    )


def prompts_are_text(place: Place, case: Path) -> Verdict:
    """True, -h and --x as prompts, typed and in a preset."""
    preset = case / "prompts.yaml"
    words = ["train", preset, *place.arguments("runs/prompts", steps=6)]
    words.remove("--eval.prompts")
    trained = place.run(*words)
    samples = place.folder / "runs/prompts/samples.txt"
    kept = trained.status == 0 and "True →" in samples.read_text(encoding="utf-8")
    statuses = {}
    for text in ("True", "true", "False", "-h", "--x"):
        more = ("--max-tokens", "2", "--json")
        done = place.run("sample", "--run", place.base(), "--prompt", text, *more)
        statuses[text] = done.status == 0 and json.loads(done.out)["prompt"] == text
    return f"the preset's prompt is sampled: {kept}; typed texts stay: {statuses}", (
        kept and all(statuses.values())
    )


def zero_rate(place: Place, case: Path) -> Verdict:
    """A learning rate of 0 for the embedding, and numbers that cannot be."""
    tables = []
    for steps in (6, 9):
        name = f"runs/zero-{steps}"
        assert place.run("train", *place.arguments(name, "--optim.embed-lr", "0", steps=steps),
                         ).status == 0  # fmt: skip
        tables.append(np.asarray(load_run(str(place.folder / name)).params["embed"]["table"]))
    still = bool((tables[0] == tables[1]).all())
    bad = (("embed-lr", "-0.1"), ("final-lr-fraction", "-3"), ("clip-norm", "nan"),
           ("weight-decay", "nan"), ("newton-schulz-steps", "0"))  # fmt: skip
    refused = [
        place.run("train", *place.arguments("runs/bad", f"--optim.{name}", value)).is_refused
        for name, value in bad
    ]
    return f"embed_lr 0 leaves the table as it is: {still}; {sum(refused)} of {len(bad)} refused", (
        still and all(refused)
    )


def typed_length(place: Place, case: Path) -> Verdict:
    """`--training.tokens-per-param 20` over a preset that sets tokens."""
    steps = {}
    for typed in ((), ("--training.tokens-per-param", "20")):
        config, _ = derive(load(["cpu", *typed]), vocab_size=4096, padded_vocab_size=4096)
        steps[typed[-1:] or ("preset",)] = config.training.amounts.steps
    preset, asked = steps.values()
    try:
        load(["cpu", "--training.steps", "100", "--training.tokens", "1000000000"])
        both = False
    except ConfigError:
        both = True
    return f"{preset} steps by the preset, {asked} with 20 per parameter; two lengths refused: " \
           f"{both}", asked > 10 * preset and both  # fmt: skip


def long_document(place: Place, case: Path) -> Verdict:
    """`eval.tokens 500` where the first validation document is a book."""
    head = (case / "books_head.txt").read_text(encoding="utf-8", errors="replace")
    books = place.folder / "books.jsonl"
    line = " ".join(head.split())
    texts = [f"Book {k}. " + (line * (100_000 // len(line) + 1))[:100_000] for k in range(6)]
    books.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    made = place.run("data", "prepare", "--source", "text", "--input", books, "--out",
                     place.folder / "d_books", "--tokenizer", "bpe",
                     "--vocab-size", "512")  # fmt: skip
    assert made.status == 0, made.err
    words = ["--data-dir", str(place.folder / "d_books"), "--eval.tokens", "500"]
    config = load(["cpu", *words])
    first = len(next(iter(iter_documents(config.data.place, "val"))))
    scored = sum(len(document) - 1 for document in validation_documents(config))
    return f"{scored} tokens scored of a first document of {first:,}", scored <= 500 < first


def price_of_the_machine(place: Place, case: Path) -> Verdict:
    """GAIA_PRICE_PER_HOUR that is no price."""
    lines = {}
    for text in ("abc", "1,50", "nan", "inf", "-3"):
        done = place.run("train", *place.arguments("runs/price"), GAIA_PRICE_PER_HOUR=text)
        lines[text] = done.is_refused and "GAIA_PRICE_PER_HOUR" in done.err
    made = (place.folder / "runs/price").exists()
    return f"one line each: {lines}; a folder was made: {made}", all(lines.values()) and not made


def two_trainers(place: Place, case: Path) -> Verdict:
    """A second trainer, new and resuming, while the first one runs."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_NUMPY_")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    environment["PYTHONUNBUFFERED"] = "1"
    args = place.arguments("runs/two", steps=100_000)
    first = runs.Process.train(args, environment)
    assert first.step_reached(25), first.text
    reading = threading.Thread(target=first.end)
    reading.start()
    second = subprocess.run([sys.executable, "-m", "gchat.train", *args], env=environment,
                            capture_output=True, text=True, check=False)  # fmt: skip
    resumed = place.run("train", "--resume", "--run-dir", place.folder / "runs/two")
    first.signal(15)
    reading.join()
    went_on = "stopped after step" in first.text and "no checkpoint of" not in first.text
    refused = second.returncode == 2 and resumed.is_refused and str(first.pid) in resumed.err
    return f"the second ends with {second.returncode}, --resume with {resumed.status}; the first " \
           f"went on and saved: {went_on}", refused and went_on  # fmt: skip


CHECKS: Mapping[str, Callable[[Place, Path], Verdict]] = {
    "01_moved_run": moved_run,
    "02_reader_deletes_save": reader_deletes_save,
    "03_baseline_other_text": baseline_of_another_text,
    "04_prompt_True": prompts_are_text,
    "05_lr_zero": zero_rate,
    "06_tokens_per_param": typed_length,
    "07_eval_tokens_long_doc": long_document,
    "08_env_price": price_of_the_machine,
    "09_two_trainers": two_trainers,
}


class Row(NamedTuple):
    """One case: what its README says, what happens now, and whether that is right."""

    case: str
    before: str
    now: str
    ok: bool


def replay(given: Path) -> Iterator[Row]:
    """Runs every case of a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch))
        for case in sorted(path for path in given.iterdir() if (path / "README.md").is_file()):
            before = " ".join((case / "README.md").read_text(encoding="utf-8").split())
            check = CHECKS.get(case.name)
            try:
                now, ok = check(place, case) if check else ("no check for it", False)
            except AssertionError as error:
                now, ok = f"did not come so far: {error}", False
            yield Row(case.name, before, now.replace(scratch + "/", ""), ok)


def table(given: Path) -> int:
    """Prints the table, row by row; returns the exit status."""
    print("| case | before | now | ok |\n|---|---|---|---|")
    failed = 0
    for row in replay(given):
        cells = [text.replace("|", "\\|")[:220] for text in (row.case, row.before, row.now)]
        print(f"| {' | '.join(cells)} | {'yes' if row.ok else 'NO'} |", flush=True)
        failed += not row.ok
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(f"usage: python {os.path.relpath(__file__)} DIR (of cases, a folder each)")
    sys.exit(table(Path(sys.argv[1])))
