"""`gml queue add|ls|rm|logs`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from gml import budget as money
from gml.cli import options as c
from gml.cli.signature import with_options
from gml.cli.terminal import Spinner, confirm, emit, say, table
from gml.documents import Documents, open_documents
from gml.durations import format_duration
from gml.errors import NotFound, UsageError
from gml.fleet import Fleet
from gml.options import option
from gml.planning import make_spec
from gml.remote import jobs
from gml.remote import sync as syncing
from gml.remote.ssh import quote
from gml.request import NodeRequest
from gml.supervisor.code import store_code
from gml.supervisor.drivers import drivers
from gml.supervisor.heartbeat import last_pass
from gml.supervisor.loop import Lost, Supervisor
from gml.supervisor.queue import Job, Queue, begin, check_queue, load, queue_names, update

QueueName = Annotated[str, typer.Argument(help="Name of the queue.", metavar="QUEUE")]
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL", re.I)


@dataclasses.dataclass(frozen=True)
class AddRequest:
    """A job for a queue, and how the queue's machine is made where the queue is new."""

    job: str = option("", "--job", help="Name of the job; default: job-N.")
    folder: Path = option(Path("."), "--folder", help="Local git work tree to send.")
    dest: str = option("", "--dest", help="Remote folder; default: the local folder's name.")
    data: str = option("", "--data", help="Data set, as gs://…; becomes $GAIA_DATA.")
    setup: str = option("", "--setup", help="Command to run before the job.")
    env: tuple[str, ...] = option(
        (), "--env", help="Variable for the job, as NAME=VALUE, repeatable.",
        typed=list[str] | None, parse=lambda texts: tuple(texts or ()),
    )  # fmt: skip
    secret: tuple[str, ...] = option(
        (), "--secret", help="Variable of the supervisor to pass on, by NAME, repeatable.",
        typed=list[str] | None, parse=lambda texts: tuple(texts or ()),
    )  # fmt: skip
    sync: bool = option(True, "--sync/--no-sync", help="Send the work tree.")
    resume_flag: str = option(
        "--resume", "--resume-flag", help="Flag appended to the command when it resumes."
    )
    budget: str = option("", "--budget", help="Money for all machines of the queue: 50USD.")
    max_restarts: int = option(
        20, "--max-restarts", help="Maximum number of machines lost before it gives up.",
        limits={"min": 0},
    )  # fmt: skip
    cluster: str = option("", "--cluster", help="Cluster to run on, as JobSets.")
    image: str = option("", "--image", help="Container image of the job (--cluster).")
    slices: int = option(
        1, "--slices", help="Number of slices (--cluster).", limits={"min": 1, "max": 64}
    )


def add(app: typer.Typer) -> None:
    """Registers the commands."""
    queue = typer.Typer(
        help="Queue jobs that run one after the other without this computer.",
        no_args_is_help=True,
    )
    queue.command("add")(add_job)
    queue.command("ls")(ls)
    queue.command("rm")(rm)
    queue.command("logs")(logs)
    app.add_typer(queue, name="queue")


