"""Wikipedia by language, date and titles: ranges, redirects, faults, kill -9 (loopback)."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wikimedia as fake

from gaia.data.loader import iter_documents
from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError, DataError, run_cli
from gchat.data import download
from gchat.data.sources import mediawiki, wikimedia, wikipedia
from gchat.data.sources.unit import Tally
from gchat.tokenizer import Tokenizer

pytest.importorskip("mwparserfromhell", reason="needs the extra wiki")

DATE = "20261101"
ARTICLES = f"enwiki-{DATE}-pages-articles-multistream.xml.bz2"
INDEX = f"enwiki-{DATE}-pages-articles-multistream-index.txt.bz2"


def prose(name, words=60):
    """Text that bz2 cannot make small."""
    made = random.Random(name)
    return " ".join(f"{made.getrandbits(40):x}" for _ in range(words)) + f" about {name}."


PAGES = [
    (10, "D-Day", "'''D-Day''' was a [[landing]]. [[File:x.jpg|thumb|gone]]"),
    (11, "Invasion of Normandy", "#REDIRECT [[D-Day]]", 0, "D-Day"),
    (12, "Overlord", "#REDIRECT [[Invasion of Normandy]]", 0, "Invasion of Normandy"),
    (13, "AT&T", "A company of telephones."),
    (14, "Talk:D-Day", "chatter", 1),
    (15, "Empty", ""),
    *((100 + i, f"Filler {i}", prose(f"filler {i}")) for i in range(30)),
    (400, "Berlin", "A city. [[Category:Cities]]"),
    (401, "Paris", "Another city."),
]


@pytest.fixture
def dumps(monkeypatch, tmp_path):
    with fake.serve() as server:
        server.add("enwiki", DATE, PAGES)
        monkeypatch.setenv("WIKIMEDIA_DUMPS_URL", server.url)
        monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(wikimedia, "WAIT_S", 0.0)
        yield server


def texts(corpus):
    return [row.text for unit in corpus.units for row in unit.read(Tally())]


def run(tmp_path, *args):
    given = ["wikipedia", "--tokenizer", "bpe", "--vocab-size", "300", "--workers", "1"]
    return run_cli("gchat", download.main, [*given, "--out", str(tmp_path / "out"), *args])


def test_only_the_streams_of_the_titles_are_fetched(dumps, tmp_path, capsys):
    titles = tmp_path / "titles.txt"
    names = [
        "d-Day",
        "Overlord",
        "Invasion_of_Normandy",
        "AT&T",
        "Talk:D-Day",
        "Empty",
        "Nobody",
        "Paris",
    ]
    titles.write_text("\n".join(names))
    assert run(tmp_path, "--titles", str(titles), "--json") == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert (facts["revision"], sum(facts["documents"].values())) == (DATE, 3)
    assert "3 articles in 3 streams, 1 of them through redirects" in err
    assert "1 titles are not in the dump: Nobody" in err
    assert "no article at once: Overlord -> Invasion of Normandy" in err
    assert "2 titles are no articles: Empty, Talk:D-Day" in err
    folder = tmp_path / "out"
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    written = {
        tokenizer.decode(d[1:].tolist())
        for s in ("train", "val")
        for d in iter_documents(folder, s)
    }
    assert written == {
        "D-Day\n\nD-Day was a landing.",
        "AT&T\n\nA company of telephones.",
        "Paris\n\nAnother city.",
    }
    asked = [span for path, span in dumps.log if path.endswith(ARTICLES)]
    size = len(dumps.files[f"/enwiki/{DATE}/{ARTICLES}"])
    spans = [[int(x) for x in span.removeprefix("bytes=").split("-")] for span in asked]
    assert sum(end - start + 1 for start, end in spans) < size / 3
    dumps.log.clear()  # again: it is all there, so "latest" is the one of before
    dumps.add("enwiki", "20261201", PAGES)
    assert run(tmp_path, "--titles", str(titles), "--json") == 0
    assert dumps.log == []


def test_a_redirect_alone_gives_its_target(dumps, capsys):
    dumps.add("enwiki", DATE, [*PAGES, (402, "Paname", "#REDIRECT [[Paris#City]]", 0, "Paris")])
    assert texts(wikipedia.corpus("en", titles="Paname|Invasion of Normandy")) == [
        "D-Day\n\nD-Day was a landing.",
        "Paris\n\nAnother city.",
    ]
    assert "2 articles in 2 streams, 2 of them through redirects" in capsys.readouterr().err


def test_a_whole_dump_is_what_the_mediawiki_source_reads_of_it(dumps, tmp_path, monkeypatch):
    monkeypatch.setattr(wikipedia, "SPAN_BYTES", 3000)
    corpus = wikipedia.corpus("en")
    assert len(corpus.units) > 3
    assert not any(path.endswith(ARTICLES) for path, _ in dumps.log)  # not before it is read
    file = tmp_path / "whole.xml.bz2"
    file.write_bytes(dumps.files[f"/enwiki/{DATE}/{ARTICLES}"])
    assert texts(corpus) == texts(mediawiki.corpus(str(file)))
    assert len(texts(corpus)) == 34


def test_latest_is_the_newest_dump_that_is_finished(dumps):
    dumps.add("enwiki", "20261120", PAGES, done=False)
    dumps.add("enwiki", "20261110", PAGES, recombined=True)
    assert wikimedia.find("en", "latest").date == "20261110"
    with pytest.raises(DataError, match=r"20261120 has no .* is in-progress"):
        wikimedia.find("en", "20261120")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lang", "xx"], "has no wiki 'xxwiki'"),
        (["--lang", "../x"], "lang = '../x' is no language"),
        (["--date", "20200101"], "has no dump enwiki 20200101"),
        (["--date", "yesterday"], "date = 'yesterday' is no date"),
        (["--titles", "Nobody|No one"], "none of the titles"),
        (["-n", "3"], "shards = 3 does not go with wikipedia"),
        (["--no-keep-text"], "keep_text = False does not go"),
    ],
)
def test_what_is_not_there_is_one_line(dumps, tmp_path, capsys, args, message):
    assert run(tmp_path, *args) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_titles_and_dates_are_for_wikipedia_alone(tmp_path, capsys):
    assert run_cli("gchat", download.main, ["climbmix", "--titles", "x"]) == 2
    assert "titles = 'x' does not go with climbmix" in capsys.readouterr().err


@pytest.mark.parametrize("after", ["0", None, "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_an_answer_that_is_refused_or_broken_goes_on(dumps, after):
    dumps.refuse = [(503, after), (429, after), (503, None)]
    dumps.cuts = {ARTICLES: 3, INDEX: 2}
    assert len(texts(wikipedia.corpus("en", titles="D-Day|Paris|Filler 7"))) == 3
    dumps.cuts = {ARTICLES: 3}
    dumps.log.clear()
    assert len(texts(wikipedia.corpus("en"))) == 34
    starts = [span for path, span in dumps.log if path.endswith(ARTICLES)]
    assert starts[0] is None and all(starts[1:])


def test_the_server_decides_how_long_to_wait(dumps, monkeypatch):
    waited = []
    monkeypatch.setattr(wikimedia.time, "sleep", waited.append)
    dumps.refuse = [(429, "7"), (503, "0.5")]
    wikimedia.find("en", DATE)
    assert waited == [7.0, 0.5]
    dumps.refuse = [(429, "86400")]
    with pytest.raises(DataError, match="answered 429, and asks to wait 86,400 s"):
        wikimedia.find("en", "latest")
    dumps.refuse = [(503, None)] * 20
    with pytest.raises(DataError, match="could not be fetched in 6 attempts"):
        wikimedia.find("en", "latest")


def test_damaged_bytes_are_fetched_again_once_then_refused(dumps):
    dumps.flips = {ARTICLES: 1, INDEX: 1}
    assert len(texts(wikipedia.corpus("en", titles="D-Day|Paris"))) == 2
    dumps.flips = {ARTICLES: 9}
    with pytest.raises(DataError, match="no sound bz2, twice"):
        wikipedia.corpus("en", titles="Filler 3")
    with pytest.raises(DataError, match=r"SHA-1 .* is not the published .*, twice"):
        texts(wikipedia.corpus("en"))
    folder = wikimedia.find("en", DATE).folder
    assert not (folder / ARTICLES).exists()


def test_a_mirror_with_another_file_is_refused(dumps):
    wikipedia.corpus("en", titles="Berlin")
    dumps.files[f"/enwiki/{DATE}/{ARTICLES}"] += b"more"
    with pytest.raises(DataError, match=r"has \d+ bytes, dumpstatus.json says"):
        wikipedia.corpus("en", titles="D-Day")
    dumps.ranges = False
    with pytest.raises(DataError, match="does not send ranges"):
        wikipedia.corpus("en", titles="D-Day")


def test_categories_need_a_whole_dump(dumps):
    with pytest.raises(ConfigError, match="categories do not go"):
        wikipedia.check_options({"categories": "Cities", "keep_text": True})


def test_the_commands_of_the_documentation_run_as_they_are_written(dumps, tmp_path, monkeypatch):
    page = Path(__file__).parents[3] / "docs" / "data.md"
    lines = [line for line in page.read_text().splitlines() if line.startswith("gchat data downl")]
    commands = [shlex.split(line)[3:] for line in lines if " wikipedia " in line]
    assert len(commands) == 2
    monkeypatch.chdir(tmp_path)
    extra = [(500, "Normandy landings", prose("landings"))]
    dumps.add("enwiki", DATE, [*PAGES, *extra])
    dumps.add("simplewiki", DATE, PAGES)
    for command in commands:
        assert run_cli("gchat", download.main, command) == 0
    counted = [sum(load_manifest(f"data/{name}").documents.values()) for name in ("dday", "simple")]
    assert counted == [2, 34]


def test_a_killed_download_goes_on_where_it_was(dumps, tmp_path):
    filler = [(500 + i, f"Book {i}", prose(f"book {i}", 4000)) for i in range(12)]
    dumps.add("enwiki", DATE, PAGES + filler)
    dumps.slow_s = {ARTICLES: 0.02}
    command = [
        sys.executable, "-m", "gchat.data.download", "wikipedia", "--tokenizer", "bpe",
        "--vocab-size", "300", "--workers", "1", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    running = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    part = tmp_path / "home" / "wikipedia" / f"enwiki-{DATE}" / f".{ARTICLES}.part"
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 50_000):
        assert time.monotonic() < end and running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    had = part.stat().st_size
    assert not (tmp_path / "out" / "manifest.json").exists()
    dumps.slow_s, dumps.log = {}, []
    assert run(tmp_path) == 0
    assert [span for path, span in dumps.log if path.endswith(ARTICLES)] == [f"bytes={had}-"]
    assert sum(load_manifest(tmp_path / "out").documents.values()) == 34 + 12
