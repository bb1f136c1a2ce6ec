"""`gchat data upload`: what is there is skipped, what is another's is not touched."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from tqdm import tqdm

from gaia.data.manifest import TokenizerInfo, load_manifest
from gaia.data.shards import write_shards
from gaia.storage import gcs as objects
from gaia.storage import region
from gchat.__main__ import main
from gchat.data.upload import _Sender as Sender
from gchat.tokenizer import train_bpe

INFO = TokenizerInfo("bpe", "0" * 64, vocab_size=300, padded_vocab_size=384, bos_id=299)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    tokenizer, rng = train_bpe(["a text of mine, " * 9] * 9, 280), np.random.default_rng(0)
    texts = [np.append(tokenizer.bos_id, rng.integers(0, 250, 400)) for _ in range(20)]
    write_shards(folder, texts, texts[:1], tokenizer.info, shard_tokens=2000)
    tokenizer.save(folder)
    return folder


def upload(capsys, *args):
    assert main(["data", "upload", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def content(uri):
    return {name: (o.crc32c, o.generation) for name, o in objects.list_objects(uri).items()}


def test_it_uploads_once_and_prints_bytes_and_cost(gcs, data, capsys):
    uri = f"{gcs.uri}/a"
    done = upload(capsys, data, uri)
    sizes = {p.name: p.stat().st_size for p in data.iterdir()}
    assert done["uploaded"] == done["objects"] == len(sizes)
    assert done["uploaded_bytes"] == done["total_bytes"] == sum(sizes.values())
    assert done["usd"] == pytest.approx((len(sizes) + 1) * 0.005 / 1000)
    before = content(uri)
    assert before.keys() == sizes.keys()
    again = upload(capsys, data, uri)
    assert (again["uploaded"], again["present"]) == (0, len(sizes))
    assert content(uri) == before
    assert main(["data", "verify", uri]) == 0
    assert "every checksum and count is right" in capsys.readouterr().out
    assert main(["data", "upload", str(data), uri]) == 0
    assert "uploaded 0 of" in capsys.readouterr().out


def test_an_interrupted_upload_goes_on_and_has_no_manifest_until_the_end(gcs, data, capsys):
    uri = f"{gcs.uri}/a"
    gcs.control({"faults": {"denied": ["storage.objects.create"]}})
    assert main(["data", "upload", str(data), uri]) == 2
    said = capsys.readouterr().err
    assert "storage.objects.create is missing" in said and "roles/storage.objectUser" in said
    assert said.count("\n") == 1 and content(uri) == {}
    gcs.control({"faults": {}})
    for shard in load_manifest(data).train[:3]:
        objects.write(f"{uri}/{shard.name}", (data / shard.name).read_bytes())
    before = content(uri)
    done = upload(capsys, data, uri)
    assert done["present"] == 3
    assert before.items() <= content(uri).items()


def test_another_object_is_replaced_only_by_force(gcs, data, capsys):
    uri, name = f"{gcs.uri}/a", load_manifest(data).train[1].name
    objects.write(f"{uri}/{name}", b"somebody else's")
    before = content(uri)
    assert main(["data", "upload", str(data), uri]) == 2
    said = capsys.readouterr().err
    assert name in said and "--force" in said and said.count("\n") == 1
    assert content(uri) == before  # and nothing else was sent
    upload(capsys, data, uri, "--force")
    assert main(["data", "verify", uri]) == 0


def test_an_object_that_appears_meanwhile_is_not_overwritten(gcs, data, monkeypatch, capsys):
    """Two uploads at once: the listing of one is older than the object of the other."""
    uri, name = f"{gcs.uri}/a", load_manifest(data).train[1].name
    listing = objects.list_objects

    def then_somebody_writes(where):
        found = listing(where)
        objects.write(f"{uri}/{name}", b"somebody else's")
        return found

    monkeypatch.setattr(objects, "list_objects", then_somebody_writes)
    assert main(["data", "upload", str(data), uri, "--force"]) == 2
    assert f"{name} was written by somebody else meanwhile" in capsys.readouterr().err
    assert objects.read(f"{uri}/{name}") == b"somebody else's"


def test_failing_requests_are_repeated(gcs, data, capsys):
    uri = f"{gcs.uri}/a"
    gcs.control({"faults": {"fail_share": 0.2, "seed": 3}})
    done = upload(capsys, data, uri)
    assert done["uploaded"] == done["objects"] and gcs.control()["failed"] > 0
    gcs.control({"faults": {}})
    assert main(["data", "verify", uri]) == 0


@pytest.fixture
def no_other_retry(monkeypatch):
    """The client's own retry must not wait: it knows neither our patience nor our stop."""

    def waits(seconds):
        raise AssertionError(f"the client's own retry waits for {seconds} s")

    clock = SimpleNamespace(sleep=waits, monotonic=time.monotonic)
    monkeypatch.setattr("google.api_core.retry.retry_unary.time", clock)


def sender(data, gcs, there=None):
    return Sender(data, f"{gcs.uri}/a", there or {}, tqdm(disable=True))


