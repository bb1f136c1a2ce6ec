"""Import times, and seconds from `python -m gchat.train` to the first finished step.

    python tests/benchmarks/startup.py [--quick]

Cold: an empty compile cache. Warm: the same command again, with what the first run compiled. The
model is the `cpu` preset's, the data a small corpus made of this repository's own source. The
limit: the bare interpreter (subtracted from the import times) and, for the first step, XLA's
compile time, which only the persistent cache avoids. Aim: each of gml and gaia_metrics imports in
at most 150 ms.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness

PACKAGES = ("gaia", "gchat", "gml", "gaia_metrics")


def import_ms(package: str, rounds: int) -> float:
    """Median milliseconds that importing a package adds to a bare interpreter."""

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=harness.ROOT)
        return time.perf_counter() - began

    added = [seconds(f"import {package}") - seconds("pass") for _ in range(rounds)]
    return round(1e3 * statistics.median(added), 1)


def first_step_seconds(data: Path, home: Path, run: Path) -> float:
    """Starts a training process and waits for its first finished step."""
    command = [sys.executable, "-u", "-m", "gchat.train", "cpu", "--data-dir", str(data)]
    command += ["--run-dir", str(run), "--max-steps", "2", "--warmup", "1", "--eval.tokens", "512"]
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=harness.ROOT,
        env=os.environ | {"GAIA_HOME": str(home)},
    )
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("step 1/"):
            took = time.perf_counter() - began
            process.communicate()
            return round(took, 2)
    raise SystemExit("training printed no first step:\n" + "".join(seen))


def main(args: argparse.Namespace) -> dict:
    """Measures both."""
    result: dict = {
        "import_ms": {name: import_ms(name, 3 if args.quick else 7) for name in PACKAGES}
    }
    print("import, ms beyond a bare interpreter:", result["import_ms"])
    from gchat.data.prepare import prepare

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(
            source="text",
            input=str(corpus(folder)),
            out=folder / "data",
            vocab_size=8192,
            progress=False,
        )
        for name in ("cold", "warm"):
            seconds = first_step_seconds(folder / "data", folder / "home", folder / name)
            result[f"first_step_s_{name}"] = seconds
            print(f"first finished step, {name} compile cache: {seconds:.1f} s")
    return result


def corpus(folder: Path) -> Path:
    """The repository's own Python and Markdown as one text file, repeated to fill a batch."""
    files = sorted([*harness.ROOT.glob("g*/**/*.py"), *harness.ROOT.glob("tests/**/*.py")])
    text = "\n\n".join(f.read_text(encoding="utf-8") for f in files)
    path = folder / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    return path


if __name__ == "__main__":
    harness.run(main, __doc__)
