"""`gchat synth show|styles|filter`: a record with all that made it, styles, filters on any file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from gaia.errors import ConfigError, DataError
from gchat.synth import contrasts, prompting, styles
from gchat.synth.filters import checks
from gchat.synth.filters.language import Profile
from gchat.synth.finishing import REJECTS, filters, reasons, through
from gchat.synth.planning import Job, read_windows
from gchat.synth.records import read
from gchat.synth.split import PARTS
from gchat.synth.styles import Style
from gchat.synth.windows import Window
from gchat.synth.writing import check_out, write_rows


@dataclass(frozen=True, kw_only=True)
class Show:
    """Print a record with its window, its prompt, its answer, and what was made beside it.

    gchat synth show 3f2a91c07b11d2e4 --out runs/records
    """

    id: tyro.conf.Positional[str]
    """Id of a record or reject, or its first characters; or id of a window (ARTICLE#NUMBER)."""
    out: Path
    """Folder of the generation."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        """Prints it; changes nothing."""
        job, windows = Job.read(self.out), read_windows(self.out)
        rows = [row for name in (*PARTS, REJECTS) for row in self._rows(name)]
        chosen = [row for row in rows if str(row.get("id", "")).startswith(self.id)]
        if self.id in windows:
            window, wanted = windows[self.id], None
        else:
            if len({row["id"] for row in chosen}) != 1:
                problem = "is the beginning of several ids" if chosen else "is no record of"
                raise DataError(f"{self.id!r} {problem} {self.out}", "give a whole id")
            wanted = chosen[0]
            place = wanted["source"]
            key = place.get("window") or f"{place['article']}#{place['number']}"
            window = windows.get(str(key)) or Window.from_json(place)
        beside = [r for r in rows if r["source"].get("window") == window.id and r is not wanted]
        if self.json:
            facts = {"window": window.to_json(), "record": wanted, "beside": beside,
                     "prompt": _prompt(job, window, wanted)}  # fmt: skip
            print(json.dumps(facts, ensure_ascii=False))
        else:
            _say(job, window, wanted, beside)

    def _rows(self, name: str) -> list[dict[str, Any]]:
        path = self.out / (name if name.endswith(".jsonl") else f"{name}.jsonl")
        if not path.exists():
            raise DataError(f"{path} is not there", "the generation has not finished: run it again")
        return list(read(path))


def _prompt(job: Job, window: Window, record: dict[str, Any] | None) -> list[dict[str, str]]:
    """Messages that the model was asked with, those of both calls where they were chained; none
    where templates wrote the record."""
    if record is None or record.get("model") == "offline" or "style" not in record:
        return []
    if record.get("kind") == "contrast":
        number = int(record["fact"].partition(":")[0]) - window.start
        right, wrong = record["choices"][:: -1 if record.get("order") == "wrong-first" else 1]
        style = contrasts.asking(window.sentences[number], right, wrong)
    else:
        style = Style.from_json(job.styles[record["style"]])
    settings = job.to_json()
    asked = [prompting.question(window, style, settings)]
    if job.chain and record.get("kind") != "contrast":
        asked = [prompting.question(window, style, settings, fields=("question",))]
        if "answer" in record or record.get("phase") == "form":  # the second call was made
            rest = tuple(name for name in prompting.fields_of(style) if name != "question")
            first = record["question"].partition("\n")[0]  # without the choices behind it
            asked.append(prompting.question(window, style, settings, fields=rest, asked=first))
    return [{"role": m.role, "content": m.content} for one in asked for m in one.messages]


def _say(
    job: Job, window: Window, record: dict[str, Any] | None, beside: list[dict[str, Any]]
) -> None:
    print(f"window {window.id}: {window.title or 'without a title'}, sentences "
          f"{window.start} to {window.start + len(window.sentences) - 1}")  # fmt: skip
    for sentence in window.sentences:
        print(f"  {sentence}")
    if record is not None:
        for message in _prompt(job, window, record):
            print(f"\nprompt, {message['role']}:\n  " + message["content"].replace("\n", "\n  "))
        print()
        for name, value in record.items():
            if name != "source":
                print(f"{name:>10}: {value}")
    print(f"\nof the same window: {len(beside)}")
    for row in beside:
        verdict = f"rejected ({row['filter']}: {row['why']})" if "filter" in row else row["split"]
        print(f"  {row['id']} {row.get('style', '-')}: {verdict}")
        print(f"    {row.get('question', '')!r} -> {row.get('answer', row.get('text', ''))!r}")


@dataclass(frozen=True, kw_only=True)
class Styles:
    """List prompt styles, or check files of your own.

    gchat synth styles
    gchat synth styles --style-files my-styles.yaml
    """

    style_files: tuple[str, ...] = ()
    """Files or folders of styles, in place of those that ship with gchat."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        """Prints each with its group, what a window must have, and what a model is asked."""
        listed = styles.load(self.style_files)
        if self.json:
            print(json.dumps({s.name: vars(s) for s in listed.values()}, ensure_ascii=False))
            return
        group = ""
        for style in listed.values():
            if style.group != group:
                group = style.group
                print(f"{group}:")
            needs = ", ".join(f"{name} {least}" for name, least in style.needs)
            print(f"  {style.name:18} {needs:14} {style.ask}")
        print(f"{len(listed)} styles")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Filter records of any origin: rows with a question and an answer, and a source text if known.

    gchat synth filter rows.jsonl --out good.jsonl --rejects bad.jsonl --decontaminate data/core
    """

    rows: tyro.conf.Positional[Path]
    """File of rows: "question", "answer", and as you like "snippet" (the text that must support the
    answer) and "choices"."""
    out: Path
    """File for the rows that pass."""
    rejects: Path
    """File for those that do not, each with its phase, filter and reason."""
    language: str = "en"
    """Language that every text must be in."""
    profile: Profile = "default"
    """Language filter: default, or seed (English and Chinese alone, confidence exactly 1.0)."""
    decontaminate: tuple[str, ...] = field(default=())
    """Files or folders of evaluation sets; rows that share 13 words in a row are dropped."""
    overwrite: bool = False
    """Replace --out and --rejects."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> None:
        """Writes both files and prints how many rows went, and why."""
        if len({p.resolve() for p in (self.out, self.rejects, self.rows)}) < 3:
            raise ConfigError("two of the files are one", "name three different files")
        for path in (self.out, self.rejects):
            check_out(path, overwrite=self.overwrite)
        settings = checks.Settings(self.language, self.profile)
        settings.check()
        kept, dropped = [], []
        for number, row in enumerate(read(self.rows), 1):
            record = _as_record(row, self.rows, number)
            problem = _problem(record, settings)
            if problem is None:
                kept.append(record)
            else:
                phase, (name, why) = problem
                dropped.append(record | {"phase": phase, "filter": name, "why": why})
        kept, more = through(kept, filters([], self.decontaminate))
        dropped += more
        if not kept:
            raise DataError(
                f"none of {len(dropped):,} rows passes ({next(iter(reasons(dropped)), 'no row')})",
                "check --language and --profile",
            )
        write_rows(self.out, kept)
        if dropped:
            write_rows(self.rejects, dropped)
        counted = dict(reasons(dropped).most_common())
        if self.json:
            print(json.dumps({"kept": len(kept), "rejects": counted}))
            return
        for name, count in counted.items():
            print(f"{count:8,} {name}")
        print(f"{self.out}: {len(kept):,} of {len(kept) + len(dropped):,} rows")


def _as_record(row: dict[str, Any], path: Path, number: int) -> dict[str, Any]:
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str):
            raise DataError(f"{path} row {number} has no {name}", 'write "question" and "answer"')
    source, choices = row.get("source", {"article": "", "window": ""}), row.get("choices", [])
    if not isinstance(source, dict) or not {"article", "window"} <= source.keys():
        raise DataError(
            f"{path} row {number}: source is {str(source)[:60]!r}",
            "rename the field, or write an object with article and window",
        )
    if not isinstance(choices, list):
        raise DataError(f"{path} row {number}: choices is {choices!r}", "write a list of texts")
    base = {"kind": "qa", "split": "train", "source": {"article": "", "window": str(number)}}
    return base | row


def _problem(
    record: dict[str, Any], settings: checks.Settings
) -> tuple[str, tuple[str, str]] | None:
    if "snippet" in record:
        return checks.of_record(record, str(record["snippet"]), settings)
    for name, text in checks.texts(record):
        if reason := checks.of_text(text, name, settings):
            return name, reason
    return None
