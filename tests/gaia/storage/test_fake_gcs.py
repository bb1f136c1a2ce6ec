"""The fake Google Cloud Storage is right: the clients that the product uses find what they expect.

Every other test of gs:// stands on this one.
"""

import base64
import threading
import urllib.error

import google_crc32c
import numpy as np
import pytest

DATA = np.random.default_rng(0).bytes(3_000_001)


@pytest.fixture
def bucket(gcs):
    from google.cloud import storage

    gcs.prefix = gcs.uri.removeprefix("gs://gaia-test/")
    return storage.Client().bucket("gaia-test")


def test_google_cloud_storage_uploads_and_ranges(gcs, bucket):
    blob = bucket.blob(f"{gcs.prefix}/a b/ü.bin")
    blob.upload_from_string(DATA[:1000], checksum="crc32c")  # multipart
    assert blob.download_as_bytes() == DATA[:1000]
    big = bucket.blob(f"{gcs.prefix}/big", chunk_size=1 << 20)
    big.upload_from_string(DATA, checksum="md5")  # resumable, four chunks
    big.reload()
    assert (big.size, base64.b64decode(big.crc32c)) == (
        len(DATA),
        google_crc32c.value(DATA).to_bytes(4, "big"),
    )
    whole = bucket.blob(big.name)
    assert whole.download_as_bytes(start=5, end=9) == DATA[5:10]
    assert whole.download_as_bytes(start=2_999_000) == DATA[2_999_000:]
    assert whole.download_as_bytes(start=-7) == DATA[-7:]
    for checksum in ("md5", "crc32c"):
        assert whole.download_as_bytes(checksum=checksum) == DATA


def test_generations_are_preconditions(gcs, bucket):
    from google.api_core.exceptions import NotFound, PreconditionFailed

    blob = bucket.blob(f"{gcs.prefix}/x")
    blob.upload_from_string(b"one", if_generation_match=0)
    first = blob.generation
    for wrong in (0, first + 1):
        with pytest.raises(PreconditionFailed):
            bucket.blob(blob.name).upload_from_string(b"two", if_generation_match=wrong)
        with pytest.raises(PreconditionFailed):
            bucket.blob(blob.name).delete(if_generation_match=wrong)
    blob.upload_from_string(b"two", if_generation_match=first)
    assert blob.download_as_bytes() == b"two" and blob.generation > first
    with pytest.raises(NotFound, match="No such object"):
        bucket.blob(blob.name, generation=first).download_as_bytes()
    with pytest.raises(NotFound, match="bucket does not exist"):
        bucket.client.bucket("nowhere").blob("x").upload_from_string(b"")


def test_listing_in_pages_with_delimiter_and_offsets(gcs, bucket):
    names = [f"{gcs.prefix}/{n}" for n in ("a", "b/1", "b/2", "c/1", "d", "e")]
    for name in names:
        bucket.blob(name).upload_from_string(b"")
    options = {"prefix": f"{gcs.prefix}/", "page_size": 2}
    assert [b.name for b in bucket.list_blobs(**options)] == names
    found = bucket.list_blobs(**options, delimiter="/")
    assert [b.name for b in found] == [names[0], names[4], names[5]]
    assert found.prefixes == {f"{gcs.prefix}/b/", f"{gcs.prefix}/c/"}
    ends = {"start_offset": names[1], "end_offset": names[4]}
    assert [b.name for b in bucket.list_blobs(**options, **ends)] == names[1:4]


def test_compose_rewrite_metadata_delete(gcs, bucket):
    parts = [bucket.blob(f"{gcs.prefix}/{i}") for i in range(3)]
    for i, part in enumerate(parts):
        part.upload_from_string(bytes([i]) * 10)
    whole = bucket.blob(f"{gcs.prefix}/whole")
    whole.compose(parts)
    copy = bucket.copy_blob(whole, bucket, f"{gcs.prefix}/copy")
    assert copy.download_as_bytes() == b"".join(bytes([i]) * 10 for i in range(3))
    copy.metadata = {"made": "here"}
    copy.patch()
    assert bucket.get_blob(copy.name).metadata == {"made": "here"}
    copy.delete()
    assert bucket.get_blob(copy.name) is None


def test_transfer_manager(gcs, bucket, tmp_path):
    from google.cloud.storage import transfer_manager as tm

    (tmp_path / "big").write_bytes(DATA)
    blob = bucket.blob(f"{gcs.prefix}/big")
    size = {"chunk_size": 1 << 20, "worker_type": tm.THREAD, "max_workers": 3}
    tm.upload_chunks_concurrently(str(tmp_path / "big"), blob, **size)  # XML multipart
    tm.download_chunks_concurrently(blob, str(tmp_path / "copy"), **size)
    assert (tmp_path / "copy").read_bytes() == DATA


def test_array_record_reads_directly(gcs, bucket, tmp_path):
    from array_record.python import array_record_module as ar

    writer = ar.ArrayRecordWriter(str(tmp_path / "r"), "group_size:1,uncompressed")
    for i in range(50):
        writer.write(DATA[i * 100 : i * 100 + 100])
    writer.close()
    bucket.blob(f"{gcs.prefix}/r").upload_from_filename(str(tmp_path / "r"))
    reader = ar.ArrayRecordReader(f"{gcs.uri}/r", "readahead_buffer_size:0,max_parallelism:0")
    assert reader.num_records() == 50
    assert reader.read([7, 31]) == [DATA[700:800], DATA[3100:3200]]
    reader.close()


