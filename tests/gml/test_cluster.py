"""`gml cluster`: GKE requests against the discovery schema, JobSets against the CRD schema."""

from __future__ import annotations

import copy
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from gml.jobset import JobRequest, jobset, secret
from gml.reaper import reap
from tests.fakes.gml_kit import make_fleet
from tests.fakes.schema import check_crd

CRD = Path(__file__).parents[1] / "fixtures" / "k8s" / "jobset.v1alpha2.json"
CREATE = ("cluster", "create", "c1", "-t", "v6e-16", "--timeout", "4h", "--max-slices", "2")


def request(**more) -> JobRequest:
    return JobRequest(
        **{
            "name": "train", "instance_type": "v6e-16", "image": "img:1", "timeout_s": 3600,
            "command": ("python", "-m", "gchat.train", "a b"), "slices": 2, "owner": "tester",
            **more,
        }
    )  # fmt: skip


def errors(manifest) -> list[str]:
    schema = json.loads(CRD.read_text())["schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return check_crd(schema, manifest)


def test_the_manifest_fits_the_crd_and_a_typo_would_not():
    made = jobset(request(queue="lq", env={"A": "b"}))
    assert errors(made) == []
    for path, value in ((("ttlSecondAfterFinished",), 1), (("failurePolicy", "maxRestarts"), "3")):
        bad = copy.deepcopy(made)
        target = bad["spec"]
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value
        assert errors(bad) != []


def test_the_manifest_starts_all_hosts_of_all_slices_with_explicit_ids():
    made = jobset(request(env={"HF_TOKEN": "s3cret"}))
    job = made["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    assert (job["replicas"], job["template"]["spec"]["parallelism"]) == (2, 4)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}
    values = {v["name"]: v.get("value") for v in pod["containers"][0]["env"]}
    assert values["JAX_NUM_PROCESSES"] == "8"
    assert values["JAX_COORDINATOR_ADDRESS"] == "train-slice-0-0.train:8476"
    assert "python -m gchat.train 'a b'" in pod["containers"][0]["command"][2]
    assert job["template"]["spec"]["activeDeadlineSeconds"] == 3600
    assert "s3cret" not in json.dumps(made)
    assert secret(request(env={"HF_TOKEN": "s3cret"}))["stringData"] == {"HF_TOKEN": "s3cret"}


def test_cluster_create_delete_and_reap(server, gml):
    done = gml(*CREATE)
    assert done.returncode == 0, done.stderr
    cloud = server.cloud
    assert cloud.violations == []
    (name,) = cloud.billable()
    pools = {p["name"]: p for p in cloud.resources[name]["nodePools"]}
    assert pools["v6e-16"]["autoscaling"]["totalMinNodeCount"] == 0
    assert pools["v6e-16"]["autoscaling"]["totalMaxNodeCount"] == 8
    assert pools["v6e-16"]["config"]["flexStart"] is True
    assert gml(*CREATE).returncode == 2
    assert gml("cluster", "delete", "c1").returncode == 0
    cloud.drain()
    assert cloud.billable() == []
    gml(*CREATE)
    cloud.offset = 5 * 3600
    assert [n.id for n in reap(make_fleet(cloud.now)).deleted] == ["c1"]
    cloud.drain()
    assert cloud.billable() == []


def test_machines_of_a_cluster_come_and_go_without_ending_it(server, gml):
    gml(*CREATE)
    (name,) = server.cloud.billable()
    raw = server.cloud.resources[name]
    root = "compute/v1/projects/proj-123/zones/us-east5-a"
    machine = {"name": "gke-1", "status": "TERMINATED", "labels": raw["resourceLabels"]}
    machine |= {"zone": f"x/{root}", "selfLink": f"x/{root}/instances/gke-1"}
    server.cloud.put(f"{root}/instances/gke-1", machine)
    report = reap(make_fleet())
    assert ([n.id for n in report.kept], report.deleted) == (["c1"], [])
    assert make_fleet().provider("google").delete_requests(report.kept[0])[0].service == "container"


def test_a_broken_create_leaves_no_cluster(server, gml):
    for number in range(4):
        cloud = server.reset(type(server.cloud)())
        cloud.faults = lambda call, n=number: ("drop", "after") if call.number == n else None
        gml(*CREATE)
        cloud.faults = lambda call: None
        cloud.drain()
        cloud.offset = 5 * 3600
        reap(make_fleet(cloud.now))
        cloud.drain()
        assert cloud.billable() == [], number


def test_dry_run_prints_the_request_and_the_manifest(server, gml):
    done = gml(*CREATE, "--dry-run")
    (request,) = json.loads(done.stdout)["requests"]
    assert request["method"] == "POST" and request["url"].endswith("us-east5/clusters")
    run = ("cluster", "run", "c1", "-t", "v6e-16", "--image", "i", "--timeout", "1h", "--job", "j")
    done = gml(*run, "--dry-run", "--", "echo hi")
    assert errors(json.loads(done.stdout)["jobset"]) == []
    assert server.cloud.mutations() == []


class FakeKubernetes(BaseHTTPRequestHandler):
    """Enough of an API server: strict validation by the CRD, 409, 404 without JobSet, Secrets."""

    store: ClassVar[dict] = {}
    installed = True
    queries: ClassVar[list] = []
    ends = "Failed"
    ended: ClassVar[dict] = {}

    def log_message(self, *args) -> None:
        return

    def answer(self, code: int, value) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.queries.append(self.path)
        name = f"{body['kind']}/{body['metadata']['name']}"
        if body["kind"] == "JobSet":
            if not self.installed:
                self.answer(404, {"message": "the server could not find the requested resource"})
                return
            found = errors(body)
            if found:
                self.answer(422, {"kind": "Status", "message": found[0], "code": 422})
                return
        if name in self.store:
            self.answer(409, {"message": "already exists"})
            return
        self.store[name] = body
        self.answer(201, body)

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.store[f"{body['kind']}/{body['metadata']['name']}"] = body
        self.answer(200, body)

    def do_GET(self) -> None:
        name = "JobSet/" + self.path.rsplit("/", 1)[1]
        if name not in self.store:
            # As an API server answers (k8s.io/apimachinery, errors.NewNotFound).
            text = f"jobsets.jobset.x-k8s.io {name!r} not found"
            self.answer(404, {"kind": "Status", "reason": "NotFound", "code": 404, "message": text})
            return
        ended = self.ended.get(name, self.ends)
        conditions = [{"type": ended, "status": "True"}] if ended else []
        self.answer(200, {**self.store[name], "status": {"conditions": conditions}})

    def do_DELETE(self) -> None:
        kind = "JobSet" if "/jobsets/" in self.path else "Secret"
        name = f"{kind}/{self.path.partition('?')[0].rsplit('/', 1)[1]}"
        if self.store.pop(name, None) is None:
            self.answer(404, {"kind": "Status", "reason": "NotFound", "code": 404})
            return
        self.answer(200, {"kind": "Status", "status": "Success"})


@pytest.fixture
def kubernetes(monkeypatch):
    pytest.importorskip("kubernetes")
    handler = type("Handler", (FakeKubernetes,), {"store": {}, "queries": [], "ended": {}})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("GML_ENDPOINT_KUBERNETES", f"http://127.0.0.1:{http.server_port}")
    yield handler
    http.shutdown()
    http.server_close()


@pytest.mark.slow
def test_cluster_run_through_the_real_client(server, gml, kubernetes, monkeypatch):
    assert gml(*CREATE).returncode == 0
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    run = ("cluster", "run", "c1", "-t", "v6e-16", "--image", "i", "--timeout", "1h", "--job", "j")
    done = gml(*run, "--secret", "HF_TOKEN", "-f", "--", "echo hi")
    assert done.returncode == 1, done.stderr  # the fake says Failed
    assert "fieldValidation=Strict" in kubernetes.queries[-1]
    assert kubernetes.store["Secret/j-env"]["stringData"]["HF_TOKEN"] == "s3cret"
    assert "s3cret" not in json.dumps(kubernetes.store["JobSet/j"]) + done.stdout + done.stderr
    again = gml(*run, "--", "echo hi")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)
    kubernetes.installed = False
    missing = gml(*run[:-1], "k", "--", "echo hi")
    assert (missing.returncode, "kubectl apply" in missing.stderr) == (2, True)


@pytest.mark.slow
def test_a_queue_on_a_cluster_runs_one_jobset_after_the_other(server, gml, kubernetes, monkeypatch):
    assert gml(*CREATE).returncode == 0
    kubernetes.ends = ""  # they run until told otherwise
    add = ("queue", "add", "multi", "--cluster", "c1", "-t", "v6e-16", "--image", "img:1",
           "--timeout", "4h", "--slices", "2")  # fmt: skip
    assert gml(*add, "--job", "first", "--", "python train.py").returncode == 0
    later = ("queue", "add", "multi", "--image", "img:1")
    for name in ("second", "third"):
        assert gml(*later, "--job", name, "--", "python eval.py").returncode == 0

    def jobsets() -> list[str]:
        done = gml("supervise", "--json")
        assert done.returncode == 0, done.stderr
        return sorted(n for n in kubernetes.store if n.startswith("JobSet/"))

    assert jobsets() == ["JobSet/multi-first"] == jobsets()  # not twice
    made = kubernetes.store["JobSet/multi-first"]
    assert errors(made) == [] and made["spec"]["replicatedJobs"][0]["replicas"] == 2
    limit = made["spec"]["replicatedJobs"][0]["template"]["spec"]["activeDeadlineSeconds"]
    assert 4 * 3600 - 120 < limit <= 4 * 3600  # the queue's own deadline
    kubernetes.ended["JobSet/multi-first"] = "Completed"
    assert "JobSet/multi-second" in jobsets()
    kubernetes.ended["JobSet/multi-second"] = "Failed"
    assert "JobSet/multi-third" in jobsets()
    shown = json.loads(gml("queue", "ls", "multi", "--json").stdout)[0]
    assert [(j["state"], j["exit_code"]) for j in shown["jobs"]] == [
        ("done", 0), ("failed", 1), ("running", None)
    ]  # fmt: skip
    assert gml("queue", "rm", "multi").returncode == 0
    assert "JobSet/multi-third" not in kubernetes.store
    assert any("/clusters/" in n for n in server.cloud.billable())  # the cluster is not the queue's
