"""Replays inputs that once failed: `python tests/replay_data_cases.py DIR` prints a table.

DIR holds the inputs and a README.md with one line for each, "- `name`: what happened". Each input
is given to the command its line names, as a user gives it; the table says what happens now. Ends
with 1 where something is not as it should be, or a line has no check here.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from gaia.data.loader import iter_documents
from gchat.__main__ import main
from gchat.data.sources import files
from gchat.data.sources.unit import Tally
from gchat.tokenizer import Tokenizer

_LINE = re.compile(r"- `([^`]+)`[^:]*: (.*)")
_LINE_BY_NAME = re.compile(r"- ([\w.-]+)(?: \([^)]*\))?: (.*)")
_LINKS = ("linked/more", "loop/real/loop")  # a copy may hold them as files with their targets


class Outcome(NamedTuple):
    """One command: exit status and output."""

    status: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line of the error output."""
        return (self.err.strip().splitlines() or [""])[-1]


class Place:
    """A copy of the inputs, and the commands on it."""

    def __init__(self, inputs: Path, folder: Path) -> None:
        self.inputs, self.folder = inputs, folder
        self._number = 0

    def new(self) -> Path:
        """A folder that is not there yet."""
        self._number += 1
        return self.folder / f"out-{self._number}"

    def run(self, *args: str | Path) -> Outcome:
        """One gchat command in this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main([str(arg) for arg in args])
        return Outcome(status, out.getvalue(), err.getvalue())

    def prepared(self, given: str, *more: str | Path) -> tuple[Outcome, list[str]]:
        """`data prepare` of an input; its documents where that succeeds."""
        out = self.new()
        done = self.run(
            "data", "prepare", "--input", self.inputs / given, "--out", out, "--tokenizer", "bpe",
            "--vocab-size", "300", "--workers", "1", "--val-fraction", "0.2", *more,
        )  # fmt: skip
        return done, [] if done.status else documents(out)

    def curated(self, given: str, *more: str | Path) -> tuple[Outcome, list[str]]:
        """`data curate` of an input; the texts it keeps where that succeeds."""
        out = self.new()
        args = ("data", "curate", "--input", self.inputs / given, "--out", out, "--workers", "1")
        done = self.run(*args, *more)
        return done, [] if done.status else kept(out)


def documents(folder: Path) -> list[str]:
    """Texts of a data set."""
    tokenizer = Tokenizer.load(folder)
    every = [d for split in ("train", "val") for d in iter_documents(folder, split)]
    return sorted(tokenizer.decode(ids[1:].tolist()) for ids in every)


def kept(folder: Path) -> list[str]:
    """Texts that a curation kept."""
    parts = sorted(folder.glob("part-*.jsonl.zst"))
    lines = [line for part in parts for line in files.lines(part, Tally()) if line]
    return sorted(json.loads(line)["text"] for line in lines)


Check = Callable[[Place], tuple[str, bool]]


def _documents_case(given: str, count: int, *more: str) -> Check:
    def check(place: Place) -> tuple[str, bool]:
        done, texts = place.prepared(given, *more)
        said = f"rc {done.status}, {len(texts)} documents"
        return (said if not done.status else done.last), len(texts) == count

    return check


def _deep_nesting(place: Place) -> tuple[str, bool]:
    done, _ = place.prepared("deep-nesting.jsonl")
    refused = done.status == 2 and "nested too deeply" in done.last
    again, texts = place.prepared("deep-nesting.jsonl", "--max-bad", "1")
    return f"{done.last}; with --max-bad 1: {len(texts)} documents", refused and not again.status


def _surrogate(place: Place) -> tuple[str, bool]:
    done, texts = place.curated("surrogate-title.jsonl", "--rules", "web")
    return f"rc {done.status}, {len(texts)} kept", not done.status and len(texts) >= 1


def _null(place: Place) -> tuple[str, bool]:
    done, texts = place.prepared("null-text.jsonl")
    return f"{len(texts)} documents; {done.err.strip()}", len(texts) == 8 and "null" in done.err


def _whitespace(place: Place) -> tuple[str, bool]:
    done, texts = place.prepared("whitespace-1M.jsonl.zst")
    longest = max(map(len, texts), default=0)
    said = f"rc {done.status}, {len(texts)} documents, the longest of {longest:,} characters"
    return said, longest >= 999_999


def _br(place: Place) -> tuple[str, bool]:
    _, texts = place.prepared("br-glue.xml", "--source", "mediawiki")
    text = texts[0] if texts else ""
    good = re.search(r"First line\s+second line\s+third, 10\^3 and print\(\) end", text)
    return repr(text[4:60]), bool(good)


def _german(place: Place) -> tuple[str, bool]:
    _, texts = place.prepared("de.xml", "--source", "mediawiki")
    text = texts[0] if texts else ""
    left = [word for word in ("mini", "Kategorie", "fr:") if word in text]
    return repr(text[4:40]), bool(text) and not left


def _latin1_titles(place: Place) -> tuple[str, bool]:
    titles = place.inputs / "titles-latin1.txt"
    done, _ = place.prepared("de.xml", "--source", "mediawiki", "--titles", titles)
    return done.last, done.status == 2 and "line 1 is not UTF-8" in done.last


def _bom_terms(place: Place) -> tuple[str, bool]:
    text = place.folder / "terms-text.txt"
    text.write_text("At Pearl Harbor on D-Day there was a harbor full of pearls. " * 50)
    out = place.new()
    terms = place.inputs / "terms-bom.txt"
    args = ("--input", text, "--out", out, "--vocab-size", "400", "--forced-terms", terms)
    done = place.run("tokenizer", "train", *args)
    ids = Tokenizer.load(out).encode("Pearl Harbor") if not done.status else []
    return f"rc {done.status}, Pearl Harbor is {len(ids)} token", len(ids) == 1


def _languages(place: Place) -> tuple[str, bool]:
    wanted = ["es", "pt", "pl", "sv", "ja", "tr"]
    options = ("--rules", "web", "--web.languages", *wanted, "--duplicates.no-near")
    done, texts = place.curated("language-iso3.jsonl", *options)
    lines = (place.inputs / "language-iso3.jsonl").read_text().splitlines()
    of = {row["text"]: row["language"] for row in map(json.loads, lines)}
    langs = sorted(of[text] for text in texts)
    good = "est_Latn" not in langs and len(langs) == sum(v != "est_Latn" for v in of.values())
    return f"kept: {', '.join(langs)}" if not done.status else done.last, good


def _cp1252(place: Place) -> tuple[str, bool]:
    done, texts = place.prepared("cp1252.txt")
    said = done.err.strip().splitlines()
    named = any("invalid UTF-8" in line and "cp1252.txt" in line for line in said)
    return f"rc {done.status}; {' '.join(said)}", named and bool(texts)


def _linked(place: Place) -> tuple[str, bool]:
    done, texts = place.prepared("linked")
    return f"rc {done.status}, {len(texts)} documents", len(texts) == 12


def _hidden(given: str) -> Check:
    def check(place: Place) -> tuple[str, bool]:
        done, texts = place.prepared(given)
        said = f"{len(texts)} documents; {done.err.strip()}"
        return said, len(texts) == 8 and "1 hidden" in done.err

    return check


def _text(place: Place) -> Path:
    path = place.folder / "mine" / "a.jsonl"
    path.parent.mkdir(exist_ok=True)
    texts = [f"document {i} with some words of its own number {i * i}" for i in range(30)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def _out_has_tokenizer(place: Place) -> tuple[str, bool]:
    text, out = _text(place), place.new()
    place.run("tokenizer", "train", "--input", text, "--out", out, "--vocab-size", "300")
    done = place.run("data", "prepare", "--input", text, "--out", out, "--tokenizer", "gpt2")
    good = done.status == 2 and "holds another tokenizer" in done.last
    return done.last, good and (out / "tokenizer.json").is_file()


def _failure_deletes(place: Place) -> tuple[str, bool]:
    text, out = _text(place), place.new()
    place.run("tokenizer", "train", "--input", text, "--out", out, "--vocab-size", "300")
    (out / "report.pdf").write_text("mine")
    bad = place.folder / "bad.jsonl"
    bad.write_text('{"text": "one"}\n{broken\n')
    statuses = [
        place.run("data", "prepare", "--input", bad, "--out", out, "--tokenizer", out).status,
        place.run("data", "curate", "--input", bad, "--out", out, "--rules", "web").status,
    ]
    left = sorted(path.name for path in out.iterdir())
    return f"rc {statuses}, left: {', '.join(left)}", left == ["report.pdf", "tokenizer.json"]


def _curated_folder(place: Place) -> tuple[str, bool]:
    question = "how many eggs does the farmer sell at the market each day in the week after easter"
    lines = [{"text": f"text number {i} about the weather of day {i}"} for i in range(20)]
    text, evals = place.folder / "with-question.jsonl", place.folder / "evals"
    evals.mkdir(exist_ok=True)
    (evals / "test.jsonl").write_text(json.dumps({"question": question}) + "\n")
    text.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"text": question}]))
    clean = place.new()
    args = ("--input", text, "--out", clean, "--rules", "web", "--decontaminate", evals)
    done = place.run("data", "curate", *args, "--workers", "1")
    if done.status:
        return done.last, False
    _, texts = place.prepared(str(clean))
    held = [each for each in texts if "eggs" in each]
    return f"{len(texts)} documents, {len(held)} with the question", bool(texts) and not held


def _chain(place: Place) -> tuple[str, bool]:
    done, texts = place.curated("chain.jsonl", "--rules", "web")
    count = len((place.inputs / "chain.jsonl").read_text().splitlines())
    return f"rc {done.status}, {len(texts)} of {count} kept", 1 < len(texts) < count


CHECKS: dict[str, Check] = {
    "deep-nesting.jsonl": _deep_nesting,
    "surrogate-title.jsonl": _surrogate,
    "null-text.jsonl": _null,
    "long31.jsonl.zst": _documents_case("long31.jsonl.zst", 8),
    "whitespace-1M.jsonl.zst": _whitespace,
    "enwiki [2020].xml": _documents_case("enwiki [2020].xml", 4, "--source", "mediawiki"),
    "br-glue.xml": _br,
    "de.xml": _german,
    "titles-latin1.txt": _latin1_titles,
    "terms-bom.txt": _bom_terms,
    "language-iso3.jsonl": _languages,
    "cp1252.txt": _cp1252,
    "dictionary.parquet": _documents_case("dictionary.parquet", 8),
    "loop/": _documents_case("loop/**/*.jsonl", 8),
    "linked/": _linked,
    "mac/": _hidden("mac"),
    "jupyter/": _hidden("jupyter"),
    "out-has-tokenizer": _out_has_tokenizer,
    "failure-deletes": _failure_deletes,
    "curated-folder": _curated_folder,
    "chain.jsonl": _chain,
}


class Row(NamedTuple):
    """One case: what its README line says, what happens now, and whether that is right."""

    case: str
    before: str
    now: str
    ok: bool


def replay(given: Path) -> Iterator[Row]:
    """Runs every case that the README of a folder names."""
    lines = (given / "README.md").read_text(encoding="utf-8").splitlines()
    matches = (_LINE.match(line) or _LINE_BY_NAME.match(line) for line in lines)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = shutil.copytree(given, Path(scratch) / "inputs", symlinks=True)
        for path in [inputs, *inputs.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
        for name in _LINKS:
            link = inputs / name
            if link.is_file() and not link.is_symlink():
                target = link.read_text().strip()
                link.unlink()
                link.symlink_to(target)
        place = Place(inputs, Path(scratch))
        for case, before in (match.groups() for match in matches if match):
            check = CHECKS.get(case)
            now, ok = check(place) if check else ("no check for it", False)
            now = now.replace(str(inputs) + "/", "").replace(scratch + "/", "")
            yield Row(case, before, " ".join(now.split()), ok)


def table(given: Path) -> int:
    """Prints the table, row by row; returns the exit status."""
    print("| case | before | now | ok |\n|---|---|---|---|")
    failed = 0
    for row in replay(given):
        cells = [text.replace("|", "\\|")[:160] for text in (row.case, row.before, row.now)]
        print(f"| {' | '.join(cells)} | {'yes' if row.ok else 'NO'} |", flush=True)
        failed += not row.ok
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "README.md").is_file():
        sys.exit(f"usage: python {os.path.relpath(__file__)} DIR (of cases, with a README.md)")
    sys.exit(table(Path(sys.argv[1])))
