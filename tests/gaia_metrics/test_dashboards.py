"""The whole way: gaia_metrics -> OTLP over loopback -> the real ClickHouse engine -> every query.

Every panel's, variable's and alert's SQL of deploy/ runs with its macros expanded, and gives the
columns and the order that its panel needs; step panels must become one frame with ascending x under
Grafana's own transformations. The dashboards are checked against Grafana's published types.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

import gaia_metrics
from gaia_metrics.sending.sync import sync
from gaia_metrics.storage import segments
from tests.fakes import clickhouse, otlp

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SCHEMA = json.loads((Path(__file__).parents[1] / "golden/grafana_schema.json").read_text())
DASHBOARDS = sorted((DEPLOY / "grafana/dashboards").glob("*.json"))
COUNTERS = {"train/tokens": 4096.0, "train/flops": 1e12, "run/cost_per_hour": 0.0}


def values(step, shift):
    return {
        "train/loss": 5 / (1 + step / 100) + shift,
        "train/grad_norm": 1.0 + shift,
        "train/lr": 1e-3,
        "perf/tokens_per_s": 7000.0,
        "perf/mfu": 0.35,
        "train/tokens": 4096.0 * step,
        "train/flops": 1e12 * step,
        "perf/step_ms": 2000.0,
        "perf/data_wait_ms": 100.0,
        "run/cost_per_hour": 1.2,
    }


def train(run, first, last, shift=0.0):
    for step in range(first, last):
        run.log(step, values(step, shift))
        if step % 100 == 0:
            run.log(step, {"eval/val_bpb": 2.0 + shift, "eval/core_v1": 0.1 + step / 1e4 + shift})
            run.text(step, "samples", f"sample {step} {shift}")


def wait_for_system(run):
    """Until two samples of the machine are in the run folder."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        records = segments.read_all(run.dir / "metrics")
        if sum(record.kind == "system" for record in records) > 1:
            return
        time.sleep(0.1)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """Three runs in the database; `resumed` came to 1000, resumed at 600 and stopped at 800."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("stage")
    database = clickhouse.Database(root / "ch")
    with otlp.serve(database.insert, token="t0ken") as receiver:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc_endpoint)
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        patch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t0ken")
        patch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
        patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "300000")
        ids = {}
        for name, steps, shift in (("plain", 400, 0.0), ("other", 700, 0.5)):
            run = gaia_metrics.init(
                "gchat", name, {"model": {"depth": steps}}, dir=root / name, system_interval=0.4
            )
            ids[name] = run.id
            train(run, 0, steps, shift)
            run.histogram(1, "weights", [1.0, 2.0, -3.0, 0.0])
            if name == "other":
                run.log(steps, {"train/loss": float("nan")})
            wait_for_system(run)
            run.finish()
        first = gaia_metrics.init("gchat", "resumed", {}, dir=root / "resumed", system_interval=0)
        ids["resumed"] = first.id
        train(first, 0, 1001)
        first.log(1000, {"eval/late": 7.0})
        first.finish("crashed")
        second = gaia_metrics.init(
            "gchat", "resumed", {}, dir=root / "resumed", resume_step=600, system_interval=0
        )
        train(second, 601, 801, shift=1.0)
        second.finish("stopped")
        sync(root, os.environ)  # finish() waits five seconds at most; a slow machine takes longer
    patch.undo()
    yield database, ids
    database.close()


def test_a_resumed_run_has_no_duplicates_and_no_stale_tail(stage):
    database, ids = stage
    run = ids["resumed"]
    rows = database.rows(
        "SELECT step, value, attempt FROM gaia.metrics "
        f"WHERE run_id = '{run}' AND metric = 'train/loss' ORDER BY step"
    )
    assert [int(row[0]) for row in rows] == list(range(801))
    assert [row[2] for row in rows] == [1] * 601 + [2] * 200
    assert math.isclose(rows[700][1], values(700, 1.0)["train/loss"])
    raw = "SELECT count() FROM gaia.points FINAL WHERE metric = 'train/loss' AND "
    assert int(database.rows(f"{raw} run_id = '{run}'")[0][0]) == 1001  # the tail is hidden
    latest = {
        row[0]: row[1:]
        for row in database.rows(
            "SELECT metric, last, toInt64(last_step), vmin, vmax, nonfinite FROM gaia.run_latest "
            f"WHERE run_id = '{run}'"
        )
    }
    assert int(latest["train/loss"][1]) == 800
    assert math.isclose(latest["train/loss"][0], values(800, 1.0)["train/loss"])
    assert math.isclose(latest["train/loss"][2], values(600, 0.0)["train/loss"])
    assert "eval/late" not in latest  # only the void tail had it
    texts = database.rows(
        f"SELECT step, body FROM gaia.run_texts WHERE run_id = '{run}' AND kind = 'text' "
        "ORDER BY step"
    )
    assert [int(t[0]) for t in texts] == list(range(0, 801, 100))
    assert texts[-1][1] == "sample 800 1.0"
    state = database.rows(f"SELECT status, attempts FROM gaia.runs WHERE run_id = '{run}'")
    assert state == [["stopped", 2]] or state == [["stopped", "2"]]


def test_single_attempt_runs_agree_with_their_values(stage):
    database, ids = stage
    got = database.rows(
        "SELECT last, toInt64(last_step), vmin, vmax, nonfinite FROM gaia.run_latest "
        f"WHERE run_id = '{ids['other']}' AND metric = 'train/loss'"
    )[0]
    assert (got[0], int(got[1]), got[4]) == (None, 700, 1)  # NaN reads as null in JSON
    assert math.isclose(got[2], values(699, 0.5)["train/loss"]) and got[3] == 5.5
    histogram = database.rows(
        "SELECT count, zero_count, min, max, length(positive) > 0 FROM gaia.run_histograms "
        f"WHERE run_id = '{ids['other']}'"
    )
    assert [float(v) for v in histogram[0]] == [4, 1, -3, 2, 1]


def expand(sql: str, ids: dict, axis: str = "step") -> str:
    """Grafana's variables and the plugin's macros (pkg/macros/macros.go), as they expand them."""
    quoted = ",".join(f"'{run}'" for run in ids.values())
    single = f"'{ids['other']}'"
    sql = sql.replace("IN (${run_id:singlequote})", f"IN ({quoted})")
    sql = sql.replace("${run_id:singlequote}", single)
    sql = sql.replace("${project:singlequote}", "'gchat'")
    sql = sql.replace("${metric:singlequote}", "'train/loss'").replace("${xaxis}", axis)
    now = int(time.time())
    sql = re.sub(
        r"\$__timeFilter\(([^)]+)\)",
        rf"\1 >= toDateTime({now - 86400}) AND \1 <= toDateTime({now + 60})",
        sql,
    )
    sql = re.sub(
        r"\$__timeInterval\(([^)]+)\)",
        r"toStartOfInterval(toDateTime(\1), INTERVAL 30 second)",
        sql,
    )
    assert "$" not in sql.replace("'$'", "").replace("_s$'", "").replace("$')", ""), sql
    return sql


def outer_join(columns, rows, split):
    """partitionByValues on `split`, then joinByField (outer) on x: {x: {label: value}}, one frame.

    As in Grafana: one frame per value of the field, in order of appearance; the joined frame has
    every x once, ascending.
    """
    x, key, value = columns.index("x"), columns.index(split), columns.index("value")
    frames = {}
    for row in rows:
        frames.setdefault(row[key], []).append((float(row[x]), row[value]))
    for name, points in frames.items():
        xs = [p[0] for p in points]
        assert xs == sorted(set(xs)), f"{name}: x must ascend without doubles"
    return {x: {n: dict(p).get(x) for n, p in frames.items()}
            for x in sorted({p[0] for points in frames.values() for p in points})}  # fmt: skip


PANELS = [
    pytest.param(panel, id=f"{path.stem}-{panel['id']}-{panel['title']}")
    for path in DASHBOARDS
    for panel in json.loads(path.read_text())["panels"]
]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel(stage, panel):
    database, ids = stage
    sql = panel["targets"][0]["rawSql"]
    axes = ["step", "tokens", "flops", "time"] if "${xaxis}" in sql else ["step"]
    for axis in axes:
        columns, types, rows = database.query(expand(sql, ids, axis))
        kind = panel["type"]
        if kind == "trend":
            split = panel["transformations"][0]["options"]["fields"][0]
            assert columns == ["x", split, "value"]
            assert re.match(r"U?Int64|Float64", types[0]) and types[2].endswith("Float64")
            assert "String" in types[1]
            frame = outer_join(columns, rows, split)
            if "ChatCORE" not in panel["title"]:
                assert frame, panel["title"]
            assert len(frame) <= 1003
        elif kind == "stat":
            assert columns == ["value"] and len(rows) == 1 and re.search("Int|Float", types[0])
        elif kind == "timeseries":
            assert columns == ["time", "metric", "value"] and types[0].startswith("DateTime")
            assert [row[0] for row in rows] == sorted(row[0] for row in rows)
            if not panel["title"].startswith("Device"):
                assert rows, panel["title"]
        else:
            assert kind == "table" and columns
            if panel["title"] not in ("Running", "Silent or crashed"):
                assert rows, panel["title"]


def test_the_compare_panel_shows_what_was_logged(stage):
    database, ids = stage
    panel = next(p for p in json.loads((DEPLOY / "grafana/dashboards/compare.json").read_text())
                 ["panels"] if p["title"] == "Loss")  # fmt: skip
    sql = panel["targets"][0]["rawSql"]
    columns, _, rows = database.query(expand(sql, ids, "tokens"))
    frame = outer_join(columns, rows, "run")
    label = f"plain {ids['plain'][-4:]}"
    assert {len(line) for line in frame.values()} == {3}
    first = frame[min(frame)][label]
    assert math.isclose(first, values(0, 0)["train/loss"], rel_tol=0.02)
    assert max(frame) == pytest.approx(4096 * 800, rel=0.01)


def test_the_parts_of_a_step_add_up(stage):
    database, ids = stage
    panel = next(p for p in json.loads((DEPLOY / "grafana/dashboards/run.json").read_text())
                 ["panels"] if p["title"] == "Step time")  # fmt: skip
    columns, _, rows = database.query(expand(panel["targets"][0]["rawSql"], ids))
    frame = outer_join(columns, rows, "metric")
    assert all(line == {"compute": 1900.0, "perf/data_wait_ms": 100.0} for line in frame.values())


def variables():
    for path in DASHBOARDS:
        for item in json.loads(path.read_text())["templating"]["list"]:
            if item["type"] == "query":
                yield pytest.param(item, id=f"{path.stem}-{item['name']}")


@pytest.mark.parametrize("variable", list(variables()))
def test_every_variable(stage, variable):
    database, ids = stage
    columns, _, rows = database.query(expand(variable["query"], ids))
    assert rows and (len(columns) == 1 or columns == ["value", "text"])


RULES = yaml.safe_load((DEPLOY / "grafana/provisioning/alerting/rules.yaml").read_text())["groups"][
    0
]["rules"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["uid"])
def test_every_alert(stage, rule):
    database, ids = stage
    query, threshold = rule["data"]
    columns, types, _ = database.query(expand(query["model"]["rawSql"], ids))
    assert columns == ["run", "value"] and types[1] == "Float64" and "String" in types[0]
    assert rule["condition"] == threshold["refId"] and threshold["model"]["type"] == "threshold"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["uid"])
def test_alerts_fire_on_what_they_are_for(tmp_path, rule):
    """A running run with each trouble, and a healthy one that no rule may name."""
    code = f"""