def test_a_silent_service_is_one_error_and_a_stop_is_heard(gcs, data, no_other_retry):
    gcs.control({"faults": {"fail_share": 1.0, "codes": [503]}})
    sends = sender(data, gcs)
    sends._patience = objects.Patience(0.5)
    with pytest.raises(objects.StorageError, match=r"tokenizer\.json did not answer for"):
        sends.send("tokenizer.json", "")
    stopped = sender(data, gcs)
    stopped._stop.set()
    with pytest.raises(objects.Stopped):
        stopped.send("tokenizer.json", "")


def test_only_the_chunk_that_failed_is_sent_again(gcs, data, monkeypatch, no_other_retry):
    monkeypatch.setattr("google.cloud.storage.blob._MAX_MULTIPART_SIZE", 0)
    monkeypatch.setattr("gchat.data.upload._CHUNK", 256 << 10)
    (data / "large").write_bytes(bytes(8 * (256 << 10)))
    gcs.control({"faults": {"fail_share": 0.3, "codes": [503], "seed": 1}})
    sender(data, gcs).send("large", "")
    done = gcs.control()
    methods = done["by_method"]
    assert done["failed"] > 1 and methods["POST"] + methods["PUT"] == 1 + 8 + done["failed"]
    assert objects.read(f"{gcs.uri}/a/large") == bytes(8 * (256 << 10))


def test_a_manifest_whose_deletion_was_answered_into_the_void_is_gone(gcs, data, monkeypatch):
    uri = f"{gcs.uri}/a/manifest.json"
    objects.write(uri, b"old")
    there = objects.list_objects(f"{gcs.uri}/a")
    blob, lost = objects.blob, []

    def losing(where, generation=None):
        handle = blob(where, generation)
        delete = handle.delete

        def delete_and_lose(**options):
            delete(**options)
            lost.append(options["retry"])
            raise ConnectionResetError("reset")

        handle.delete = delete_and_lose
        return handle

    monkeypatch.setattr(objects, "blob", losing)
    sender(data, gcs, there).withdraw_manifest()
    assert lost == [None] and objects.stat(uri) is None
    with pytest.raises(objects.MissingObject):  # nobody's lost answer
        sender(data, gcs, there).withdraw_manifest()


def test_a_damaged_or_missing_data_set_is_not_sent(gcs, data, tmp_path, capsys):
    uri, shard = f"{gcs.uri}/a", load_manifest(data).train[0].name
    assert main(["data", "upload", str(tmp_path / "no"), uri]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["data", "upload", str(data), "/disk"]) == 2
    assert "is no bucket" in capsys.readouterr().err
    assert main(["data", "upload", str(data), "gs://not-there/x"]) == 2
    assert "gcloud storage buckets create gs://not-there" in capsys.readouterr().err
    own = (data / "tokenizer.json").read_bytes()
    train_bpe(["texts of others, " * 9] * 9, 280).save(data)
    for verb in (["upload", str(data), uri], ["verify", str(data)]):
        assert main(["data", *verb]) == 2
        assert "is another tokenizer" in capsys.readouterr().err
    (data / "tokenizer.json").unlink()
    assert main(["data", "verify", str(data)]) == 2
    assert "tokenizer.json" in capsys.readouterr().err
    (data / "tokenizer.json").write_bytes(own)
    (data / shard).write_bytes(b"short")
    assert main(["data", "upload", str(data), uri]) == 2
    assert f"{shard}: crc32c" in capsys.readouterr().err
    (data / shard).unlink()
    assert main(["data", "upload", str(data), uri]) == 2
    assert f"{shard} does not exist" in capsys.readouterr().err
    assert content(uri) == {}


def test_regions_are_compared(gcs, data, capsys):
    """The fake's bucket is in US-CENTRAL1."""
    assert upload(capsys, data, f"{gcs.uri}/a", "--zone", "us-central1-a")["warning"] is None
    warning = upload(capsys, data, f"{gcs.uri}/a", "--zone", "us-east5-b")["warning"]
    assert "is in us-central1, this machine in us-east5" in warning
    assert region.differs("US", "us-east5-b", "gs://b").startswith("gs://b is in the multi-region")
    assert "transfer between regions" in region.differs("US", "europe-west4-a", "gs://b")
    assert "transfer between regions" in region.differs("EU", "us-east5-b", "gs://b")
    gcs.control({"faults": {"denied": ["storage.buckets.get"]}})
    warning = upload(capsys, data, f"{gcs.uri}/a", "--zone", "us-east5-b")["warning"]
    assert "cannot tell where the bucket lies" in warning
    assert "roles/storage.legacyBucketReader" in warning


def test_the_zone_comes_from_the_environment_or_the_metadata_server(monkeypatch):
    """A metadata server of our own stands in for Google's."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Metadata(BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_GET(self):
            asked_well = self.headers["Metadata-Flavor"] == "Google"
            assert self.path == "/computeMetadata/v1/instance/zone" and asked_well
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"projects/123/zones/us-east5-b")

    for name in ("STORAGE_EMULATOR_HOST", "NO_GCE_CHECK", "GAIA_ZONE"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Metadata) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        assert region.this_zone() == "us-east5-b"
        server.shutdown()
        thread.join()
    assert region.this_zone() is None  # nobody answers
    monkeypatch.setenv("GAIA_ZONE", "europe-west4-a")
    assert region.this_zone() == "europe-west4-a"
