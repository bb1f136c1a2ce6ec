"""The plan of a generation: articles, their split, windows, and the items of work.

A folder holds one generation:

    job.json        what was asked for, by which an interrupted one knows itself
    windows.jsonl   every window with its part of the split
    queue.db        items, leases and results (or a queue elsewhere)
    train.jsonl heldout_article.jsonl heldout_phrasing.jsonl rejects.jsonl report.json report.md
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.queue import Item
from gchat.synth import contrasts, qpt
from gchat.synth.corpus import Article, articles
from gchat.synth.facts import Facts
from gchat.synth.features import KINDS
from gchat.synth.filters.checks import Settings, checker
from gchat.synth.making import packed
from gchat.synth.records import read, record_id
from gchat.synth.split import Split, split
from gchat.synth.styles import Style
from gchat.synth.windows import SENTENCES, STRIDE, Window, check, windows

Kind = Literal["qa", "contrast", "qpt"]
JOB, WINDOWS, QUEUE = "job.json", "windows.jsonl", "queue.db"
VERSION = 3
_READABLE = (1, 2, VERSION)
_SAMPLE = 40
_OTHERS = 12
TRAINED, HELDOUT = "", "heldout"
"""Keys of a plan's `others`, beside ids of articles."""


@dataclass(frozen=True)
class Job:
    """Everything that decides the records of a generation; saved in its folder."""

    inputs: tuple[str, ...]
    model: str
    kinds: tuple[Kind, ...] = ("qa",)
    styles: dict[str, Any] = field(default_factory=dict)
    """Styles by name, as fields."""
    text_column: str = "text"
    language: str = "en"
    profile: str = "default"
    window: int = SENTENCES
    stride: int = STRIDE
    heldout: float = 0.1
    heldout_styles: float = 0.1
    per_window: int | None = None
    pairs: int = 8
    phrasings: int = 4
    max_windows: int | None = None
    seed: int = 0
    chain: bool = False
    temperature: float = 0.7
    max_tokens: int = 300
    corpus: str = ""
    """Fingerprint of the articles that were read; `with_corpus` takes it from their plan."""
    version: int = VERSION

    @property
    def style_list(self) -> list[Style]:
        """The styles, in order."""
        return [Style.from_json(fields) for fields in self.styles.values()]

    def check(self) -> None:
        """Raises ConfigError naming the number that cannot work."""
        check(self.window, self.stride)
        Settings(self.language, self.profile).check()  # type: ignore[arg-type]
        if not self.kinds:
            raise ConfigError("kinds is empty", "use some of qa, contrast, qpt")
        most = len(qpt.phrasings())
        ranges = (
            ("pairs", 1, 1000), ("phrasings", 1, most), ("max_tokens", 16, 8192),
            ("per_window", 1, None), ("max_windows", 1, None),
        )  # fmt: skip
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and (value < low or (high is not None and value > high)):
                upper = f" to {high}" if high is not None else " or more"
                raise ConfigError(f"{name} = {value} is out of range", f"use {low}{upper}")

    def to_json(self) -> dict[str, Any]:
        """The fields as job.json holds them."""
        return asdict(self)

    def with_corpus(self, plan: "Plan") -> "Job":
        """The same job on the articles of a plan: other articles have another split."""
        return replace(self, corpus=plan.corpus)

    @property
    def prefix(self) -> str:
        """Beginning of the ids of its items, by which a queue of several generations is told apart:
        a hash of all fields."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest() + "-"

    @classmethod
    def read(cls, folder: Path) -> "Job":
        """The job of a folder.

        Raises:
            DataError: the folder holds none, or one of another version.
        """
        path = folder / JOB
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            if fields.get("version") not in _READABLE:
                raise DataError(
                    f"{path} is of version {fields.get('version')}, this gchat writes {VERSION}",
                    "go on with the gchat that began it, or begin in another folder",
                )
            return cls(**fields | {n: tuple(fields[n]) for n in ("inputs", "kinds")})
        except OSError as error:
            raise DataError(
                f"{str(folder)!r} holds no generation ({error.strerror})", "check the folder"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise DataError(f"{path} is damaged", "begin in another folder") from None


@dataclass(frozen=True)
class Plan:
    """Windows with their parts, and why others were left out."""

    windows: list[Window]
    parts: dict[str, str]
    """Part of each window's article, by the window's id: train or heldout_article."""
    others: dict[str, dict[str, list[str]]]
    """Values of each kind in each article, by its id; and in all of a part, by TRAINED, HELDOUT."""
    heldout_styles: frozenset[str]
    dropped: list[dict[str, Any]]
    corpus: str
    """Fingerprint of all articles."""
    articles: int
    heldout_articles: int


def make(job: Job) -> Plan:
    """Reads the corpus and plans it.

    Raises:
        DataError: the corpus is empty, or in another language than was said.
        ConfigError: a number of the job cannot work.
    """
    job.check()
    listed = articles(job.inputs, job.text_column)
    passages = [f"qpt-{i}" for i in range(len(qpt.phrasings()))]
    names = [list(job.styles), list(contrasts.phrasings()), passages]
    chosen = split(
        listed, names, heldout=job.heldout, heldout_styles=job.heldout_styles, seed=job.seed,
        language=job.language,
    )  # fmt: skip
    made = [
        w
        for article in listed
        for w in windows(article, size=job.window, stride=job.stride, language=job.language)
    ]
    if not made:
        raise DataError("the corpus holds no whole sentence", "give running text")
    _check_language(made, job)
    kept, dropped = _kept(made, chosen, job)
    if job.max_windows is not None:
        kept = _spread(kept, job.max_windows)
    heldout = chosen.articles
    parts = {w.id: "heldout_article" if w.article in heldout else "train" for w in kept}
    return Plan(
        windows=kept, parts=parts, others=_others(kept, parts), heldout_styles=chosen.styles,
        dropped=dropped, corpus=_fingerprint(listed), articles=len(listed),
        heldout_articles=len(heldout),
    )  # fmt: skip


def _fingerprint(listed: Sequence[Article]) -> str:
    text = " ".join(article.id for article in listed)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _check_language(made: Sequence[Window], job: Job) -> None:
    """Raises DataError where most of a sample is in another language."""
    judge = checker(job.language, job.profile)  # type: ignore[arg-type]
    sample = made[:: max(1, len(made) // _SAMPLE)][:_SAMPLE]
    wrong = [reason for w in sample if (reason := judge.reason(w.text))]
    if len(wrong) * 2 > len(sample):
        raise DataError(
            f"{len(wrong)} of {len(sample)} windows are not in language {job.language!r} "
            f"({wrong[0].why})",
            "check --language",
        )


def _kept(
    made: Sequence[Window], chosen: Split, job: Job
) -> tuple[list[Window], list[dict[str, Any]]]:
    """Windows to use, and those that leak what is held out or are in another language."""
    judge = checker(job.language, job.profile)  # type: ignore[arg-type]
    kept, dropped = [], []
    for window in made:
        if chosen.leaks(window):
            name, why = "leak", "a sentence of it stands in a held-out article"
        elif reason := judge.reason(window.text):
            name, why = reason
        else:
            kept.append(window)
            continue
        dropped.append({"id": window.id, "phase": "window", "filter": name, "why": why,
                        "source": window.to_json()})  # fmt: skip
    if not kept:
        raise DataError("no window passes the filters", f"the first: {dropped[0]['why']}")
    return kept, dropped


def _spread(given: list[Window], count: int) -> list[Window]:
    """`count` windows, evenly spread over the corpus."""
    if len(given) <= count:
        return given
    return [given[i * len(given) // count] for i in range(count)]


def _others(given: Sequence[Window], parts: dict[str, str]) -> dict[str, dict[str, list[str]]]:
    """Values of each kind in each article, and in all articles of either part."""
    seen: dict[str, dict[str, dict[str, None]]] = {}
    for window in given:
        for feature in Facts(window).features:
            for place in (window.article, TRAINED if parts[window.id] == "train" else HELDOUT):
                seen.setdefault(place, {}).setdefault(feature.kind, {})[feature.value] = None
    return {
        place: {kind: list(values)[:400] for kind, values in kinds.items()}
        for place, kinds in seen.items()
    }


def others_for(window: Window, plan: Plan) -> dict[str, list[str]]:
    """Wrong answers for a window: values of its article, filled up with the corpus's.

    Training sees nothing of held-out articles, not even as a wrong answer.
    """
    chosen: dict[str, list[str]] = {}
    pools = (TRAINED,) if plan.parts[window.id] == "train" else (HELDOUT, TRAINED)
    for kind in KINDS:
        own = plan.others.get(window.article, {}).get(kind, [])
        pooled = (value for pool in pools for value in plan.others.get(pool, {}).get(kind, []))
        rest = list(dict.fromkeys(pooled))
        at = int(hashlib.blake2b(f"{window.id} {kind}".encode(), digest_size=4).hexdigest(), 16)
        own = _turned(own, at)[:_OTHERS]
        more = [v for v in _turned(rest, at)[: 2 * _OTHERS] if v not in own]
        if kind in ("date", "number"):  # a value must look like the one that it stands for
            more = [v for v in _turned(rest, at)[: 8 * _OTHERS] if v not in own]
        chosen[kind] = [*own, *more[: max(0, 3 * _OTHERS - len(own))]]
    return chosen


def _turned(given: Sequence[str], at: int) -> list[str]:
    return [*given[at % len(given) :], *given[: at % len(given)]] if given else []


def items(job: Job, plan: Plan) -> Iterator[Item]:
    """Items of work: one for each window offline and for contrasts, else for each style too."""
    settings = {
        "language": job.language, "profile": job.profile, "seed": job.seed, "chain": job.chain,
        "temperature": job.temperature, "max_tokens": job.max_tokens, "pairs": job.pairs,
        "heldout_phrasings": sorted(plan.heldout_styles & set(contrasts.phrasings())),
    }  # fmt: skip
    styles, prefix = job.style_list, job.prefix
    for window in plan.windows:
        part = plan.parts[window.id]
        base = {"window": window.to_json(), "article": window.article, "part": part, "parts": {},
                "settings": settings, "others": others_for(window, plan)}  # fmt: skip
        if "contrast" in job.kinds:
            wanted = {"kind": "contrast", "style": contrasts.STYLE, "styles": []}
            name = f"c-{record_id(window.id, contrasts.STYLE, job.seed)}"
            yield Item(prefix + name, base | wanted)
        if "qa" not in job.kinds:
            continue
        fitting = _fitting(styles, window, base["others"], job)
        parts = {s.name: "heldout_phrasing" for s in fitting
                 if part == "train" and s.name in plan.heldout_styles}  # fmt: skip
        if job.model == "offline":
            wanted = {"kind": "qa", "style": "all", "styles": [packed(s) for s in fitting]}
            name = f"w-{record_id(window.id, 'all', job.seed)}"
            yield Item(prefix + name, base | wanted | {"parts": parts})
        else:
            for style in fitting:
                wanted = {"kind": "qa", "style": style.name, "group": style.group,
                          "styles": [packed(style)], "parts": parts}  # fmt: skip
                slim = base | wanted | {"others": {}}
                name = f"q-{record_id(window.id, style.name, job.seed)}"
                yield Item(prefix + name, slim)


def _fitting(
    styles: Sequence[Style], window: Window, others: dict[str, list[str]], job: Job
) -> list[Style]:
    """Styles that fit a window, at most `per_window` of them, drawn by its id."""
    counts = Facts(window, others).counts
    fitting = [style for style in styles if style.fits(counts)]
    if job.per_window is None or len(fitting) <= job.per_window:
        return fitting
    ranked = sorted(fitting, key=lambda s: record_id(window.id, s.name, job.seed, "drawn"))
    drawn = set(s.name for s in ranked[: job.per_window])
    return [style for style in fitting if style.name in drawn]


def save(job: Job, plan: Plan, folder: Path) -> None:
    """Writes windows.jsonl and job.json, the latter last."""
    with storage.open_atomic(folder / WINDOWS) as file:
        for window in plan.windows:
            row = window.to_json() | {"id": window.id, "part": plan.parts[window.id]}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    storage.write_text(folder / JOB, json.dumps(job.to_json(), ensure_ascii=False, indent=1) + "\n")


def read_windows(folder: Path) -> dict[str, Window]:
    """Windows of a folder by id."""
    return {str(row["id"]): Window.from_json(row) for row in read(folder / WINDOWS)}


def differences(a: Job, b: Job) -> list[str]:
    """Names of the fields in which two jobs differ."""
    left, right = a.to_json(), b.to_json()
    return [name for name in left if left[name] != right[name]]


def heldout_texts(plan: Plan) -> list[str]:
    """Sentences of held-out articles, as one text each."""
    texts: dict[str, list[str]] = {}
    for window in plan.windows:
        if plan.parts[window.id] == "heldout_article":
            texts.setdefault(window.article, []).append(window.text)
    return ["\n".join(parts) for parts in texts.values()]
