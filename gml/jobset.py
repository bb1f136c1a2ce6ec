"""`gml cluster run`: a JobSet rendered, checked by the server, applied and watched.

The manifest holds no secret: the environment goes into a Secret beside it.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import Any

from gaia.hardware import Sku
from gml.errors import AuthError, GmlError, Unavailable, UsageError
from gml.fanout import COORDINATOR_PORT
from gml.model import Node, check_id
from gml.nodes import Manager
from gml.providers.google import GoogleProvider
from gml.providers.google_bodies import cloud_name
from gml.ssh import quote
from gml.store import write_private

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"


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
    command = " ".join(wish.command) if len(wish.command) == 1 else quote(wish.command)
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
    provider = manager.provider("google")
    assert isinstance(provider, GoogleProvider)
    path = f"v1/projects/{manager.config.project}/locations/{node.zone}/clusters/"
    raw = provider.api.get("container", path + cloud_name(node.id)) or {}
    override = os.environ.get("GML_ENDPOINT_KUBERNETES")
    settings = client.Configuration(host=override or f"https://{raw.get('endpoint', '')}")
    authority = (raw.get("masterAuth") or {}).get("clusterCaCertificate")
    if authority and not override:
        path = manager.config.home / "ca" / f"{node.id}.pem"
        write_private(path, base64.b64decode(authority).decode())
        settings.ssl_ca_cert = str(path)
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
        raise Unavailable(
            f"the cluster does not answer ({type(error).__name__})",
            "is its endpoint reachable from here?",
        ) from None
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
