"""A laptop whose clock is wrong: deadlines, prices and reaping go by the services' time."""

from __future__ import annotations

import json
import time

import pytest

from gml.clock import ServiceClock
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet

CREATE = ("node", "create", "-t", "v6e-8", "-p", "google", "--timeout", "1h", "--no-ssh")
HOUR = 3600


@pytest.mark.parametrize("strategy", ["node", "queued", "gce"])
@pytest.mark.parametrize("skew", [5 * HOUR, -2 * HOUR])
def test_the_deadline_is_an_hour_away_whatever_our_clock_says(server, zygote, skew, strategy):
    words = [*CREATE, "--strategy", strategy, "--zone", "us-east5-b", "--name", "x"]
    done = zygote.call(*words, skew=skew)
    assert done.returncode == 0, done.stderr
    (raw,) = [r for n, r in server.cloud.resources.items() if "/nodes/" in n or "/instances/" in n]
    left = int(raw["labels"]["gml-deadline"]) - time.time()
    assert HOUR - 60 < left < HOUR + 10
    assert ("ahead of" if skew > 0 else "behind") in done.stderr
    assert "at most $21.60" in done.stderr
    # Nothing healthy is overdue in such eyes, by the clouds' lists or by the last look.
    assert json.loads(zygote.call("reap", "--json", skew=skew).stdout)["kept"] == ["x"]
    row = json.loads(zygote.call("ls", "--refresh", "--json", skew=skew).stdout)["nodes"][0]
    assert HOUR - 60 < row["left_s"] < HOUR + 10 and row["spent_usd"] < 1
    cached = json.loads(zygote.call("ls", "--cached", "--json", skew=skew).stdout)["nodes"][0]
    assert HOUR - 60 < cached["left_s"] < HOUR + 10
    assert "past its end" not in zygote.call("cost", skew=skew).stderr


def test_a_right_clock_is_not_talked_about(server, zygote):
    done = zygote.call(*CREATE, "--name", "x")
    assert done.returncode == 0 and "clock" not in done.stderr


def test_what_is_past_by_the_services_clock_is_reaped_by_a_slow_one(server, zygote):
    zygote.call(*CREATE, "--strategy", "node", "--name", "x")
    server.cloud.offset = 2 * HOUR  # the service's time goes on; ours stays
    assert [n.id for n in reap(make_fleet()).deleted] == ["x"]


def test_the_clock_takes_only_what_is_more_than_noise():
    clock = ServiceClock()
    sent = 1_000_000_000.0
    for date, ahead in (
        ("Sun, 09 Sep 2001 01:46:40 GMT", 0.0),  # the same second
        ("Sun, 09 Sep 2001 01:46:37 GMT", 0.0),  # 3 s: noise
        ("Sun, 09 Sep 2001 00:46:40 GMT", 3600.0),
        ("nonsense", 3600.0),
        ("", 3600.0),
        ("Sun, 09 Sep 2001 02:46:40 GMT", -3600.0),
        ("Sun, 09 Sep 2001 01:46:40 GMT", 0.0),
    ):
        clock.note(date, sent, sent + 0.4)
        assert clock.ahead_s == pytest.approx(ahead, abs=1)
    clock.note("Sun, 09 Sep 2001 01:46:50 GMT", sent, sent + 30)  # a slow answer proves little
    assert clock.ahead_s == 0.0
