"""Parts that gml's tests share beside their fixtures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gml.config import load
from gml.fleet import Fleet
from gml.store import Store
from tests.fakes.zygote import KEPT

# A public key for nodes that nobody logs into.
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJjnFtFnRc0ClAhzWZg1b8wJ3cRtlXb3v5ZpXq0p8d5M test"
CONFIG = """owner = "tester"
ssh_key = "{key}"
backoff_s = 0.01
"""


def make_fleet(now=None) -> Fleet:
    """A fleet over the current GML_HOME."""
    config = load()
    store = Store(config.home)
    return Fleet(config, store, now) if now else Fleet(config, store)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    returncode: int
    stdout: str
    stderr: str


class Zygote:
    """A process with gml loaded that forks a real, killable process per command line."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )

    def run(
        self,
        words: list[str],
        patches: dict[str, float] | None = None,
        cwd: Path | None = None,
        out: Path | None = None,
        skew: float = 0.0,
    ) -> int:
        """Runs `gml WORDS`; returns its exit code, or -9 when it was killed.

        `out` is opened as its stdout and stderr instead of two files; its clock is `skew` seconds
        ahead.
        """
        assert self.process.stdin and self.process.stdout
        env = {k: v for k, v in os.environ.items() if k.startswith(KEPT)}
        ask: dict[str, Any] = {
            "words": words,
            "env": env,
            "patches": patches or {},
            "cwd": str(cwd or "/"),
        }
        ask |= {"out": str(out) if out else "", "skew": skew}
        self.process.stdin.write(json.dumps(ask) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def call(self, *words: str, cwd: Path | None = None, skew: float = 0.0) -> Done:
        """Runs `gml WORDS` and returns its code and what it printed."""
        code = self.run(list(words), cwd=cwd, skew=skew)
        home = Path(os.environ["GML_HOME"])
        return Done(code, (home / "child.out").read_text(), (home / "child.err").read_text())

    def close(self) -> None:
        """Ends it."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait(timeout=90)
        self.process.stdout.close()


def git(folder: Path, *words: str) -> None:
    """A git command in a folder."""
    subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
