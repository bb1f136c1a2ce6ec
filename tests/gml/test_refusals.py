"""Refused commands leave one clear line, their exit code, and nothing else."""

from __future__ import annotations

import json

import pytest

from gml import reaper_setup
from gml.errors import Denied, GmlError, Unavailable
from gml.nodes.create import create
from gml.planning import make_spec
from gml.reaper import SETTLE_S, reap
from gml.remote import jobs
from gml.request import NodeRequest
from gml.store import Store
from tests.fakes.gml_kit import make_fleet
from tests.fakes.gml_paths import machines

NODE = ("node", "create", "-p", "google", "--timeout", "1h", "--no-ssh")
EVERYWHERE = {
    "us-east5-a", "us-east5-b", "us-east1-d", "europe-west4-a", "asia-northeast1-b",
    "us-central1-b",
}  # fmt: skip


def request(**more) -> NodeRequest:
    value = {"instance_type": "v6e-8", "provider": "google", "name": "x", "zone": "us-east5-b",
             "wait_ssh": False, **more}  # fmt: skip
    return NodeRequest(timeout_s=3600, **value)


@pytest.mark.parametrize(
    "setup,code,says",
    [
        ({"GOOGLE_OAUTH_ACCESS_TOKEN": "expired"}, 3, "gcloud auth application-default login"),
        ({"GOOGLE_CLOUD_PROJECT": "other-proj"}, 4, "is it the right project"),
        ({"GOOGLE_CLOUD_PROJECT": "Bad Name"}, 2, "is not a project id"),
        ({"GOOGLE_CLOUD_PROJECT": ""}, 2, "no Google project is set"),
        ({"disabled": "tpu"}, 4, "gcloud services enable tpu.googleapis.com --project proj-123"),
        ({"denied": "tpu:POST"}, 4, "add-iam-policy-binding proj-123 --member user:YOU --role"),
        ({"quota": "us-east5-b"}, 5, "console.cloud.google.com/iam-admin/quotas?project=proj-123"),
    ],
)
def test_google_refusals(server, gml, home, monkeypatch, setup, code, says):
    for key, value in setup.items():
        if key.isupper():
            monkeypatch.setenv(key, value)
        else:
            getattr(server.cloud, key).add(value)
    done = gml(*NODE, "-t", "v6e-8", "--zone", "us-east5-b", "--name", "x")
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr
    assert server.cloud.billable() == []
    # The refusal is the last word: no record, and no talk of what may still exist.
    assert list((home / "nodes").glob("*")) == []
    assert says in done.stderr.splitlines()[-1]


def test_an_unreachable_machine_is_one_line_and_leaves_nothing(gml, home):
    done = gml("node", "create", "-p", "local", "--host", "127.0.0.1:1", "--timeout", "1h")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 8, done.stderr
    assert "no login on 127.0.0.1:1" in last and "Connection refused" in last
    assert "nothing was made" in last
    assert list((home / "nodes").glob("*")) == []
    assert json.loads(gml("ls", "--json").stdout)["nodes"] == []


def test_a_refusal_after_a_lost_answer_is_looked_into(server):
    """The first attempt was carried out, the second refused: the node has to be found and ended."""
    posts = []

    def fault(call):
        if call.method == "POST" and call.path.endswith("/nodes"):
            posts.append(call)
            return ("drop", "after") if len(posts) == 1 else ("status", 403)
        return None

    server.cloud.faults = fault
    with pytest.raises(Denied):
        create(make_fleet(), request(strategy="node"))
    assert len(posts) == 2
    server.cloud.drain()
    assert server.cloud.billable() == []


def test_a_refused_rerun_does_not_forget_what_a_killed_create_made(server, home):
    fleet = make_fleet()
    node = create(fleet, request(strategy="node"))
    Store(home).put(node.replace(phase="intent"))  # as kill -9 would have left it
    server.cloud.denied = {"tpu:POST", "tpu:DELETE"}
    with pytest.raises(GmlError) as error:
        create(make_fleet(), request(strategy="node"))
    assert "may still exist" in str(error.value.__notes__)
    assert Store(home).get("x") is not None and len(machines(server.cloud)) == 1


