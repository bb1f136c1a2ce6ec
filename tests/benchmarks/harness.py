"""Parts that benchmarks share: arguments, machine facts, medians, and the last JSON line.

    def main(args):
        return {"tokens_per_s": ...}

    if __name__ == "__main__":
        harness.run(main, __doc__)

The last line on stdout is one JSON object: what `main` returns plus `benchmark`, `quick`,
`machine`, `versions`, `commit` and `seconds`.

Importing this module first makes sure that the benchmark's packages are there: where one is
missing, requirements/test.txt is installed into .venv (once) and the benchmark starts again there.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "grain", "array_record", "numpy", "tiktoken", "rustbpe",
)  # fmt: skip
# What a benchmark imports, where that is not the trainer's packages.
_NEEDS = {
    "gml_cli": ("typer",),
    "serve": (*_PACKAGES, "fastapi", "uvicorn", "prometheus_client", "llguidance"),
    "synth_queue": ("httpx2", "tyro"),
    "metrics_client": ("google_crc32c", "grpc", "numpy", "opentelemetry.proto", "psutil", "chdb"),
    "metrics_queries": ("chdb",),
    "metrics_ui": ("duckdb", "pandas", "playwright", "pyarrow", "psutil"),
}
_TRAINER = ("jax", "flax", "numpy", "optax", "grain", "tiktoken", "rustbpe", "pyarrow")
_AGAIN = "GAIA_BENCHMARK_IN_VENV"


def ensure_packages() -> None:
    """Start again in .venv, after installing into it, where this Python lacks a package."""
    script = Path(sys.argv[0]).resolve()
    if script.parent != Path(__file__).resolve().parent:  # imported by a test
        return
    # Of a benchmark that made sure; it may be another Python, with other packages.
    if sys.argv[1:2] == ["--worker"] or script.stem.endswith("_worker"):
        return
    missing = [name for name in _NEEDS.get(script.stem, _TRAINER) if not _installed(name)]
    if not missing:
        return
    if os.environ.get(_AGAIN):
        sys.exit(f"{script.name}: .venv still lacks {', '.join(missing)}; remove .venv, run again")
    command = ["bash", "-c", ". requirements/venv.sh && gaia_venv test"]
    done = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
    if done.returncode:
        sys.exit(f"{script.name}: needs {', '.join(missing)}; see above")
    os.environ[_AGAIN] = "1"
    python = str(ROOT / ".venv/bin/python")
    sys.stderr.flush()
    os.execv(python, [python, *sys.argv])


def _installed(name: str) -> bool:
    try:
        return util.find_spec(name) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def run(
    main: Callable[[argparse.Namespace], dict],
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Parses `--quick` and the benchmark's own options, runs it, prints the JSON line last."""
    sys.path.insert(0, str(ROOT))  # a benchmark runs from a clone that was never installed
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--dept 3` is a mistake, not --depth
    )
    parser.add_argument("--quick", action="store_true", help="end within 60 s on two cores")
    if add_arguments:
        add_arguments(parser)
    args = parser.parse_args()
    started = time.perf_counter()
    try:
        result = main(args)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        sys.exit(130)
    result |= {
        "benchmark": Path(sys.argv[0]).stem,
        "quick": args.quick,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "seconds": round(time.perf_counter() - started, 2),
    }
    sys.stdout.flush()
    print(json.dumps(result), flush=True)


def finish(command: Sequence[str], environment: dict[str, str]) -> int:
    """Runs a program that ends in its own time on Ctrl-C, which reaches it too; its status.

    `subprocess.run` kills it a quarter of a second later, in the middle of its last checkpoint,
    and leaves what it started behind.
    """
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.wait()
            raise


def spread(key: str, values: Sequence[float], digits: int = 1) -> dict[str, float]:
    """`{key: median, key_min: …, key_max: …}` of several timings or rates."""
    return {
        key: round(statistics.median(values), digits),
        f"{key}_min": round(min(values), digits),
        f"{key}_max": round(max(values), digits),
    }


def machine() -> dict:
    """Processor, cores, memory in GiB, and the load that may have disturbed the figures."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError):
        memory = 0.0
    facts = {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "platform": platform.platform(),
        "load_1min": round(os.getloadavg()[0], 2),
    }
    jax = sys.modules.get("jax")  # only a benchmark that used jax reports a device
    if jax is not None:
        facts["device"] = f"{len(jax.devices())} x {jax.devices()[0].device_kind}"
    return facts


def versions() -> dict[str, str]:
    """Python and the packages that decide the figures."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The git commit, with `+` when the tree has changes; empty outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


ensure_packages()
