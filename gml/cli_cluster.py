"""`gml cluster create|delete|run`."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from gml import cli_common as c
from gml.durations import parse_duration, parse_timeout
from gml.errors import NotFound, UsageError
from gml.listing import row
from gml.model import Node
from gml.nodes import Manager
from gml.ui import Progress, confirm, emit, say

Cluster = Annotated[str, typer.Argument(help="Name of the cluster.")]


def add(app: typer.Typer) -> None:
    """Registers `gml cluster`."""
    group = typer.Typer(help="GKE clusters that scale to zero, for jobs of several slices.",
                        no_args_is_help=True)  # fmt: skip
    group.command()(create)
    group.command()(delete)
    group.command()(run)
    app.add_typer(group, name="cluster")


def create(
    name: Cluster,
    instance_type: c.Type = "",
    timeout: c.Timeout = "",
    zone: c.Zone = "",
    max_slices: Annotated[int, typer.Option("--max-slices", min=1, max=64)] = 1,
    spot: c.Spot = False,
    run_for: Annotated[
        str, typer.Option("--max-run", help="Flex-start: how long a machine may run.")
    ] = "24h",
    flex: Annotated[bool, typer.Option(help="Flex-start pool (else on demand).")] = True,
    dry_run: c.DryRun = False,
    yes: c.Yes = False,
    json: c.Json = False,
) -> None:
    """Make a cluster.

    Its accelerator pool is empty until a job needs it.
    """
    from gml import cluster
    from gml.planning import parse_sku

    manager = c.manager()
    if not instance_type:
        raise UsageError("--instance-type is missing", "see `gml node list-types`")
    sku = parse_sku(instance_type, "google")
    if sku is None or not sku.gce_machine_type:
        raise UsageError(f"{instance_type!r} is not sold by Google", "see `gml node list-types`")
    zone = zone or (sku.flex_zones or sku.zones)[0]
    if zone.count("-") != 2:
        raise UsageError(f"--zone {zone!r} must be a zone here", f"for example {sku.zones[0]}")
    wish = cluster.ClusterWish(
        name=name,
        sku=sku,
        zone=zone,
        timeout_s=parse_timeout(timeout, manager.config.default_timeout),
        max_slices=max_slices,
        spot=spot,
        flex=flex,
        run_s=parse_duration(run_for, "--max-run"),
    )
    if dry_run:
        request = cluster.create_request(manager.config, wish, cluster.spec_of(manager, wish))
        emit({"requests": [request.describe(manager.config.endpoint("container"))]})
        return
    price = sku.price_per_hour(spot=spot, provider="google")
    if price is not None:
        say(f"gml: while a job runs, up to ${price * max_slices:.2f}/h; idle, the system pool only")
    with Progress() as progress:
        node = cluster.create(manager, wish, progress)
    if json:
        emit(row(node, manager.now()))
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
    manager = c.manager()
    node = manager.resolve(name)
    if node.strategy != "gke":
        raise UsageError(f"{name} is no cluster", f"gml node delete {name}")
    if dry_run:
        emit({"requests": manager.delete_plan(node)})
        return
    confirm(f"delete the cluster {name}?", scripts_may=True)
    with Progress() as progress:
        manager.delete(node, progress)
    say(f"gml: cluster {name} is gone")
    if json:
        emit({"id": name, "deleted": True})


def run(
    name: Cluster,
    command: Annotated[list[str] | None, typer.Argument(help="The command, after --.")] = None,
    instance_type: c.Type = "",
    image: Annotated[str, typer.Option("--image", help="Container image with the code.")] = "",
    slices: Annotated[int, typer.Option("--slices", min=1, max=64)] = 1,
    timeout: c.Timeout = "",
    job: Annotated[str, typer.Option("--job", help="Name of the JobSet.")] = "",
    queue: Annotated[str, typer.Option("--queue", help="Kueue LocalQueue.")] = "",
    max_restarts: Annotated[int, typer.Option("--max-restarts", min=0)] = 3,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", help="NAME from our environment, repeatable.")
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace")] = "default",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for its end.")] = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Render a JobSet and apply it.

    With -f it waits, and exits 1 when the job fails.
    """
    from gml import jobset
    from gml.planning import parse_sku

    manager = c.manager()
    words = [w for i, w in enumerate(command or []) if not (i == 0 and w == "--")]
    for what, given in (("--instance-type", instance_type), ("--image", image), ("command", words)):
        if not given:
            example = f"gml cluster run {name} -t v6e-16 --image IMAGE --timeout 3h -- python x.py"
            raise UsageError(f"the {what} is missing", example)
    sku = parse_sku(instance_type, "google")
    assert sku is not None
    timeout_s = parse_timeout(timeout, manager.config.default_timeout)
    record = manager.store.get(name) if dry_run else manager.resolve(name)
    if record is not None and record.strategy != "gke":
        raise NotFound(f"{name} is no cluster", f"gml run --node {name}")
    env = _environment(manager, record, timeout_s, secret or [])
    wish = jobset.JobWish(
        name=job or time.strftime("job-%m%d-%H%M%S"),
        sku=sku,
        image=image,
        command=tuple(words),
        timeout_s=timeout_s,
        slices=slices,
        queue=queue,
        max_restarts=max_restarts,
        env=env,
        owner=manager.config.owner,
    )
    if dry_run:
        emit({"jobset": jobset.jobset(wish), "secret": sorted(env)})
        return
    assert record is not None
    api = jobset.api_client(manager, record)
    made = jobset.submit(api, wish, namespace)
    state = "running"
    if follow:
        state = _wait(manager, api, made, namespace)
    if json:
        emit({"job": made, "state": state})
    else:
        say(f"gml: job {made} on {name}: {state}; its log: kubectl logs -l jobset.sigs.k8s.io/"
            f"jobset-name={made} --prefix")  # fmt: skip
    if state == "Failed":
        raise typer.Exit(1)


def _wait(manager: Manager, api: Any, job: str, namespace: str) -> str:
    """The state in which a job ended."""
    from gml import jobset

    with Progress() as progress:
        while (state := jobset.state(api, job, namespace)) in ("running", "Suspended"):
            progress(f"waiting for {job} ({state})")
            time.sleep(min(10.0, 20 * manager.config.backoff_s))
    return state


def _environment(
    manager: Manager, node: Node | None, timeout_s: int, secrets: list[str]
) -> dict[str, str]:
    """What the job is told, with the named variables of ours; all of it goes into a Secret."""
    from gml.run import job_environment

    env: dict[str, str] = {}
    if node is not None:
        env = job_environment(manager.config, node.replace(price=None), {})
        env["GAIA_DEADLINE"] = str(round(manager.now()) + timeout_s)
    for key in secrets:
        if key not in os.environ:
            raise UsageError(f"--secret {key} is not in our environment", f"export {key} first")
        env[key] = os.environ[key]
    return env
