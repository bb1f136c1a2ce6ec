"""Google: strategies, offers, doctor, slices; the big official clients as oracles of the fake."""

from __future__ import annotations

import json
import time

import pytest

from gml.config import load
from gml.errors import AuthError, Incomplete
from gml.nodes.change import delete, extend
from gml.nodes.create import create
from gml.planning import make_spec
from gml.providers.google import requests
from gml.providers.google.api import GoogleApi
from gml.providers.google.buckets import bucket_location
from gml.request import NodeRequest
from tests.fakes.cloud import TOKEN
from tests.fakes.gml_kit import make_fleet
from tests.fakes.schema import check_object, check_request


def request(**more) -> NodeRequest:
    value = {"provider": "google", "name": "x", "wait_ssh": False, **more}
    return NodeRequest(**{"instance_type": "v6e-8", "timeout_s": 3600, **value})


def test_the_schema_check_catches_typos():
    good = {"name": "a", "scheduling": {"maxRunDuration": {"seconds": "60"}}}
    assert check_object("compute.v1", "Instance", good) == []
    for bad in (
        {"scheduling": {"maxRunDurations": {}}},
        {"scheduling": {"provisioningModel": "CHEAP"}},
        {"scheduling": {"maxRunDuration": {"seconds": 60}}},
        {"labels": {"a": 1}},
    ):
        assert check_object("compute.v1", "Instance", bad) != []
    path = "v2/projects/p/locations/z/nodes"
    assert check_request("tpu.v2", "POST", path, ["nodeld"], {}) != []
    assert check_object("tpu.v2", "QueuedResource", {"runDuration": {}}) != []
    assert check_object("tpu.v2alpha1", "QueuedResource", {"runDuration": {}}) == []


def test_auto_takes_gce_only_where_doctor_verified_it(server, gml):
    fleet = make_fleet()

    def strategies(sku):
        return {o.zone: o.strategy for o in offers(sku)}

    assert set(strategies("v6e-8").values()) == {"node"}
    assert set(strategies("v6e-16").values()) == {"queued"}
    assert set(strategies("tpu7x-8").values()) == {"gce"}
    server.cloud.closed_zones = {"us-east5-a"}
    done = gml("doctor", "-p", "google", "-t", "v6e-8", "--json")
    checks = {c["check"]: c for c in json.loads(done.stdout)["checks"]}
    assert checks["gce v6e-8 in us-east5-a"]["detail"] == "not offered"
    assert checks["ssh firewall"]["ok"]
    assert strategies("v6e-8")["us-east5-b"] == "gce"
    assert strategies("v6e-8")["us-east5-a"] == "node"
    node = create(fleet, request(zone="us-east5-b"))
    assert node.strategy == "gce" and node.limit is not None


def offers(name):
    from gaia.hardware import sku

    return make_fleet().provider("google").offers(sku(name), spot=False)


def test_offers_are_cheapest_first_and_live_ones_ask_every_zone(server, gml):
    rows = json.loads(gml("offers", "v6e-8", "-p", "google", "--json").stdout)
    prices = [r["price"] for r in rows if r["price"] is not None]
    assert prices == sorted(prices) and rows[0]["price"] == 21.6
    assert rows[-1]["price"] is None  # us-central1-b has no known price and comes last
    server.cloud.closed_zones = {"us-east5-b"}
    live = json.loads(gml("offers", "v6e-8", "-p", "google", "--refresh", "--json").stdout)
    assert "us-east5-b" not in {r["zone"] for r in live}
    spot = json.loads(gml("offers", "v6e-8", "-p", "google", "--spot", "--json").stdout)
    assert spot[0]["price"] == pytest.approx(15.12)


def test_create_goes_on_to_the_next_zone_and_remembers_where_it_tried(server):
    server.cloud.stockout = {"us-east5-b", "us-east5-a"}
    server.cloud.closed_zones = {"us-east1-d"}
    node = create(make_fleet(), request())
    assert node.zone == "europe-west4-a"
    assert len(server.cloud.billable()) == 1


