"""Training from a bucket, with checkpoints and metrics in a bucket, through kills and outages.

Everything is a process of its own, the service too; what a run took is compared row by row with a
run on local data.
"""

import json
import re
import shutil
import signal
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

import runs
from gchat.__main__ import main

STEPS = 60


@pytest.fixture(scope="module")
def local_data(tmp_path_factory):
    """Prepared by the command: many small shards in windows of two, for a short run of many."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    words = runs.TEXT.split()
    texts = [" ".join(rng.choice(words, size=rng.integers(20, 90))) for _ in range(120)]
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    out = folder / "prepared"
    made = ["--tokenizer", "bpe", "--vocab-size", "300", "--shard-tokens", "500", "--window", "2"]
    verb = ["data", "prepare", "--source", "text", "--input", str(source), "--out", str(out)]
    assert main([*verb, *made]) == 0
    return out


@pytest.fixture(scope="module")
def bucket_data(gcs_service, local_data):
    """The same data set, uploaded by the command."""
    uri = "gs://gaia-test/stream-run/data"
    assert main(["data", "upload", str(local_data), uri]) == 0
    assert main(["data", "verify", uri]) == 0
    return uri


def arguments(data_dir, run_dir, *more):
    options = ["--checkpoint.every-steps", 10, "--eval.every-steps", 30, *more]
    return runs.arguments(data_dir, run_dir, *options, steps=STEPS)


def recorded(path):
    """step -> (row ids, checksum of the batch); every repetition must have been the same."""
    found = {}
    for line in path.read_text().splitlines():
        step, ids, crc = json.loads(line)
        assert found.setdefault(step, (ids, crc)) == (ids, crc)
    return found


@pytest.fixture(scope="module")
def local(local_data, tmp_path_factory):
    """The run on local data that the others must equal, in this process, and its rows by step."""
    from gaia.data.loader import make_loader

    run_dir = tmp_path_factory.mktemp("local") / "run"
    assert main(["train", *arguments(local_data, run_dir)]) == 0
    rows = {}
    with make_loader(local_data, seq_len=32, batch_size=4, seed=1337) as loader:
        for step in range(STEPS):
            crc = zlib.crc32(next(loader).inputs_BT.tobytes())
            rows[step] = (loader.row_ids(step).tolist(), crc)
    return SimpleNamespace(run_dir=run_dir, rows=rows)


def environment(user_environment, gcs_service, home):
    """A machine with an empty cache, whose clients talk to the fake."""
    return user_environment | gcs_service.environment | {"GAIA_HOME": str(home)}


def check_rows(record, local, through):
    """No wrong, missing or repeated row among the first `through` steps, nor behind them."""
    rows = recorded(record)
    assert set(range(through)) <= rows.keys()
    for step, taken in rows.items():
        if step in local.rows:
            assert taken == local.rows[step], step


def test_killed_on_one_machine_and_resumed_on_another(
    gcs, gcs_service, bucket_data, local, tmp_path, user_environment
):
    """One request in ten fails; the second machine has nothing but the bucket."""
    mirror, record = f"{gcs.uri}/run", tmp_path / "record"
    gcs.control({"faults": {"fail_share": 0.1, "latency_s": 0.02, "match": "data/tokens"}})
    args = arguments(bucket_data, tmp_path / "first", "--run.mirror", mirror)
    first = environment(user_environment, gcs_service, tmp_path / "home-1")
    process = runs.Process.recorded(record, args, first)
    assert process.step_reached(34), process.text
    process.signal(signal.SIGKILL)
    assert process.end() == -signal.SIGKILL
    shutil.rmtree(tmp_path / "first")

    again = ["--resume", "--run-dir", tmp_path / "second", "--run.mirror", mirror]
    second = environment(user_environment, gcs_service, tmp_path / "home-2")
    process = runs.Process.recorded(record, [str(x) for x in again], second)
    assert process.step_reached(STEPS - 25), process.text
    gcs.control({"outage_s": 3})
    assert process.end() == 0, process.text
    assert re.search(r"resumed from step (10|20|30) of 60", process.text)

    check_rows(record, local, STEPS)
    expected = runs.arrays(local.run_dir, STEPS)
    found = runs.arrays(tmp_path / "second", STEPS, f"{mirror}/checkpoints")
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        assert (array == found[path]).all(), path
    assert runs.losses(tmp_path / "second") == runs.losses(local.run_dir)
    # The mirror holds a whole run, which a third machine could read.
    from gaia import storage

    assert {"config.yaml", "metrics.jsonl", "report.md", "summary.json", "tokenizer.json"} <= set(
        storage.list_names(mirror)
    )
    text = storage.read_text(f"{mirror}/metrics.jsonl")
    assert text == (tmp_path / "second" / "metrics.jsonl").read_text()
    logged = runs.logged(tmp_path / "second")[-1]
    assert logged["data/cache_misses"] > 0 and "data/fetch_bytes_per_s" in logged


def late_shards(local_data):
    """Names of the shards in the window that is read when three quarters of the steps are done."""
    from gaia.data.order import BatchOrder
    from gaia.data.rows import TokenRows

    rows = TokenRows(local_data, "train", 32)
    order = BatchOrder(rows.counts, rows.manifest.window, 1337)
    epoch, window = order.place(STEPS * 3 // 4 * 4)  # batches of four rows
    names = [rows.shards[i].name for i in order.window_shards(epoch, window)]
    rows.close()
    return names


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("corrupt", "crc32c"), ("missing", "does not exist")])
def test_a_bad_shard_is_met_while_training_runs(
    gcs, gcs_service, local_data, bucket_data, local, tmp_path, user_environment, how, said
):
    from gaia.storage import gcs as objects

    uri, record = f"{gcs.uri}/data", tmp_path / "record"
    assert main(["data", "upload", str(local_data), uri]) == 0
    gcs.control({"faults": {"latency_s": 0.3}})
    place = environment(user_environment, gcs_service, tmp_path / "home")
    # Before the start: a step takes milliseconds, so the reader may be through once one is printed.
    names = late_shards(local_data)
    for name in names:
        if how == "missing":
            objects.blob(f"{uri}/{name}").delete()
        else:
            data = bytearray((local_data / name).read_bytes())
            data[len(data) // 2] ^= 1
            objects.write(f"{uri}/{name}", bytes(data))
    process = runs.Process.recorded(record, arguments(uri, tmp_path / "run"), place)
    assert process.end() == 2, process.text
    last = process.lines[-1]
    assert last.startswith("gchat: shard gs://") and said in last
    assert any(name in last for name in names)
    steps = max(runs.losses(tmp_path / "run"))
    assert 2 <= steps < STEPS
    check_rows(record, local, steps)


@pytest.mark.slow
def test_a_minute_without_server_while_one_request_in_ten_fails(
    gcs, gcs_service, bucket_data, local, tmp_path, user_environment
):
    """Every client is hit here, Orbax's too: a checkpoint may be missed, no row may."""
    record = tmp_path / "record"
    gcs.control({"faults": {"fail_share": 0.1, "latency_s": 0.3}})
    place = environment(user_environment, gcs_service, tmp_path / "home")
    args = arguments(bucket_data, tmp_path / "run", "--run.mirror", f"{gcs.uri}/run")
    process = runs.Process.recorded(record, args, place)
    assert process.step_reached(12), process.text
    gcs.control({"outage_s": 60})
    assert process.end() == 0, process.text
    check_rows(record, local, STEPS)
    assert runs.losses(tmp_path / "run") == runs.losses(local.run_dir)
    expected = runs.arrays(local.run_dir, STEPS)
    gcs.control({"faults": {}})
    found = runs.arrays(tmp_path / "run", STEPS, f"{gcs.uri}/run/checkpoints")
    assert all((array == found[path]).all() for path, array in expected.items())


