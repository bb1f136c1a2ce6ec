"""Streaming from a bucket: the same batches as from the disk, or an error that names the shard."""

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from disks import fill, small_disk
from gaia import storage
from gaia.data.loader import make_loader
from gaia.data.manifest import TokenizerInfo, load_manifest
from gaia.data.rows import CacheOptions
from gaia.data.shard_cache import ShardCache
from gaia.data.shards import verify, write_shards
from gaia.errors import ConfigError, DataError
from gaia.storage import gcs as objects

INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=299)
OPTIONS = {"seq_len": 16, "batch_size": 8, "seed": 3}


def documents(count, seed):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield np.concatenate([[299], rng.integers(0, 299, int(rng.integers(20, 90)))])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dozen shards in windows of three."""
    folder = tmp_path_factory.mktemp("data")
    options = {"shard_tokens": 1500, "chunk_tokens": 256, "window": 3}
    write_shards(folder, documents(310, 0), documents(5, 1), INFO, **options)
    assert len(load_manifest(folder).train) == 12
    return folder


@pytest.fixture
def remote(gcs, data):
    """The same data set in the bucket."""
    for path in data.iterdir():
        objects.write(f"{gcs.uri}/set/{path.name}", path.read_bytes())
    gcs.control({"reset_stats": True})
    return f"{gcs.uri}/set"


def batches(where, count, cache=None, **options):
    with make_loader(where, **(OPTIONS | options), cache=cache) as loader:
        return [batch.inputs_BT for batch in itertools.islice(loader, count)]


def epoch(data):
    with make_loader(data, **OPTIONS, prefetch=0) as loader:
        return int(loader.steps_per_epoch)


def equal(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


# ── The same as local data ────────────────────────────────────────────────────────────────────


def test_two_epochs_are_those_of_the_local_data_and_cost_one_get_a_shard(
    gcs, data, remote, tmp_path
):
    steps = 2 * epoch(data)
    equal(batches(remote, steps, CacheOptions(tmp_path)), batches(data, steps))
    counted = gcs.control()
    shards = load_manifest(data).train
    assert counted["gets"] == len(shards) + 1  # and the manifest
    useful = sum(s.bytes for s in shards)
    assert counted["bytes"] < 1.1 * useful + len((data / "manifest.json").read_bytes())


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_resume_on_an_empty_cache_on_any_number_of_hosts(data, remote, tmp_path, processes):
    start = epoch(data) // 2
    expected = batches(data, 6, start_step=start)
    parts = [
        batches(
            remote, 6, CacheOptions(tmp_path / str(i)), start_step=start,
            process_index=i, process_count=processes,
        )
        for i in range(processes)
    ]  # fmt: skip
    equal([np.concatenate(step) for step in zip(*parts, strict=True)], expected)


def test_the_cache_stays_below_its_limit(data, remote, tmp_path):
    largest = max(s.bytes for s in load_manifest(data).train)
    limit, seen = 3 * largest, []
    steps = 2 * epoch(data)
    with make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path, limit)) as loader:
        found = []
        for batch in itertools.islice(loader, steps):
            found.append(batch.inputs_BT)
            names = [p for p in tmp_path.iterdir() if p.suffix != ".lock"]
            sizes = []
            for path in names:
                try:
                    sizes.append(path.stat().st_size)
                except FileNotFoundError:
                    continue
            seen.append(sum(sizes))
        assert loader.rows.cache.stats.evicted > 0
    assert max(seen) <= limit
    equal(found, batches(data, steps))


READER = """
import json, sys
from gaia.data.loader import make_loader
from gaia.data.rows import CacheOptions
uri, folder, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
with make_loader(uri, seq_len=16, batch_size=8, seed=3, cache=CacheOptions(folder)) as loader:
    total = sum(int(next(loader).inputs_BT.astype("int64").sum()) for _ in range(steps))
    print(json.dumps([total, loader.rows.cache.stats.misses]))
