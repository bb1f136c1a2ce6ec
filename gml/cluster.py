"""Clusters, where one slice is not enough: GKE with pools that scale to zero, and JobSet jobs.

No scheduler of our own: JobSet starts all hosts of all slices together and restarts them together;
Kueue may queue them. The cluster carries the same labels as a node, so `gml reap` ends it too.
"""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass, field
from typing import Any

from gaia.hardware import Sku
from gml.config import Config
from gml.errors import AuthError, GmlError, Unavailable, UsageError
from gml.http import ApiError
from gml.model import ApiRequest, CreateSpec, Node, check_id
from gml.nodes import Manager
from gml.providers.base import Tick
from gml.providers.google import GoogleProvider
from gml.providers.google_api import translate, wait_pauses
from gml.providers.google_bodies import cloud_name, region

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"
COORDINATOR_PORT = 8476
SCOPE = "https://www.googleapis.com/auth/cloud-platform"


@dataclass(frozen=True)
class ClusterWish:
    """What `gml cluster create` was asked for. `max_slices` bounds what autoscaling may make."""

    name: str
    sku: Sku
    zone: str
    timeout_s: int
    max_slices: int = 1
    spot: bool = False
    flex: bool = True
    run_s: int = 86400


def create_request(config: Config, wish: ClusterWish, spec: CreateSpec) -> ApiRequest:
    """The cluster with a small system pool and one accelerator pool from zero."""
    sku = wish.sku
    account = config.google.service_account
    machine: dict[str, Any] = {
        "machineType": sku.gce_machine_type,
        "oauthScopes": [SCOPE],
        "resourceLabels": spec.labels(),
        "labels": {"gml-pool": sku.name.lower()},
    }
    if account != "default":
        machine["serviceAccount"] = account
    if wish.spot:
        machine["spot"] = True
    elif wish.flex:
        machine["flexStart"] = True
        machine["maxRunDuration"] = f"{wish.run_s}s"
    pool: dict[str, Any] = {
        "name": sku.name.lower(),
        "initialNodeCount": 0,
        "locations": [wish.zone],
        "config": machine,
        "autoscaling": {
            "enabled": True,
            "totalMinNodeCount": 0,
            "totalMaxNodeCount": sku.hosts * wish.max_slices,
            "locationPolicy": "ANY",
        },
        "management": {"autoRepair": False, "autoUpgrade": True},
    }
    if sku.hosts > 1:
        pool["placementPolicy"] = {"type": "COMPACT", "tpuTopology": sku.topology}
    body = {
        "cluster": {
            "name": cloud_name(spec.id),
            "network": config.google.network,
            "resourceLabels": spec.labels(),
            "releaseChannel": {"channel": "RAPID"},
            "workloadIdentityConfig": {"workloadPool": f"{config.project}.svc.id.goog"},
            "nodePools": [
                {
                    "name": "system",
                    "initialNodeCount": 1,
                    "locations": [wish.zone],
                    "config": {"machineType": "e2-standard-4", "oauthScopes": [SCOPE]},
                },
                pool,
            ],
        }
    }
    parent = f"projects/{config.project}/locations/{region(wish.zone)}"
    return ApiRequest("container", "POST", f"v1/{parent}/clusters", {}, body)


def spec_of(manager: Manager, wish: ClusterWish) -> CreateSpec:
    """Id, owner and deadline of the cluster."""
    now = round(manager.now())
    return CreateSpec(
        id=check_id(wish.name),
        owner=manager.config.owner,
        sku=wish.sku,
        sku_name="cluster",
        created=now,
        deadline=now + wish.timeout_s,
        spot=wish.spot,
    )


def create(manager: Manager, wish: ClusterWish, tick: Tick) -> Node:
    """Makes the cluster under the same discipline as a node: intent first, undone on failure."""
    spec = spec_of(manager, wish)
    provider = manager.provider("google")
    assert isinstance(provider, GoogleProvider)
    provider.sign_in()
    request = create_request(manager.config, wish, spec)
    place = region(wish.zone)
    with manager.store.lock(spec.id), manager.interruptible():
        record = manager.store.get(spec.id)
        if record and record.phase == "up":
            raise UsageError(f"{spec.id} exists already", f"use `gml cluster run {spec.id}`")
        intent = manager.store.put(
            Node(
                id=spec.id,
                provider="google",
                owner=spec.owner,
                sku="cluster",
                zone=place,
                strategy="gke",
                phase="intent",
                deadline=spec.deadline,
                created=spec.created,
                timeout_s=wish.timeout_s,
                tried=(f"gke:{place}",),
            )
        )
        try:
            _post(provider, request, spec, tick)
            node = _wait_running(provider, intent, tick)
            return manager.store.put(
                node.replace(phase="up", timeout_s=wish.timeout_s, tried=intent.tried)
            )
        except BaseException as error:
            if record is None and getattr(error, "nothing_made", False):
                manager.store.put(intent.replace(tried=()))
            manager.undo(spec.id, provider, error, tick)
            raise


