"""Atomic writes, checksums, and the error when gs:// is asked for without its extra."""

import errno
import hashlib
import sys

import pytest

from gaia import storage
from gaia.errors import DataError
from gaia.storage import gcs


def test_known_checksums(tmp_path):
    assert storage.crc32c(b"123456789") == "e3069283"  # RFC 3720, B.4
    file = tmp_path / "f"
    file.write_bytes(b"123456789" * 300_000)
    assert storage.crc32c_file(file) == storage.crc32c(file.read_bytes())
    assert storage.sha256_file(file) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "deep" / "f"
    storage.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), storage.open_atomic(path) as file:
        file.write(b"new")
        file.flush()
        assert storage.read_text(path) == "old"
        raise ZeroDivisionError
    assert storage.read_text(path) == "old"
    assert storage.list_names(path.parent) == ["f"]
    storage.write_text(path, "new")
    assert storage.read_bytes(path) == b"new"


def test_a_bucket_needs_the_extra_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)  # as if it were not installed
    gcs.client.cache_clear()
    with pytest.raises(
        storage.StorageError, match=r"google\.cloud\.storage.*pip install -e '\.\[gcs\]'"
    ):
        storage.read_bytes("gs://bucket/name")
    with pytest.raises(storage.StorageError, match="cannot open 's3://bucket/name'"):
        storage.exists("s3://bucket/name")


def test_missing_files_are_data_errors(tmp_path):
    for read in (storage.read_bytes, storage.size):
        with pytest.raises(DataError, match="nothing does not exist"):
            read(tmp_path / "nothing")
    assert storage.list_names(tmp_path / "nothing") == []
    assert not storage.exists(tmp_path / "nothing")


def test_home_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path))
    assert storage.home() == tmp_path
    monkeypatch.delenv("GAIA_HOME")
    assert storage.home().parts[-2:] == (".cache", "gaia")


def test_joining_keeps_addresses_and_paths():
    assert storage.join("gs://b/p/", "x", "y") == "gs://b/p/x/y"
    assert storage.join("/data/", "x") == "/data/x"


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(storage.StorageError, match=r"cannot write .*file.* choose another folder"):
        storage.write_text(tmp_path / "file" / "x", "text")
    full = pytest.raises(storage.StorageError, match=r"No space.*make room on the disk")
    with full, storage.open_atomic(tmp_path / "y"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), storage.open_atomic(tmp_path / "y"):
        (tmp_path / "another").read_bytes()
    assert storage.list_names(tmp_path) == ["file"]