@pytest.mark.parametrize(
    "words,says",
    [
        (("--host", "1.2.3.4"), "--host is for --provider local"),
        (("--self-terminate",), "--self-terminate is for --provider lambda"),
        (("--reservation", "a/b"), "--reservation 'a/b' is not a name"),
        (("--spot", "--reservation", "r"), "exclude each other"),
        (("--max-price", "nan"), "--max-price nan is not a price"),
        (("--max-price", "-1"), "--max-price -1 is not a price"),
        (("--idle", "1s"), "--idle 1s is too short"),
        (("--strategy", "flex", "--timeout", "8d"), "--timeout 8d00h is longer than Google lets"),
        (("--strategy", "gce", "--limit", "200d"), "--limit 200d00h is longer than Google lets"),
        (("--strategy", "flex", "--spot"), "--strategy flex and --spot exclude each other"),
        (("--strategy", "flex", "--reservation", "r"), "flex and --reservation exclude"),
        (("--strategy", "node", "--limit", "6h"), "--limit 6h00m is kept by --strategy gce and"),
        (("--strategy", "queued", "--limit", "6h"), "not by --strategy queued"),
        (("-p", "aws", "-t", "8xH100", "--limit", "6h"), "flex only, not by aws"),
        (("--limit", "6h"), "auto takes another for v6e-8"),
        (("-t", "gpu_1x_gh200"), "google does not sell 1xGH200; sold by: lambda"),
    ],
)
def test_options_that_cannot_be_meant(server, gml, home, words, says):
    done = gml(*NODE, "-t", "v6e-8", *words)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert server.cloud.mutations() == []
    assert list((home / "nodes").glob("*")) == []


@pytest.mark.parametrize(
    "words,says",
    [
        (("--detach",), "--recover and --detach exclude each other"),
        (("--attach", "x"), "--recover and --attach exclude each other"),
        (("--node", "x"), "--recover and --node exclude each other"),
        (("-n", "2", "--detach"), "--recover and --detach exclude each other"),
        (("--name", "x"), "x is up already"),
    ],
)
def test_recover_is_refused_where_nothing_would_recover(server, gml, repo, words, says):
    create(make_fleet(), request())
    before = len(server.cloud.mutations())
    line = ("run", "-t", "v6e-8", "-p", "google", "--timeout", "1h", "--recover", *words)
    done = gml(*line, *(() if "--attach" in words else ("--", "true")), cwd=repo)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert len(server.cloud.mutations()) == before


def test_doctor_checks_every_provider_that_its_help_names(home, gml):
    done = gml("doctor", "-p", "aws")
    assert "is not known" not in done.stderr and "FAIL aws regions" in done.stdout
    assert "one of google, lambda, aws" in gml("doctor", "-p", "azure").stderr


def test_seven_days_of_flex_start_are_allowed_and_the_queue_does_not_count(server, gml):
    words = ("--strategy", "flex", "--timeout", "7d", "--zone", "us-east5-a", "--dry-run")
    body = json.loads(gml(*NODE, "-t", "v6e-8", *words).stdout)["requests"][0]["body"]
    assert body["runDuration"]["maxRunDuration"] == f"{7 * 86400}s"
    short = (*words[:2], "--timeout", "2h", *words[4:])
    body = json.loads(gml(*NODE, "-t", "v6e-8", *short).stdout)["requests"][0]["body"]
    assert body["runDuration"]["maxRunDuration"] == "7260s"


def test_all_zones_refusing_make_one_short_line(server, gml):
    server.cloud.quota = EVERYWHERE - {"us-east5-a"}
    server.cloud.stockout = {"us-east5-a"}
    done = gml(*NODE, "-t", "v6e-8")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 6, done.stderr
    assert "none of 6 places has v6e-8 now: no capacity in us-east5-a; no quota in" in last
    assert len(last) < 400


def test_extend_dry_run_is_refused_where_extend_would_be(server, gml):
    gml(*NODE, "-t", "v6e-8", "--strategy", "gce", "--name", "g")
    for more in ((), ("--dry-run",)):
        done = gml("node", "extend", "g", "9h", *more)
        assert (done.returncode, "google itself deletes g" in done.stderr) == (10, True)


def test_delete_goes_on_with_the_others(server, gml, home):
    for name in ("a", "b"):
        gml(*NODE, "-t", "v6e-8", "--strategy", "node", "--name", name)
    with Store(home).lock("a"):
        done = gml("node", "delete", "a", "b", "b")
    assert done.returncode == 9, done.stderr
    assert done.stderr.count("b is gone") == 1
    assert [n.id for n in Store(home).all()] == ["a"]


