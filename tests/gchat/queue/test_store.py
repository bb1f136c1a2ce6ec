"""Stores of results, written once whatever comes twice: on a disk, in buckets of both clouds."""

import pytest

from gaia.errors import ConfigError, GaiaError
from gchat.queue import Item, open_queue
from gchat.queue.store import open_store
from tests.fakes import sqs

LONG = "ü/" * 200


def life(place):
    """Behaviour that all stores share."""
    store = open_store(place)
    assert store.get("results", "a/b") is None and list(store.ids("results")) == []
    assert store.put("results", "a/b", {"x": 1})
    assert not store.put("results", "a/b", {"x": 2})  # the first one stays
    assert store.put("results", LONG, {"y": "ü"}) and store.put("dead", "a/b", {"z": 1})
    assert store.get("results", "a/b") == {"x": 1} and store.get("results", LONG) == {"y": "ü"}
    assert sorted(store.ids("results")) == sorted(["a/b", LONG])
    assert list(store.ids("dead")) == ["a/b"]
    store.replace("results", "a/b", {"x": 3})
    store.delete("dead", "a/b")
    store.delete("dead", "a/b")
    assert store.get("results", "a/b") == {"x": 3} and list(store.ids("dead")) == []


def test_a_folder(tmp_path):
    life(str(tmp_path / "results"))
    assert not [path for path in tmp_path.rglob("*.tmp")]


def test_a_bucket_of_google(gcs):
    life(f"{gcs.uri}/results")


@pytest.mark.slow
def test_a_bucket_of_amazon(monkeypatch):
    pytest.importorskip("moto", reason="needs moto[s3,sqs,server] and boto3 (extra test-slow)")
    import boto3
    from botocore.stub import Stubber

    with sqs.moto() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="results")
        life("s3://results/a/b")
        with pytest.raises(GaiaError, match="NoSuchBucket"):
            open_store("s3://none/a").put("results", "x", {})
        # "On a 409 failure you should retry the upload": PutObject, If-None-Match, in S3's API
        # reference. Only 412 says that an object is there.
        store = open_store("s3://results/a/b")
        for last, new in ((None, True), ("PreconditionFailed", False)):
            with Stubber(store._client) as answers:
                answers.add_client_error("put_object", "ConditionalRequestConflict", "", 409)
                if last is None:
                    answers.add_response("put_object", {})
                else:
                    answers.add_client_error("put_object", last, "", 412)
                assert store.put("results", "c", {"x": 1}) == new
                answers.assert_no_pending_responses()


def test_a_queue_in_a_file_with_results_in_a_bucket(gcs, tmp_path):
    with open_queue(tmp_path / "q", create=True, results=f"{gcs.uri}/r") as queue:
        queue.add([Item("a", {"n": 1})])
        [lease] = queue.lease(1, 60, "w")
        assert queue.complete(lease, {"square": 1, "cost": 0.25})
        assert not queue.complete(type(lease)(lease.item, "another", 1, 0.0), {"square": 2})
    with open_queue(tmp_path / "q") as queue:
        assert [(one.id, one.result) for one in queue.results()] == [
            ("a", {"square": 1, "cost": 0.25})
        ]
        assert queue.facts().cost == 0.25


def test_other_addresses_are_refused():
    with pytest.raises(ConfigError, match="give a folder, gs://"):
        open_store("http://x/y")
