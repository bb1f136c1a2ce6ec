"""The receiver of otlp.py in a process of its own, so that it takes no time from the sender.

Its modes: "count" only counts points, "faults" answers 500 or resets at random, "ok" keeps them.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECEIVER = """
import json, random, sys, threading
sys.path.insert(0, sys.argv[1])
from tests.fakes import otlp
port, mode = int(sys.argv[2]), sys.argv[3]
held, faults, database = {}, random.Random(1), None
if sys.argv[4] != "-":
    from tests.fakes.clickhouse import Database
    database = Database(sys.argv[4])
def sink(rows):
    if mode == "count":
        return
    if database is not None:
        database.insert(rows)
        return
    for row in rows.get("otel_metrics_gauge", ()):
        step = row["Attributes"].get("step")
        if step is not None:
            attempt = int(row["ResourceAttributes"]["gaia.run.attempt"])
            key = (row["MetricName"], int(step))
            if held.get(key, (0, 0))[0] <= attempt:
                held[key] = (attempt, row["Value"])
fault = lambda n: faults.choice([None, None, None, 500, "reset"]) if mode == "faults" else None
if mode == "count":  # parsing would take the cores that the client is measured on
    otlp.metric_rows = lambda resource, rows: rows.setdefault("n", []).extend(
        p for s in resource.scope_metrics for m in s.metrics for p in m.gauge.data_points)
with otlp.serve(sink, http_port=port, fault=fault) as receiver:
    print(receiver.http_endpoint, flush=True)
    for line in sys.stdin:
        if line.strip() == "held" and database is not None:
            sql = ("SELECT metric, toUInt32(step), attempt, value FROM gaia.metrics "
                   "WHERE run_id = (SELECT run_id FROM gaia.runs WHERE name = 'faults')")
            print(json.dumps(database.rows(sql)), flush=True)
        elif line.strip() == "held":
            print(json.dumps([[k[0], k[1], *v] for k, v in held.items()]), flush=True)
        elif line.strip() == "points":
            print(receiver.points, flush=True)
        elif line.strip() == "heal":
            mode = "ok"
            print("ok", flush=True)
"""


class Receiver:
    """A receiver process."""

    def __init__(self, mode: str, port: int = 0, database: str = "-") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RECEIVER, str(ROOT), str(port), mode, database],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # broken connections are what it makes
            text=True,
        )
        self.endpoint = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, question: str):
        assert self.process.stdin is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        answer = self._line()
        return json.loads(answer) if question != "heal" else answer

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
