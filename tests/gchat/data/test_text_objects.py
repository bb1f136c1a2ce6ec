"""Text in a bucket: what a run reads is what it listed, however much later it reads it."""

import pytest

from gaia.errors import DataError
from gaia.storage import gcs as service
from gaia.storage.gcs_failures import Interrupted
from gchat.data.sources import objects
from gchat.data.sources.unit import Tally

BEFORE, AFTER = b"the first text. " * 9000, b"another, as long" * 9000


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))


def listed(uri):
    corpus, _ = objects.listed(uri, "text", lambda total: total)
    return lambda: " ".join(d for unit in corpus.units for d in unit.documents(Tally()))


def kept(tmp_path):
    return [path for path in (tmp_path / "home").rglob("*") if path.is_file()]


def test_an_object_that_was_replaced_by_one_of_the_same_size_is_refused(gcs, tmp_path):
    uri = f"{gcs.uri}/a.txt"
    service.write(uri, BEFORE)
    read = listed(uri)
    service.write(uri, AFTER)
    with pytest.raises(DataError, match=r"a\.txt was replaced or deleted after the run listed it"):
        read()
    assert kept(tmp_path) == []
    service.write(uri, BEFORE)  # put back: another generation of the same text
    assert read().startswith("the first text.")


def test_a_deleted_object_is_one_error(gcs):
    uri = f"{gcs.uri}/a.txt"
    service.write(uri, BEFORE)
    read = listed(uri)
    service.delete(uri)
    with pytest.raises(DataError, match="was replaced or deleted") as caught:
        read()
    assert caught.value.remedy == "put the old text back, or start a new run"


def test_a_flipped_byte_is_fetched_again_and_never_kept(gcs, tmp_path):
    uri = f"{gcs.uri}/a.txt"
    service.write(uri, BEFORE)
    read = listed(uri)
    gcs.control({"faults": {"flip_share": 1.0}})
    with pytest.raises(DataError, match=r"listed .* in each of 3 downloads"):
        read()
    assert kept(tmp_path) == []
    gcs.control({"faults": {}})
    assert read().split() == BEFORE.decode().split()


def test_what_lies_on_the_disk_is_compared_once_more(gcs, tmp_path):
    uri = f"{gcs.uri}/a.txt"
    service.write(uri, BEFORE)
    listed(uri)()
    (file,) = kept(tmp_path)
    file.write_bytes(AFTER)
    assert listed(uri)().split() == BEFORE.decode().split()
    assert file.read_bytes() == BEFORE


def test_a_download_does_not_go_on_in_another_generation(gcs, monkeypatch):
    """The object is replaced right where the connection breaks."""
    uri = f"{gcs.uri}/a.txt"
    service.write(uri, BEFORE)
    read, blob = listed(uri), service.blob

    def breaking(where, generation=None):
        handle = blob(where, generation)
        whole = handle.download_to_file

        def half(sink, **options):
            if options["start"] is None:
                sink.write(BEFORE[:1000])
                service.write(uri, AFTER)
                raise Interrupted
            return whole(sink, **options)

        handle.download_to_file = half
        return handle

    monkeypatch.setattr(service, "blob", breaking)
    with pytest.raises(DataError, match="was replaced or deleted"):
        read()