import json, sys, time
sys.path.insert(0, {str(DEPLOY.parent)!r})
from tests.fakes import clickhouse
database = clickhouse.Database({str(tmp_path / "ch")!r})
uid, sql = {rule["uid"]!r}, {rule["data"][0]["model"]["rawSql"]!r}
now = time.time_ns()
def row(run, metric, value, ago_s, **attributes):
    return {{"ResourceAttributes": {{"gaia.run.id": "202611-" + run, "gaia.run.attempt": "1"}},
        "MetricName": metric, "Attributes": attributes, "StartTimeUnix": now - 10**12,
        "TimeUnix": now - int(ago_s * 1e9), "Value": value}}
rows = []
for run in ("well", "ill"):
    ill = run == "ill"
    silent = 900 if ill and uid in ("gaia-stalled", "gaia-lost") else 0
    beat = silent if uid == "gaia-lost" else 0
    rows.append(row(run, "gaia.run.info", 1.0, beat,
        **{{"gaia.run.name": run, "gaia.run.status": "running"}}))
    for step in range(300):
        bad = ill and step >= 280
        loss = 9.0 if bad and uid == "gaia-spike" else 3.0
        if bad and uid == "gaia-nan" and step == 290:
            loss = float("nan")
        speed = 10.0 if bad and uid == "gaia-slow" else 100.0
        rows.append(row(run, "train/loss", loss, silent + 300 - step, step=str(step)))
        rows.append(row(run, "perf/tokens_per_s", speed, silent + 300 - step, step=str(step)))
    if ill and uid == "gaia-dropped":
        rows.append(row(run, "gaia.dropped_points", 5.0, 1))
