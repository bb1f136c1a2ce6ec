"""`gml reap` and `gml reaper install`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from gml import reaper_setup, setup
from gml.cli import options as c
from gml.cli.terminal import Spinner, confirm, emit, say
from gml.durations import parse_duration
from gml.errors import Incomplete, UsageError
from gml.reaper import ReapReport
from gml.reaper import reap as one_pass
from gml.store import write_private


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(reap)
    reaper = typer.Typer(help="Install `gml reap` as a timer.", no_args_is_help=True)
    reaper.callback()(lambda: None)
    reaper.command()(install)
    app.add_typer(reaper, name="reaper")


def reap(
    all_owners: Annotated[
        bool, typer.Option("--all-owners", help="Delete other owners' expired machines too.")
    ] = False,
    loop: Annotated[
        str, typer.Option("--loop", help="Repeat with this pause, for example 5m.")
    ] = "",
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Delete every machine that is past its end or dead.

    It goes by the clouds' labels alone, so it runs from anywhere.
    """
    pause = parse_duration(loop, "--loop") if loop else 0
    while True:
        fleet = c.open_fleet()
        if not fleet.configured() and not fleet.store.all():
            raise UsageError("no provider is configured", "gml init google, or gml init lambda")
        with Spinner() as spinner:
            report: ReapReport = one_pass(
                fleet, dry_run=dry_run, all_owners=all_owners, progress=spinner
            )
        _show(report, dry_run, json)
        if not pause:
            break
        time.sleep(pause)
    if report.problems:
        problems = "; ".join(report.problems)
        raise Incomplete(f"could not look or delete everywhere: {problems}", "then run it again")


def _show(report: ReapReport, dry_run: bool, json: bool) -> None:
    if json:
        emit(
            {
                "deleted": [{"id": n.id, "why": n.note} for n in report.deleted],
                "kept": [n.id for n in report.kept],
                "forgotten": [n.id for n in report.forgotten],
                "foreign": report.foreign,
                "problems": report.problems,
                "dry_run": dry_run,
            }
        )
        return
    would = "would be " if dry_run else ""
    for node in report.deleted:
        print(f"{node.id}: {would}deleted ({node.note})")
    for node in report.forgotten:
        print(f"{node.id}: {would}forgotten, as it exists nowhere any more")
    print(
        f"{len(report.deleted)} {would}deleted, {len(report.kept)} kept, "
        f"{report.foreign} of other owners left alone"
    )


def install(
    gcp: Annotated[
        bool, typer.Option("--gcp", help="Deploy a Cloud Run job with Cloud Scheduler.")
    ] = False,
    cron: Annotated[bool, typer.Option("--cron", help="Print the crontab line.")] = False,
    k8s: Annotated[bool, typer.Option("--k8s", help="Print a Kubernetes CronJob.")] = False,
    github: Annotated[
        bool, typer.Option("--github", help="Print a GitHub Actions workflow.")
    ] = False,
    supervise: Annotated[
        bool, typer.Option("--supervise", help="Work on queues too (see `gml queue`).")
    ] = False,
    region: Annotated[
        str, typer.Option("--region", help="Region of the Cloud Run job.")
    ] = "us-central1",
    image: Annotated[
        str, typer.Option("--image", help="Container image of the CronJob.")
    ] = "gml:latest",
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Run `gml reap`, or with --supervise `gml supervise`, every five minutes.

    A systemd user timer runs it here; --gcp, --cron, --k8s and --github are for machines that
    never sleep.
    """
    given = {"--gcp": gcp, "--cron": cron, "--k8s": k8s, "--github": github}
    chosen = [name for name, on in given.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", "take one at a time")
    config = c.open_fleet().config
    for line in reaper_setup.left_behind(config):
        say(f"gml: {line}")
    verb = "supervise" if supervise else "reap"
    printed = {
        "cron": reaper_setup.cron_line(config, verb) if cron else "",
        "k8s": reaper_setup.cronjob_manifest(config, image, verb) if k8s else "",
        "github": reaper_setup.github_workflow(config, verb) if github else "",
    }
    for kind, text in printed.items():
        if text:
            emit({kind: text}) if json else print(text)
            return
    files: dict[Path, str] = {}
    if gcp:
        commands = reaper_setup.gcp_commands(config, setup.check_region(region), verb)
    else:
        files, commands = reaper_setup.systemd_files(config, verb), reaper_setup.SYSTEMD_COMMANDS
    _install(files, commands, gcp, dry_run, json)


def _install(
    files: dict[Path, str], commands: list[list[str]], gcp: bool, dry_run: bool, json: bool
) -> None:
    """Shows files and commands, asks, and carries them out."""
    for path, text in files.items():
        say(f"--- {path}\n{text}")
    setup.run_shown(commands, False, say)
    if dry_run:
        if json:
            emit({"files": {str(p): t for p, t in files.items()}, "commands": commands})
        return
    if gcp:
        setup.check_gcloud()
    confirm("write these files and run these commands?")
    if gcp:
        reaper_setup.write_image_context(c.open_fleet().config)
    for path, text in files.items():
        write_private(path, text)
    failed = setup.run_shown(commands, True, say)
    if failed:
        raise UsageError(f"not installed: {'; '.join(failed)}", "--cron prints a crontab line")
    say("gml: installed; `gml doctor` shows when it last ran")
    if json:
        emit({"installed": True, "commands": commands})
