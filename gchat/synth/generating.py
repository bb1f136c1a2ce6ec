"""`gchat synth generate`: plans a corpus into items of work, does them, and writes what is good."""

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import tyro

from gaia import storage
from gaia.errors import ConfigError, DataError, GaiaError
from gaia.writer_lock import WriterLock
from gchat.ask.options import Model
from gchat.client import Budget, Client
from gchat.data.curation import contamination
from gchat.data.progress import progress_bar
from gchat.queue import Queue, in_threads, open_queue, run_worker
from gchat.synth import offline, planning, styles
from gchat.synth.filters.language import Profile
from gchat.synth.finishing import finish
from gchat.synth.making import make_do, priced
from gchat.synth.planning import Job, Kind

_OF_KINDS = {
    "pairs": "contrast", "phrasings": "qpt", "styles": "qa", "style_files": "qa",
    "per_window": "qa", "chain": "qa",
}  # fmt: skip
"""Options that one kind of records alone has."""
_OF_ANSWERS = ("chain", "temperature", "max_tokens")
_OF_WORK = (
    "concurrency", "max_requests", "max_total_tokens", "max_cost", "prompt_price",
    "completion_price",
)  # fmt: skip
_OF_MODEL = (
    "model", "server", "key_env", "key_file", "tries", "timeout", "format", "tools", "weights",
    "kv", "speculate", *_OF_WORK[1:],
)  # fmt: skip
"""Options of the model that writes; `concurrency` is of templates too."""


class StoppedEarly(GaiaError):
    """Items are left; what is done is kept."""