def _post(provider: GoogleProvider, request: ApiRequest, spec: CreateSpec, tick: Tick) -> None:
    try:
        provider.api.send(request)
    except GmlError as error:
        error.nothing_made = error.refused
        raise
    except ApiError as error:
        found = provider.api.get("container", f"{request.path}/{cloud_name(spec.id)}")
        labels = (found or {}).get("resourceLabels") or {}
        if error.status != 409 or labels.get("gml-id") != spec.id:
            raise translate(error, provider.config) from None
        if labels.get("gml-owner") != spec.owner:
            raise UsageError(f"{spec.id} is another owner's", "take another name") from None
    tick("waiting for Google to make the cluster (5-10 minutes)")


def _wait_running(provider: GoogleProvider, intent: Node, tick: Tick) -> Node:
    waited = 0.0
    for pause in wait_pauses(min(1.0, provider.config.backoff_s), 15.0):
        node = provider.find(intent)
        if node is None or node.dead():
            raise Unavailable(f"the cluster {intent.id} did not come up", "see the GKE console")
        if node.state == "ready":
            return node
        waited += pause
        tick(f"waiting for the cluster in {intent.zone} ({node.state})")
        if waited > 2 * provider.patience_s:
            raise Unavailable(f"the cluster {intent.id} was not ready in time")
    raise AssertionError("unreachable")


# ---- jobs


@dataclass(frozen=True)
class JobWish:
    """What `gml cluster run` was asked for. `env` goes into a Secret, never into the manifest."""

    name: str
    sku: Sku
    image: str
    command: tuple[str, ...]
    timeout_s: int
    slices: int = 1
    queue: str = ""
    max_restarts: int = 3
    env: dict[str, str] = field(default_factory=dict)
    owner: str = ""


def jobset(wish: JobWish) -> dict[str, Any]:
    """The JobSet manifest: all-or-nothing start, restarts together, an absolute time limit."""
    check_id(wish.name)
    sku, hosts = wish.sku, wish.sku.hosts
    first = f"{wish.name}-slice-0-0.{wish.name}"
    variables = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{COORDINATOR_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(hosts * wish.slices)},
        {"name": "GML_SLICE", "valueFrom": _field("labels", "jobset.sigs.k8s.io/job-index")},
        {
            "name": "GML_HOST",
            "valueFrom": _field("annotations", "batch.kubernetes.io/job-completion-index"),
        },
    ]
    prefix = f"export JAX_PROCESS_ID=$((GML_SLICE * {hosts} + GML_HOST)); "
    command = " ".join(wish.command) if len(wish.command) == 1 else _quote(wish.command)
    container: dict[str, Any] = {
        "name": "job",
        "image": wish.image,
        "command": ["bash", "-c", prefix + command],
        "env": variables,
        "ports": [{"containerPort": COORDINATOR_PORT}],
        "resources": {"limits": _accelerators(sku), "requests": _accelerators(sku)},
    }
    if wish.env:
        container["envFrom"] = [{"secretRef": {"name": f"{wish.name}-env"}}]
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": _selector(sku),
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "activeDeadlineSeconds": wish.timeout_s,
        "template": {"spec": pod},
    }
    labels = {"gml": "1", "gml-owner": wish.owner or "unknown"}
    if wish.queue:
        labels["kueue.x-k8s.io/queue-name"] = wish.queue
    spec: dict[str, Any] = {
        "ttlSecondsAfterFinished": 3600,
        "failurePolicy": {"maxRestarts": wish.max_restarts},
        "network": {"enableDNSHostnames": True, "subdomain": wish.name},
        "replicatedJobs": [{"name": "slice", "replicas": wish.slices, "template": {"spec": job}}],
    }
    if wish.queue:
        spec["suspend"] = True  # Kueue admits it
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    metadata = {"name": wish.name, "labels": labels, "annotations": annotations}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": metadata if hosts > 1 else {**metadata, "annotations": {}},
        "spec": spec,
    }


