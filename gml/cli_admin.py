"""`gml reap`, `gml reaper install`, `gml init`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gml import cli_common as c
from gml.errors import Incomplete, UsageError
from gml.ui import Progress, emit, say


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(reap)
    reaper = typer.Typer(help="Make `gml reap` run by itself.", no_args_is_help=True)
    reaper.callback()(lambda: None)
    reaper.command()(install)
    app.add_typer(reaper, name="reaper")
    init = typer.Typer(help="Set up a provider.", no_args_is_help=True)
    init.command("google")(init_google)
    init.command("lambda")(init_lambda)
    app.add_typer(init, name="init")


def reap(
    all_owners: Annotated[
        bool, typer.Option("--all-owners", help="Also other people's expired machines.")
    ] = False,
    loop: Annotated[str, typer.Option("--loop", help="Again and again, with this pause.")] = "",
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Delete every machine that is past its end or dead.

    Judged by the clouds' labels alone, so it runs from anywhere.
    """
    import time

    from gml.durations import parse_duration
    from gml.reaper import ReapReport
    from gml.reaper import reap as one_pass

    pause = parse_duration(loop, "--loop") if loop else 0
    while True:
        manager = c.manager()
        if not manager.configured() and not manager.store.all():
            raise UsageError("no provider is configured", "gml init google, or gml init lambda")
        with Progress() as progress:
            report: ReapReport = one_pass(
                manager, dry_run=dry_run, all_owners=all_owners, tick=progress
            )
        _show(report, dry_run, json)
        if not pause:
            break
        time.sleep(pause)
    if report.problems:
        problems = "; ".join(report.problems)
        raise Incomplete(f"could not look or delete everywhere: {problems}", "then run it again")


