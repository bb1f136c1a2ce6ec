"""Documents with generations: a folder and a bucket keep the same contract."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from gml.config import load
from gml.documents import NEW, Conflict, FolderDocuments, open_documents
from gml.errors import UsageError
from gml.model import Node
from gml.store import Store
from tests.fakes.supervised import MemoryDocuments


@pytest.fixture(params=["folder", "bucket", "memory"])
def documents(request, server, home, tmp_path):
    if request.param == "memory":
        return MemoryDocuments()  # what other tests use has to keep the contract too
    state = str(tmp_path / "state") if request.param == "folder" else "gs://here/some/where"
    with (home / "config.toml").open("a") as file:
        file.write(f'\n[supervisor]\nstate = "{state}"\n')
    return open_documents(load())


def test_a_write_names_the_generation_that_it_replaces(documents):
    assert documents.read("queues/a") is None and documents.names("queues") == []
    first = documents.write("queues/a", {"n": 1}, NEW)
    assert documents.read("queues/a") == ({"n": 1}, first)
    with pytest.raises(Conflict):
        documents.write("queues/a", {"n": 9}, NEW)
    second = documents.write("queues/a", {"n": 2}, first)
    assert second != first
    with pytest.raises(Conflict):
        documents.write("queues/a", {"n": 9}, first)
    with pytest.raises(Conflict):
        documents.delete("queues/a", first)
    assert documents.read("queues/a") == ({"n": 2}, second)
    documents.delete("queues/a", second)
    documents.delete("queues/a", second)  # gone already: no error
    # One that was deleted and made again is another one.
    third = documents.write("queues/a", {"n": 3}, NEW)
    assert third not in (first, second)


def test_names_are_those_below_the_folder_alone(documents):
    for name in ("code/q/b", "code/q/a", "code/qq/c", "queues/q"):
        documents.write(name, {}, NEW)
    assert documents.names("code/q") == ["code/q/a", "code/q/b"]
    assert documents.names("code") == ["code/q/a", "code/q/b", "code/qq/c"]
    assert documents.names("logs") == []


def test_of_many_writers_each_change_is_kept(documents):
    documents.write("n", {"n": 0}, NEW)

    def add() -> None:
        done = 0
        while done < 5:
            value, generation = documents.read("n")
            try:
                documents.write("n", {"n": value["n"] + 1}, generation)
                done += 1
            except Conflict:
                continue

    threads = [threading.Thread(target=add) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert documents.read("n")[0] == {"n": 15}


def bucket_of(home):
    with (home / "config.toml").open("a") as file:
        file.write('\n[supervisor]\nstate = "gs://here/p"\n')
    return open_documents(load())


def test_a_write_whose_answer_got_lost_is_ours_all_the_same(cloud, home):
    documents = bucket_of(home)
    first = documents.write("a", {"n": 1}, NEW)
    count = len(cloud.log)
    cloud.faults = lambda call: ("drop", "after") if call.number == count else None
    second = documents.write("a", {"n": 2}, first)
    assert documents.read("a") == ({"n": 2}, second)


def test_a_bucket_lists_all_its_pages(cloud, home):
    documents = bucket_of(home)
    cloud.page_size = 2
    for number in range(5):
        documents.write(f"queues/q{number}", {}, NEW)
    assert documents.names("queues") == [f"queues/q{n}" for n in range(5)]


def test_what_can_not_be_a_place_or_a_name_is_said(home, tmp_path):
    with (home / "config.toml").open("a") as file:
        file.write('\n[supervisor]\nstate = "some/where"\n')
    with pytest.raises(UsageError, match="neither gs://BUCKET/PATH nor an absolute folder"):
        open_documents(load())
    documents = FolderDocuments(tmp_path)
    for name in ("../a", "/a", "A", "a//b", ""):
        with pytest.raises(UsageError, match="is not usable"):
            documents.read(name)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UsageError, match="is damaged"):
        documents.read("a")


def test_files_are_private(tmp_path):
    documents = FolderDocuments(tmp_path / "s")
    documents.write("queues/a", {}, NEW)
    modes = {p: p.stat().st_mode & 0o077 for p in (tmp_path / "s").rglob("*")}
    assert set(modes.values()) == {0}


def nearly_full(monkeypatch, room: int) -> None:
    """The disk takes so many bytes, seven at a time, and refuses the next ones."""
    write, left = os.write, room

    def short(handle: int, data: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(handle, data[: min(7, left)])
        left -= done
        return done

    monkeypatch.setattr(os, "write", short)


def test_a_disk_that_takes_a_part_keeps_the_old_document(tmp_path, monkeypatch):
    documents = FolderDocuments(tmp_path / "shared")
    first = documents.write("queues/night", {"jobs": ["x" * 100]}, NEW)
    with monkeypatch.context() as patch:
        nearly_full(patch, 10_000)
        first = documents.write("queues/night", {"jobs": ["y" * 100]}, first)
    with monkeypatch.context() as patch:
        nearly_full(patch, 50)
        with pytest.raises(OSError, match="No space"):
            documents.write("queues/night", {"jobs": ["z" * 100]}, first)
    assert documents.read("queues/night") == ({"jobs": ["y" * 100]}, first)
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".tmp")]


def test_a_full_disk_leaves_the_cost_history_whole_and_the_record_in_place(tmp_path, monkeypatch):
    store = Store(tmp_path)
    one, two = (store.put(Node(i, "google", "o", "v6e-8", phase="up")) for i in ("one", "two"))
    with monkeypatch.context() as patch:
        nearly_full(patch, 50)
        with pytest.raises(OSError, match="No space"):
            store.remove(one)
    store.remove(two)
    assert [n.id for n in store.history()] == ["two"]
    assert [n.id for n in store.all()] == ["one"]