def test_retry_until_up_waits_for_capacity(server):
    server.cloud.stockout = {"us-east5-b"}
    rounds = []

    def progress(what):
        rounds.append(what)
        if sum("next round" in r for r in rounds) == 2:
            server.cloud.stockout = set()

    node = create(
        make_fleet(), request(zone="us-east5-b", retry_until_up=True, retry_pause_s=0.01), progress
    )
    assert node.zone == "us-east5-b"
    assert sum("next round" in r for r in rounds) == 2


def test_a_slice_has_all_its_hosts_and_deleting_takes_everything(server):
    server.cloud.addresses = [(f"127.0.0.{i}", 22) for i in range(1, 5)]
    for strategy in ("queued", "gce"):
        fleet = make_fleet()
        node = create(fleet, request(instance_type="v6e-16", zone="us-east5-b", strategy=strategy))
        assert [h.address for h in node.hosts] == [f"127.0.0.{i}" for i in range(1, 5)]
        delete(fleet, node)
        server.cloud.drain()
        assert server.cloud.resources == {}, strategy


def test_extend_moves_labels_and_metadata(server, monkeypatch):
    fleet = make_fleet()
    monkeypatch.setattr(fleet.ssh, "run", lambda *a, **k: None)
    for strategy in ("node", "gce"):
        more = {"limit_s": 7200} if strategy == "gce" else {}
        node = create(fleet, request(zone="us-east5-b", strategy=strategy, **more))
        moved = extend(fleet, node, node.deadline + 600)
        (live,) = make_fleet().list_live().nodes
        assert live.deadline == moved.deadline == node.deadline + 600
        raw = next(
            r
            for n, r in server.cloud.resources.items()
            if n.endswith("gml-x") and "/disks/" not in n
        )
        assert raw["labels"]["gml-deadline"] == str(moved.deadline)
        if strategy == "node":
            assert raw["metadata"]["gml-deadline"] == str(moved.deadline)
        delete(fleet, moved)


def test_an_unreachable_zone_is_no_empty_zone(server):
    fleet = make_fleet()
    create(fleet, request(zone="us-east5-b"))
    server.cloud.unreachable = {"us-east5-b"}
    with pytest.raises(Incomplete) as error:
        fleet.provider("google").list_nodes()
    assert "us-east5-b" in str(error.value)
    listing = fleet.list_live()
    assert listing.problems and [n.note for n in listing.nodes] == [""]


def test_no_secret_in_what_is_sent_and_oslogin_off(server):
    create(make_fleet(), request(zone="us-east5-b"))
    (call,) = [c for c in server.cloud.mutations() if c.method == "POST"]
    assert call.body["metadata"]["enable-oslogin"] == "FALSE"
    assert TOKEN not in json.dumps(call.body)
    assert len(call.body["metadata"]["startup-script"]) < 250_000


def test_data_beside_the_machine(server):
    from gml.errors import UsageError
    from gml.remote.data import announce_data

    api = GoogleApi(load())
    assert bucket_location(api, "here") == "us-east5"
    with pytest.raises(UsageError, match="does not exist"):
        bucket_location(api, "nowhere")
    assert announce_data("gs://here/x", 2.7, "us-east5", "us-east5")
    assert announce_data("gs://here/x", 2.7, "us-east5", "us")
    with pytest.raises(UsageError, match="lies in us-east5"):
        announce_data("gs://here/x", 2.7, "europe-west4", "us-east5")
    assert "$3.60" in announce_data("", 21.6, "us-east5", "")[0]


def test_google_auth_signs_in_with_a_service_account(server, home, monkeypatch):
    pytest.importorskip("google.auth")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization as s

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()).decode()
    info = {"type": "service_account", "client_email": "a@b.c", "private_key": pem,
            "token_uri": f"{server.url}/token"}  # fmt: skip
    (home / "sa.json").write_text(json.dumps(info))
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(home / "sa.json"))
    assert GoogleApi(load()).sign_in.token() == TOKEN
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(home / "none.json"))
    with pytest.raises(AuthError, match="gcloud auth application-default login"):
        GoogleApi(load()).sign_in.token()


