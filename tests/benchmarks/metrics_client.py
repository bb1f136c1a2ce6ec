"""The metrics client: what `log()` costs, what is delivered, what is lost under faults.

    python tests/benchmarks/metrics_client.py [--quick]

The receiver is another process on this machine (real OTLP/HTTP over loopback). Limits, from the
project's issue on observability: `log_p50_us` <= 2, `log_p99_us` <= 20, `step_slowdown` <= 0.005,
`points_per_s` >= 300,000, `peak_rss_mb` (growth with the receiver down while 6M points are fed as
fast as possible) <= 100, `lost_points` = 0.

- log(): 20 metrics per call, in bursts of 5,000 calls (log_p50_us, log_p99_us), and one call per
  millisecond, when other work has had the caches meanwhile (log_cold_*); beside it a call that
  does nothing, timed in turn (noop_cold_p99_us): what the machine alone takes.
- step_slowdown: CPU seconds of log() and the worker per step over the step's time, for a step of
  STEP_MS of numpy work; beside it the paired A/B (steps with and without log(), taking turns) and
  its 95% interval.
- points_per_s: from the first log() to the last acknowledgement, all in one process: queue,
  segments, metrics.jsonl, OTLP, spool, HTTP. In turn with it, on the same machine,
  encode_points_per_s: generated protobuf classes that only build and serialize the same points
  (740k where SDK objects with sending reach 160k), and ratio_to_encode.
- lost_points: points over 200 metrics; receiver down for the first half, then 500s and resets at
  random, the process killed with -9 three times and resumed at earlier steps; what the receiver
  holds after `sync`. killed_tail_points: of an attempt killed last and never resumed.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT))

from tests.fakes.otlp_process import Receiver

STEP_MS = 100
# The receiver parses and inserts in Python, where a collector only queues: give it time.
PATIENT = {"OTEL_EXPORTER_OTLP_TIMEOUT": "300000"}
KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import gaia_metrics
import os.path
run = gaia_metrics.init("bench", os.path.basename(sys.argv[2]), dir=sys.argv[2], system_interval=0,
                        resume_step=int(sys.argv[3]) if sys.argv[3] != "-" else None)
names = [f"m{i}" for i in range(200)]
first, last = run.resume_step + 1, int(sys.argv[4])
for step in range(first, last):
    run.log(step, dict.fromkeys(names, float(step * 10 + run.attempt)))
    if step % 100 == 0 and run.wait_durable(step):
        print(step, flush=True)
    if sys.argv[5] == "paced":
        time.sleep(0.01)
if sys.argv[5] != "finish":
    print("hang", flush=True)
    sys.stdin.read()
run.finish()
"""


def start(folder: Path, endpoint: str | None, **options):
    """A run that sends to `endpoint`, or records locally."""
    import gaia_metrics

    os.environ.pop("OTEL_EXPORTER_OTLP_ENDPOINT", None)
    if endpoint:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    return gaia_metrics.init("bench", folder.name, dir=folder, **{"system_interval": 0} | options)


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return round(sorted(values)[int(len(values) * share)], 2)


def log_cost(folder: Path, endpoint: str, calls: int) -> dict:
    """Microseconds of one log() with 20 metrics."""
    run = start(folder, endpoint)
    values = {f"train/m{i}": 0.5 + i for i in range(20)}
    clock, cold, warm, nothing = time.perf_counter_ns, [], [], []
    for step in range(calls):
        begin = clock()
        run.log(step, values)
        cold.append((clock() - begin) / 1e3)
        while clock() - begin < 500_000:
            pass
        begin = clock()  # the same with a call that does nothing: what is the machine's
        noop(step, values)
        nothing.append((clock() - begin) / 1e3)
        while clock() - begin < 500_000:
            pass
    for block in range(4):
        time.sleep(0.3)
        for step in range(calls + block * 5000, calls + (block + 1) * 5000):
            begin = clock()
            run.log(step, values)
            warm.append((clock() - begin) / 1e3)
    run.finish()
    return {
        "log_p50_us": percentile(warm, 0.5),
        "log_p99_us": percentile(warm, 0.99),
        "log_max_us": round(max(warm), 1),
        "log_cold_p50_us": percentile(cold, 0.5),
        "log_cold_p99_us": percentile(cold, 0.99),
        "noop_cold_p99_us": percentile(nothing, 0.99),
    }


def noop(step: int, values: dict) -> None:
    """The work that `log` is compared with."""


