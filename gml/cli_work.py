"""Commands that use nodes: `gml connect`, `run`, `exec`, `sync`, `logs`."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from gml import cli_common as c
from gml.cli_run import RunOptions, run_command
from gml.errors import NotFound, UsageError
from gml.model import Node
from gml.nodes import Manager
from gml.ui import Progress, emit, say

Command = Annotated[list[str] | None, typer.Argument(help="The command, after --.")]
Folder = Annotated[Path, typer.Option("--folder", help="Local git work tree.")]
Dest = Annotated[str, typer.Option("--dest", help="Remote folder; default: the local one's name.")]


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(connect)
    app.command()(run)
    app.command("exec")(exec_)
    app.command()(sync)
    app.command()(logs)


def _node(manager: Manager, node_id: str) -> Node:
    node = manager.resolve(node_id)
    c.check_machine(node)
    if not node.hosts:
        live = manager.provider(node.provider).find(node)
        if live is None or not live.hosts:
            raise NotFound(f"{node.id} has no address yet", "see `gml node show`")
        node = manager.store.put(node.replace(hosts=live.hosts))
    manager.ssh.write_config()
    return node


def connect(
    node_id: c.NodeId,
    host: Annotated[int, typer.Option("--host", help="Which host of a slice.")] = 0,
    ide: Annotated[str, typer.Option("--ide", help="cursor, code or none.")] = "none",
    folder: Annotated[str, typer.Option("--dest", help="Remote folder for the IDE.")] = "",
    forward_agent: Annotated[bool, typer.Option("--forward-agent", help="ssh -A")] = False,
    install: Annotated[bool, typer.Option(help="Keep the Include line in ~/.ssh/config.")] = True,
    dry_run: c.DryRun = False,
    json: Annotated[bool, typer.Option("--json", help="How to connect, as JSON; do not.")] = False,
) -> None:
    """A shell on the node, or an editor with --ide.

    Exits with the shell's code. `ssh ID` works from then on too.
    """
    from gml.ssh import host_alias, install_include

    manager = c.manager()
    node = _node(manager, node_id)
    if ide not in ("cursor", "code", "none"):
        raise UsageError(f"--ide {ide!r} is not known", "cursor, code or none")
    argv = manager.ssh.argv(node, host, *(["-A"] if forward_agent else []))
    if ide != "none":
        target = f"ssh-remote+{host_alias(node, host)}"
        argv = [ide, "--remote", target, *([folder] if folder else [])]
    if dry_run or json:
        emit({"id": node.id, "host": host_alias(node, host), "argv": argv})
        return
    if install and install_include(manager.config):
        say(f"gml: `ssh {node.id}` now works too (one Include line in ~/.ssh/config)")
    if shutil.which(argv[0]) is None:
        raise UsageError(f"{argv[0]} is not installed here", f"or connect it to the host {node.id}")
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def run(
    command: Command = None,
    instance_type: c.Type = "",
    provider: c.Provider = "",
    timeout: c.Timeout = "",
    name: c.Name = "",
    zone: c.Zone = "",
    spot: c.Spot = False,
    max_price: c.MaxPrice = None,
    retry_until_up: c.Retry = False,
    strategy: c.Strategy = "",
    reservation: c.Reservation = "",
    idle: c.Idle = "",
    disk_gb: c.Disk = 100,
    limit: c.Limit = "",
    wait: c.Wait = "1h",
    unsafe: c.Unsafe = False,
    self_terminate: c.SelfTerminate = False,
    host: c.HostList = None,
    node: Annotated[str, typer.Option("--node", help="Use this node, and keep it.")] = "",
    attach: Annotated[str, typer.Option("--attach", help="Take up the job of this node.")] = "",
    job: Annotated[str, typer.Option("--job", help="Name of the job.")] = "",
    folder: Folder = Path("."),
    dest: Dest = "",
    data: Annotated[
        str, typer.Option("--data", help="gs://… or a folder; becomes $GAIA_DATA.")
    ] = "",
    setup: Annotated[str, typer.Option("--setup", help="Command to run before the job.")] = "",
    fetch: Annotated[list[str] | None, typer.Option("--fetch", help="Results (runs).")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE, repeatable.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", help="NAME from our environment, repeatable.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Do not delete the node.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job and return.")] = False,
    recover: Annotated[bool, typer.Option("--recover", help="After a preemption, go on.")] = False,
    resume_flag: Annotated[
        str, typer.Option("--resume-flag", help="Appended to the command when recovering.")
    ] = "--resume",
    git_credentials: Annotated[
        bool, typer.Option("--git-credentials", help="Take our github.com login along.")
    ] = False,
    sync: Annotated[bool, typer.Option(help="Send the work tree.")] = True,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Create, sync, run, stream the log, fetch results, delete.

    Exits with the job's code. With --node or a --name that is up, that node is used.
    """
    options = {k: v for k, v in locals().items() if k in _WISH}
    raise typer.Exit(
        run_command(
            RunOptions(
                command=tuple(command or ()), wish=options, node=node, attach=attach, job=job,
                folder=folder, dest=dest, data=data, setup=setup, fetch=tuple(fetch or ("runs",)),
                env=tuple(env or ()), secret=tuple(secret or ()), keep=keep, detach=detach,
                recover=recover, resume_flag=resume_flag, git_credentials=git_credentials,
                sync=sync, dry_run=dry_run, json=json,
            )
        )
    )  # fmt: skip


