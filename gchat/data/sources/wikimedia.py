"""Files of dumps.wikimedia.org: a finished dump by its date, fetched whole or in ranges, verified.

    /enwiki/                         lists the dates
    /enwiki/20261101/dumpstatus.json state of each job, and size and SHA-1 of each of its files

A broken answer goes on where it broke; 429 and 503 are waited out for as long as they ask.
WIKIMEDIA_DUMPS_URL names a mirror (https://dumps.wikimedia.org/mirrors.html).
"""

import contextlib
import dataclasses
import datetime
import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

from gaia import storage
from gaia.errors import ConfigError, DataError
from gchat.data.progress import progress_bar

HOST = "https://dumps.wikimedia.org"
TRIES = 6
WAIT_S = 1.0  # before the second attempt; doubles for each further one
LONGEST_WAIT_S = 300.0  # an answer that asks for more is a refusal
# https://foundation.wikimedia.org/wiki/Policy:Wikimedia_Foundation_User-Agent_Policy: a client says
# what it is, and library defaults are refused.
_AGENT = "gaia-gchat/0.1 (fetches dumps as text for language models) httpx2"
_TIMEOUT = httpx2.Timeout(60.0, connect=20.0)
_BLOCK = 1 << 20
_JOBS = ("articlesmultistreamdump", "articlesmultistreamdumprecombine")
_DATE = re.compile(r"\d{8}")


class _AgainError(Exception):
    """An answer after which another attempt makes sense."""

    def __init__(self, problem: str, wait_s: float | None = None) -> None:
        super().__init__(problem)
        self.wait_s = wait_s


class Missing(DataError):
    """The server has no such file."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of a dump, as its dumpstatus.json describes it."""

    path: str
    """On the server: /enwiki/20261101/NAME."""
    size: int
    sha1: str

    @property
    def name(self) -> str:
        """Without folders."""
        return self.path.rsplit("/", 1)[-1]


@dataclasses.dataclass(frozen=True)
class Dump:
    """A finished dump of the current articles of one wiki."""

    wiki: str
    date: str
    articles: File
    """Multistream: bz2 streams of 100 pages each, one behind the other."""
    index: File
    """A line `offset:page:title` for each page, the offset of the stream that holds it."""

    @property
    def folder(self) -> Path:
        """Keeps what was fetched of it."""
        return storage.home() / "wikipedia" / f"{self.wiki}-{self.date}"