def thread_cpu(name: str) -> float:
    """CPU seconds of this process's threads of that name, from /proc."""
    total, tick = 0.0, os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rsplit(")", 1)[1].split()
        native = int(task.name)
        if any(t.native_id == native and t.name == name for t in threading.enumerate()):
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def slowdown(folder: Path, endpoint: str, steps: int) -> dict:
    """Measures what recording takes from a training loop: CPU time, and a paired comparison."""
    import numpy as np

    run = start(folder, endpoint, system_interval=10.0)
    time.sleep(3.0)  # the worker's imports
    matrix = np.ones((256, 256), np.float32)
    values = {f"train/m{i}": 0.5 + i for i in range(20)}
    rounds = 1
    while True:  # as many products as make a step of STEP_MS
        begin = time.perf_counter()
        for _ in range(rounds):
            matrix @ matrix
        if time.perf_counter() - begin > STEP_MS / 1000:
            break
        rounds *= 2
    workers = ("gaia-metrics", "gaia-metrics-send")
    before = sum(map(thread_cpu, workers))
    begin_all, inside, ratios = time.perf_counter(), 0.0, []
    for step in range(steps):
        pair = []
        for on in (step % 2 == 0, step % 2 == 1):
            begin = time.perf_counter()
            for _ in range(rounds):
                matrix @ matrix
            if on:
                cpu = time.thread_time()
                run.log(step, values)
                inside += time.thread_time() - cpu
            pair.append((on, time.perf_counter() - begin))
        times = dict(pair)
        ratios.append(times[True] / times[False] - 1)
    wall = time.perf_counter() - begin_all
    cpu_share = (inside + sum(map(thread_cpu, workers)) - before) / wall
    run.finish()
    middle = statistics.mean(ratios)
    half = 1.96 * statistics.stdev(ratios) / len(ratios) ** 0.5
    return {
        "step_ms": round(wall / steps / 2 * 1000, 1),
        # Only every other step logs, so a loop that logs each step spends twice the share.
        "step_slowdown": round(2 * cpu_share, 5),
        "step_slowdown_ab": round(middle, 4),
        "step_slowdown_ab_95": [round(middle - half, 4), round(middle + half, 4)],
    }