def _show(report, dry_run: bool, json: bool) -> None:
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
    gcp: Annotated[bool, typer.Option("--gcp", help="Cloud Run job + Cloud Scheduler.")] = False,
    cron: Annotated[bool, typer.Option("--cron", help="Print the crontab line.")] = False,
    k8s: Annotated[bool, typer.Option("--k8s", help="Print a Kubernetes CronJob.")] = False,
    github: Annotated[bool, typer.Option("--github", help="Print an Actions workflow.")] = False,
    region: Annotated[str, typer.Option("--region", help="For --gcp.")] = "us-central1",
    image: Annotated[str, typer.Option("--image", help="For --k8s.")] = "gml:latest",
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Run `gml reap` every five minutes.

    Here, by a systemd user timer, or where it never sleeps (--gcp, --cron, --k8s, --github).
    """
    from gml import setup
    from gml.doctor import run_shown
    from gml.store import write_private
    from gml.ui import confirm

    given = {"--gcp": gcp, "--cron": cron, "--k8s": k8s, "--github": github}
    chosen = [name for name, on in given.items() if on]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other", "take one at a time")
    config = c.manager().config
    for line in setup.left_behind(config):
        say(f"gml: {line}")
    printed = {
        "cron": setup.cron_line(config) if cron else "",
        "k8s": setup.cronjob_manifest(config, image) if k8s else "",
        "github": setup.github_workflow(config) if github else "",
    }
    for kind, text in printed.items():
        if text:
            emit({kind: text}) if json else print(text)
            return
    files: dict[Path, str] = {}
    if gcp:
        commands = setup.gcp_commands(config, setup.check_region(region))
    else:
        files, commands = setup.systemd_files(config), setup.SYSTEMD_COMMANDS
    for path, text in files.items():
        say(f"--- {path}\n{text}")
    run_shown(commands, False, say)
    if dry_run:
        if json:
            emit({"files": {str(p): t for p, t in files.items()}, "commands": commands})
        return
    confirm("write these files and run these commands?")
    if gcp:
        setup.write_image_context(config)
    for path, text in files.items():
        write_private(path, text)
    failed = run_shown(commands, True, say)
    if failed:
        raise UsageError(f"not installed: {'; '.join(failed)}", "--cron prints a crontab line")
    say("gml: installed; `gml doctor` shows when it last ran")
    if json:
        emit({"installed": True, "commands": commands})


def init_google(
    project: Annotated[str, typer.Option("--project", help="Project id.")] = "",
    region: Annotated[str, typer.Option("--region", help="For the bucket.")] = "us-east5",
    bucket: Annotated[str, typer.Option("--bucket", help="Default: PROJECT-gml-REGION.")] = "",
    network: Annotated[str, typer.Option("--network", help="VPC network.")] = "default",
    ssh_from: Annotated[
        str, typer.Option("--ssh-from", help="Addresses that may ssh in (CIDR).")
    ] = "0.0.0.0/0",
    billing_account: Annotated[
        str, typer.Option("--billing-account", help="For the budget alert.")
    ] = "",
    budget: Annotated[int, typer.Option("--budget", help="US dollars a month.", min=1)] = 100,
    apply: Annotated[bool, typer.Option("--apply", help="Run them (else only shown).")] = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """APIs, service account, firewall, bucket, quota, budget.

    Every command is shown; --apply runs them and writes ~/.gml/config.toml.
    """
    import dataclasses

    from gml import setup
    from gml.doctor import run_shown
    from gml.providers.google_api import check_bucket
    from gml.ui import confirm

    manager = c.manager()
    chosen = project or manager.config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    google = dataclasses.replace(manager.config.google, project=chosen)
    project = dataclasses.replace(manager.config, google=google).project
    setup.check_region(region)
    bucket = bucket or f"{project}-gml-{region}"
    check_bucket(bucket)
    commands = setup.google_commands(
        project, region, bucket, network, ssh_from, billing_account, budget
    )
    run_shown(commands, False, say)
    if not billing_account:
        say("# no budget alert: add --billing-account (gcloud billing accounts list)")
    quotas = f"https://console.cloud.google.com/iam-admin/quotas?project={project}"
    say(f"# quota: {quotas} (filter: TPU)")
    settings = setup.google_settings(project, bucket, network)
    if json:
        emit({"commands": commands, "google": settings, "quota": quotas, "apply": apply})
    if not apply or dry_run:
        say("gml: nothing was run; add --apply to run these commands and write config.toml")
        return
    confirm("run these commands?")
    failed = run_shown(commands, True, say)
    path = setup.update_config(manager.config.home, "google", settings)
    say(f"gml: wrote {path}")
    if failed:
        raise UsageError(f"some commands failed: {'; '.join(failed)}", "mend them and run it again")


def init_lambda(
    key_file: Annotated[
        str, typer.Option("--key-file", help="Read the API key from here; else it is asked for.")
    ] = "",
    apply: Annotated[bool, typer.Option("--apply", help="Store it (else only checked).")] = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Check an API key and store it in a 0600 file.

    The key comes from LAMBDA_API_KEY, --key-file, the terminal or stdin; it is never an argument.
    """
    import getpass

    from gml import setup
    from gml.providers.lambda_cloud import LambdaProvider
    from gml.store import write_private

    manager = c.manager()
    if key_file:
        key = _read_key(Path(key_file).expanduser())
    elif os.environ.get("LAMBDA_API_KEY"):
        key = os.environ["LAMBDA_API_KEY"]
    elif sys.stdin.isatty():
        key = getpass.getpass("Lambda API key (https://cloud.lambda.ai/api-keys): ").strip()
    else:
        key = sys.stdin.readline().strip()
    if not key:
        raise UsageError("the key is empty", "make one at https://cloud.lambda.ai/api-keys")
    os.environ["LAMBDA_API_KEY"] = key
    found = LambdaProvider(manager.config, manager.store).doctor()[0]
    if not found["ok"]:
        raise UsageError(f"the key was not accepted: {found['detail']}", found["fix"])
    path = Path(manager.config.lambda_.api_key_file).expanduser()
    say(f"gml: the key works; it goes into {path} (0600)")
    if json:
        emit({"key_works": True, "key_file": str(path), "stored": apply and not dry_run})
    if not apply or dry_run:
        say("gml: nothing was stored; add --apply")
        return
    write_private(path, key + "\n")
    setup.update_config(manager.config.home, "lambda", {"api_key_file": str(path)})
    say("gml: stored; Lambda bills until someone terminates: run `gml reaper install` too")


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--key-file {path} cannot be read: {error}", "check the path") from None