"""


def test_processes_of_a_host_fetch_each_shard_once(data, remote, tmp_path, gcs):
    steps = epoch(data)
    command = [sys.executable, "-c", READER, remote, str(tmp_path), str(steps)]
    readers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3])
        for _ in range(3)
    ]
    answers = [json.loads(reader.communicate()[0]) for reader in readers]
    expected = sum(int(b.astype("int64").sum()) for b in batches(data, steps))
    assert [total for total, _ in answers] == [expected] * 3
    assert sum(misses for _, misses in answers) == 12
    assert gcs.control()["gets"] == 12 + 3  # a manifest each


# ── Faults that heal ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("faults", "counted"),
    [
        ({"fail_share": 0.3}, "failed"),
        ({"reset_share": 0.3}, "reset"),
        ({"flip_share": 0.2}, "flipped"),
    ],
)
def test_failing_requests_change_no_row(gcs, data, remote, tmp_path, faults, counted):
    gcs.control({"faults": faults | {"match": "tokens", "seed": 1}})
    steps = epoch(data)
    equal(batches(remote, steps, CacheOptions(tmp_path)), batches(data, steps))
    assert gcs.control()[counted] > 0
    assert not list(tmp_path.glob("*.part"))


def test_a_server_that_is_gone_for_a_while(gcs, data, remote, tmp_path):
    steps = epoch(data)
    with make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path)) as loader:
        found = [next(loader).inputs_BT]
        before = gcs.control()["gets"]
        gcs.control({"outage_s": 4})
        found += [next(loader).inputs_BT for _ in range(steps - 1)]
    assert gcs.control()["gets"] > before  # shards were still to come when the server went
    equal(found, batches(data, steps))


def test_a_file_damaged_on_this_disk_is_fetched_again(data, remote, tmp_path):
    steps = epoch(data)
    expected = batches(remote, steps, CacheOptions(tmp_path))
    victim = next(p for p in tmp_path.iterdir() if p.name.endswith("tokens-00004.arrayrecord"))
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    equal(batches(remote, steps, CacheOptions(tmp_path)), expected)
    assert victim.read_bytes() != content


def test_a_killed_process_leaves_nothing_that_disturbs(data, remote, tmp_path):
    shard = load_manifest(data).train[0]
    part = tmp_path / f"{shard.crc32c}-{shard.bytes}-{shard.name}.part"
    part.write_bytes(b"half")
    (tmp_path / "ffffffff-9-gone.part").write_bytes(b"x" * 9)
    with ShardCache(remote, folder=tmp_path, limit_bytes=shard.bytes).open(shard) as path:
        assert storage.crc32c_file(path) == shard.crc32c
    assert not list(tmp_path.glob("*.part"))


# ── Faults that do not ────────────────────────────────────────────────────────────────────────


def spoil(data, remote, how):
    shard = load_manifest(data).train[5]
    content = bytearray((data / shard.name).read_bytes())
    if how == "missing":
        objects.blob(f"{remote}/{shard.name}").delete()
        return
    if how == "corrupt":
        content[100] ^= 1
    objects.write(f"{remote}/{shard.name}", bytes(content[:-50] if how == "truncated" else content))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "does not exist, though manifest.json lists it"),
        ("corrupt", "has crc32c .* manifest says .* in each of 3 downloads"),
        ("truncated", "bytes, manifest says"),
    ],
)
def test_a_bad_shard_stops_with_its_name_before_a_row_of_it(data, remote, tmp_path, how, message):
    spoil(data, remote, how)
    with make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path)) as loader:
        bad = loader.rows.offsets[5], loader.rows.offsets[6]
        given, steps = [], int(loader.steps_per_epoch)
        with pytest.raises(DataError, match=rf"tokens-00005\.arrayrecord.*{message}"):
            for step in range(steps):
                batch = next(loader)
                given += loader.row_ids(step).tolist()
                want = batches(data, 1, start_step=step)[0]
                np.testing.assert_array_equal(batch.inputs_BT, want)
    assert len(set(given)) == len(given)
    assert not any(bad[0] <= row < bad[1] for row in given)
    assert not [p for p in tmp_path.iterdir() if "00005" in p.name and p.suffix != ".lock"]


def test_data_that_is_replaced_meanwhile_is_said_to_be(data, remote, tmp_path):
    with make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path), prefetch=0) as loader:
        next(loader)
        raw = json.loads((data / "manifest.json").read_text())
        raw["train"].pop()
        objects.write(f"{remote}/manifest.json", json.dumps(raw).encode())
        for shard in load_manifest(data).train:
            objects.blob(f"{remote}/{shard.name}").delete()
        with pytest.raises(DataError, match=r"was changed while .* had 12 shards .* now has 11"):
            for _ in range(int(loader.steps_per_epoch)):
                next(loader)


def test_patience_ends_with_the_address(gcs, data, remote, tmp_path):
    gcs.control({"faults": {"fail_share": 1, "codes": [503], "match": "tokens"}})
    cache = CacheOptions(tmp_path, patience_s=1)
    with (
        make_loader(remote, **OPTIONS, cache=cache) as loader,
        pytest.raises(storage.StorageError, match=r"set/tokens-.* did not answer .*503"),
    ):
        next(loader)


def test_closing_does_not_wait_for_a_silent_bucket(gcs, remote, tmp_path):
    gcs.control({"faults": {"fail_share": 1, "codes": [503], "match": "tokens"}})
    loader = make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path))
    raised = []

    def ask():
        try:
            next(loader)
        except Exception as error:
            raised.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    while not gcs.control()["failed"]:
        threading.Event().wait(0.02)
    loader.close()  # would take the ten minutes of the default patience
    asking.join()
    assert isinstance(raised[0], objects.Stopped)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(data, remote, tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        filler = fill(disk, leave=0)
        loader = make_loader(remote, **OPTIONS, cache=CacheOptions(disk))
        with (
            loader,
            pytest.raises(
                storage.StorageError, match=r"cache .*disk is on a full disk .*make room"
            ),
        ):
            next(loader)
        assert {p.suffix for p in disk.iterdir() if p != filler} <= {".lock"}
        filler.unlink()
        equal(batches(remote, 3, CacheOptions(disk)), batches(data, 3))


def test_a_disk_smaller_than_the_limit_bounds_the_cache(data, remote, tmp_path):
    """Others take the room: what is cached already makes place for what is needed."""
    steps = epoch(data)
    largest = max(s.bytes for s in load_manifest(data).train)
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk, leave=-(-largest // 4096) * 4096 * 5)
        equal(batches(remote, steps, CacheOptions(disk)), batches(data, steps))
        kept = [p for p in disk.iterdir() if p.name.endswith(".arrayrecord")]
        assert 0 < len(kept) < len(load_manifest(data).train)


def test_a_full_disk_is_waited_for_while_others_read_from_it(data, remote, tmp_path):
    """Shards that are in use become free soon: a reader that needs their room waits for it."""
    first, second, third = load_manifest(data).train[:3]
    blocks = sum(-(-shard.bytes // 4096) * 4096 for shard in (first, second))
    opened, sizes = threading.Event(), []
    with small_disk(tmp_path / "disk", "1m") as disk:
        fill(disk, leave=blocks)
        cache = ShardCache(remote, folder=disk)

        def read_third():
            opened.set()
            with cache.open(third) as path:
                sizes.append(path.stat().st_size)

        reader = threading.Thread(target=read_third)
        with cache.open(first), cache.open(second):
            reader.start()
            assert opened.wait(60)
            reader.join(0.5)
            assert reader.is_alive() and not sizes
        reader.join(60)
        assert sizes == [third.bytes]


def test_a_shard_larger_than_the_cache_is_refused(remote, tmp_path):
    with (
        make_loader(remote, **OPTIONS, cache=CacheOptions(tmp_path, 100)) as loader,
        pytest.raises(ConfigError, match=r"data\.cache_gib is .* less than shard"),
    ):
        next(loader)


# ── Verify, and the service's refusals ────────────────────────────────────────────────────────


def test_verify_reads_a_bucket(data, remote):
    assert verify(remote) == load_manifest(data)
    spoil(data, remote, "truncated")
    with pytest.raises(DataError, match=r"tokens-00005\.arrayrecord has \d+ bytes, manifest says"):
        verify(remote)


@pytest.mark.parametrize(
    ("permission", "role"),
    [
        ("storage.objects.get", "roles/storage.objectViewer"),
        ("storage.objects.list", "roles/storage.objectViewer"),
    ],
)
def test_a_missing_permission_names_the_role(gcs, remote, permission, role):
    gcs.control({"faults": {"denied": [permission]}})
    with pytest.raises(storage.StorageError, match=rf"{permission} is missing.*{role}.*trainer@"):
        storage.list_names(remote)
        storage.read_bytes(f"{remote}/manifest.json")


def test_no_such_bucket(gcs):
    with pytest.raises(storage.StorageError, match=r"bucket gs://not-there does not exist"):
        load_manifest("gs://not-there/set")


def test_no_credentials(tmp_path):
    """In a process of its own, without the fake; google-auth is told that this is no VM."""
    code = "from gaia.data.manifest import load_manifest; load_manifest('gs://bucket/set')"
    environment = {k: v for k, v in os.environ.items() if "EMULATOR" not in k and "GCE" not in k}
    environment |= {"HOME": str(tmp_path), "NO_GCE_CHECK": "true"}
    environment["CLOUDSDK_CONFIG"] = str(tmp_path)
    environment.pop("GOOGLE_APPLICATION_CREDENTIALS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parents[3],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "no usable Google credentials" in done.stderr.splitlines()[-1]
    assert "gcloud auth application-default login" in done.stderr.splitlines()[-1]
