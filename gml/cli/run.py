"""`gml run`: names, data, secrets and announcements between its options and `gml.run.Runner`."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from typing import Annotated, BinaryIO, cast

import typer

from gml import budget
from gml.cli import options as c
from gml.cli.run_many import check_many, run_many
from gml.cli.signature import with_options
from gml.cli.terminal import Lasting, Spinner, confirm, emit, say, streaming
from gml.errors import NotFound, UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.places import region_of, same_place
from gml.planning import find_offers, make_spec, plan
from gml.providers.google.api import GoogleApi
from gml.providers.google.buckets import bucket_location
from gml.remote import jobs, sync
from gml.remote.data import announce_data
from gml.remote.environment import job_environment
from gml.remote.ssh import quote
from gml.request import NodeRequest
from gml.run import Console, Runner, RunRequest

# Above this many US dollars for the whole timeout a terminal is asked first.
ASK_ABOVE = 50.0


@with_options
def run(
    request: RunRequest,
    wanted: NodeRequest,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run, after --.")] = None,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
    *,
    context: typer.Context,
) -> None:
    """Create a node, sync, run, stream the log, fetch results, delete.

    Exits with the job's code. With --node or a --name that is up, that node is used and kept. With
    -n the same on so many machines, named NAME-0, NAME-1, …
    """
    fleet = c.open_fleet()
    _check_recover(request)
    if request.count > 1:
        check_many(request)
        words = _priced_for_all(fleet, request, wanted, command, dry_run)
        if not dry_run:
            raise typer.Exit(run_many(request, context.params, words, json))
    raise typer.Exit(run_command(fleet, request, wanted, command, dry_run, json))


def _priced_for_all(
    fleet: Fleet,
    request: RunRequest,
    wanted: NodeRequest,
    command: list[str] | None,
    dry_run: bool,
) -> list[str]:
    """The command's words, after saying (and asking about) what all machines may cost."""
    words = _words(command)
    node_request = c.completed(fleet, wanted, "say what to rent")
    price, _ = _price_and_region(fleet, None, node_request)
    rate = None if price is None else request.count * price
    # Before any is made: each alone would find room, and the last ones would be refused.
    budget.check(fleet, f"{request.count} machines together", rate, node_request.timeout_s)
    if rate is not None:
        most = rate * node_request.timeout_s / 3600
        say(f"gml: {request.count} machines, ${rate:.2f}/h together, at most ${most:.2f}")
        if most > ASK_ABOVE and not dry_run:
            confirm(f"this may cost up to ${most:.2f}; go on?", scripts_may=True)
    return words


def _words(command: list[str] | None) -> list[str]:
    words = c.command_words(command)
    if not words:
        raise UsageError("the command is missing", "gml run -t v6e-8 --timeout 3h -- bash x.sh")
    return words


def run_command(
    fleet: Fleet,
    request: RunRequest,
    wanted: NodeRequest,
    command: list[str] | None,
    dry_run: bool,
    json: bool,
) -> int:
    """Does what was asked and returns the exit code of the job."""
    request = _placed(request)
    if request.attach:
        return _attach(fleet, request, json)
    words = _words(command)
    request = dataclasses.replace(
        request,
        command=words[0] if len(words) == 1 else quote(words),
        job=jobs.check_job(request.job or time.strftime("job-%m%d-%H%M%S")),
        environment=_environment(request),
        data=request.data.rstrip("/") if request.data != "/" else request.data,
    )
    if request.git_credentials:
        sync.git_credential(request.folder)  # before a machine is made
    node, node_request = _target(fleet, request, wanted)
    _check_recover(request, node.id if node else "")
    node_request, price = _announce(fleet, request, node, node_request, quiet=dry_run)
    if dry_run:
        return _dry_run(fleet, request, node, node_request)
    if node_request and price is not None and node_request.timeout_s * price / 3600 > ASK_ABOVE:
        most = node_request.timeout_s * price / 3600
        confirm(f"this may cost up to ${most:.2f}; go on?", scripts_may=True)
    with Spinner() as spinner:
        if node:
            spinner.bill(node)
        runner = Runner(fleet, request, _console(spinner, json))
        code = runner.run(node, node_request)
    _conclude(runner, json)
    return code


def _check_recover(request: RunRequest, node: str = "") -> None:
    """Raises UsageError where nobody would be there, or allowed, to make another machine."""
    given = {"--detach": request.detach, "--attach": request.attach, "--node": request.node}
    because = {
        "--detach": "nobody would watch the machine",
        "--attach": "the run that it takes up made the machine",
        "--node": "only a machine that the run made is made again",
    }
    for option, value in given.items():
        if request.recover and value:
            remedy = "leave one out; `gml queue add` goes on without this computer"
            raise UsageError(
                f"--recover and {option} exclude each other: {because[option]}", remedy
            )
    if request.recover and node:
        raise UsageError(
            f"--recover is for a machine that the run makes, and {node} is up already",
            "leave it out, or take another --name",
        )


def _placed(request: RunRequest) -> RunRequest:
    """The request with the work tree's root, the remote folder, and names that can be sent there.

    All of it before a machine is made: a name that is refused after the job costs its results.
    """
    sync.check_data(request.data)
    fetch = tuple(sync.check_result(name) for name in request.fetch)
    root = sync.repository_root(request.folder) if request.sync else request.folder.resolve()
    dest = request.dest or sync.default_dest(root)
    return dataclasses.replace(request, folder=root, dest=sync.check_dest(dest), fetch=fetch)