def find(lang: str, date: str) -> Dump:
    """The dump of a language's Wikipedia.

    Args:
        lang: as in the address of the wiki: en, simple, zh-min-nan.
        date: YYYYMMDD, or "latest" for the newest one that is finished.

    Raises:
        ConfigError: no such language or date could be.
        DataError: the server has no such dump, does not answer, or the dump is not finished.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{1,30}", lang):
        raise ConfigError(f"lang = {lang!r} is no language of Wikipedia", "use e.g. en or de")
    if date != "latest" and not _DATE.fullmatch(date):
        raise ConfigError(f"date = {date!r} is no date of a dump", "use e.g. 20261101, or latest")
    wiki = f"{lang.replace('-', '_')}wiki"
    kept = storage.home() / "wikipedia" / f"{wiki}-{date}" / "dump.json"
    if date != "latest" and kept.exists():
        facts = json.loads(storage.read_text(kept))
        return Dump(wiki, date, File(**facts["articles"]), File(**facts["index"]))
    with Server() as server:
        dump = _dump(server, wiki, date) if date != "latest" else _latest(server, wiki)
    facts = {name: dataclasses.asdict(getattr(dump, name)) for name in ("articles", "index")}
    storage.write_text(dump.folder / "dump.json", json.dumps(facts, indent=1))
    return dump


def _latest(server: "Server", wiki: str) -> Dump:
    try:
        listing = server.text(f"/{wiki}/")
    except Missing as error:
        raise Missing(f"{server.host} has no wiki {wiki!r}", "check --lang") from error
    dates = sorted(set(re.findall(r'href="(?:[^"]*/)?(\d{8})/?"', listing)), reverse=True)
    for date in dates:
        with contextlib.suppress(DataError):
            return _dump(server, wiki, date)
    raise DataError(f"{server.host}/{wiki}/ has no finished dump", "give another --date or --lang")


def _dump(server: "Server", wiki: str, date: str) -> Dump:
    where = f"/{wiki}/{date}/dumpstatus.json"
    try:
        jobs = json.loads(server.text(where))["jobs"]
        # Large wikis are written in parts and joined by a second job.
        ready = [jobs[name] for name in _JOBS if jobs.get(name, {}).get("status") == "done"]
        files: dict[str, Any] = {}
        for job in ready:
            files |= job["files"]
        names = (
            f"{wiki}-{date}-pages-articles-multistream{end}.bz2" for end in (".xml", "-index.txt")
        )
        described = []
        for name in names:
            if name not in files:
                said = ", ".join(f"{n} is {jobs[n]['status']}" for n in _JOBS if n in jobs)
                raise DataError(
                    f"the dump {wiki} {date} has no {name} yet ({said or 'no such job'})",
                    "take an older --date",
                )
            fact = files[name]
            described.append(File(f"/{wiki}/{date}/{name}", int(fact["size"]), str(fact["sha1"])))
    except Missing as error:
        raise Missing(
            f"{server.host} has no dump {wiki} {date}", f"see {server.host}/{wiki}/ for its dates"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{server.host}{where} is damaged ({error})", "try again later") from error
    return Dump(wiki, date, *described)


class Server:
    """A connection to the server; a context manager."""

    def __init__(self) -> None:
        self.host = os.environ.get("WIKIMEDIA_DUMPS_URL", HOST).rstrip("/")
        self._client = httpx2.Client(
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=_TIMEOUT,
        )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def text(self, path: str) -> str:
        """A small file.

        Raises:
            Missing: the server has none.
            DataError: it does not answer.
        """

        def attempt() -> str:
            with self._asked(path) as answer:
                return answer.read().decode("utf-8", "replace")

        return self._tried(path, attempt)

    def range(self, file: File, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file; DataError where the server has another file there."""

        def attempt() -> bytes:
            with self._asked(file.path, start, end - 1) as answer:
                if answer.status_code != 206:
                    raise DataError(
                        f"{self.host} does not send ranges of {file.name}",
                        "use another mirror, or leave --titles out for the whole dump",
                    )
                _check_total(answer, file)
                body = answer.read()
            if len(body) != end - start:
                raise _AgainError(f"{len(body):,} bytes came instead of {end - start:,}")
            return body

        return self._tried(file.path, attempt)

    def whole(self, file: File, target: Path, moved: Callable[[int], object]) -> None:
        """A whole file at `target`, unless it is there; goes on with what came before.

        Args:
            moved: called with the number of bytes that are there anew.

        Raises:
            DataError: the server does not answer, or keeps sending other bytes than are published.
        """
        if target.exists():
            moved(file.size)
            return
        part = target.with_name(f".{target.name}.part")
        storage.make_folder(target.parent)
        for _ in range(2):  # a file with damaged bytes is worth a second attempt from its beginning
            had = part.stat().st_size if part.exists() else 0
            moved(had)
            digest = self._completed(file, part, moved)
            if digest == file.sha1:
                return os.replace(part, target)
            moved(-file.size)
            part.unlink()
        raise DataError(
            f"{file.name}: SHA-1 {digest[:12]}… is not the published {file.sha1[:12]}…, twice",
            "try again later, or use another mirror",
        )

    def _completed(self, file: File, part: Path, moved: Callable[[int], object]) -> str:
        """Appends what is missing to `part`; returns the SHA-1 of the whole."""

        def attempt() -> None:
            size = part.stat().st_size if part.exists() else 0
            if size >= file.size:
                return
            with self._asked(file.path, size or None) as answer, open(part, "ab") as out:
                if answer.status_code == 206:
                    _check_total(answer, file)
                elif size:  # it sends all of it
                    moved(-size)
                    out.truncate(0)
                for block in answer.iter_raw():  # a size would hold blocks back, and lose them
                    out.write(block)
                    moved(len(block))
            if (now := part.stat().st_size) < file.size:
                raise _AgainError(f"{now:,} of {file.size:,} bytes came")

        self._tried(file.path, attempt, lambda: part.stat().st_size if part.exists() else 0)
        digest = hashlib.sha1()
        with open(part, "rb") as stream, progress_bar("verify", file.size) as bar:
            while block := stream.read(_BLOCK):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()

    def _tried(
        self, path: str, attempt: Callable[[], Any], reached: Callable[[], int] = lambda: 0
    ) -> Any:
        """The result of an attempt; those that got further than the ones before do not count."""
        tries, furthest = 0, reached()
        while True:
            try:
                return attempt()
            except OSError as error:
                raise storage.StorageError(
                    f"cannot write what {path} holds ({error})",
                    "make room on the disk and run it again",
                ) from error
            except _AgainError as error:
                problem, wait_s = str(error), error.wait_s
            except httpx2.HTTPError as error:
                problem, wait_s = f"{type(error).__name__}: {error}", None
            tries = 1 if reached() > furthest else tries + 1
            furthest = max(furthest, reached())
            wait_s = WAIT_S * 2 ** (tries - 1) if wait_s is None else wait_s
            if tries >= TRIES or wait_s > LONGEST_WAIT_S:
                raise DataError(
                    f"{self.host}{path} could not be fetched in {tries} attempts ({problem})",
                    "try again later: what came is kept",
                )
            time.sleep(wait_s)

    @contextlib.contextmanager
    def _asked(
        self, path: str, start: int | None = None, last: int | None = None
    ) -> Iterator[httpx2.Response]:
        """The answer to a GET, its body unread; errors where it is none of 200 and 206."""
        span = "" if last is None else str(last)
        headers = {} if start is None else {"Range": f"bytes={start}-{span}"}
        with self._client.stream("GET", self.host + path, headers=headers) as answer:
            status = answer.status_code
            if status == 404:
                raise Missing(f"{self.host} has no {path}", "check the language and the date")
            if status == 429 or status >= 500:
                after = _seconds(answer.headers.get("Retry-After"))
                asked = "" if after is None else f", and asks to wait {after:,.0f} s"
                raise _AgainError(f"the server answered {status}{asked}", after)
            if status not in (200, 206):
                raise DataError(f"{self.host}{path}: the server answered {status}", "see its text")
            yield answer


def _check_total(answer: httpx2.Response, file: File) -> None:
    """DataError where the file on the server has another size than the published one."""
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if total != str(file.size):
        raise DataError(
            f"{file.name} has {total or 'an unknown number of'} bytes, dumpstatus.json says "
            f"{file.size}",
            "the mirror holds another file: use another one, or another --date",
        )


def _seconds(after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, which may be a date (RFC 9110, 10.2.3)."""
    if after is None:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(after))
    with contextlib.suppress(ValueError, TypeError):
        then = email.utils.parsedate_to_datetime(after)
        return max(0.0, (then - datetime.datetime.now(then.tzinfo)).total_seconds())
    return None
