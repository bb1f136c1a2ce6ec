"""`gml cluster create|delete|run`."""

from __future__ import annotations

import dataclasses
import os
import time
from typing import Annotated, Any

import typer

from gml import cluster, jobset
from gml.cli import options as c
from gml.cli.listing import row
from gml.cli.signature import with_options
from gml.cli.terminal import Spinner, confirm, emit, say
from gml.durations import parse_timeout
from gml.errors import NotFound, UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.nodes import change
from gml.remote.environment import job_environment

Cluster = Annotated[str, typer.Argument(help="Name of the cluster.", metavar="NAME")]


def add(app: typer.Typer) -> None:
    """Registers `gml cluster`."""
    group = typer.Typer(help="Manage GKE clusters that scale to zero, for jobs of several slices.",
                        no_args_is_help=True)  # fmt: skip
    group.command()(create)
    group.command()(delete)
    group.command()(run)
    app.add_typer(group, name="cluster")


@with_options
def create(
    cluster_name: Cluster,
    request: cluster.ClusterRequest,
    dry_run: c.DryRun = False,
    yes: c.Yes = False,
    json: c.Json = False,
) -> None:
    """Create a cluster.

    Its accelerator pool is empty until a job needs it.
    """
    fleet = c.open_fleet()
    request = dataclasses.replace(request, name=cluster_name).completed(fleet.config)
    if dry_run:
        call = cluster.create_call(fleet.config, request, cluster.spec_of(fleet, request))
        emit({"requests": [call.describe(fleet.config.endpoint("container"))]})
        return
    price = request.sku.price_per_hour(spot=request.spot, provider="google")
    if price is not None:
        most = price * request.max_slices
        say(f"gml: while a job runs, up to ${most:.2f}/h; idle, the system pool only")
    with Spinner() as spinner:
        node = cluster.create(fleet, request, spinner)
    if json:
        emit(row(node, fleet.now()))
    else:
        say(f"gml: cluster {node.id} is up in {node.zone}")
        say(
            "gml: install JobSet once: kubectl apply --server-side -f "
            "https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml"
        )


def delete(
    name: Cluster, yes: c.Yes = False, dry_run: c.DryRun = False, json: c.Json = False
) -> None:
    """Delete a cluster with everything in it."""
    fleet = c.open_fleet()
    node = fleet.resolve(name)
    if node.strategy != "gke":
        raise UsageError(f"{name} is not a cluster", f"gml node delete {name}")
    if dry_run:
        emit({"requests": change.delete_plan(fleet, node)})
        return
    confirm(f"delete the cluster {name}?", scripts_may=True)
    with Spinner() as spinner:
        change.delete(fleet, node, spinner)
    say(f"gml: cluster {name} is gone")
    if json:
        emit({"id": name, "deleted": True})


@with_options
def run(
    cluster_name: Cluster,
    request: jobset.JobRequest,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run, after --.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Wait until the job ends.")
    ] = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Run a command as a JobSet on the cluster.

    With -f it waits for the end, and exits 1 when the job fails.
    """
    fleet = c.open_fleet()
    record = fleet.store.get(cluster_name) if dry_run else fleet.resolve(cluster_name)
    if record is not None and record.strategy != "gke":
        raise NotFound(f"{cluster_name} is not a cluster", f"gml run --node {cluster_name}")
    request = _completed(fleet, cluster_name, record, request, command)
    if dry_run:
        emit({"jobset": jobset.jobset(request), "secret": sorted(request.env)})
        return
    assert record is not None
    api = jobset.api_client(fleet, record)
    made = jobset.submit(api, request)
    state = "running"
    if follow:
        state = _wait(fleet, api, made, request.namespace)
    if json:
        emit({"job": made, "state": state})
    else:
        log = f"kubectl logs -l jobset.sigs.k8s.io/jobset-name={made} --prefix"
        say(f"gml: job {made} on {cluster_name}: {state}; its log: {log}")
    if state == "Failed":
        raise typer.Exit(1)


def _completed(
    fleet: Fleet,
    cluster_name: str,
    record: Node | None,
    request: jobset.JobRequest,
    command: list[str] | None,
) -> jobset.JobRequest:
    """The request with its command, name, time limit and environment."""
    words = c.command_words(command)
    needed = {"--instance-type": request.instance_type, "--image": request.image, "command": words}
    for option, given in needed.items():
        if not given:
            example = f"gml cluster run {cluster_name} -t v6e-16 --image IMAGE --timeout 3h -- …"
            raise UsageError(f"the {option} is missing", example)
    timeout_s = request.timeout_s or parse_timeout("", fleet.config.default_timeout)
    return dataclasses.replace(
        request,
        name=request.name or time.strftime("job-%m%d-%H%M%S"),
        command=tuple(words),
        timeout_s=timeout_s,
        env=_environment(fleet, record, timeout_s, request.secret),
        owner=fleet.config.owner,
    )


def _wait(fleet: Fleet, api: Any, job: str, namespace: str) -> str:
    """Waits for a job's end; its state then."""
    with Spinner() as spinner:
        while (state := jobset.state(api, job, namespace)) in ("running", "Suspended"):
            spinner(f"waiting for {job} ({state})")
            time.sleep(min(10.0, 20 * fleet.config.backoff_s))
    return state


def _environment(
    fleet: Fleet, node: Node | None, timeout_s: int, secrets: tuple[str, ...]
) -> dict[str, str]:
    """Environment of the job, with the named variables of this shell; it goes into a Secret."""
    env: dict[str, str] = {}
    if node is not None:
        env = job_environment(fleet.config, node.replace(price=None), {})
        env["GAIA_DEADLINE"] = str(round(fleet.now()) + timeout_s)
    for key in secrets:
        if key not in os.environ:
            raise UsageError(f"--secret {key} is not in our environment", f"export {key} first")
        env[key] = os.environ[key]
    return env
