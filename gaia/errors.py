"""The one base error of gaia: every message names the field, its value and the remedy."""

import os
import signal
import sys
from collections.abc import Callable


class GaiaError(Exception):
    """A mistake the user can mend. The CLIs print it on one line and exit with 2.

    Args:
        problem: what is wrong, naming the field and its value.
        remedy: what to do about it.
    """

    exit_status = 2
    """Exit status of a CLI: 2 for bad input, 1 where work was begun and failed."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy

    def __reduce__(self) -> tuple:
        return type(self), (self.problem, self.remedy)  # worker processes hand errors back


class ConfigError(GaiaError):
    """A configuration field has a value that cannot work."""


class DataError(GaiaError):
    """A corpus, shard or manifest is missing, damaged or does not match."""


class CheckpointError(GaiaError):
    """A checkpoint is missing, damaged, or belongs to another run."""


def run_cli(program: str, command: Callable[[list[str]], object], args: list[str]) -> int:
    """Runs a command line; returns its exit status, with one line on stderr for a GaiaError.

    0, or 2 for bad input, 1 where work was begun and failed, 130 for Ctrl-C. `--debug` anywhere
    in `args` lets the traceback through.
    """
    debug = "--debug" in args
    try:
        command([a for a in args if a != "--debug"])
    except GaiaError as error:
        if debug:
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # the reader (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        # The process is ending: one more Ctrl-C ends it at once, instead of with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(f"{program}: interrupted", file=sys.stderr)
        return 130
    return 0