@pytest.mark.slow
def test_the_official_tpu_client_agrees_with_the_fake_over_rest(server):
    """The oracle: google-cloud-tpu reads what the fake says and sends what we send."""
    tpu = pytest.importorskip("google.cloud.tpu_v2")
    from google.api_core.client_options import ClientOptions
    from google.oauth2.credentials import Credentials
    from google.protobuf import json_format

    fleet = make_fleet()
    spec = make_spec(fleet, request(spot=True))
    config = fleet.config
    offer = fleet.provider("google").offers(spec.sku, spot=True, zone="us-east5-b")[0]
    body = requests.create_requests(config, spec, offer)[0].body
    # Strict: an unknown field in our JSON would raise.
    node = json_format.ParseDict(body, tpu.Node.pb(tpu.Node()))
    client = tpu.TpuClient(
        transport="rest",
        credentials=Credentials(TOKEN),
        client_options=ClientOptions(api_endpoint=f"{server.url}/tpu"),
    )
    parent = "projects/proj-123/locations/us-east5-b"
    made = client.create_node(parent=parent, node_id="gml-x", node=tpu.Node.wrap(node))
    assert made.result(timeout=60).state.name == "READY"
    assert [n.labels["gml-id"] for n in client.list_nodes(parent=f"{parent[:-10]}-")] == ["x"]
    assert [n.id for n in make_fleet().list_live().nodes] == ["x"]


@pytest.mark.slow
def test_the_official_compute_client_agrees_with_our_instance(server):
    compute = pytest.importorskip("google.cloud.compute_v1")
    fleet = make_fleet()
    spec = make_spec(fleet, request(strategy="gce"))
    provider = fleet.provider("google")
    offer = provider.offers(spec.sku, spot=False, zone="us-east5-b", strategy="gce")[0]
    body = provider.create_requests(spec, offer)[0].body
    instance = compute.Instance.from_json(json.dumps(body), ignore_unknown_fields=False)
    assert instance.scheduling.max_run_duration.seconds == 3660
    again = json.loads(
        compute.Instance.to_json(instance, always_print_fields_with_no_presence=False)
    )
    assert check_object("compute.v1", "Instance", again) == []


@pytest.mark.slow
def test_the_official_tpu_client_over_grpc_takes_our_bodies(server):
    pytest.importorskip("google.cloud.tpu_v2")
    from tests.fakes import tpu_grpc

    fleet = make_fleet()
    spec = make_spec(fleet, request(spot=True))
    made = []
    for strategy in ("node", "queued"):
        offer = fleet.provider("google").offers(
            spec.sku, spot=True, zone="us-east5-b", strategy=strategy
        )[0]
        made.append(requests.create_requests(fleet.config, spec, offer)[0].body)
    tpu_grpc.check_all(*made)


def test_create_to_a_usable_shell_and_pinned_keys(server, sshd_farm, home, gml):
    """The fake cloud hands out a real sshd: create waits for the login, then everything works."""
    import getpass

    from tests.fakes.gml_kit import CONFIG

    folder, servers = sshd_farm
    text = CONFIG.format(key=folder / "key") + f'[google]\nssh_user = "{getpass.getuser()}"\n'
    (home / "config.toml").write_text(text)
    server.cloud.addresses = [("127.0.0.1", servers[0].port)]
    words = (
        "node",
        "create",
        "-t",
        "v6e-8",
        "-p",
        "google",
        "--strategy",
        "gce",
        "--timeout",
        "1h",
    )
    done = gml(*words, "--zone", "us-east5-b", "--name", "sh")
    assert done.returncode == 0, done.stderr
    assert gml("exec", "sh", "--", "echo", "in").stdout == "in\n"
    assert "gml-sh ssh-ed25519" in (home / "known_hosts").read_text()
    # Another machine under the same name must not be let in: its key is pinned.
    server.cloud.addresses = [("127.0.0.1", servers[1].port)]
    record = home / "nodes" / "sh.json"
    record.write_text(record.read_text().replace(str(servers[0].port), str(servers[1].port)))
    wrong = gml("exec", "sh", "--", "echo", "in")
    assert (wrong.returncode, wrong.stdout) == (255, "")


def test_time_is_read_in_all_forms():
    from gml.providers.google.responses import duration, timestamp

    assert timestamp("1970-01-01T00:01:00Z") == 60
    assert timestamp("1970-01-01T00:01:00.123456-07:00") == 60 + 7 * 3600
    assert timestamp("nonsense") is None and timestamp(None) is None
    assert duration("3600s") == 3600 and duration("1h") is None
    assert time.time() > 0