@dataclass(frozen=True, kw_only=True)
class Generate(Model):
    """Turn a small corpus into many records: windows of sentences, asked about in many styles.

    Without --run or --endpoint templates write the records, always the same. With one of them a
    model does, question and answer in one call. Run again after any kind of end, it goes on.

    gchat synth generate articles/ --out runs/records
    gchat synth generate articles/ --out runs/records --endpoint http://127.0.0.1:8000/v1
    """

    of_both: ClassVar = ("concurrency",)

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders or globs of .txt, .md, .jsonl (also .gz, .bz2, .xz, .zst) or .parquet."""
    out: Path
    """Folder of the generation."""
    kinds: tuple[Kind, ...] = ("qa",)
    """Kinds of records: questions and answers (qa), binary choices in both orders (contrast),
    passages as answers (qpt)."""
    styles: tuple[str, ...] = ()
    """Names of styles or groups of them; all when left out (gchat synth styles lists them)."""
    style_files: tuple[str, ...] = ()
    """Files or folders of your own styles, in place of those that ship with gchat."""
    text_column: str = "text"
    """Field of .jsonl and .parquet files that holds the text; "title" says what it is about."""
    language: str = "en"
    """Language of the corpus and of the records."""
    profile: Profile = "default"
    """Language filter: default, or seed (English and Chinese alone, confidence exactly 1.0)."""
    window: int = planning.SENTENCES
    """Sentences of a window."""
    stride: int = planning.STRIDE
    """Sentences from the start of a window to that of the next."""
    heldout: float = 0.1
    """Share of the articles that training never sees."""
    heldout_styles: float = 0.1
    """Share of the styles and phrasings that are kept to ask about trained facts."""
    per_window: int | None = None
    """Limit of the styles that ask about one window, drawn by its hash; all that fit when left
    out."""
    pairs: int = 8
    """Limit of the binary choices of a window."""
    phrasings: int = 4
    """Phrasings that ask for each passage of Q-PT, 1 to 28."""
    max_windows: int | None = None
    """Limit of the windows, spread evenly over the corpus."""
    decontaminate: tuple[str, ...] = ()
    """Files or folders of evaluation sets; records that share 13 words in a row are dropped."""
    chain: bool = False
    """Ask for the question first and for its answer in a second call."""
    temperature: float = 0.7
    """Temperature of the model's answers."""
    max_tokens: int = 300
    """Limit of the tokens of one answer."""
    seed: int = 0
    """Same seed, same split and drawing."""
    queue: str | None = None
    """Address of the queue: a file, redis://…, postgresql://…, sqs://… or pubsub://…; queue.db in
    the folder when left out."""
    plan_only: bool = False
    """Fill the queue for workers elsewhere (gchat synth worker) and do nothing else; given again
    when they have finished, write what they made."""
    concurrency: int | None = None
    """Items that are worked on at once; 8 when a model is asked."""
    max_requests: int | None = None
    """Cap on requests to an endpoint, repetitions included."""
    max_total_tokens: int | None = None
    """Cap on the tokens of prompts and answers of an endpoint."""
    max_cost: float | None = None
    """Cap on the US dollars that an endpoint's tokens cost, over all runs of this generation."""
    prompt_price: float = 0.0
    """US dollars for a million tokens of prompts."""
    completion_price: float = 0.0
    """US dollars for a million tokens of answers."""
    dry_run: bool = False
    """Say how many windows, items and requests there are, and do nothing."""
    json: bool = False
    """Print one JSON object."""

    def start(self) -> None:
        """Runs or goes on with the generation.

        Raises:
            GaiaError: one line naming what cannot work; the queue stays whole.
        """
        self._check_options()
        if self.dry_run:
            job = self._job("dry-run" if self._asks else offline.MODEL)
            return self._say_plan(job, planning.make(job))
        if self.decontaminate:
            contamination.load(self.decontaminate)  # before anything is paid for
        client, made = self._open(), not self.out.exists()
        try:
            storage.make_folder(self.out)
            with WriterLock(self.out / ".generate.lock", f"a generation in {self.out}"):
                self._generate(client)
        except GaiaError:
            if made:
                with contextlib.suppress(OSError):  # it holds something by now
                    self.out.rmdir()
            raise
        finally:
            if client is not None:
                client.close()

    @property
    def _asks(self) -> bool:
        return self.run is not None or self.endpoint is not None

    def _check_options(self) -> None:
        if not self.inputs:
            raise ConfigError("no input is given", "name files of text")
        if self.plan_only:
            self._refuse(_OF_WORK, "with --plan-only", "give it to `gchat synth worker`")
        if self._asks:
            self.check()
        else:  # items carry some of them to workers that ask a model
            of_model = (*_OF_MODEL, *(() if self.plan_only else _OF_ANSWERS))
            self._refuse(of_model, "without --endpoint or --run", "leave it out")
        for option, kind in _OF_KINDS.items():
            if kind not in self.kinds:
                self._refuse((option,), f"without {kind} in --kinds", "drop it")
        if self.max_cost is not None and self.run is not None:
            raise ConfigError("--max-cost has no effect with --run", "leave it out")
        if self.max_cost is not None and not (self.prompt_price or self.completion_price):
            raise ConfigError(
                "--max-cost without prices", "give --prompt-price, --completion-price"
            )
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"concurrency = {self.concurrency}", "use at least 1")
        if self.out.is_file():
            raise ConfigError(f"{str(self.out)!r} is a file", "name a folder")

    def _refuse(self, options: Sequence[str], why: str, remedy: str) -> None:
        """Raises ConfigError for an option that is given and would have no effect."""
        defaults = {field.name: field.default for field in fields(self)}
        for name in options:
            if getattr(self, name) != defaults[name]:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} has no effect {why}", remedy)

    def _job(self, model: str) -> Job:
        chosen = styles.chosen(styles.load(self.style_files), self.styles)
        inputs = tuple(self.inputs)
        return Job(
            inputs=inputs, model=model, kinds=tuple(dict.fromkeys(self.kinds)),
            styles={name: asdict(style) for name, style in chosen.items()},
            text_column=self.text_column, language=self.language, profile=self.profile,
            window=self.window, stride=self.stride, heldout=self.heldout,
            heldout_styles=self.heldout_styles, per_window=self.per_window, pairs=self.pairs,
            phrasings=self.phrasings, max_windows=self.max_windows, seed=self.seed,
            chain=self.chain, temperature=self.temperature, max_tokens=self.max_tokens,
        )  # fmt: skip

    def _open(self) -> Client | None:
        if self.run is not None:
            return self.open_run(self.concurrency or 8)
        if self.endpoint is None:
            return None
        budget = Budget(
            self.max_requests, self.max_total_tokens, self.max_cost, self.prompt_price,
            self.completion_price,
        )  # fmt: skip
        return self.open_endpoint(concurrency=self.concurrency or 8, budget=budget)

    def _generate(self, client: Client | None) -> None:
        model = client.model if client is not None else offline.MODEL
        job = self._job("endpoint" if self.plan_only and client is None else model)
        before = Job.read(self.out) if (self.out / planning.JOB).exists() else None
        if before is not None:
            self._check_begun(before, replace(job, corpus=before.corpus))
        plan = planning.make(job)
        job = job.with_corpus(plan)
        if before is not None:  # items of the articles as they were would have another split
            self._check_begun(before, job)
        address = self.queue or str(self.out / planning.QUEUE)
        with open_queue(address, create=True) as queue:
            if self.queue is not None and not self.plan_only:
                _check_alone(queue, job, plan, begun=before is not None)
            planning.save(job, plan, self.out)  # first: items that a kill leaves must be its own
            queue.add(planning.items(job, plan))
            counts = queue.counts()
            if self.plan_only and counts.open:
                shown = queue.url if self.queue else address  # without a password
                return self._say({"queue": shown, "open": counts.open},
                                 f"{counts.open:,} items wait in {shown}")  # fmt: skip
            self._work(queue, client)
            report = finish(self.out, job, plan, queue, self.decontaminate)
        if self.json:
            print(json.dumps({"out": str(self.out), **report.facts}))
            return
        for line in report.lines():
            print(line)
        print(f"\n{self.out}: {report.facts['records']:,} records")

    def _check_begun(self, before: Job, job: Job) -> None:
        """Raises DataError where the folder holds another generation."""
        if before.version != job.version:  # its items have other names
            raise DataError(
                f"{self.out} was begun with an earlier gchat",
                "go on with that one, or name another --out",
            )
        if changed := planning.differences(json_like(job), before):
            raise DataError(
                f"{self.out} was begun with another {', '.join(changed)}",
                "give what it was begun with, or name another --out",
            )

    def _work(self, queue: Queue, client: Client | None) -> None:
        counts = queue.counts()
        if not counts.open:
            return
        width = self.concurrency or (8 if client is not None else 1)
        if client is not None and hasattr(client, "budget"):
            client.budget.cost = queue.facts().cost  # type: ignore[attr-defined]
        price = priced(self.prompt_price, self.completion_price)
        with progress_bar("items", counts.total, None, "") as bar:
            bar.update(counts.done + counts.dead)
            do = _shown(make_do(client, price), bar)
            _, signal = run_worker(queue, in_threads(do, width), concurrency=width)
        left = queue.counts()
        if left.open:
            stopped = StoppedEarly(
                f"{left.open:,} of {left.total:,} items are left in {queue.url}",
                "the same command goes on",
            )
            stopped.exit_status = 128 + signal if signal else 1
            raise stopped

    def _say_plan(self, job: Job, plan: planning.Plan) -> None:
        count = sum(1 for _ in planning.items(job, plan))
        asked = count * (2 if self.chain else 1) if self._asks else 0
        facts = {"articles": plan.articles, "heldout_articles": plan.heldout_articles,
                 "windows": len(plan.windows), "dropped": len(plan.dropped), "items": count,
                 "requests": asked}  # fmt: skip
        self._say(
            facts,
            f"{plan.articles:,} articles ({plan.heldout_articles:,} held out), "
            f"{len(plan.windows):,} windows, {count:,} items, {asked:,} requests at least; "
            "nothing was done",
        )

    def _say(self, facts: dict[str, Any], sentence: str) -> None:
        print(json.dumps(facts) if self.json else sentence)


