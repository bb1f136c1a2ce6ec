"""`gml supervise` and `gml budget`."""

from __future__ import annotations

import dataclasses
import time
from typing import Annotated

import typer

from gml import budget as money
from gml.cli import options as c
from gml.cli.queue import shown
from gml.cli.terminal import Spinner, emit, say
from gml.documents import Documents, open_documents
from gml.durations import parse_duration
from gml.errors import GmlError, Incomplete, UsageError
from gml.fleet import Fleet
from gml.reaper import ReapReport, reap
from gml.supervisor.drivers import drivers
from gml.supervisor.heartbeat import beat
from gml.supervisor.loop import Supervisor
from gml.supervisor.machine import write_ssh_key
from gml.supervisor.plan import next_step
from gml.supervisor.queue import Queue, load, queue_names


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    app.command()(supervise)
    app.command()(budget)


def supervise(
    loop: Annotated[
        str, typer.Option("--loop", help="Repeat with this pause, for example 1m.")
    ] = "",
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Reap, then work on all queues: make machines, start jobs, delete what is done.

    It can be killed at any time, and any number of them may run.
    """
    pause = parse_duration(loop, "--loop") if loop else 0
    # Once, before the loop: it leaves the environment with this.
    key = write_ssh_key(c.open_fleet().config.home)
    while True:
        fleet = c.open_fleet()
        if key is not None:
            fleet = Fleet(dataclasses.replace(fleet.config, ssh_key=str(key)), fleet.store)
        documents = open_documents(fleet.config)
        steps: dict[str, str] = {}
        queues: list[Queue] | None = None
        with Spinner() as spinner:
            report = reap(fleet, dry_run=dry_run, progress=spinner)
            problems = list(report.problems)
            try:
                if dry_run:
                    steps = _next_steps(fleet, documents)
                else:
                    made = drivers(fleet, documents)
                    problems += Supervisor(documents, made, fleet.now, spinner).run()
                    beat(documents, fleet.now())
                queues = [load(documents, n)[0] for n in queue_names(documents)]
            except (GmlError, OSError) as error:
                if not pause or dry_run:
                    raise
                problems.append(str(error))  # an outage ends this pass, and not the reaper
        _show(fleet, report, problems, steps, queues, json)
        if not pause or dry_run:
            break
        for line in problems:
            say(f"gml: {line}")
        time.sleep(pause)
    if problems:
        raise Incomplete(f"not everything could be done: {'; '.join(problems)}", "run it again")


def _next_steps(fleet: Fleet, documents: Documents) -> dict[str, str]:
    """The step that comes next for each queue."""
    steps = {}
    for name in queue_names(documents):
        queue = load(documents, name)[0]
        step = next_step(queue, drivers(fleet, documents)(queue).observe(queue), fleet.now())
        steps[name] = f"{step.kind} {step.why}".strip()
    return steps


def _show(
    fleet: Fleet,
    report: ReapReport,
    problems: list[str],
    steps: dict[str, str],
    queues: list[Queue] | None,
    json: bool,
) -> None:
    """Shows a pass; `queues` is None where they could not be read."""
    if json:
        emit(
            {
                "deleted": [n.id for n in report.deleted],
                "problems": problems,
                "next": steps,
                "queues": None if queues is None else [shown(q, fleet.now()) for q in queues],
            }
        )
        return
    for name, step in steps.items():
        print(f"{name}: would {step}")
    looked = "the queues could not be read" if queues is None else f"{len(queues)} queues"
    say(f"gml: {len(report.deleted)} reaped, {looked}")


def budget(
    month: Annotated[
        str, typer.Option("--month", help="Highest cost of a month, for example 200USD.")
    ] = "",
    none: Annotated[bool, typer.Option("--none", help="Lift the limit.")] = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Show the month's money, or limit it.

    What would pass the limit is not created; once it is spent, `gml reap` deletes what costs money.
    """
    fleet = c.open_fleet()
    if month and none:
        raise UsageError("--month and --none exclude each other", "leave one out")
    limit = money.parse_money(month) if month else None
    if (month or none) and not dry_run:
        money.set_limit(fleet, limit)
    now = money.month(fleet)
    if dry_run and (month or none):
        now = dataclasses.replace(now, limit=limit)
    if json:
        emit({"limit_usd": now.limit, "spent_usd": round(now.spent, 2),
              "bound_usd": round(now.bound, 2), "unpriced": list(now.unpriced),
              "problem": now.problem})  # fmt: skip
        return
    if now.problem:
        say(f"gml: the shared budget can't be read ({now.problem}): this is what is known here, "
            "and nothing that costs money is made meanwhile")  # fmt: skip
    text = "no limit" if now.limit is None else f"of ${now.limit:.2f}"
    print(f"this month: ${now.spent:.2f} spent, ${now.bound:.2f} bound by what runs, {text}")
    if now.unpriced:
        print(f"price unknown: {', '.join(now.unpriced)}")