def secret(wish: JobWish) -> dict[str, Any]:
    """The Secret with the job's environment."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{wish.name}-env", "labels": {"gml": "1"}},
        "type": "Opaque",
        "stringData": dict(wish.env),
    }


def _field(kind: str, key: str) -> dict[str, Any]:
    return {"fieldRef": {"fieldPath": f"metadata.{kind}['{key}']"}}


def _quote(words: tuple[str, ...]) -> str:
    import shlex

    return " ".join(shlex.quote(w) for w in words)


def _accelerators(sku: Sku) -> dict[str, str]:
    name = "google.com/tpu" if sku.chip.kind == "tpu" else "nvidia.com/gpu"
    return {name: str(sku.chips_per_host)}


def _selector(sku: Sku) -> dict[str, str]:
    if sku.chip.kind == "tpu":
        return {
            "cloud.google.com/gke-tpu-accelerator": sku.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": sku.topology,
        }
    return {"gml-pool": sku.name.lower()}


def api_client(manager: Manager, node: Node) -> Any:
    """A kubernetes client for the cluster: its address and CA from GKE, our token.

    Raises:
        AuthError: the `cluster` extra is missing.
    """
    try:
        from kubernetes import client
    except ImportError:
        raise AuthError(
            "the kubernetes client is not installed",
            "install gml with its cluster extra: uv tool install 'gaia[google,cluster]'",
        ) from None
    import os

    provider = manager.provider("google")
    assert isinstance(provider, GoogleProvider)
    path = f"v1/projects/{manager.config.project}/locations/{node.zone}/clusters/"
    raw = provider.api.get("container", path + cloud_name(node.id)) or {}
    override = os.environ.get("GML_ENDPOINT_KUBERNETES")
    settings = client.Configuration(host=override or f"https://{raw.get('endpoint', '')}")
    authority = (raw.get("masterAuth") or {}).get("clusterCaCertificate")
    if authority and not override:
        with tempfile.NamedTemporaryFile(suffix=".pem", delete=False) as file:
            file.write(base64.b64decode(authority))
        settings.ssl_ca_cert = file.name
    settings.api_key = {"authorization": f"Bearer {provider.api.token()}"}
    return client.ApiClient(settings)


def submit(api: Any, wish: JobWish, namespace: str = "default") -> str:
    """Creates the Secret and the JobSet; unknown fields are errors on the server too.

    Raises:
        UsageError: the server refuses the manifest or the name is taken. Unavailable: no answer.
    """
    from kubernetes import client

    try:
        if wish.env:
            core: Any = client.CoreV1Api(api)
            try:
                core.create_namespaced_secret(namespace, secret(wish))
            except client.ApiException as error:
                if error.status != 409:
                    raise
                core.replace_namespaced_secret(f"{wish.name}-env", namespace, secret(wish))
        made: Any = client.CustomObjectsApi(api).create_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, jobset(wish), field_validation="Strict"
        )
    except client.ApiException as error:
        raise _kubernetes_error(error, wish) from None
    except Exception as error:
        raise Unavailable(f"the cluster does not answer ({type(error).__name__})") from None
    return made["metadata"]["name"]


def _kubernetes_error(error: Any, wish: JobWish) -> GmlError:
    import json

    try:
        text = json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        text = str(error.reason)
    if error.status == 404:
        return UsageError(
            "JobSet is not installed in the cluster",
            "run: kubectl apply --server-side -f https://github.com/kubernetes-sigs/jobset/"
            "releases/latest/download/manifests.yaml",
        )
    if error.status == 409:
        return UsageError(f"a job {wish.name!r} exists already", "take another --job")
    return UsageError(f"the cluster refuses the job: {text[:300]}", "see --dry-run")


def state(api: Any, name: str, namespace: str = "default") -> str:
    """`running`, `Completed`, `Failed` or `Suspended`."""
    from kubernetes import client

    raw: Any = client.CustomObjectsApi(api).get_namespaced_custom_object(
        GROUP, VERSION, namespace, PLURAL, name
    )
    conditions = (raw.get("status") or {}).get("conditions") or []
    done = [c["type"] for c in conditions if c.get("status") == "True"]
    for name_ in ("Completed", "Failed", "Suspended"):
        if name_ in done:
            return name_
    return "running"