# ── Bad input: one line, exit 2, nothing written ──────────────────────────────────────────────


def refused(capsys, args, *said):
    assert main(["train", *args]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1, text
    for words in said:
        assert words in text


def test_what_cannot_be_reached_is_said_before_anything_is_written(
    gcs, bucket_data, local_data, tmp_path, capsys
):
    run_dir = tmp_path / "run"
    refused(capsys, arguments("gs://not-there/x", run_dir), "bucket gs://not-there does not exist")
    nowhere = ["--run.mirror", "gs://not-there/x"]
    refused(capsys, arguments(local_data, run_dir, *nowhere), "gs://not-there does not exist")
    nowhere = ["--checkpoint.dir", "gs://not-there/x"]
    refused(capsys, arguments(local_data, run_dir, *nowhere), "gs://not-there does not exist")
    refused(capsys, arguments(local_data, run_dir, "--run.mirror", "/disk"), "is not a gs://")
    gcs.control({"faults": {"denied": ["storage.objects.get"]}})
    refused(capsys, arguments(bucket_data, run_dir), "roles/storage.objectViewer")
    gcs.control({"faults": {"denied": ["storage.objects.create"]}})
    mirror = ["--run.mirror", f"{gcs.uri}/m"]
    refused(capsys, arguments(local_data, run_dir, *mirror), "roles/storage.objectUser")
    assert not run_dir.exists()


def test_another_window_or_other_shards_are_refused(local_data, tmp_path, capsys):
    """The order would change, so neither a new run with another W nor a resume may begin."""
    wrong = ["--data.window", 3]
    refused(capsys, arguments(local_data, tmp_path / "run", *wrong), "prepared with 2")
    data = shutil.copytree(local_data, tmp_path / "data")
    args = arguments(data, tmp_path / "run", "--max-steps", 8)
    assert main(["train", *args]) == 0
    capsys.readouterr()
    manifest = json.loads((data / "manifest.json").read_text())
    shards = len(manifest["train"])
    for change, said in (
        ({"window": 3}, "data.window is 2, but the data was prepared with 3"),
        ({"train": manifest["train"][:-1]}, f"it had {shards} shards"),
    ):
        (data / "manifest.json").write_text(json.dumps(manifest | change))
        refused(capsys, ["--resume", "--run-dir", str(tmp_path / "run")], said)


def test_a_mixture_is_trained_on_and_resumed(local_data, tmp_path, capsys):
    """Its tokens by source are logged; another weight on resume is refused."""
    config = tmp_path / "mix.yaml"
    other = shutil.copytree(local_data, tmp_path / "other")
    config.write_text(
        "data:\n"
        f"  mixture: {{web: {local_data}, code: {other}}}\n"
        "  weights: {web: 0.75, code: 0.25}\n"
    )
    args = [a for a in arguments("DIR", tmp_path / "run", "--max-steps", 20) if a != "--data-dir"]
    args.remove("DIR")
    assert main(["train", str(config), *args]) == 0
    last = runs.logged(tmp_path / "run")[-1]
    total = last["data/tokens/web"] + last["data/tokens/code"]
    assert total == 20 * 4 * 32 and 0.5 < last["data/tokens/web"] / total < 0.95
    capsys.readouterr()
    resume = ["--resume", "--run-dir", str(tmp_path / "run")]
    refused(
        capsys,
        [*resume, "--data.weights", "web", "0.5", "code", "0.5"],
        "data.weights.web was 0.75",
    )
    assert main(["train", *resume]) == 0
    assert np.isfinite(runs.losses(tmp_path / "run")[20])
