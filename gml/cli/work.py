"""Commands that use nodes: `gml connect`, `run`, `exec`, `sync`, `logs`."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from gml.cli import options as c
from gml.cli.run import run
from gml.cli.terminal import Spinner, emit, say
from gml.errors import NotFound, UsageError
from gml.fleet import Fleet
from gml.model import Node
from gml.remote import jobs
from gml.remote import sync as syncing
from gml.remote.data import announce_data, data_place
from gml.remote.fanout import COORDINATOR_PORT, run_all, run_one
from gml.remote.ssh import host_alias, install_include
from gml.run import fetch
from gml.threads import on_hosts

Command = Annotated[list[str] | None, typer.Argument(help="Command to run, after --.")]
Folder = Annotated[Path, typer.Option("--folder", help="Local git work tree to send.")]
Dest = Annotated[
    str, typer.Option("--dest", help="Remote folder; default: the local folder's name.")
]

Git = Annotated[bool, typer.Option("--git/--no-git", help="Send the git history along.")]


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(connect)
    app.command()(run)
    app.command("exec")(exec_)
    app.command()(sync)
    app.command()(logs)


def _node(fleet: Fleet, node_id: str) -> Node:
    node = fleet.resolve(node_id)
    c.check_machine(node)
    if not node.hosts:
        live = fleet.provider(node.provider).find(node)
        if live is None or not live.hosts:
            raise NotFound(f"{node.id} has no address yet", "see `gml node show`")
        node = fleet.store.put(node.replace(hosts=live.hosts))
    fleet.ssh.write_config()
    return node


def connect(
    node_id: c.NodeId,
    host: c.HostIndex = 0,
    ide: Annotated[
        str, typer.Option("--ide", help="Editor to open instead of a shell: cursor or code.")
    ] = "none",
    folder: Annotated[
        str, typer.Option("--dest", help="Remote folder to open in the editor.")
    ] = "",
    forward_agent: Annotated[
        bool, typer.Option("--forward-agent", help="Forward the ssh agent (ssh -A).")
    ] = False,
    forward: Annotated[
        list[str] | None,
        typer.Option("--forward", "-L", help="Port to forward: 8888 or HERE:THERE, repeatable."),
    ] = None,
    sync: Annotated[
        bool, typer.Option("--sync/--no-sync", help="Send the work tree around here first.")
    ] = True,
    git: Git = True,
    install: Annotated[bool, typer.Option(help="Write one Include line to ~/.ssh/config.")] = True,
    dry_run: c.DryRun = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the command as JSON instead of running it.")
    ] = False,
) -> None:
    """Open a shell on the node, or an editor with --ide.

    First it sends the work tree around here with its git history and identity, and the data and
    logins of [connect] in config.toml. Exits with the shell's code. `ssh ID` works afterwards.
    """
    fleet = c.open_fleet()
    node = _node(fleet, node_id)
    if ide not in ("cursor", "code", "none"):
        raise UsageError(f"--ide {ide!r} is not known", "cursor, code or none")
    options = _forwards(forward or []) + (["-A"] if forward_agent else [])
    data = data_place(fleet.config.connect.data)
    argv = fleet.ssh.argv(node, host, *options, *(["-t"] if data else []))
    if data:
        argv.append(f'export GAIA_DATA={data}; exec "${{SHELL:-/bin/bash}}" -l')
    if ide != "none":
        target = f"ssh-remote+{host_alias(node, host)}"
        argv = [ide, "--remote", target, *([folder] if folder else [])]
    if dry_run or json:
        emit({"id": node.id, "host": host_alias(node, host), "argv": argv})
        return
    if sync:
        _sync_here(fleet, node, host, git)
        _bring_data(fleet, node, host)
    if install and install_include(fleet.config):
        say(f"gml: `ssh {node.id}` now works too (one Include line in ~/.ssh/config)")
    if shutil.which(argv[0]) is None:
        raise UsageError(f"{argv[0]} is not installed here", f"or connect it to the host {node.id}")
    sys.stdout.flush()
    os.execvp(argv[0], argv)


def _sync_here(fleet: Fleet, node: Node, host: int, git: bool) -> None:
    """Sends the work tree around the current folder, with the git identity; none, no sync."""
    try:
        root = syncing.repository_root(Path("."))
    except UsageError:
        return
    wanted = fleet.config.connect.git_credentials == "yes"
    if wanted:
        syncing.git_credential(root)  # before anything is sent
    _send(fleet, node, root, syncing.default_dest(root), [host], git)
    syncing.send_git_identity(fleet.ssh, node, host, root, credentials=wanted)


def _bring_data(fleet: Fleet, node: Node, host: int) -> None:
    """Sends the data folder of the configuration; a bucket's data streams by itself."""
    data = fleet.config.connect.data
    if not data or data.startswith("gs://"):
        return
    folder = Path(data).expanduser()
    for line in announce_data(str(folder), node.price, "", ""):
        say(f"gml: {line}")
    with Spinner() as spinner:
        spinner(f"sending data to {node.id}")
        syncing.push_folder(fleet.ssh, node, folder, f"data/{folder.name}", index=host)


def _forwards(ports: list[str]) -> list[str]:
    """ssh options for `8888` (the same port there) or `16006:6006`; raises UsageError."""
    options = []
    for text in ports:
        here, _, there = text.partition(":")
        for number in (here, there or here):
            if not number.isdigit() or not 0 < int(number) < 65536:
                raise UsageError(f"--forward {text!r} is not a port", "say 8888 or 16006:6006")
        options += ["-L", f"{here}:localhost:{there or here}"]
    return ["-o", "ExitOnForwardFailure=yes", *options] if options else []


