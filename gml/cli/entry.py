"""The `gml` command: puts the commands together, runs one, and turns its end into an exit code.

Two things never load typer, because they are typed most: `gml --help`, whose text is kept in
`help.txt` (a test holds it equal to the real one), and `gml ls --cached`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from importlib import resources

from gml.errors import GmlError, UsageError

EXIT_INTERRUPTED = 130
EXIT_PIPE = 141  # as the shell shows a command that SIGPIPE ended


def build():
    """The typer application with all commands."""
    import typer

    from gml.cli import admin, cluster, init, look, node, queue, supervise, work

    app = typer.Typer(
        name="gml",
        help="Rent TPUs and GPUs on demand in two commands, and never forget a machine.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    look.add(app)
    work.add(app)
    admin.add(app)
    node.add(app)
    init.add(app)
    cluster.add(app)
    queue.add(app)
    supervise.add(app)
    return app


def main(arguments: list[str] | None = None) -> None:
    """Runs one command and exits with a code that scripts can use (see `gml.errors`)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(words))


def run(words: list[str]) -> int:
    """The exit code of a command line.

    Two options stand anywhere before `--`: `--debug` shows tracebacks, `--yes` (`-y`) answers every
    question of every command with yes.
    """
    ends = words.index("--") if "--" in words else len(words)
    debug, yes = "--debug" in words[:ends], bool({"--yes", "-y"} & set(words[:ends]))
    words = [w for i, w in enumerate(words) if i > ends or w not in ("--debug", "--yes", "-y")]
    ends = words.index("--") if "--" in words else len(words)
    # A shell that asks for completions calls without words; typer then reads them from elsewhere.
    if words in (["--help"], ["-h"], []) and "_GML_COMPLETE" not in os.environ:
        sys.stdout.write(resources.files("gml").joinpath("help.txt").read_text(encoding="utf-8"))
        return 0 if words else 2
    if words == ["--version"]:
        from importlib import metadata

        try:
            print(f"gml {metadata.version('gaia')}")
        except metadata.PackageNotFoundError:
            print("gml (not installed: run from its source)")
        return 0
    try:
        return _run(words, yes, debug, "--json" in words[:ends])
    finally:
        _warn_clock()


def _run(words: list[str], yes: bool, debug: bool, as_json: bool) -> int:
    try:
        if words[:1] == ["ls"]:
            from gml.cli.listing import fast_path

            if fast_path(words[1:]):
                return 0
        from gml.cli import terminal

        terminal.assume_yes(yes)
        _warn_overdue(list(itertools.takewhile(lambda word: word != "--", words)))
        result = build()(words, standalone_mode=False, prog_name="gml")
        return result if isinstance(result, int) else 0
    except GmlError as error:
        if debug:
            raise
        return _explain(error, as_json)
    except KeyboardInterrupt as error:
        _notes(error)
        return EXIT_INTERRUPTED
    except BrokenPipeError as error:
        _notes(error)
        return _nobody_reads(error)
    except SystemExit as error:
        # The command line library ends like this where it meets a broken pipe itself.
        cause = error.__context__
        if not isinstance(cause, BrokenPipeError):
            raise
        _notes(cause)
        return _nobody_reads(cause)
    except OSError as error:
        if debug:
            raise
        failure = UsageError(_plain(error), "is the disk full or read-only? see `gml doctor`")
        for note in getattr(error, "__notes__", []):
            failure.add_note(note)
        return _explain(failure, as_json)
    except Exception as error:
        code = _library_exit(error, as_json)
        if code is not None and not debug:
            return code
        if debug:
            raise
        _tell(f"gml: unexpected {type(error).__name__}: {error}")
        _tell("gml: add --debug for the traceback, and please report it")
        return 1


def _warn_clock() -> None:
    from gml.clock import WARN_S, service_clock
    from gml.durations import format_duration

    ahead = service_clock.ahead_s
    if abs(ahead) > WARN_S:
        where = "ahead of" if ahead > 0 else "behind"
        _tell(
            f"gml: this machine's clock is {format_duration(abs(ahead))} {where} the service's; "
            "times here are the service's"
        )


def _plain(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _nobody_reads(error: BrokenPipeError) -> int:
    """Exit code once the reader of our output is gone.

    `gml logs x | head` is no failure of ours; a command that had to undo something has one.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        with contextlib.suppress(OSError):
            (sys.stdout, sys.stderr)[number - 1].flush()
            continue
        os.dup2(nowhere, number)  # so that the interpreter's last flush finds a reader
    return EXIT_PIPE if getattr(error, "__notes__", None) else 0


def _tell(text: str) -> None:
    """A line on stderr, if anybody reads it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _warn_overdue(words: list[str]) -> None:
    """Names the machines that should be gone by the last look, whatever the command is about."""
    if {"ls", "list", "reap", "delete", "--help", "-h"} & set(words):
        return  # these show or end them anyway
    from gml.cli.listing import last_known_time
    from gml.config import home_folder
    from gml.durations import format_duration
    from gml.store import Store

    store = Store(home_folder())
    now = last_known_time(store)
    for node in store.all():
        if node.deadline and node.expired(now):
            late = format_duration(now - node.deadline)
            # Whoever can't be told is helped all the same: `gml supervise` is about to reap it.
            _tell(f"gml: {node.id} is {late} past its end: run `gml reap`")


def _explain(error: GmlError, as_json: bool) -> int:
    if as_json:
        import json

        value = {"error": error.problem, "remedy": error.remedy, "code": error.code}
        with contextlib.suppress(OSError):
            print(json.dumps(value), flush=True)
    _tell(f"gml: {error}")
    _notes(error)
    return error.code


def _notes(error: BaseException) -> None:
    for note in getattr(error, "__notes__", []):
        _tell(f"gml: {note}")


def _library_exit(error: Exception, as_json: bool) -> int | None:
    """Exit code of the command line library's own exceptions, by their shape.

    Its usage errors become one line, or JSON, as all others are.
    """
    if type(error).__name__ == "Abort":
        return EXIT_INTERRUPTED
    message, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
    if callable(message) and isinstance(code, int):
        command = getattr(getattr(error, "ctx", None), "command_path", "gml")
        problem = " ".join(str(message()).split()).rstrip(".")
        return _explain(UsageError(problem, f"see `{command} --help`"), as_json)
    return code if isinstance(code, int) else None


if __name__ == "__main__":
    main()
