"""Forks a process per line of JSON on stdin, which runs one `gml` command; answers with its code.

Loading Python and typer takes longer than a whole create on the fake cloud; forking from a process
that has them makes it cheap to kill a real process at every single API call.
"""

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable

KEPT = ("AWS_", "GML_", "GOOGLE_", "LAMBDA_", "HOME", "HF_", "PATH", "SSH_")
"""Beginnings of the names of variables that a command gets from the test, and from nowhere else."""


def private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def ahead(seconds: float) -> Callable[[], float]:
    """A wall clock that is wrong by so much."""
    right = time.time
    return lambda: right() + seconds


def main() -> None:
    import httpx2  # noqa: F401 (loaded once, for all children)
    import typer

    import gml.providers.lambda_cloud as lambda_cloud
    from gml.cli import entry

    # typer loads this on the first option it reads, and with it pydantic where that is installed.
    with contextlib.suppress(ImportError):
        importlib.import_module("typer._adapters")
    # The command tree is made once; making it takes half a second.
    command = typer.main.get_command(entry.build())
    entry.build = lambda: command
    for line in sys.stdin:
        ask = json.loads(line)
        pid = os.fork()
        if pid == 0:
            # Also what was set when this process began and is not any more.
            for name in [n for n in os.environ if n.startswith(KEPT)]:
                del os.environ[name]
            os.environ.update(ask["env"])
            quiet = os.open(os.devnull, os.O_RDWR)
            os.dup2(quiet, 0)
            for number, name in ((1, "child.out"), (2, "child.err")):
                path = os.path.join(ask["env"]["GML_HOME"], name)
                if ask["out"]:  # a FIFO whose reader the test holds, or lets go
                    os.dup2(os.open(ask["out"], os.O_WRONLY), number)
                else:
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            os.chdir(ask["cwd"])
            with open(
                os.path.join(ask["env"]["GML_HOME"], "child.pid"), "w", opener=private
            ) as file:
                file.write(str(os.getpid()))
            if ask["skew"]:
                time.time = ahead(ask["skew"])
            for name, value in ask["patches"].items():
                setattr(lambda_cloud, name, value)
            try:
                code = entry.run(ask["words"])
            except BaseException:
                import traceback

                code = 99
                with contextlib.suppress(OSError):
                    traceback.print_exc()
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
