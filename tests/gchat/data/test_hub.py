"""Data sets of the hub by address: listed, pinned, verified, and the same when it is away again."""

import io
import json

import hub as fake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaia.data.shards import verify
from gaia.errors import ConfigError, DataError, run_cli
from gchat.data import download
from gchat.data.sources import hub
from gchat.data.sources.unit import Tally

ADDRESS = "hf://org/set/data/en"


def parquet(first, count=20):
    file = io.BytesIO()
    texts = [f"document {first + i} with some words in it" for i in range(count)]
    pq.write_table(pa.table({"body": texts, "url": [f"http://{t[9:12]}" for t in texts]}), file)
    return file.getvalue()


@pytest.fixture
def service(monkeypatch, tmp_path):
    lines = "\n".join(json.dumps({"body": f"line {i} of more words"}) for i in range(20))
    files = {
        "data/en/b.parquet": parquet(100), "data/en/a.parquet": parquet(0),
        "data/en/c.jsonl": lines.encode(), "data/de/x.parquet": parquet(900),
        "data/en/README.md": b"read me",
    }  # fmt: skip
    with fake.serve(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(hub, "WAIT_S", 0.0)
        yield server


def run(tmp_path, *args, address=ADDRESS):
    given = [address, "--column", "body", "--tokenizer", "bpe", "--vocab-size", "300"]
    return run_cli("gchat", download.main, [*given, "--out", str(tmp_path / "out"), *args])


def test_the_files_of_a_folder_are_prepared_and_pinned(service, tmp_path, capsys):
    assert run(tmp_path, "-n", "2") == 0
    manifest = verify(tmp_path / "out")
    assert sum(manifest.documents.values()) == 40
    assert manifest.sources == (f"org/set@{fake.COMMIT} data/en: 2 of 3 files",)
    fetched = {p.rsplit("/", 1)[1] for m, p, _ in service.log if m == "GET" and "/resolve/" in p}
    assert fetched == {"a.parquet", "b.parquet"}
    assert not any("/resolve/main/" in path for _, path, _ in service.log)
    service.log.clear()  # again: nothing to do, and the hub is not even asked
    assert run(tmp_path, "-n", "2") == 0
    assert service.log == []


def test_flipped_bytes_are_fetched_again_and_text_can_be_discarded(service, tmp_path):
    service.flips = {"data/en/c.jsonl": 1}
    assert run(tmp_path, "-n", "-1", "--no-keep-text") == 0
    assert sum(verify(tmp_path / "out").documents.values()) == 60
    assert not [p for p in (tmp_path / "home").rglob("*") if p.suffix in (".parquet", ".jsonl")]


def test_documents_come_with_what_the_files_say_of_them(service, tmp_path):
    corpus = hub.corpus(ADDRESS, column="body", shards=1, cache=tmp_path)
    rows = list(corpus.units[0].read(Tally()))
    assert (len(rows), rows[3].meta) == (20, {"url": "http://3 w"})
    assert list(corpus.units[0].documents(Tally())) == [row.text for row in rows]


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        ("hf://org", ConfigError, r"'hf://org' is no data set .*fineweb"),
        ("hf://org/set/data/fr", DataError, "the hub does not list org/set data/fr"),
        ("hf://org/set/data/en/README.md", DataError, r"holds no \.parquet or \.jsonl file"),
    ],
)
def test_what_is_not_there_is_named(service, tmp_path, address, error, message):
    if address.endswith(".md"):
        service.files = {"data/en/README.md/x.md": b""}
    with pytest.raises(error, match=message):
        hub.corpus(address, cache=tmp_path)


def test_mistakes_are_one_line_and_leave_nothing(service, tmp_path, capsys, monkeypatch):
    assert run(tmp_path, "--column", "text") == 2
    assert "has no column 'text'; it has: body, url" in capsys.readouterr().err
    assert run(tmp_path, "-n", "0") == 2
    assert "shards = 0 is out of range" in capsys.readouterr().err
    assert run(tmp_path, "--revision", "gone") == 2
    assert "does not answer for org/set at 'gone'" in capsys.readouterr().err
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert run(tmp_path, address="fineweb") == 2
    assert "does not answer for HuggingFaceFW/fineweb" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