_WISH = (
    "instance_type", "provider", "timeout", "name", "zone", "spot", "max_price", "retry_until_up",
    "strategy", "reservation", "idle", "disk_gb", "limit", "wait", "unsafe", "self_terminate",
    "host",
)  # fmt: skip


def exec_(
    node_id: c.NodeId,
    command: Command = None,
    all_hosts: Annotated[bool, typer.Option("--all", help="On every host, in parallel.")] = False,
    host: Annotated[int, typer.Option("--host", help="Which host of a slice.")] = 0,
    tty: Annotated[bool, typer.Option("--tty", help="Give it a terminal.")] = False,
    port: Annotated[int, typer.Option("--port", help="JAX coordinator port.")] = 8476,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Run a command in the foreground, on one host or --all.

    Exits with its code; with --all the first host that fails ends it on the others.
    """
    from gml.fanout import run_all, run_one

    manager = c.manager()
    node = _node(manager, node_id)
    words = [w for i, w in enumerate(command or []) if not (i == 0 and w == "--")]
    if not words:
        raise UsageError("there is no command", f"gml exec {node_id} -- nvidia-smi")
    hosts = range(len(node.hosts)) if all_hosts else [host]
    if dry_run:
        emit({"id": node.id, "command": words, "argv": [manager.ssh.argv(node, i) for i in hosts]})
        return
    text = io.StringIO() if json else None
    if all_hosts or json:
        code = run_all(manager.ssh, node, words, hosts=hosts, out=text, port=port)
    else:
        code = run_one(manager.ssh, node, words, index=host, tty=tty)
    if text is not None:
        emit({"id": node.id, "code": code, "output": text.getvalue()})
    raise typer.Exit(code)


def sync(
    node_id: c.NodeId,
    folder: Folder = Path("."),
    dest: Dest = "",
    pull: Annotated[
        list[str] | None, typer.Option("--pull", help="Fetch this path of it instead.")
    ] = None,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Send the git work tree, or --pull results back.

    To every host, deletions too; ignored files and those that look like secrets stay here.
    """
    from gml import sync as syncing
    from gml.run import fetch
    from gml.threads import on_hosts

    manager = c.manager()
    node = _node(manager, node_id)
    root = syncing.repository_root(folder)
    dest = syncing.check_dest(dest or root.name)
    if dry_run:
        files, withheld = syncing.files_to_send(root)
        emit({"dest": dest, "files": files, "withheld": withheld})
        return
    if pull:
        with Progress() as progress:
            got = fetch(manager.ssh, node, root, dest, tuple(pull), progress)
        missing = [p for p in pull if p not in got]
        if missing:
            raise NotFound(f"{node.id} has no {dest}/{missing[0]}", "see `gml exec … -- ls`")
        if json:
            emit({"fetched": got, "into": str(root)})
        else:
            say(f"gml: {', '.join(got)} of {node.id} is in {root}")
        return
    with Progress() as progress:
        progress(f"sending code to {node.id}")
        reports = on_hosts(
            len(node.hosts), lambda i: syncing.push(manager.ssh, node, root, dest, index=i)
        )
    if json:
        emit([dataclasses.asdict(r) for r in reports])
        return
    first = reports[0]
    say(
        f"gml: {first.files} files to {node.id}:~/{first.dest}, {first.deleted} deleted, "
        f"{max(r.seconds for r in reports):.1f} s"
    )
    if first.withheld:
        say(f"gml: held back as secrets: {', '.join(first.withheld[:8])}")


def logs(
    node_id: c.NodeId,
    job: Annotated[str, typer.Argument(help="Job name; default: the latest.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    host: Annotated[int, typer.Option("--host", help="Which host of a slice.")] = 0,
    list_jobs: Annotated[bool, typer.Option("--list", help="Only name the jobs.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="Without -f: how many.")] = 200,
    json: c.Json = False,
) -> None:
    """The log of a job, with -f until it ends.

    With -f it exits with the job's code.
    """
    from gml import jobs

    manager = c.manager()
    node = _node(manager, node_id)
    names = jobs.names(manager.ssh, node, index=host)
    if list_jobs:
        found = [{"job": j, "status": jobs.status(manager.ssh, node, j, index=host)} for j in names]
        if json:
            emit(found)
        else:
            for item in found:
                print(f"{item['job']}  {item['status']}")
        return
    job = job or jobs.latest(names)
    if not job:
        raise NotFound(f"{node.id} has no jobs", "start one with `gml run --node`")
    if follow:
        raise typer.Exit(jobs.follow(manager.ssh, node, job, index=host))
    jobs.check_job(job)
    if job not in names:
        raise NotFound(f"{node.id} has no job {job!r}", f"it has: {', '.join(names) or 'none'}")
    done = manager.ssh.run(node, f'tail -n {int(lines)} "$HOME/.gml/jobs/{job}/log"', index=host)
    if json:
        state = jobs.status(manager.ssh, node, job, index=host)
        emit({"job": job, "status": state, "log": done.stdout.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.buffer.flush()
