"""`gml run` between its options and `gml.run.Runner`: names, data, secrets, announcements."""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gml import cli_common as c
from gml import jobs, sync
from gml.data import announce_data, region_of, same_place
from gml.errors import NotFound, UsageError
from gml.model import Node
from gml.nodes import Manager
from gml.planning import Wish
from gml.run import Runner, RunWish, job_environment
from gml.ssh import quote
from gml.ui import Progress, confirm, emit, say

# Above this many US dollars for the whole timeout a terminal is asked first.
ASK_ABOVE = 50.0


@dataclass(frozen=True)
class RunOptions:
    """The options of `gml run` as typed."""

    command: tuple[str, ...]
    wish: dict[str, Any]
    node: str
    attach: str
    job: str
    folder: Path
    dest: str
    data: str
    setup: str
    fetch: tuple[str, ...]
    env: tuple[str, ...]
    secret: tuple[str, ...]
    keep: bool
    detach: bool
    recover: bool
    resume_flag: str
    git_credentials: bool
    sync: bool
    dry_run: bool
    json: bool


def run_command(options: RunOptions) -> int:
    """Does what was asked and returns the exit code of the job."""
    manager = c.manager()
    root = sync.repository_root(options.folder) if options.sync else options.folder.resolve()
    dest = sync.check_dest(options.dest or re.sub(r"[^A-Za-z0-9_.-]", "-", root.name) or "work")
    if options.attach:
        return _attach(manager, options, root, dest)
    words = [w for i, w in enumerate(options.command) if not (i == 0 and w == "--")]
    if not words:
        raise UsageError("there is no command", "gml run -t v6e-8 --timeout 3h -- bash x.sh")
    wish = RunWish(
        command=words[0] if len(words) == 1 else quote(words),
        job=jobs.check_job(options.job or time.strftime("job-%m%d-%H%M%S")),
        folder=root,
        dest=dest,
        env=_environment(options),
        data=options.data.rstrip("/") if options.data != "/" else options.data,
        setup=options.setup,
        fetch=options.fetch,
        keep=options.keep,
        detach=options.detach,
        recover=options.recover,
        resume_flag=options.resume_flag,
        git_credentials=options.git_credentials,
        sync=options.sync,
    )
    node, node_wish = _where(manager, options)
    bucket_region = _bucket_region(manager, wish.data) if wish.data.startswith("gs://") else ""
    if node_wish and bucket_region and not node_wish.zone and "-" in bucket_region:
        # Only zones beside the data: reading across regions costs money and starves the machine.
        import dataclasses

        node_wish = dataclasses.replace(node_wish, zone=bucket_region)
    price, region = _price_and_region(manager, node, node_wish)
    for line in announce_data(wish.data, price, region, bucket_region):
        say(f"gml: {line}")
    if region and manager.config.google.bucket and not options.dry_run:
        _check_cache_bucket(manager, region)
    if options.dry_run:
        return _dry_run(manager, wish, node, node_wish)
    if node_wish and price is not None and node_wish.timeout_s * price / 3600 > ASK_ABOVE:
        most = node_wish.timeout_s * price / 3600
        confirm(f"this may cost up to ${most:.2f}; go on?", scripts_may=True)
    with Progress() as progress:
        manager.on_up = progress.bill
        if node:
            progress.bill(node)
        runner = Runner(manager, wish, progress, out=_log_sink(options))
        code = runner.run(node, node_wish)
    _conclude(runner, options.json)
    return code


def _conclude(runner: Runner, json: bool) -> None:
    """The last line: how it ended, where the results are, what it cost."""
    if json:
        emit(runner.outcome)
    if runner.outcome.get("state") != "ended":
        return
    found, spent = runner.outcome, runner.outcome["spent_usd"]
    parts = [f"the job ended with exit code {found['exit_code']}"]
    parts += [f"fetched {', '.join(found['fetched'])}" if found["fetched"] else "nothing to fetch"]
    parts += [f"{found['node']} is gone" if found["deleted"] else f"{found['node']} is kept"]
    parts += [] if spent is None else [f"${spent:.2f} so far" if not found["deleted"]
                                       else f"${spent:.2f} in all"]  # fmt: skip
    say(f"gml: {'; '.join(parts)}")