@with_options
def add_job(
    queue_name: QueueName,
    request: AddRequest,
    wanted: NodeRequest,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run, after --.")] = None,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Add a job to a queue, and make the queue where it is new.

    `gml supervise` makes its machine, makes it again when it is taken away, starts the next job
    when one ends, and deletes the machine when none is left. --timeout counts from now.
    """
    fleet = c.open_fleet()
    documents = open_documents(fleet.config)
    check_queue(queue_name)
    words = c.command_words(command)
    if not words:
        raise UsageError("the command is missing", f"gml queue add {queue_name} … -- bash x.sh")
    there = queue_name in queue_names(documents)
    queue = load(documents, queue_name)[0] if there else None
    if queue is not None:
        _check_same(queue, request, wanted)
    else:
        queue = _new_queue(fleet, queue_name, request, wanted)
    job = _job(queue, request, words)
    if dry_run:
        emit({"queue": queue_name, "new": not there, "job": dataclasses.asdict(job),
              "deadline": queue.deadline, "state": documents.where})  # fmt: skip
        return
    if request.sync and not queue.cluster:
        root = syncing.repository_root(request.folder)
        code, withheld = store_code(documents, queue_name, root)
        dest = syncing.check_dest(request.dest or syncing.default_dest(root))
        job = dataclasses.replace(job, code=code, dest=dest)
        if withheld:
            say(f"gml: held back as secrets: {', '.join(withheld[:8])}")
    if there:
        update(documents, queue_name, lambda q: _with_new(q, job))
    else:
        begin(documents, queue.replace(jobs=(job,)))
    if json:
        emit({"queue": queue_name, "job": job.name, "state": documents.where})
        return
    say(f"gml: {job.name} waits in {queue_name} ({documents.where})")
    _say_supervisor(documents, fleet.now())


def _new_queue(fleet: Fleet, name: str, request: AddRequest, wanted: NodeRequest) -> Queue:
    """A queue with its deadline; raises UsageError for what could never be made."""
    if request.cluster and not (request.image and wanted.instance_type):
        raise UsageError("--cluster needs --image and --instance-type", "say both")
    wanted = c.completed(fleet, wanted, "see `gml node list-types`")
    if not request.cluster:
        make_spec(fleet, dataclasses.replace(wanted, name=f"{name}-1"))
    return Queue(
        name=name,
        owner=fleet.config.owner,
        request=dataclasses.replace(wanted, name="", timeout_s=0),
        deadline=round(fleet.now()) + wanted.timeout_s,
        cluster=request.cluster,
        budget=money.parse_money(request.budget) if request.budget else None,
        max_restarts=request.max_restarts,
    )


def _check_same(queue: Queue, request: AddRequest, wanted: NodeRequest) -> None:
    """Raises UsageError for options that only a new queue can have."""
    plain = NodeRequest()
    given = [
        f.metadata["option"].flags[0]
        for f in dataclasses.fields(NodeRequest)
        if "option" in f.metadata and getattr(wanted, f.name) != getattr(plain, f.name)
        and getattr(wanted, f.name) != getattr(queue.request, f.name)
    ]  # fmt: skip
    given += ["--budget"] if request.budget else []
    given += ["--cluster"] if request.cluster not in ("", queue.cluster) else []
    given += ["--max-restarts"] if request.max_restarts not in (20, queue.max_restarts) else []
    if queue.removing:
        raise UsageError(f"the queue {queue.name} is being removed", "take another name")
    if given:
        raise UsageError(
            f"{queue.name} exists, and {given[0]} is set when a queue is made",
            "leave it out, or take another queue",
        )
    if queue.cluster and not request.image:
        raise UsageError("the --image is missing", f"{queue.name} runs on a cluster")


def _job(queue: Queue, request: AddRequest, words: list[str]) -> Job:
    """The job; raises UsageError for what it could not run with."""
    env: dict[str, str] = {}
    for text in request.env:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--env {text!r} has no =", "write --env NAME=VALUE")
        if _SECRET.search(name):
            raise UsageError(
                f"--env {name} looks like a secret, and would be stored with the queue",
                f"use --secret {name}: the supervisor's environment must have it",
            )
        env[name] = value
    jobs.env_text(env)
    if request.data and not request.data.startswith("gs://"):
        raise UsageError(
            f"--data {request.data!r} lies on this computer",
            "copy it to a bucket: a queue runs without this computer",
        )
    number = len(queue.jobs) + 1
    while f"job-{number}" in [j.name for j in queue.jobs]:
        number += 1
    return Job(
        name=_checked_name(request.job or f"job-{number}"),
        command=words[0] if len(words) == 1 else quote(words),
        env=env,
        secrets=request.secret,
        data=request.data.rstrip("/"),
        setup=request.setup,
        resume_flag=request.resume_flag,
        image=request.image,
        slices=request.slices,
        dest=request.dest or "work",
    )


def _checked_name(name: str) -> str:
    """A job's name, with room for the number of an attempt, and not to be taken for one."""
    jobs.check_job(name)
    if re.search(r"-r\d+$", name) or len(name) > 36:
        problem = "ends as the later attempts of a job do" if len(name) <= 36 else "is too long"
        raise UsageError(f"job name {name!r} {problem}", "use at most 36 characters, without -rN")
    return name


def _with_new(queue: Queue, job: Job) -> Queue:
    if job.name in [j.name for j in queue.jobs]:
        raise UsageError(f"{queue.name} has a job {job.name!r} already", "take another --job")
    if queue.removing:
        raise UsageError(f"the queue {queue.name} is being removed", "take another name")
    return queue.replace(jobs=(*queue.jobs, job))


def _say_supervisor(documents: Documents, now: float) -> None:
    """Says when a supervisor last ran: without one nothing of a queue happens."""
    age = last_pass(documents, now)
    if age is None or age > 1800:
        last = "none was ever seen" if age is None else f"last {format_duration(age)} ago"
        say(
            f"gml: no supervisor runs ({last}): `gml reaper install --supervise --gcp`, or "
            "`gml supervise --loop 1m` on a machine that stays on"
        )


def ls(
    queue_name: Annotated[str, typer.Argument(help="Queue to show; default: all.")] = "",
    json: c.Json = False,
) -> None:
    """List queues with their jobs, machine, time left and money."""
    fleet = c.open_fleet()
    documents = open_documents(fleet.config)
    names = [check_queue(queue_name)] if queue_name else queue_names(documents)
    queues = [load(documents, n)[0] for n in names]
    if json:
        emit([shown(q, fleet.now()) for q in queues])
        return
    rows = []
    for queue in queues:
        about = shown(queue, fleet.now())
        left = format_duration(max(0, queue.deadline - fleet.now()))
        rows.append((queue.name, "", about["machine"], left, f"${about['spent_usd']:.2f}",
                     "removing" if queue.removing else queue.note))  # fmt: skip
        for job in queue.jobs:
            code = "" if job.exit_code is None else f" ({job.exit_code})"
            rows.append(("", job.name, f"{job.state}{code}", "", "", job.note))
    if rows:
        table(rows, ("QUEUE", "JOB", "STATE", "LEFT", "SPENT", "NOTE"))
    else:
        print(f"no queues in {documents.where}")
    if queues:
        _say_supervisor(documents, fleet.now())


def shown(queue: Queue, now: float) -> dict[str, Any]:
    """A queue as `--json` prints it. Times in unix seconds, money in US dollars."""
    machine = queue.machine
    running = machine.node.cost(now) if machine and machine.node else None
    return {
        "queue": queue.name,
        "machine": f"{machine.id} {machine.phase}" if machine else "no machine",
        "deadline": queue.deadline,
        "spent_usd": round(queue.spent + (running or 0.0), 4),
        "budget_usd": queue.budget,
        "restarts": queue.restarts,
        "removing": queue.removing,
        "note": queue.note,
        "jobs": [
            {"job": j.name, "state": j.state, "exit_code": j.exit_code, "attempt": j.attempt,
             "note": j.note} for j in queue.jobs
        ],
    }  # fmt: skip


def rm(
    queue_name: QueueName,
    job: Annotated[str, typer.Argument(help="Job that waits; default: the whole queue.")] = "",
    yes: c.Yes = False,
    dry_run: c.DryRun = False,
    json: c.Json = False,
) -> None:
    """Remove a waiting job, or a queue with its machine.

    A job that runs on the machine ends with it.
    """
    fleet = c.open_fleet()
    documents = open_documents(fleet.config)
    queue = load(documents, queue_name)[0]
    if job:
        _check_waiting(queue, job)
        if not dry_run:
            update(documents, queue_name, lambda q: _without(q, job))
    elif not dry_run:
        confirm(f"remove {queue_name} and its machine?", scripts_may=True)
        update(documents, queue_name, lambda q: q.replace(removing=True))
        with Spinner() as spinner:
            worker = Supervisor(documents, drivers(fleet, documents), fleet.now, spinner)
            try:
                worker.reconcile(queue_name)
            except Lost:
                say(f"gml: a supervisor works on {queue_name} now; it removes it")
    if json:
        emit({"queue": queue_name, "job": job, "removed": not dry_run})
    else:
        would = "would be " if dry_run else ""
        say(f"gml: {job or queue_name} {would}removed")


def _check_waiting(queue: Queue, name: str) -> None:
    job = next((j for j in queue.jobs if j.name == name), None)
    if job is None:
        known = ", ".join(j.name for j in queue.jobs) or "none"
        raise NotFound(f"{queue.name} has no job {name!r}", f"it has: {known}")
    if job.state == "running":
        raise UsageError(f"{name} runs", f"end it with its machine: gml queue rm {queue.name}")


def _without(queue: Queue, name: str) -> Queue:
    _check_waiting(queue, name)
    return queue.replace(jobs=tuple(j for j in queue.jobs if j.name != name))


def logs(
    queue_name: QueueName,
    job: Annotated[str, typer.Argument(help="Job name; default: the last that ended.")] = "",
    json: c.Json = False,
) -> None:
    """Print the end of the log of a job that has ended."""
    fleet = c.open_fleet()
    documents = open_documents(fleet.config)
    queue = load(documents, queue_name)[0]
    ended = [j.name for j in queue.jobs if j.exit_code is not None]
    name = job or (ended[-1] if ended else "")
    there = documents.read(f"logs/{queue_name}/{jobs.check_job(name)}") if name else None
    if there is None:
        machine = queue.machine.id if queue.machine else "ID"
        raise NotFound(
            f"no log of {name or 'a job'} is kept yet", f"while it runs: gml logs {machine} -f"
        )
    if json:
        emit({"queue": queue_name, "job": name, "log": there[0]["log"]})
    else:
        print(there[0]["log"], end="")