def throughput(root: Path, points: int) -> dict:
    """Points per second from the first log() to the last acknowledgement; the reference beside."""
    rates, references, cpu = [], [], 0.0
    for turn in range(3):
        references.append(encode_rate(points // 8))
        rate, cpu = one_rate(root / f"rate{turn}", points)
        rates.append(rate)
    ratios = [rate / reference for rate, reference in zip(rates, references, strict=True)]
    return (
        harness.spread("points_per_s", rates, 0)
        | harness.spread("encode_points_per_s", references, 0)
        | harness.spread("ratio_to_encode", ratios, 2)
        | {"cpu_us_per_point": round(cpu / points * 1e6, 2)}
    )


def one_rate(folder: Path, points: int) -> tuple[float, float]:
    """Points per second of one run, and the CPU seconds of this process."""
    receiver = Receiver("count")
    run = start(folder, receiver.endpoint)
    names = [f"train/m{i}" for i in range(20)]
    begin, cpu = time.perf_counter(), time.process_time()
    for step in range(points // 20):
        run.log(step, dict.fromkeys(names, step * 0.37))
    while receiver.ask("points") < points and time.perf_counter() - begin < 120:
        time.sleep(0.02)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    run.finish()
    receiver.stop()
    return points / seconds, cpu


def encode_rate(points: int) -> float:
    """Points per second of the generated protobuf classes alone: built and serialized, not sent."""
    from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2

    begin = time.perf_counter()
    for first in range(0, points // 20, 1000):
        request = metrics_service_pb2.ExportMetricsServiceRequest()
        scope = request.resource_metrics.add().scope_metrics.add()
        columns = []
        for i in range(20):
            metric = scope.metrics.add()
            metric.name = f"train/m{i}"
            columns.append(metric.gauge.data_points)
        for step in range(first, min(first + 1000, points // 20)):
            for column in columns:
                point = column.add(time_unix_nano=step, as_double=step * 0.37)
                attribute = point.attributes.add()
                attribute.key = "step"
                attribute.value.int_value = step
        request.SerializeToString()
    return points / (time.perf_counter() - begin)


def memory(points: int) -> dict:
    """Growth of this process with the receiver down, fed as fast as possible (a child's figure)."""
    code = f"""
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import metrics_client
folder = Path(tempfile.mkdtemp())
run = metrics_client.start(folder, "http://127.0.0.1:9")
names = [f"train/m{{i}}" for i in range(20)]
run.log(0, dict.fromkeys(names, 0.0)); run.wait_durable(0)
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()  # not ru_maxrss, which a child inherits from its parent
for step in range(1, {points // 20}):
    run.log(step, dict.fromkeys(names, step * 0.37))
durable = run.wait_durable({points // 20}, 120)
after = peak()
run.finish()
import shutil; shutil.rmtree(folder)
print((after - before) / 1024, run._worker.dropped, durable)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, dropped, durable = done.stdout.split()
    return {
        "peak_rss_mb": round(float(grown), 1),
        "memory_points": points,
        "memory_dropped": int(dropped),
        "memory_durable": durable == "True",
    }


def killed(
    folder: Path, endpoint: str, resume: str, last: int, kill_at: int | None, pace: bool = False
) -> int:
    """One attempt in a child; killed once it printed a durable step >= kill_at. That step."""
    environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint} | PATIENT
    ending = "finish" if kill_at is None else "paced" if pace else "hang"
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(harness.ROOT), str(folder), resume, str(last), ending],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    seen = -1
    for line in child.stdout:
        if line.strip() == "hang":
            break
        seen = int(line)
        if kill_at is not None and seen >= kill_at:
            break
    if kill_at is not None:
        child.kill()
    child.wait()
    return seen


def faults(root: Path, points: int, database: bool = False) -> dict:
    """Kills, resumes, a receiver that is down and then unreliable; what arrives in the end.

    With `database` it arrives in the real ClickHouse engine and is read from gaia.metrics.
    """
    from gaia_metrics.sending import sync

    steps, folder = points // 200, root / "faults"
    closed = Receiver("count")
    down = closed.endpoint
    closed.stop()
    port = int(down.rsplit(":", 1)[1])
    step = killed(folder, down, "-", steps, steps // 4)
    step = killed(folder, down, str(step - 50), steps, steps // 2)
    receiver = Receiver("faults", port, str(root / "ch") if database else "-")
    step = killed(folder, receiver.endpoint, str(step - 50), steps, 3 * steps // 4)
    killed(folder, receiver.endpoint, str(step - 50), steps, None)
    # An attempt in another folder that is killed and never taken up again.
    tail = root / "tail"
    last = killed(tail, receiver.endpoint, "-", 350, 10**9, pace=True)  # 100 steps a second
    receiver.ask("heal")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint} | PATIENT
    sync.sync(folder, environment)
    truth = expected(folder)
    rows = receiver.ask("held")
    got = {(m, s): (a, v) for m, s, a, v in rows}
    lost = sum((f"m{i}", s) not in got for i in range(200) for s in range(steps))
    wrong = sum(got.get(key) != value for key, value in truth.items())
    receiver.stop()
    held = (tail / "metrics.jsonl").read_bytes().count(b"\n")
    return {
        "fault_points": steps * 200,
        "lost_points": lost,
        "double_points": len(rows) - len(got),
        "wrong_points": wrong,
        "killed_tail_points": (350 - held) * 200,
        "killed_tail_seconds": (350 - held) / 100,
        "killed_tail_durable": held > last,
    }


def expected(folder: Path) -> dict:
    """(metric, step) -> (attempt, value), from the run folder's segments."""
    from gaia_metrics.storage import segments

    truth, attempt = {}, 0
    for record in segments.read_all(folder / "metrics"):
        if record.kind == "header":
            attempt = record.data["attempt"]
        elif record.kind == "values":
            for name, value in record.data.items():
                truth[name, record.step] = (attempt, value)
    return truth


def main(args: argparse.Namespace) -> dict:
    root = Path(tempfile.mkdtemp(prefix="gaia-metrics-bench-"))
    quick = args.quick
    receiver = Receiver("count")
    result: dict = {}
    random.seed(0)
    try:
        for part in (
            lambda: log_cost(root / "log", receiver.endpoint, 3000 if quick else 20_000),
            lambda: slowdown(root / "step", receiver.endpoint, 40 if quick else 200),
            lambda: throughput(root, 400_000 if quick else 1_000_000),
            lambda: memory(1_000_000 if quick else 6_000_000),
            lambda: faults(root, 60_000 if quick else 1_000_000),
        ):
            found = part()
            result |= found
            for key, value in found.items():
                print(f"{key:24}{value}", flush=True)
    finally:
        receiver.stop()
        shutil.rmtree(root, ignore_errors=True)
    return result


if __name__ == "__main__":
    harness.run(main, __doc__)