def _log_sink(options: RunOptions) -> BinaryIO:
    """Where the job's log goes: with --json stdout belongs to the one document."""
    return (sys.stderr if options.json else sys.stdout).buffer


def _where(manager: Manager, options: RunOptions) -> tuple[Node | None, Wish | None]:
    name = options.node or options.wish.get("name") or ""
    record = manager.store.get(name) if name and not options.node else None
    if options.node:
        node = manager.resolve(options.node)
        c.check_machine(node)
        return node, None
    if record and record.phase == "up":
        say(f"gml: using {record.id}, which is up")
        return manager.resolve(record.id), None
    wish = c.make_wish(manager, **options.wish)
    if not wish.instance_type:
        raise UsageError("--instance-type is missing", "or use --node ID, or --attach ID")
    return None, wish


def _price_and_region(
    manager: Manager, node: Node | None, wish: Wish | None
) -> tuple[float | None, str]:
    if node:
        return node.price, region_of(node.zone)
    assert wish is not None
    offer = manager.offers(manager.spec(wish), wish)[0]
    return offer.price, region_of(offer.zone) if offer.provider == "google" else ""


def _bucket_region(manager: Manager, data: str) -> str:
    from gml.providers.google_api import GoogleApi

    return GoogleApi(manager.config).bucket_location(data[5:].split("/", 1)[0])


def _check_cache_bucket(manager: Manager, region: str) -> None:
    """A compile cache in another region works, but every start pays for it: said, not refused."""
    bucket = manager.config.google.bucket
    place = _bucket_region(manager, f"gs://{bucket}")
    if not same_place(place, region):
        say(f"gml: the compile cache's bucket gs://{bucket} lies in {place}, not in {region}")


def _environment(options: RunOptions) -> dict[str, str]:
    env: dict[str, str] = {}
    for text in options.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--env {text!r} has no =", "write --env NAME=VALUE")
        env[name] = value
    for name in options.secret:
        if name not in os.environ:
            raise UsageError(f"--secret {name} is not in our environment", f"export {name} first")
        env[name] = os.environ[name]
    jobs.env_text(env)
    return env


def _attach(manager: Manager, options: RunOptions, root: Path, dest: str) -> int:
    node = manager.resolve(options.attach)
    manager.ssh.write_config()
    names = jobs.names(manager.ssh, node)
    job = options.job or jobs.latest(names)
    if not job:
        raise NotFound(f"{node.id} has no job to attach to", "start one with `gml run --node`")
    wish = RunWish(command="", job=job, folder=root, dest=dest, fetch=options.fetch)
    with Progress() as progress:
        progress.bill(node)
        runner = Runner(manager, wish, progress, out=_log_sink(options))
        code = runner.finish(node, job, keep=options.keep)
    _conclude(runner, options.json)
    return code


def _dry_run(manager: Manager, wish: RunWish, node: Node | None, node_wish: Wish | None) -> int:
    requests: list[dict] = []
    target = node
    if node_wish:
        spec, offer, requests = manager.plan(node_wish)
        target = Node(spec.id, offer.provider, spec.owner, spec.sku_name, deadline=spec.deadline)
        target = target.replace(price=offer.price, zone=offer.zone)
    assert target is not None
    env = job_environment(manager.config, target, {})
    files, withheld = sync.files_to_send(wish.folder) if wish.sync else ([], [])
    emit(
        {
            "node": target.id,
            "requests": requests,
            "sync": {"files": len(files), "withheld": withheld, "dest": wish.dest},
            "job": wish.job,
            "command": wish.command,
            "environment": sorted({*env, *wish.env}),
            "fetch": list(wish.fetch),
            "then": "keep" if wish.keep or node else "delete",
        }
    )
    return 0
