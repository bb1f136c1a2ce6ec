"""`gml cluster run`: a JobSet rendered, checked by the server, applied and watched.

The manifest holds no secret: the environment goes into a Secret beside it.
"""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass, field
from typing import Any

from gaia.extras import install
from gaia.hardware import Sku
from gml.durations import parse_timeout
from gml.errors import AuthError, GmlError, Unavailable, UsageError
from gml.fleet import Fleet
from gml.model import Node, check_id, parse_sku
from gml.options import option
from gml.providers.google.provider import GoogleProvider
from gml.providers.google.requests import cloud_name
from gml.remote.fanout import COORDINATOR_PORT
from gml.remote.ssh import quote
from gml.store import write_private

GROUP, VERSION, PLURAL = "jobset.x-k8s.io", "v1alpha2", "jobsets"


@dataclass(frozen=True)
class JobRequest:
    """A job that a user asks for. `env` goes into a Secret, never into the manifest."""

    instance_type: str = option(
        "", "--instance-type", "-t", help="Type of one slice, for example v6e-16."
    )
    image: str = option("", "--image", help="Container image with the code.")
    slices: int = option(1, "--slices", help="Number of slices.", limits={"min": 1, "max": 64})
    timeout_s: int = option(
        0,
        "--timeout",
        help="Time limit of the job, for example 3hr. Required.",
        typed=str,
        typed_default="",
        parse=lambda text: parse_timeout(text) if text else 0,
    )
    name: str = option("", "--job", help="Name of the JobSet; default: job-DATE-TIME.")
    queue: str = option("", "--queue", help="Kueue LocalQueue to submit to.")
    max_restarts: int = option(
        3, "--max-restarts", help="Maximum number of restarts.", limits={"min": 0}
    )
    secret: tuple[str, ...] = option(
        (),
        "--secret",
        help="Variable of this shell to pass on, by NAME, repeatable.",
        typed=list[str] | None,
        parse=lambda names: tuple(names or ()),
    )
    namespace: str = option("default", "--namespace", help="Kubernetes namespace.")
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    owner: str = ""

    @property
    def sku(self) -> Sku:
        """Facts about the type; raises UsageError."""
        return parse_sku(self.instance_type)


def jobset(request: JobRequest) -> dict[str, Any]:
    """The JobSet manifest: all-or-nothing start, restarts together, an absolute time limit."""
    check_id(request.name)
    hosts = request.sku.hosts
    first = f"{request.name}-slice-0-0.{request.name}"
    variables = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{COORDINATOR_PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(hosts * request.slices)},
        {"name": "GML_SLICE", "valueFrom": _field("labels", "jobset.sigs.k8s.io/job-index")},
        {
            "name": "GML_HOST",
            "valueFrom": _field("annotations", "batch.kubernetes.io/job-completion-index"),
        },
    ]
    prefix = f"export JAX_PROCESS_ID=$((GML_SLICE * {hosts} + GML_HOST)); "
    command = " ".join(request.command) if len(request.command) == 1 else quote(request.command)
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "activeDeadlineSeconds": request.timeout_s,
        "template": {"spec": _pod(request, prefix + command, variables)},
    }
    labels = {"gml": "1", "gml-owner": request.owner or "unknown"}
    if request.queue:
        labels["kueue.x-k8s.io/queue-name"] = request.queue
    spec: dict[str, Any] = {
        "ttlSecondsAfterFinished": 3600,
        "failurePolicy": {"maxRestarts": request.max_restarts},
        "network": {"enableDNSHostnames": True, "subdomain": request.name},
        "replicatedJobs": [
            {"name": "slice", "replicas": request.slices, "template": {"spec": job}}
        ],
    }
    if request.queue:
        spec["suspend"] = True  # Kueue admits it
    annotations = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    metadata = {"name": request.name, "labels": labels, "annotations": annotations}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "JobSet",
        "metadata": metadata if hosts > 1 else {**metadata, "annotations": {}},
        "spec": spec,
    }


def _pod(request: JobRequest, command: str, variables: list[dict[str, Any]]) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "job",
        "image": request.image,
        "command": ["bash", "-c", command],
        "env": variables,
        "ports": [{"containerPort": COORDINATOR_PORT}],
        "resources": {"limits": _accelerators(request.sku), "requests": _accelerators(request.sku)},
    }
    if request.env:
        container["envFrom"] = [{"secretRef": {"name": f"{request.name}-env"}}]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 120,
        "nodeSelector": _selector(request.sku),
        "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
    }


