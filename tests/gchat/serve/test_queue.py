"""Turns, buckets and keys, without a server."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError
from gchat.serve import keys
from gchat.serve.errors import ApiError
from gchat.serve.fair_queue import FairQueue
from gchat.serve.functions import Call, CallReader, Function, Offer
from gchat.serve.limits import Bucket, Rates


class Job:
    def __init__(self, samples, begun):
        self.samples, self._begun = samples, begun

    def begin(self):
        self._begun.append(self)


def test_holders_take_turns_however_much_one_asks_for():
    begun = []
    queue = FairQueue(slots=1, longest=1000)
    greedy = [Job(1, begun) for _ in range(100)]
    queue.add("greedy", greedy)
    modest = [Job(1, begun) for _ in range(5)]
    for one in modest:
        queue.add("modest", [one])
    while queue.working:
        queue.ended(1, 0.1)
    assert Counter(map(id, begun)) == Counter(map(id, greedy + modest))
    assert max(begun.index(one) for one in modest) <= 3 + 2 * 5  # not behind a hundred


STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.booleans()), max_size=60)


@settings(deadline=None)
@given(STEPS, st.integers(1, 4), st.randoms(use_true_random=False))
def test_each_job_begins_once_or_leaves_and_rows_are_never_overfull(steps, slots, rng):
    begun, waiting = [], []
    queue = FairQueue(slots, longest=10)
    for holder, samples, leaves in steps:
        job = Job(samples, begun)
        before = queue.waiting, queue.working
        try:
            queue.add(holder, [job])
            waiting.append((holder, job))
        except ApiError as error:
            assert error.status in (400, 429)
            assert (queue.waiting, queue.working) == before
        if leaves and waiting:
            holder, job = waiting.pop(rng.randrange(len(waiting)))
            assert queue.leave(holder, job) == (job not in begun)
        elif queue.working and rng.random() < 0.5:
            queue.ended(rng.randint(1, queue.working), 0.1)
        largest = max((job.samples for job in begun), default=0)
        assert (
            queue.working <= max(slots + 2, largest) and queue.waiting <= 10 + 5 + 3 + 6
        )  # shares of three
    while queue.working:
        queue.ended(1, 0.1)
    assert queue.waiting == 0 and len({id(job) for job in begun}) == len(begun)


def test_a_full_queue_says_when_to_come_again():
    queue = FairQueue(slots=2, longest=3)
    queue.add("a", [Job(1, []) for _ in range(7)])
    with pytest.raises(ApiError) as refused:
        queue.add("a", [Job(1, [])])
    assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
    with pytest.raises(ApiError) as never:
        queue.add("b", [Job(100, [])])
    assert never.value.status == 400


def test_one_who_fills_the_queue_leaves_room_for_others():
    begun = []
    queue = FairQueue(slots=2, longest=60)
    queue.add("greedy", [Job(1, begun) for _ in range(64)])
    for holder, share in (("a", 30), ("b", 20)):
        for _ in range(share):
            queue.add(holder, [Job(1, begun)])
        with pytest.raises(ApiError):
            queue.add(holder, [Job(1, begun)])
    assert queue.waiting == 60 + 30 + 20


def test_the_next_begins_when_one_that_did_not_fit_leaves():
    begun = []
    queue = FairQueue(slots=2, longest=10)
    queue.add("a", [Job(3, begun)])
    large, small = Job(2, begun), Job(1, begun)
    queue.add("b", [large])
    queue.add("c", [small])
    assert queue.leave("b", large) and begun[-1] is small


def test_buckets_recover_at_their_rate():
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(60)
    assert bucket.wait_s() == pytest.approx(1)
    bucket.take(9)  # an answer may cost more than was left
    now[0] = 9.5
    assert bucket.wait_s() == pytest.approx(0.5)
    now[0] = 1000.0
    bucket.take(59)
    assert bucket.wait_s() == 0  # a minute's worth is all that is kept
    rare = Bucket(0.5, lambda: now[0])  # one in two minutes
    assert rare.wait_s() == 0
    rare.take(1)
    assert rare.wait_s() == pytest.approx(120)
    rates = Rates(None, 100)
    rates.used("a", 1000)
    rates.begin("b")
    with pytest.raises(ApiError):
        rates.begin("a")


def test_keys_are_kept_as_hashes(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    made = {}
    for name in ("alice", "bob"):
        made[name], line = keys.new(name)
        keys.add(file, line)
    assert file.stat().st_mode & 0o777 == 0o600
    assert all(key not in file.read_text() for key in made.values())
    read = keys.read(str(file))
    assert {name: read.holder(key) for name, key in made.items()} == {
        "alice": "alice",
        "bob": "bob",
    }
    for wrong in ("", "x", made["alice"] + "x", made["alice"][:-1], "\udcff"):
        assert read.holder(wrong) is None
    monkeypatch.setenv("KEYS", " ".join(file.read_text().split()))
    assert keys.read("env:KEYS").holder(made["bob"]) == "bob"
    with pytest.raises(ConfigError, match="alice"):
        keys.add(file, keys.new("alice")[1])
    file.write_text("sk-plain-text-key\n")
    with pytest.raises(ConfigError, match="entry 1") as refused:
        keys.read(str(file))
    assert "sk-plain" not in str(refused.value)
    for source in ("env:NOTHING", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(ConfigError):
            keys.read(source)


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": "<tool_call>"}}\n</tool_call>'


@pytest.mark.parametrize("seed", range(20))
def test_calls_are_told_from_text_however_it_is_cut(seed):
    rng = random.Random(seed)
    text = f"Let me <see. {CALL}\n{CALL} and <tool_ca"
    reader = CallReader(Offer((Function(name="f"),)))
    news = []
    while text:
        size = rng.randint(1, 9)
        news += reader.add(text[:size])
        text = text[size:]
    news += reader.end()
    calls = [one for one in news if isinstance(one, Call)]
    assert [call.name for call in calls] == ["f", "f"] and calls[0].id != calls[1].id
    assert "".join(one for one in news if isinstance(one, str)) == "Let me <see. and <tool_ca"


def test_what_is_no_call_stays_text():
    for text in (
        "<tool_call>no json</tool_call>",
        '<tool_call>{"a": 1}</tool_call>',
        "<tool_call>",
    ):
        reader = CallReader(Offer((Function(name="f"),)))
        assert "".join(map(str, reader.add(text) + reader.end())) == text
