"""The queue over SQS (moto's server) and Pub/Sub (a fake over real gRPC), by their own clients."""

import itertools
import random
import time
from collections import Counter

import pytest

from gaia.errors import ConfigError
from gchat.queue import Failed, Item, Rules, open_queue, run_worker
from gchat.queue.protocol import QueueError
from gchat.queue.store import open_store
from queue_kills import at_every_point, at_random
from tests.fakes import sqs

pytestmark = [
    pytest.mark.slow,
    # Of google-cloud-pubsub's own dependencies, at import.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def amazon():
    pytest.importorskip("moto", reason="needs moto[s3,sqs,server] and boto3 (extra test-slow)")
    with sqs.moto() as environment:
        yield environment


@pytest.fixture(scope="module")
def google():
    pytest.importorskip("google.cloud.pubsub_v1", reason="needs google-cloud-pubsub (test-slow)")
    from tests.fakes import pubsub

    with pubsub.serve() as (fake, environment):
        yield fake, environment


@pytest.fixture(params=["sqs, a folder", "sqs, s3", "pubsub, a folder"])
def url(request, tmp_path, monkeypatch):
    """The address of a queue that does not exist yet."""
    number = next(NUMBERS)
    if request.param.startswith("sqs"):
        environment = request.getfixturevalue("amazon")
    else:
        environment = request.getfixturevalue("google")[1]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if request.param == "sqs, s3":
        import boto3

        boto3.client("s3").create_bucket(Bucket=f"bucket-{number}")
        return f"sqs://q{number}?results=s3://bucket-{number}/a/b"
    kind = "sqs://" if request.param.startswith("sqs") else "pubsub://project/"
    return f"{kind}q{number}?results={tmp_path}/results"


def add(queue, count, priority=0):
    assert queue.add(Item(f"i{n}", {"n": n}, priority) for n in range(count)) == count


def test_the_life_of_an_item(url):
    with open_queue(url, create=True, attempts=3) as queue:
        add(queue, 3)
        assert queue.add([Item("i1", {"n": 1}), Item("new", {"n": 9})]) == 1
        leases = []
        while len(leases) < 4:
            leases += queue.lease(4 - len(leases), 600, "w")
        assert {lease.item.id for lease in leases} == {"i0", "i1", "i2", "new"}
        assert all(lease.attempt == 1 for lease in leases)
        by_id = {lease.item.id: lease for lease in leases}
        assert queue.complete(by_id["i0"], {"x": "ü", "cost": 0.5})
        assert queue.complete(by_id["i0"], {"x": "again"})  # the same receipt: nothing changes
        assert queue.extend(by_id["i1"], 600)
        assert queue.fail(by_id["i1"], "schema: no", final=True, cost=0.25)
        assert queue.fail(by_id["i2"], "time-out: x")
        assert queue.release(by_id["new"])
        again = {}
        while len(again) < 2:
            again |= {lease.item.id: lease for lease in queue.lease(2, 600, "w")}
        # A failed attempt counts, a released one does not.
        assert {i: lease.attempt for i, lease in again.items()} == {"i2": 2, "new": 1}
        assert queue.complete(again["new"], {}) and queue.complete(again["i2"], {})
        counts = queue.counts()
        assert (counts.waiting, counts.leased, counts.done, counts.dead) == (0, 0, 3, 1)
        assert {one.id: one.result for one in queue.results()} == {
            "i0": {"x": "ü", "cost": 0.5}, "new": {}, "i2": {},
        }  # fmt: skip
        [dead] = queue.dead()
        assert (dead.item.id, dead.reason, dead.attempts) == ("i1", "schema: no", 1)
        facts = queue.facts()
        assert facts.failures == {"schema": 1, "time-out": 1} and facts.cost == 0.75
        assert (queue.revive("other"), queue.revive("schema")) == (0, 1)
        assert queue.counts().waiting == 1 and not list(queue.dead())
        run_worker(queue, _square, Rules(concurrency=2))
        assert queue.counts().done == 4


async def _square(payload):
    return {"square": payload["n"] ** 2, "cost": 0.001}


def test_items_that_fill_more_than_one_request(url):
    """SQS takes 1 MiB in a request, in one message or in ten."""
    with open_queue(url, create=True) as queue:
        text = "x" * 300_000
        assert queue.add(Item(f"i{n}", {"n": n, "text": text}) for n in range(10)) == 10
        run_worker(queue, _square, Rules(concurrency=4))
        assert queue.counts().done == 10


def test_priorities_and_their_change(url):
    with open_queue(url, create=True) as queue:
        assert queue.add(Item(f"i{n}", {"n": n, "kind": "ab"[n % 2]}, -1) for n in range(24)) == 24
        assert queue.priority({"kind": "b"}, 5) == 12
        order = []
        while len(order) < 12:
            leases = queue.lease(12 - len(order), 600, "w")
            assert all(lease.attempt == 1 for lease in leases)
            order += [lease.item.payload["kind"] for lease in leases]
        assert Counter(order)["b"] >= 10  # the lowest band has its turn at times


def test_a_change_of_priorities_that_breaks_off_holds_ten_items_at_most(url, monkeypatch):
    with open_queue(url, create=True) as queue:
        assert queue.add(Item(f"i{n}", {"n": n, "kind": "ab"[n % 2]}) for n in range(60)) == 60
        send, sent = queue._broker.send, []

        def breaks(band, bodies, delay_s=0.0):
            sent.extend(bodies)
            if len(sent) > 20:
                raise QueueError("the network", "is gone")
            send(band, bodies, delay_s)

        with monkeypatch.context() as patch:
            patch.setattr(queue._broker, "send", breaks)
            with pytest.raises(QueueError, match="the network"):
                queue.priority({"kind": "b"}, 5)
        leases = {}
        for _ in range(100):
            leases |= {lease.item.id: lease for lease in queue.lease(60, 600, "w")}
            if len(leases) >= 50:
                break
        assert len(leases) >= 50


def test_a_change_that_stays_in_its_band_ends(url):
    with open_queue(url, create=True) as queue:
        assert queue.add(Item(f"i{n}", {"n": n, "kind": "ab"[n % 2]}, 5) for n in range(40)) == 40
        assert queue.priority({"kind": "b"}, 7) == 20
        leases = []
        while len(leases) < 40:
            leases += queue.lease(40 - len(leases), 600, "w")
        assert Counter(lease.item.priority for lease in leases) == {5: 20, 7: 20}
        assert {lease.attempt for lease in leases} == {1}


def test_what_was_moved_is_not_asked_for_again(url):
    with open_queue(url, create=True) as queue:
        add(queue, 2)
        queue.priority({}, 5)
        queue.store.put("results", "i0", {"result": {"by": "the first copy"}, "finished": 1.0})
        run_worker(queue, _square, Rules(concurrency=1))
        assert {one.id: one.result for one in queue.results()} == {
            "i0": {"by": "the first copy"}, "i1": {"square": 1, "cost": 0.001},
        }  # fmt: skip
        assert queue.facts().cost == 0.001


def test_messages_are_kept_as_long_as_the_service_takes(google, amazon, tmp_path, monkeypatch):
    fake, environment = google
    for name, value in (environment | amazon).items():
        monkeypatch.setenv(name, value)
    import boto3

    bands = ("high", "middle", "low", "dead")
    client = boto3.client("sqs")
    for band in bands:  # as an earlier gaia has made them
        client.create_queue(QueueName=f"kept-{band}")
    open_queue(f"sqs://kept?results={tmp_path}/a", create=True).close()
    for _ in range(2):
        open_queue(f"pubsub://project/kept?results={tmp_path}/b", create=True).close()
        for band in bands:
            place = client.get_queue_url(QueueName=f"kept-{band}")["QueueUrl"]
            names = ["MessageRetentionPeriod"]
            got = client.get_queue_attributes(QueueUrl=place, AttributeNames=names)["Attributes"]
            assert got == {"MessageRetentionPeriod": str(14 * 86_400)}
            wanted = fake.subscriptions[f"projects/project/subscriptions/kept-{band}"].wanted
            assert wanted.message_retention_duration.days == 31 and wanted.ack_deadline_seconds
            wanted.message_retention_duration = {"seconds": 7 * 86_400}  # an earlier gaia's


def test_items_that_the_service_has_dropped_are_sent_again(url):
    items = [Item(f"i{n}", {"n": n}) for n in range(12)]
    with open_queue(url, create=True) as queue:
        assert queue.add(items) == 12
        leases = queue.lease(1, 600, "w")
        assert queue.complete(leases[0], {"square": 0})
        while messages := queue._broker.receive("middle", 10, 600, thorough=True):
            for message in messages:  # the service ends them: they are too old
                queue._broker.delete("middle", message.handle)
        assert queue.counts().waiting == 11 and queue.add(items) == 0
    store = open_store(url.partition("results=")[2])
    old = {"began": str(time.time() - 40 * 86_400)}
    store.replace("queue", "queue", store.get("queue", "queue") | old)
    for item in items:  # one was sent lately, and waits
        sent = time.time() - (1 if item.id == "i3" else 39 * 86_400)
        store.replace("items", item.id, {"priority": 0, "sent": sent})
    with open_queue(url, create=True) as queue:
        wanted = {item.id for item in items} - {"i3", leases[0].item.id}
        assert queue.add(items) == len(wanted) and queue.add(items) == 0
        got = set()
        while len(got) < len(wanted):
            got |= {lease.item.id for lease in queue.lease(12, 600, "w")}
        assert got == wanted


def test_work_with_failures(url):
    draw = random.Random(0)

    async def do(payload):
        if payload["n"] % 10 == 7:
            raise Failed("schema: no", retry=False)
        if draw.random() < 0.2:
            raise Failed("endpoint 500: x", after_s=0)
        return {"square": payload["n"] ** 2}

    with open_queue(url, create=True, attempts=50) as queue:
        add(queue, 60)
        run_worker(queue, do, Rules(concurrency=8))
        got = {one.id: one.result["square"] for one in queue.results()}
        assert got == {f"i{n}": n**2 for n in range(60) if n % 10 != 7}
        assert {one.item.id for one in queue.dead()} == {f"i{n}" for n in range(7, 60, 10)}


def test_an_item_that_kills_its_workers_ends_in_the_dead_letter(url):
    with open_queue(url, create=True, attempts=3) as queue:
        add(queue, 1)
        for attempt in (1, 2, 3):
            leases = []
            while not leases:
                leases = queue.lease(1, 0, "dies")
            assert leases[0].attempt == attempt
        for _ in range(200):
            assert queue.lease(1, 0, "w") == []
            if queue.counts().dead:
                break
        [dead] = queue.dead()
        assert dead.reason.startswith("lease ran out") and queue.counts().waiting == 0


def test_a_late_answer_does_not_replace_the_first(url):
    with open_queue(url, create=True) as queue:
        add(queue, 1)
        first, second = [], []
        while not first:
            first = queue.lease(1, 0, "slow")
        while not second:
            second = queue.lease(1, 600, "quick")
        assert queue.complete(second[0], {"by": "quick"})
        assert not queue.complete(first[0], {"by": "slow"})
        assert [one.result for one in queue.results()] == [{"by": "quick"}]


def test_a_result_counts_where_ending_its_message_fails_once(url, monkeypatch):
    with open_queue(url, create=True) as queue:
        add(queue, 1)
        leases, delete, failures = [], queue._broker.delete, [OSError("throttled")]
        while not leases:
            leases = queue.lease(1, 600, "w")

        def fails_once(*given):
            if failures:
                raise failures.pop()
            delete(*given)

        monkeypatch.setattr(queue._broker, "delete", fails_once)
        with pytest.raises(OSError, match="throttled"):
            queue.complete(leases[0], {"cost": 2.5})
        assert queue.complete(leases[0], {"cost": 2.5})
        assert queue.facts().counts.done == 1 and queue.facts().cost == 2.5


def test_kills(url, tmp_path):
    at_every_point(url, tmp_path / "points", count=40)


def test_random_kills(url, tmp_path):
    at_random(url, tmp_path / "random", count=300, kills=12)


def test_a_message_that_comes_twice_has_one_result(google, tmp_path, monkeypatch):
    fake, environment = google
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", environment["PUBSUB_EMULATOR_HOST"])
    monkeypatch.setattr(fake, "twice", 3)
    with open_queue(f"pubsub://project/twice?results={tmp_path}/r", create=True) as queue:
        add(queue, 60)
        tally, _ = run_worker(queue, _square, Rules(concurrency=8))
        assert tally.lost > 0 and tally.done == 60
        assert Counter(one.id for one in queue.results()) == Counter(f"i{n}" for n in range(60))


def test_another_version_is_refused(url):
    open_queue(url, create=True).close()
    store = open_store(url.partition("results=")[2])
    store.replace("queue", "queue", {**store.get("queue", "queue"), "version": 2})
    with pytest.raises(ConfigError, match="version 2, and this program reads 1"):
        open_queue(url)
    assert store.get("queue", "queue")["version"] == 2
    with pytest.raises(ConfigError, match="says not where its results go"):
        open_queue(url.partition("?")[0])
