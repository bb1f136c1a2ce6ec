"""`gml init google` and `gml init lambda`."""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gml import setup
from gml.cli import options as c
from gml.cli.terminal import confirm, emit, say
from gml.errors import UsageError
from gml.providers.google.buckets import check_bucket
from gml.providers.lambda_cloud import LambdaProvider
from gml.store import write_private


def add(app: typer.Typer) -> None:
    """Registers `gml init`."""
    init = typer.Typer(help="Set up a provider.", no_args_is_help=True)
    init.command("google")(init_google)
    init.command("lambda")(init_lambda)
    app.add_typer(init, name="init")


def init_google(
    project: Annotated[str, typer.Option("--project", help="Project id.")] = "",
    region: Annotated[str, typer.Option("--region", help="Region of the bucket.")] = "us-east5",
    bucket: Annotated[
        str, typer.Option("--bucket", help="Bucket to make; default: PROJECT-gml-REGION.")
    ] = "",
    network: Annotated[
        str, typer.Option("--network", help="VPC network of the machines.")
    ] = "default",
    ssh_from: Annotated[
        str, typer.Option("--ssh-from", help="Address range allowed to ssh in (CIDR).")
    ] = "0.0.0.0/0",
    billing_account: Annotated[
        str, typer.Option("--billing-account", help="Billing account of the budget alert.")
    ] = "",
    budget: Annotated[
        int, typer.Option("--budget", help="Monthly budget of the alert in US dollars.", min=1)
    ] = 100,
    apply: Annotated[
        bool, typer.Option("--apply", help="Run the commands instead of showing them.")
    ] = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Set up APIs, service account, firewall, bucket, quota and budget.

    Every command is shown; --apply runs them and writes ~/.gml/config.toml.
    """
    fleet = c.open_fleet()
    chosen = project or fleet.config.google.project or os.environ.get("GOOGLE_CLOUD_PROJECT", "")
    google = dataclasses.replace(fleet.config.google, project=chosen)
    project = dataclasses.replace(fleet.config, google=google).project
    setup.check_region(region)
    bucket = bucket or f"{project}-gml-{region}"
    check_bucket(bucket)
    commands = setup.google_commands(
        project, region, bucket, network, ssh_from, billing_account, budget
    )
    setup.run_shown(commands, False, say)
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
    setup.check_gcloud()
    confirm("run these commands?")
    failed = setup.run_shown(commands, True, say)
    path = setup.update_config(fleet.config.home, "google", settings)
    say(f"gml: wrote {path}")
    if failed:
        raise UsageError(f"some commands failed: {'; '.join(failed)}", "mend them and run it again")


def init_lambda(
    key_file: Annotated[
        str, typer.Option("--key-file", help="File with the API key; default: ask for it.")
    ] = "",
    apply: Annotated[
        bool, typer.Option("--apply", help="Store the key instead of only checking it.")
    ] = False,
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Check an API key and store it in a 0600 file.

    The key comes from LAMBDA_API_KEY, --key-file, the terminal or stdin; it is never an argument.
    """
    fleet = c.open_fleet()
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
    answer = LambdaProvider(fleet.config, fleet.store).doctor()[0]
    if not answer["ok"]:
        raise UsageError(f"the key was not accepted: {answer['detail']}", answer["fix"])
    path = Path(fleet.config.lambda_.api_key_file).expanduser()
    say(f"gml: the key works; it goes into {path} (0600)")
    if json:
        emit({"key_works": True, "key_file": str(path), "stored": apply and not dry_run})
    if not apply or dry_run:
        say("gml: nothing was stored; add --apply")
        return
    write_private(path, key + "\n")
    setup.update_config(fleet.config.home, "lambda", {"api_key_file": str(path)})
    say("gml: stored; Lambda bills until someone terminates: run `gml reaper install` too")


def _read_key(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--key-file {path} cannot be read: {error}", "check the path") from None
