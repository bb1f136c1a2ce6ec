"""A Dockerfile without containers: its instructions read, and run in an empty folder."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINNED = re.compile(r"^[a-z0-9./-]+:[\w.-]*\d[\w.-]*$")
"""Names of images with a version."""


class Dockerfile:
    """One of this repository's.

    Attributes:
        instructions: (word, arguments) of each instruction.
    """

    def __init__(self, path):
        text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)
        lines = text.replace("\\\n", " ").splitlines()
        self.instructions = [line.split(None, 1) for line in lines if line]

    def values(self, word):
        """Arguments of all instructions with this word."""
        return [rest for name, rest in self.instructions if name == word]

    def build(self, folder, leave_out=None):
        """Does each COPY and RUN below a folder, with an empty home.

        Args:
            leave_out: a text; RUN lines that hold it are the image's own affair.

        Returns:
            (working directory, environment of the image)
        """
        work, home = folder / "srv/gaia", folder / "home"
        work.mkdir(parents=True)
        home.mkdir()
        environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(home)}
        environment |= {name: value for name, value in os.environ.items()
                        if name.lower().endswith("_proxy")
                        or name.startswith(("PIP_", "UV_", "SSL_"))}  # fmt: skip
        for word, rest in self.instructions:
            if word == "ENV":
                environment |= dict(pair.split("=", 1) for pair in rest.split())
            elif word == "COPY":
                _copy(work, *rest.split())
            elif word == "RUN" and (leave_out is None or leave_out not in rest):
                done = subprocess.run(["/bin/sh", "-c", rest], cwd=work, env=environment,
                                      capture_output=True, text=True, timeout=850)  # fmt: skip
                assert done.returncode == 0, (rest, done.stderr[-3000:])
        return work, environment | {"HOME": "/nonexistent", "GAIA_HOME": str(folder / "cache")}

    def entry(self, port):
        """The entry point's words, on a port of loopback."""
        entry = json.loads(self.values("ENTRYPOINT")[0])
        entry[entry.index("8000")] = str(port)
        return ["127.0.0.1" if word == "0.0.0.0" else word for word in entry]

    def wait_until_healthy(self, server, port, work):
        """Waits for the image's own health check to be content with a server that runs."""
        check = json.loads(re.search(r"CMD (\[.*\])", self.values("HEALTHCHECK")[0])[1])
        check[-1] = check[-1].replace("8000", str(port))
        end = time.monotonic() + 180
        while subprocess.run(check, cwd=work, capture_output=True).returncode:
            assert server.poll() is None and time.monotonic() < end
            time.sleep(1)


def _copy(work, *words):
    *sources, target = words
    for source in sources:
        place = work / target / Path(source).name if target.endswith("/") else work / target
        place.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, place)