def test_lists_forget_deleted_nodes_at_once_and_say_who_is_busy(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "a")
    assert [n["id"] for n in json.loads(gml("ls", "--json").stdout)["nodes"]] == ["a"]
    gml("node", "delete", "a")
    assert json.loads(gml("ls", "--cached", "--json").stdout)["nodes"] == []
    assert json.loads(gml("ls", "--json").stdout)["nodes"] == []
    store = Store(home)
    made = create(make_fleet(), request())
    assert [n["id"] for n in json.loads(gml("ls", "--cached", "--json").stdout)["nodes"]] == ["x"]
    store.put(made.replace(phase="intent"))
    with store.lock("x"):
        assert "another gml is working on it" in gml("ls", "--refresh").stdout
    assert "a create was interrupted" in gml("ls", "--refresh").stdout


def test_a_rebuilt_record_has_its_price_again(server, gml, home):
    gml(*NODE, "-t", "8xH100", "--name", "h")
    gml(*NODE, "-t", "v6e-8", "--name", "c")
    for name in "hc":
        (home / "nodes" / f"{name}.json").write_text("{")
    rows = {n["id"]: n for n in json.loads(gml("ls", "--refresh", "--json").stdout)["nodes"]}
    assert (rows["c"]["usd_per_hour"], rows["h"]["type"]) == (21.6, "8xH100")
    assert Store(home).damaged() == []


def test_what_is_damaged_and_exists_nowhere_is_forgotten_in_the_end(server, home):
    import os

    (home / "nodes").mkdir(exist_ok=True)
    path = home / "nodes" / "gone.corrupt"
    path.write_text("x")
    reap(make_fleet())
    assert path.exists()  # a create of a moment ago may not be listed yet
    old = path.stat().st_mtime - SETTLE_S - 1
    os.utime(path, (old, old))
    reap(make_fleet())
    assert not path.exists()


def test_clouds_that_are_no_longer_configured_are_not_passed_over(server, gml, monkeypatch):
    gml(*NODE, "-t", "v6e-8", "--name", "far")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    for words in (("ls", "--refresh"), ("reap",)):
        done = gml(*words)
        assert "google: not configured here" in done.stderr and "far" in done.stderr, done.stderr
        assert done.returncode == 11


def test_the_latest_job_is_never_the_setup():
    assert jobs.latest(["job-1", "setup-179"]) == "job-1"
    assert jobs.latest(["setup-179"]) == "setup-179" and jobs.latest([]) == ""


def test_a_timer_gets_the_settings_of_this_shell_but_no_secret(home, gml, monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "my-proj-1")
    monkeypatch.setenv("LAMBDA_API_KEY", "very-secret")
    done = gml("reaper", "install", "--dry-run")
    assert '"GOOGLE_CLOUD_PROJECT=my-proj-1"' in done.stderr
    assert "very-secret" not in done.stderr and "gml init lambda --apply" in done.stderr
    assert "GOOGLE_CLOUD_PROJECT=my-proj-1" in reaper_setup.cron_line(make_fleet().config)
    both = gml("reaper", "install", "--cron", "--k8s")
    assert (both.returncode, "exclude each other" in both.stderr) == (2, True)


def test_hosts_are_served_at_once_and_the_first_ones_error_counts():
    from threading import Barrier

    from gml.threads import on_hosts

    meet = Barrier(4, timeout=30)  # met only if all four run at the same time
    assert on_hosts(4, lambda i: (meet.wait() >= 0) * i) == [0, 1, 2, 3]

    def fail(index: int) -> None:
        if index in (1, 3):
            raise Unavailable(f"host {index}")

    with pytest.raises(Unavailable, match="host 1"):
        on_hosts(4, fail)


def test_a_slice_is_not_ended_by_hosts_that_nobody_is_on(server, gml):
    """Each host sees itself alone, and deletes the whole slice: `gml connect` is on host 0."""
    for kind, idle in (("v6e-8", 1800), ("v6e-16", 0)):
        spec = make_spec(make_fleet(), request(instance_type=kind))
        assert spec.idle_s == idle, kind
    done = gml(*NODE, "-t", "v6e-16", "--idle", "30m")
    assert done.returncode == 2 and "--idle 30m is for a single host" in done.stderr, done.stderr
    assert gml(*NODE, "-t", "v6e-16", "--idle", "none", "--dry-run").returncode == 0
