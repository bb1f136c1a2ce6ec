"""`gaia-metrics`: list, compare, export, send and explain runs. A mistake exits with code 2."""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from gaia_metrics.errors import MetricsError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Read and send runs, which lie in a folder, in a bucket (gs://), on a machine (ssh://) or "
    "in the database (clickhouse://HOST:8123).",
)
SHOWN_TEXTS = 5
Where = Annotated[
    str,
    typer.Option(
        "--dir", "-d", envvar="GAIA_RUNS", help="Read the runs of this folder or address."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Runs = Annotated[list[str], typer.Argument(help="Name runs by id, folder or name.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option("--metric", "-m", help="Take only this metric; repeat it for several."),
]


@app.command()
def ls(
    where: Where = "runs",
    status: Annotated[str, typer.Option(help="List only runs with this status.")] = "",
    project: Annotated[str, typer.Option(help="List only runs of this project.")] = "",
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    rows = [
        row
        for row in _connect(where).runs()
        if status in ("", row["status"]) and project in ("", row["project"])
    ]
    columns = ["run", "name", "project", "status", "last_step", "loss", "bpb", "started"]
    # Shown where there is something to see.
    columns += [c for c in ("unsent_bytes", "refused") if any(row.get(c) for row in rows)]
    _print(rows, columns, as_json)


@app.command()
def show(run: Annotated[str, typer.Argument()], where: Where = "runs", as_json: Json = False):
    """Print one run: its config, metrics, system values, newest texts, and alerts."""
    from gaia_metrics.config import flatten

    source = _connect(where)
    metrics, config = source.metrics(run), source.config(run)
    alerts, texts = source.texts(run, "alert"), source.texts(run)
    columns = source.system(run)
    system = dict(zip(columns["metric"], columns["value"], strict=True))  # the last ones
    if as_json:
        _json(
            {"run": run, "config": config, "metrics": metrics, "alerts": alerts}
            | {"texts": texts, "system": system}
        )
        return
    for key, value in flatten(config).items():
        print(f"{key} = {value}")
    _print(metrics, ("metric", "count", "last", "last_step", "min", "max"), False)
    for name, value in system.items():
        print(f"{name} = {_cell(name, value)}")
    for text in texts[-SHOWN_TEXTS:]:
        print(f"{text['name']} at step {text['step']}: {text['text']}")
    for alert in alerts:
        print(f"{alert['level']} at step {alert['step']}: {alert['name']}: {alert['text']}")


@app.command()
def compare(runs: Runs, where: Where = "runs", as_json: Json = False) -> None:
    """Print runs side by side: last values, and the config fields that differ."""
    from gaia_metrics.query import comparison

    rows = comparison(_connect(where), runs)
    if as_json:
        _json(rows)
        return
    fields = list(dict.fromkeys(key for row in rows for key in row if key != "run"))
    table = [{"field": f} | {row["run"]: row.get(f) for row in rows} for f in fields]
    _print(table, ("field", *[row["run"] for row in rows]), False)


@app.command()
def export(
    runs: Runs,
    where: Where = "runs",
    metric: Metrics = None,
    x: Annotated[
        str, typer.Option("-x", "--x", help="Choose the x axis: step, time, tokens or flops.")
    ] = "step",
    points: Annotated[
        int, typer.Option(min=0, help="Reduce each series to this many points; 0 keeps all.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write to this .csv or .parquet file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write values in long form (run, metric, x, value) as CSV, Parquet or JSON."""
    from gaia_metrics.reading import files

    if as_json and out is not None:
        raise MetricsError("--json prints, and --out writes a file", "give one of them")
    source = _connect(where)
    known = sorted({name for run in runs for name in source.metric_names(run)})
    for name in metric or ():
        if name not in known:
            close = difflib.get_close_matches(name, known, 3)
            remedy = f"perhaps you meant {' or '.join(close)}" if close else "see `show RUN`"
            raise MetricsError(f"metric={name!r} is in none of the runs", remedy)
    wanted = metric or known
    columns = source.series(runs, wanted, x, points)
    if as_json:
        _json(columns)
    elif out is not None:
        files.save(columns, out)
    else:
        files.write_csv(columns, sys.stdout)


@app.command()
def tail(
    run: Annotated[str, typer.Argument()],
    where: Where = "runs",
    lines: Annotated[int, typer.Option("-n", min=0, help="Begin with this many lines.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more lines.")] = False,
    as_json: Json = False,
) -> None:
    """Print the newest lines of a run's metrics.jsonl."""
    from gaia_metrics.reading.local import LocalSource
    from gaia_metrics.storage.jsonl import whole_lines

    source = _connect(where)
    if not isinstance(source, LocalSource):
        raise MetricsError(f"--dir={where!r} has no metrics.jsonl", "use `export` on a database")
    path = source.run(run).path / "metrics.jsonl"
    seen, shown = -1, lines  # of the lines that are there already
    while True:
        rows = [json.loads(line) for _, line, _ in whole_lines(path)]
        fresh = [row for row in rows if row["step"] > seen]
        for row in fresh[max(0, len(fresh) - shown) :]:
            print(json.dumps(row) if as_json else _line(row), flush=True)
        seen = max((row["step"] for row in rows), default=seen)
        if not follow:
            return
        shown = sys.maxsize
        time.sleep(1.0)
        source.refresh_when_due()


@app.command()
def sync(
    path: Annotated[Path, typer.Argument(help="Take a run folder, or the folder above it.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Send again what was acknowledged.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send what no receiver has acknowledged yet to OTEL_EXPORTER_OTLP_ENDPOINT."""
    from gaia_metrics.sending import sync as sending

    reports = sending.sync(path, os.environ, everything)
    rows = [vars(report) for report in reports]
    columns = ["run", "requests", "points", "refused", "skipped"]
    columns[4:4] = ["left_out"] if any(report.left_out for report in reports) else []
    _print(rows, columns, as_json)
    sending.check(reports)


@app.command("import")
def import_(
    kind: Annotated[Literal["wandb", "tensorboard"], typer.Argument(help="Read runs of this.")],
    path: Annotated[Path, typer.Argument(help="Take a run's files, or the folder above them.")],
    into: Annotated[
        Path, typer.Option("--dir", "-d", envvar="GAIA_RUNS", help="Make run folders in it.")
    ] = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be made.")] = False,
    as_json: Json = False,
) -> None:
    """Bring runs of W&B (offline or online run folders) or TensorBoard along.

    What is here already stays; runs whose files have grown are imported anew. Examples:
    `gaia-metrics import wandb ./wandb`, `gaia-metrics import tensorboard ./logs --dir runs`.
    """
    from gaia_metrics.importing.write import import_runs
    from gaia_metrics.recording.mirror import check_sinks

    check_sinks([kind], "import")

    def say(line: str) -> None:
        print(f"gaia-metrics: {line}", file=sys.stderr, flush=True)

    rows = [vars(report) for report in import_runs(kind, path, into, say, dry_run)]
    columns = ["run", "name", "status", "values", "records", "path"]
    columns += ["skipped"] if any(row["skipped"] for row in rows) else []
    _print(rows, columns, as_json)


@app.command()
def delete(
    runs: Runs,
    where: Where = "runs",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would go.")] = False,
    as_json: Json = False,
) -> None:
    """Delete the metrics of runs, here or in the database; checkpoints stay.

    The database needs a user that may: GAIA_CLICKHOUSE_USER=gaia_admin.
    """
    from gaia_metrics.reading.selection import one

    source = _connect(where)
    known = source.runs()
    chosen = [one(known, key) for key in runs]
    rows = [row for i, row in enumerate(chosen) if row not in chosen[:i]]
    columns = ["run", "name", "project", "status", "last_step", "started"]
    columns += ["path"] if all("path" in row for row in rows) else []
    if not as_json:
        _print(rows, columns, False)
    deleted = []
    if not dry_run:
        if not yes and not sys.stdin.isatty():
            raise MetricsError("delete needs a yes", "pass --yes")
        if yes or typer.confirm(f"Delete {len(rows)} of {len(known)} runs?", err=True):
            for row in rows:
                source.delete(row.get("path", row["run"]))
                deleted.append(row["run"])
    if as_json:
        _json({"deleted": deleted, "runs": rows})


@app.command()
def doctor(
    path: Annotated[Path, typer.Argument(help="Take a run folder, or the folder above it.")] = Path(
        "runs"
    ),
    as_json: Json = False,
) -> None:
    """Explain problems of recording and sending; exit with code 1 where there is one."""
    from gaia_metrics.doctor import examine

    findings = examine(path, os.environ)
    if as_json:
        _json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            remedy = f" -> {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:8}{finding.fact}{remedy}")
    if any(finding.level == "problem" for finding in findings):
        raise typer.Exit(1)


@app.command()
def ui(
    where: Annotated[
        str, typer.Argument(help="Serve the runs of a folder, gs://… or ssh://host/path.")
    ] = "runs",
    host: Annotated[str, typer.Option(help="Listen on this address.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Listen on this port; 0 picks a free one.")
    ] = 6006,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Allow opening the page by this host name; repeat it for several."),
    ] = None,
) -> None:
    """Serve the dashboard of the runs below a folder."""
    from gaia_metrics.ui.server import serve

    server = serve(_connect(where), host, port, name or ())
    print(f"http://{host}:{server.server_port}/  (Ctrl-C stops it)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


def _connect(where: str) -> Any:
    from gaia_metrics.query import connect

    return connect(where)


def _clean(value: Any) -> Any:
    """Write NaN and infinities as text, as metrics.jsonl does: JSON has neither."""
    if isinstance(value, dict):
        return {k: _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        from gaia_metrics.storage.jsonl import named

        return named(value)
    return value


def _json(data: Any) -> None:
    print(json.dumps(_clean(data), default=str, allow_nan=False))


def _print(rows: Sequence[dict], columns: Iterable[str], as_json: bool) -> None:
    if as_json:
        _json(rows)
        return
    columns = list(columns)
    table = [columns, *([_cell(c, row.get(c)) for c in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column in ("started", "updated"):
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(value)) if value else "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _line(row: dict) -> str:
    values = (f"{k}={_cell(k, v)}" for k, v in row.items() if k not in ("step", "time"))
    return f"{row['step']:>8}  " + "  ".join(values)


def main(argv: list[str] | None = None) -> None:
    """Run the command line; a mistake is one line on stderr and exit code 2 (see --debug)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    run: Callable[..., Any] = app
    with contextlib.suppress(AttributeError):  # older runs may hold what no terminal can print
        sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore
    words = [a for a in arguments if a != "--debug"]
    try:
        sys.exit(run(words, prog_name="gaia-metrics", standalone_mode=False) or 0)
    except MetricsError as error:
        if debug:
            raise
        print(f"gaia-metrics: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):  # Ctrl-C, also at a question
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)  # `gaia-metrics ls | head`
    except Exception as error:
        said = getattr(error, "format_message", None)  # the command line library's own errors
        if debug:
            raise
        if said is None:
            print(f"gaia-metrics: unexpected {type(error).__name__}: {error}", file=sys.stderr)
            sys.exit(1)
        text = said().rstrip(".")
        if "\n" in text:  # the help, where no command was given
            print(text)
        else:
            print(f"gaia-metrics: {text}; see `gaia-metrics --help`", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