def _announce(
    fleet: Fleet,
    request: RunRequest,
    node: Node | None,
    node_request: NodeRequest | None,
    quiet: bool,
) -> tuple[NodeRequest | None, float | None]:
    """Says what the data costs, and keeps a new node beside it; the request and the price."""
    on_bucket = request.data.startswith("gs://")
    bucket_region = _bucket_region(fleet, request.data) if on_bucket else ""
    if node_request and bucket_region and not node_request.zone and "-" in bucket_region:
        # Only zones beside the data: reading across regions costs money and starves the machine.
        node_request = dataclasses.replace(node_request, zone=bucket_region)
    price, region = _price_and_region(fleet, node, node_request)
    for line in announce_data(request.data, price, region, bucket_region):
        say(f"gml: {line}")
    if region and fleet.config.google.bucket and not quiet:
        _check_cache_bucket(fleet, region)
    return node_request, price


def _conclude(runner: Runner, json: bool) -> None:
    """The last line: how it ended, where the results are, what it cost."""
    if json:
        emit(runner.outcome)
    if runner.outcome.get("state") != "ended":
        return
    outcome, spent = runner.outcome, runner.outcome["spent_usd"]
    parts = [f"the job ended with exit code {outcome['exit_code']}"]
    parts += [
        f"fetched {', '.join(outcome['fetched'])}" if outcome["fetched"] else "nothing to fetch"
    ]
    parts += [f"{outcome['node']} is gone" if outcome["deleted"] else f"{outcome['node']} is kept"]
    parts += [] if spent is None else [f"${spent:.2f} so far" if not outcome["deleted"]
                                       else f"${spent:.2f} in all"]  # fmt: skip
    say(f"gml: {'; '.join(parts)}")


def _console(spinner: Spinner, json: bool) -> Console:
    """The terminal as a run sees it; with --json stdout belongs to the one document."""
    log = (sys.stderr if json else sys.stdout).buffer
    return Console(spinner, say, cast(BinaryIO, Lasting(log)), streaming, spinner.bill)


def _target(
    fleet: Fleet, request: RunRequest, wanted: NodeRequest
) -> tuple[Node | None, NodeRequest | None]:
    """The existing node to run on, or else the request for a new one."""
    record = fleet.store.get(wanted.name) if wanted.name and not request.node else None
    if request.node:
        node = fleet.resolve(request.node)
        c.check_machine(node)
        return node, None
    if record and record.phase == "up":
        say(f"gml: using {record.id}, which is up")
        return fleet.resolve(record.id), None
    return None, c.completed(fleet, wanted, "or use --node ID, or --attach ID")


def _price_and_region(
    fleet: Fleet, node: Node | None, wanted: NodeRequest | None
) -> tuple[float | None, str]:
    if node:
        return node.price, region_of(node.zone)
    assert wanted is not None
    offer = find_offers(fleet, make_spec(fleet, wanted), wanted)[0]
    return offer.price, region_of(offer.zone) if offer.provider == "google" else ""


def _bucket_region(fleet: Fleet, data: str) -> str:
    return bucket_location(GoogleApi(fleet.config), data[5:].split("/", 1)[0])


def _check_cache_bucket(fleet: Fleet, region: str) -> None:
    """A compile cache in another region works, but every start pays for it: said, not refused."""
    bucket = fleet.config.google.bucket
    place = _bucket_region(fleet, f"gs://{bucket}")
    if not same_place(place, region):
        say(f"gml: the compile cache's bucket gs://{bucket} lies in {place}, not in {region}")


def _environment(request: RunRequest) -> dict[str, str]:
    env: dict[str, str] = {}
    for text in request.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--env {text!r} has no =", "write --env NAME=VALUE")
        env[name] = value
    for name in request.secret:
        if name not in os.environ:
            raise UsageError(f"--secret {name} is not in our environment", f"export {name} first")
        env[name] = os.environ[name]
    jobs.env_text(env)
    return env


def _attach(fleet: Fleet, request: RunRequest, json: bool) -> int:
    """Takes up a job; its node is deleted afterwards if it was made for that very job."""
    node = fleet.resolve(request.attach)
    fleet.ssh.write_config()
    job = request.job or jobs.latest(jobs.names(fleet.ssh, node))
    if not job:
        raise NotFound(f"{node.id} has no job to attach to", "start one with `gml run --node`")
    with Spinner() as spinner:
        spinner.bill(node)
        runner = Runner(fleet, request, _console(spinner, json))
        # What was made for another job, or by hand, is not this one's to end.
        code = runner.finish(node, job, keep=request.keep or node.run != job)
    _conclude(runner, json)
    return code


def _dry_run(
    fleet: Fleet, request: RunRequest, node: Node | None, node_request: NodeRequest | None
) -> int:
    requests: list[dict] = []
    target = node
    if node_request:
        spec, offer, requests = plan(fleet, node_request)
        target = Node(spec.id, offer.provider, spec.owner, spec.sku_name, deadline=spec.deadline)
        target = target.replace(price=offer.price, zone=offer.zone)
    assert target is not None
    env = job_environment(fleet.config, target, {})
    files, withheld = sync.files_to_send(request.folder) if request.sync else ([], [])
    emit(
        {
            "node": target.id,
            "requests": requests,
            "sync": {"files": len(files), "withheld": withheld, "dest": request.dest},
            "job": request.job,
            "command": request.command,
            "environment": sorted({*env, *request.environment}),
            "fetch": list(request.fetch),
            "then": "keep" if request.keep or node else "delete",
        }
    )
    return 0