def exec_(
    node_id: c.NodeId,
    command: Command = None,
    all_hosts: Annotated[bool, typer.Option("--all", help="Run it on every host at once.")] = False,
    host: c.HostIndex = 0,
    tty: Annotated[bool, typer.Option("--tty", help="Allocate a terminal for it.")] = False,
    port: Annotated[int, typer.Option("--port", help="JAX coordinator port.")] = COORDINATOR_PORT,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Run a command in the foreground, on one host or on all.

    Exits with its code; with --all the first host that fails ends it on the others.
    """
    fleet = c.open_fleet()
    node = _node(fleet, node_id)
    words = c.command_words(command)
    if not words:
        raise UsageError("the command is missing", f"gml exec {node_id} -- nvidia-smi")
    hosts = range(len(node.hosts)) if all_hosts else [host]
    if dry_run:
        emit({"id": node.id, "command": words, "argv": [fleet.ssh.argv(node, i) for i in hosts]})
        return
    text = io.StringIO() if json else None
    if all_hosts or json:
        code = run_all(fleet.ssh, node, words, hosts=hosts, out=text, port=port)
    else:
        code = run_one(fleet.ssh, node, words, index=host, tty=tty)
    if text is not None:
        emit({"id": node.id, "code": code, "output": text.getvalue()})
    raise typer.Exit(code)


def sync(
    node_id: c.NodeId,
    folder: Folder = Path("."),
    dest: Dest = "",
    pull: Annotated[
        list[str] | None,
        typer.Option("--pull", help="Path below the remote folder to fetch instead, repeatable."),
    ] = None,
    git: Git = True,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Send the git work tree, or fetch results with --pull.

    Sends to every host, deletions too; ignored files and those that look like secrets stay here.
    """
    fleet = c.open_fleet()
    node = _node(fleet, node_id)
    root = syncing.repository_root(folder)
    dest = syncing.check_dest(dest or syncing.default_dest(root))
    if dry_run:
        files, withheld = syncing.files_to_send(root)
        links = syncing.links_out(root, files)
        emit({"dest": dest, "files": files, "withheld": withheld, "links_out": links})
        return
    if pull:
        with Spinner() as spinner:
            got = fetch(fleet.ssh, node, root, dest, tuple(pull), spinner)
        missing = [p for p in pull if p not in got]
        if missing:
            raise NotFound(f"{node.id} has no {dest}/{missing[0]}", "see `gml exec … -- ls`")
        if json:
            emit({"fetched": got, "into": str(root)})
        else:
            say(f"gml: {', '.join(got)} of {node.id} is in {root}")
        return
    reports = _send(fleet, node, root, dest, range(len(node.hosts)), git)
    if json:
        emit([dataclasses.asdict(r) for r in reports])


def _send(
    fleet: Fleet, node: Node, root: Path, dest: str, hosts: Sequence[int], git: bool
) -> list[syncing.SyncReport]:
    """Sends the work tree to these hosts, and says what was sent."""
    listing = syncing.listing_of(root)
    for line in syncing.announcement(fleet.ssh, node, root, dest, listing):
        say(f"gml: {line}")
    with Spinner() as spinner:
        spinner(f"sending code to {node.id}")
        reports = on_hosts(
            len(hosts),
            lambda i: syncing.push(
                fleet.ssh, node, root, dest, index=hosts[i], history=git, listing=listing
            ),
        )
    first = reports[0]
    seconds = max(r.seconds for r in reports)
    say(
        f"gml: {first.files} files to {node.id}:~/{first.dest}, {first.deleted} deleted, "
        f"{seconds:.1f} s"
    )
    if first.note:
        say(f"gml: {first.note}")
    if first.withheld:
        say(f"gml: held back as secrets: {', '.join(first.withheld[:8])}")
    return reports


def logs(
    node_id: c.NodeId,
    job: Annotated[str, typer.Argument(help="Job name; default: the latest job.")] = "",
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Stream the log until the job ends.")
    ] = False,
    host: c.HostIndex = 0,
    list_jobs: Annotated[bool, typer.Option("--list", help="List the jobs instead.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", help="Number of last lines to print without -f.")
    ] = 200,
    json: c.Json = False,
) -> None:
    """Print the log of a job.

    With -f it streams until the job ends, and exits with the job's code.
    """
    fleet = c.open_fleet()
    node = _node(fleet, node_id)
    names = jobs.names(fleet.ssh, node, index=host)
    if list_jobs:
        jobs_found = [
            {"job": j, "status": jobs.status(fleet.ssh, node, j, index=host)} for j in names
        ]
        if json:
            emit(jobs_found)
        else:
            for item in jobs_found:
                print(f"{item['job']}  {item['status']}")
        return
    job = job or jobs.latest(names)
    if not job:
        raise NotFound(f"{node.id} has no jobs", "start one with `gml run --node`")
    if follow:
        raise typer.Exit(jobs.follow(fleet.ssh, node, job, index=host))
    jobs.check_job(job)
    if job not in names:
        raise NotFound(f"{node.id} has no job {job!r}", f"it has: {', '.join(names) or 'none'}")
    done = fleet.ssh.run(node, f'tail -n {int(lines)} "$HOME/.gml/jobs/{job}/log"', index=host)
    if json:
        state = jobs.status(fleet.ssh, node, job, index=host)
        emit({"job": job, "status": state, "log": done.stdout.decode(errors="replace")})
    else:
        sys.stdout.buffer.write(done.stdout)
        sys.stdout.buffer.flush()