def test_tensorstore(gcs):
    import tensorstore as ts

    store = ts.KvStore.open(f"{gcs.uri}/ts/").result()
    store.write("a/x", b"one").result()
    store.write("a/y", b"two").result()
    assert store.read("a/x").result().value == b"one"
    keys = ts.KvStore.KeyRange("a/x", "a/y")
    assert store.list(keys).result() == [b"a/x"]
    old = store.read("a/x").result().stamp.generation
    store.write("a/x", b"three", if_equal=old).result()
    store.write("a/x", b"four", if_equal=old).result()  # refused: it is another generation
    assert store.read("a/x").result().value == b"three"


def test_gcsfs_writes_lists_moves_and_deletes(gcs):
    import gcsfs

    fs = gcsfs.GCSFileSystem(token="anon", skip_instance_cache=True)
    root = gcs.uri.removeprefix("gs://")
    fs.pipe(f"{root}/f/one", DATA[:500_000])
    with fs.open(f"{root}/f/two", "wb") as file:
        file.write(DATA[:100])
    assert fs.cat(f"{root}/f/one", start=10, end=20) == DATA[10:20]
    assert [name.rsplit("/", 1)[1] for name in fs.ls(f"{root}/f", refresh=True)] == ["one", "two"]
    fs.mv(f"{root}/f/two", f"{root}/f/three")
    fs.rm(f"{root}/f", recursive=True)  # a batch
    assert not fs.exists(f"{root}/f")


def test_orbax_saves_and_restores(gcs):
    import jax.numpy as jnp

    from gaia.checkpoint import Checkpointer

    w = jnp.arange(60_000, dtype=jnp.float32).reshape(200, 300)
    state = {"w": w, "step": jnp.int32(0)}
    checkpoints = Checkpointer(f"{gcs.uri}/checkpoints", keep=2)
    for step in (1, 2, 3):
        assert checkpoints.save(step, state | {"step": jnp.int32(step)}, {"n": step}) is None
    assert checkpoints.close() is None
    again = Checkpointer(f"{gcs.uri}/checkpoints", keep=2)
    assert again.steps() == [2, 3] and again.latest() == 3
    restored = again.restore(3, state)
    np.testing.assert_array_equal(restored.state["w"], w)
    assert (int(restored.state["step"]), restored.meta["n"]) == (3, 3)
    again.close()


# ── Faults ────────────────────────────────────────────────────────────────────────────────────


def test_faults_are_injected_and_counted(gcs, bucket):
    from google.api_core.exceptions import Forbidden, ServiceUnavailable

    blob = bucket.blob(f"{gcs.prefix}/x")
    blob.upload_from_string(DATA)
    name = f"{gcs.prefix}/x$"
    gcs.control({"faults": {"fail_share": 1, "codes": [503], "match": name}})
    with pytest.raises(ServiceUnavailable):
        blob.download_as_bytes(retry=None)
    gcs.control({"faults": {"reset_share": 1, "match": name}})
    with pytest.raises(OSError, match="reset"):  # requests' exceptions are OSErrors
        blob.download_as_bytes(retry=None)
    gcs.control({"faults": {"flip_share": 1, "match": name}})
    wrong = blob.download_as_bytes(retry=None, checksum=None)
    assert sum(a != b for a, b in zip(wrong, DATA, strict=True)) == 1
    gcs.control({"faults": {"denied": ["storage.objects.get"]}})
    with pytest.raises(Forbidden, match=r"does not have storage\.objects\.get access"):
        blob.download_as_bytes(retry=None)
    counted = gcs.control({"faults": {}})
    assert (counted["failed"], counted["reset"], counted["flipped"]) == (1, 1, 1)
    assert blob.download_as_bytes(retry=None) == DATA


def test_latency_and_bandwidth(gcs, bucket):
    """Lower bounds only: a slow machine makes them larger, never smaller."""
    import time

    blob = bucket.blob(f"{gcs.prefix}/x")
    blob.upload_from_string(DATA)
    gcs.control({"faults": {"latency_s": 0.2, "bandwidth": 10e6}})
    began = time.perf_counter()
    blob.download_as_bytes()
    assert time.perf_counter() - began >= 0.2 + 0.3 - 0.05  # 3 MB at 10 MB/s, less one block


def test_it_goes_away_and_comes_back():
    from fakes.gcs import Remote, serve

    with serve() as fake:
        remote = Remote(fake.url)
        remote.control()
        gone = threading.Event()
        stop = fake.stop

        def stopping():
            stop()
            gone.set()

        fake.stop = stopping
        fake.go_away(0.5)
        assert gone.wait(30)
        with pytest.raises((urllib.error.URLError, OSError)):
            remote.control(patience_s=0)
        for _ in range(600):
            try:
                remote.control()
                break
            except OSError:
                threading.Event().wait(0.05)
        assert fake.store.bucket_names() == ["gaia-test"]