database.insert({{"otel_metrics_gauge": rows}})
print(json.dumps(database.rows(sql)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    limit = rule["data"][1]["model"]["conditions"][0]["evaluator"]["params"][0]
    firing = [run for run, value in json.loads(done.stdout) if value > limit]
    assert firing == ["ill 202611-ill"]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboards_fit_grafanas_published_types(path):
    data = json.loads(path.read_text())
    jsonschema.validate(data, SCHEMA["Dashboard"])
    for panel in data["panels"]:
        kind = {"trend": "Trend", "timeseries": "Timeseries", "stat": "Stat", "table": "Table"}
        options = SCHEMA[f"{kind[panel['type']]}Options"]
        jsonschema.validate(panel["options"], options)
        if panel["type"] in ("trend", "timeseries"):
            custom = panel["fieldConfig"]["defaults"]["custom"]
            jsonschema.validate(custom, SCHEMA[f"{kind[panel['type']]}FieldConfig"])
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])


def test_dashboards_are_what_the_code_builds(tmp_path):
    before = {path.name: path.read_text() for path in DASHBOARDS}
    target = tmp_path / "grafana"
    (target / "dashboards").mkdir(parents=True)
    for name in ("build.py", "queries.py"):
        (target / name).write_text((DEPLOY / "grafana" / name).read_text())
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, target / "build.py"], check=True, capture_output=True, env=env)
    assert before == {path.name: path.read_text() for path in (target / "dashboards").iterdir()}