def _check_alone(queue: Queue, job: Job, plan: planning.Plan, *, begun: bool) -> None:
    """Raises ConfigError where a queue holds open items of other work, which a worker that takes
    what comes would do by this generation's model."""
    others = queue.counts().open
    if others and begun:
        own = {item.id for item in planning.items(job, plan)}
        ended = sum(one.id in own for one in queue.results())
        ended += sum(one.item.id in own for one in queue.dead())
        others -= len(own) - ended
    if others > 0:
        raise ConfigError(
            f"{others:,} open items in {queue.url} are of other work, which would be done too",
            "give --plan-only and start `gchat synth worker`, or name another --queue",
        )


def json_like(job: Job) -> Job:
    """The job as it is read back from its file."""
    fields = json.loads(json.dumps(job.to_json()))
    return Job(**fields | {n: tuple(fields[n]) for n in ("inputs", "kinds")})


def _shown(do: Callable[[dict], dict], bar: Any) -> Callable[[dict], dict]:
    """The same work, counted by a bar with the records so far and the time left."""
    lock, made = threading.Lock(), {"records": 0, "rejects": 0}

    def work(payload: dict) -> dict:
        result = do(payload)
        with lock:
            for name in made:
                made[name] += len(result[name])
            bar.set_postfix_str(f"{made['records']:,} kept, {made['rejects']:,} not", refresh=False)
            bar.update()
        return result

    return work
