"""The machine that trainings will find, asked in a process of its own.

Who asks JAX for its devices holds them until the end: a TPU admits one process, and of a GPU's
memory the first one takes most. A parent that asked would leave its trainings none.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gaia import runtime
from gaia.errors import GaiaError, run_cli
from gaia.runtime import Machine

PROGRAM = "gchat"
_LONGEST_S = 300


def ask(matmul_precision: str, dtype: str) -> tuple[Machine, float]:
    """The devices that JAX finds, and the FLOP/s of all of them together.

    Args:
        matmul_precision: as of `gaia.runtime.start`.
        dtype: of the products that are timed where the chip is not one we know.

    Raises:
        GaiaError: JAX doesn't start on this machine, or not within five minutes.
    """
    remedy = "name the length in --tokens, or end what holds the accelerator"
    root = str(Path(__file__).resolve().parents[2])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gchat.research.machine", matmul_precision, dtype],
            cwd=root, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True,
            check=False, timeout=_LONGEST_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        problem = f"the machine's speed cannot be measured (JAX did not start in {_LONGEST_S} s)"
        raise GaiaError(problem, remedy) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise GaiaError(
            f"the machine's speed cannot be measured ({said.removeprefix(f'{PROGRAM}: ')})",
            remedy,
        )
    sys.stderr.write(done.stderr)
    facts = json.loads(done.stdout.splitlines()[-1])
    return Machine(**facts["machine"]), facts["peak"]


def main(args: Sequence[str]) -> None:
    """Prints the machine and its speed as one JSON object."""
    matmul_precision, dtype = args
    try:
        machine = runtime.start(matmul_precision=matmul_precision, compile_cache=False)
    except RuntimeError as error:  # a plugin that finds its device held, or no driver
        raise GaiaError(" ".join(str(error).split())[:300]) from None
    peak, _ = runtime.peak_flops(machine, dtype)
    print(json.dumps({"machine": asdict(machine), "peak": peak}))


if __name__ == "__main__":
    sys.exit(run_cli(PROGRAM, main, sys.argv[1:]))