def secret(request: JobRequest) -> dict[str, Any]:
    """The Secret with the job's environment."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{request.name}-env", "labels": {"gml": "1"}},
        "type": "Opaque",
        "stringData": dict(request.env),
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


def api_client(fleet: Fleet, node: Node) -> Any:
    """A kubernetes client for the cluster: its address and CA from GKE, our token.

    Raises:
        AuthError: the `cluster` extra is missing.
    """
    try:
        from kubernetes import client
    except ImportError:
        raise AuthError(
            "the kubernetes client is not installed",
            install("google", "cluster"),
        ) from None
    provider = fleet.provider("google")
    assert isinstance(provider, GoogleProvider)
    path = f"v1/projects/{fleet.config.project}/locations/{node.zone}/clusters/"
    raw = provider.api.get("container", path + cloud_name(node.id)) or {}
    override = os.environ.get("GML_ENDPOINT_KUBERNETES")
    settings = client.Configuration(host=override or f"https://{raw.get('endpoint', '')}")
    authority = (raw.get("masterAuth") or {}).get("clusterCaCertificate")
    if authority and not override:
        path = fleet.config.home / "ca" / f"{node.id}.pem"
        write_private(path, base64.b64decode(authority).decode())
        settings.ssl_ca_cert = str(path)
    settings.api_key = {"authorization": f"Bearer {provider.api.sign_in.token()}"}
    return client.ApiClient(settings)


def submit(api: Any, request: JobRequest) -> str:
    """Creates the Secret and the JobSet; unknown fields are errors on the server too.

    Raises:
        UsageError: the server refuses the manifest or the name is taken. Unavailable: no answer.
    """
    from kubernetes import client

    try:
        if request.env:
            core: Any = client.CoreV1Api(api)
            try:
                core.create_namespaced_secret(request.namespace, secret(request))
            except client.ApiException as error:
                if error.status != 409:
                    raise
                core.replace_namespaced_secret(
                    f"{request.name}-env", request.namespace, secret(request)
                )
        made: Any = client.CustomObjectsApi(api).create_namespaced_custom_object(
            GROUP, VERSION, request.namespace, PLURAL, jobset(request), field_validation="Strict"
        )
    except client.ApiException as error:
        raise _kubernetes_error(error, request) from None
    except Exception as error:
        raise _silent_cluster(error) from None
    return made["metadata"]["name"]


def _kubernetes_error(error: Any, request: JobRequest) -> GmlError:
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
        return UsageError(f"a job {request.name!r} exists already", "take another --job")
    return UsageError(f"the cluster refuses the job: {text[:300]}", "see --dry-run")


def state(api: Any, name: str, namespace: str = "default") -> str:
    """`running`, `Completed`, `Failed`, `Suspended`, or `none` where there is no such JobSet.

    Raises:
        Unavailable: the cluster does not answer.
    """
    from kubernetes import client

    try:
        raw: Any = client.CustomObjectsApi(api).get_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, name
        )
    except client.ApiException as error:
        if error.status == 404:
            return "none"
        raise Unavailable(f"the cluster answers {error.status}", "try again later") from None
    except Exception as error:
        raise _silent_cluster(error) from None
    if (raw.get("metadata") or {}).get("deletionTimestamp"):
        return "running"  # its name is taken until it is gone, however it has ended
    conditions = (raw.get("status") or {}).get("conditions") or []
    done = [c["type"] for c in conditions if c.get("status") == "True"]
    for name_ in ("Completed", "Failed", "Suspended"):
        if name_ in done:
            return name_
    return "running"


def remove(api: Any, name: str, namespace: str = "default") -> None:
    """Deletes a JobSet with its pods and its Secret; one that is gone is no error.

    Raises:
        Unavailable: the cluster does not answer.
    """
    from kubernetes import client

    calls = (
        lambda: client.CustomObjectsApi(api).delete_namespaced_custom_object(
            GROUP, VERSION, namespace, PLURAL, name, propagation_policy="Foreground"
        ),
        lambda: client.CoreV1Api(api).delete_namespaced_secret(f"{name}-env", namespace),
    )
    for call in calls:
        try:
            call()
        except client.ApiException as error:
            if error.status != 404:
                raise Unavailable(f"the cluster answers {error.status}", "try again") from None
        except Exception as error:
            raise _silent_cluster(error) from None


def _silent_cluster(error: Exception) -> Unavailable:
    return Unavailable(
        f"the cluster does not answer ({type(error).__name__})",
        "is its endpoint reachable from here?",
    )
