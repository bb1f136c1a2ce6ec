"""Downloads from a fake hub over loopback: pinned, verified, and through faults."""

import io

import hub as fake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaia.data.shards import verify
from gaia.errors import ConfigError, DataError, run_cli
from gchat.data import download
from gchat.data.sources import climbmix
from gchat.data.sources import hub as sources_hub
from gchat.data.sources.unit import Tally

VAL = "shard_06542.parquet"


def shard(index: int, count: int = 40) -> bytes:
    # Incompressible on purpose: the client only resumes what is longer than its buffer.
    rng = np.random.default_rng(index)
    texts = [f"shard {index} text {i} " + rng.bytes(200).hex() for i in range(count)]
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=16)
    return file.getvalue()


@pytest.fixture
def hub(monkeypatch, tmp_path):
    files = {climbmix.shard_name(i): shard(i) for i in range(3)} | {VAL: shard(6542, 5)}
    with fake.serve(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(sources_hub, "WAIT_S", 0.0)
        yield server


def run(tmp_path, *args):
    """`python -m gchat.data.download`; its exit status."""
    given = ["-n", "2", "--tokenizer", "bpe", "--vocab-size", "300", "--out", str(tmp_path / "out")]
    return run_cli("gchat", download.main, [*given, *args])


def test_the_command_downloads_and_tokenizes(hub, tmp_path, capsys):
    assert run(tmp_path) == 0
    manifest = verify(tmp_path / "out")
    assert manifest.documents == {"train": 80, "val": 5}
    assert fake.COMMIT in manifest.sources[0]
    assert "tokens across 1 shard (" in capsys.readouterr().out
    gets = [path for method, path, _ in hub.log if method == "GET" and "/resolve/" in path]
    fetched = {path.rsplit("/", 1)[1] for path in gets}
    assert fetched == {climbmix.shard_name(0), climbmix.shard_name(1), VAL}
    # Everything but the first look at the branch asks for the commit.
    assert sum("/main/" in path for _, path, _ in hub.log) == 1

    hub.log.clear()  # again: nothing to do, and the hub is not even asked
    assert run(tmp_path) == 0
    assert hub.log == []


def test_a_flipped_byte_is_fetched_again(hub, tmp_path):
    hub.flips = {climbmix.shard_name(0): 1}
    assert run(tmp_path) == 0
    gets = [path for method, path, _ in hub.log if method == "GET" and "00000" in path]
    assert len(gets) == 2
    assert verify(tmp_path / "out").documents["train"] == 80


def test_a_hub_that_keeps_sending_damage_is_refused(hub, tmp_path, capsys):
    hub.flips = {climbmix.shard_name(1): 99}
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert "shard_00001.parquet could not be downloaded in 5 attempts (sha256" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "manifest.json").exists()
    hub.flips.clear()
    assert run(tmp_path) == 0


def test_a_cut_connection_is_continued(hub, tmp_path, monkeypatch):
    name = climbmix.shard_name(0)
    hub.files[name] = np.random.default_rng(0).bytes(30_000_000)
    hub.cuts = {name: 1}
    path = sources_hub.fetch(climbmix.REPOSITORY, name, fake.COMMIT, tmp_path)
    assert path.read_bytes() == hub.files[name]
    ranges = [asked for method, _, asked in hub.log if method == "GET"]
    assert ranges[0] is None and int(ranges[1].split("=")[1].rstrip("-")) >= 10_000_000


def test_the_text_can_be_discarded(hub, tmp_path):
    assert run(tmp_path, "--no-keep-text") == 0
    assert not list((tmp_path / "home").rglob("*.parquet"))


def test_documents_come_in_order(hub, tmp_path):
    corpus = climbmix.corpus(2, cache=tmp_path)
    assert [unit.split for unit in corpus.units] == ["train", "train", "val"]
    documents = [d for unit in corpus.units for d in unit.documents(Tally())]
    assert [d.split()[1] for d in documents] == ["0"] * 40 + ["1"] * 40 + ["6542"] * 5


def test_what_cannot_work_is_refused(hub, tmp_path, capsys):
    with pytest.raises(ConfigError, match="shards = 0 is out of range"):
        climbmix.corpus(0)
    with pytest.raises(DataError, match=r"has no shard_00007\.parquet"):
        sources_hub.fetch(climbmix.REPOSITORY, climbmix.shard_name(7), fake.COMMIT, tmp_path)


def test_no_network_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    assert run(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("gchat: the hub does not answer") and error.count("\n") == 1
    assert "--source docs" in error
    assert not (tmp_path / "out").exists()
