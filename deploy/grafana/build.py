"""Grafana dashboards as code: writes dashboards/*.json. Run it after a change; a test compares.

    python deploy/grafana/build.py

Every panel's SQL reads the views of ../clickhouse/schema/03-views.sql. Step axes need care:

- Grafana's time macros would force a time filter, so steps are put into buckets here (at most
  BUCKETS of them) and the trend panel draws them.
- A trend panel takes ONE frame with ascending x. Several lines come as long rows ordered by x,
  which partitionByValues splits and joinByField (outer, on x) makes one frame of.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent
DATASOURCE = {"type": "grafana-clickhouse-datasource", "uid": "gaia-clickhouse"}
PLUGIN_VERSION = "4.20.0"
BUCKETS = 1000
TABLE, TIME_SERIES = 1, 0
RUN = "${run_id:singlequote}"
LABEL = "concat(name, ' ', right(run_id, 4))"

# One run, fixed metrics against the step.
STEPS = """WITH (
  SELECT greatest(1, intDiv(max(step), @buckets)) FROM gaia.metrics
  WHERE run_id = @run AND @which
) AS w,
assumeNotNull(w) AS width
SELECT intDiv(step, width) * width AS x, metric, avgIf(value, isFinite(value)) AS value
FROM gaia.metrics
WHERE run_id = @run AND @which
GROUP BY x, metric
ORDER BY x, metric"""

# Where a step's time goes: the parts that were logged, and what they leave of the step.
BREAKDOWN = """WITH
p AS (
  SELECT step, metric, value FROM gaia.metrics
  WHERE run_id = @run AND match(metric, '^perf/.*_ms$')
),
(SELECT greatest(1, intDiv(max(step), @buckets)) FROM p) AS w,
assumeNotNull(w) AS width
SELECT intDiv(step, width) * width AS x, part AS metric, avg(v) AS value
FROM (
  SELECT step, metric AS part, value AS v FROM p WHERE metric != 'perf/step_ms'
  UNION ALL
  SELECT step, 'compute' AS part,
    sumIf(value, metric = 'perf/step_ms') - sumIf(value, metric != 'perf/step_ms') AS v
  FROM p GROUP BY step
)
GROUP BY x, part
ORDER BY x, part"""

# Several runs, one metric, against step, tokens, FLOPs or seconds since the run's first value.
COMPARE = """WITH
v AS (
  SELECT run_id, step, ts, value FROM gaia.metrics
  WHERE run_id IN (@run) AND metric = @metric AND isFinite(value)
),
c AS (
  SELECT run_id, step, value AS counter FROM gaia.metrics
  WHERE run_id IN (@run) AND metric = if('${xaxis}' = 'flops', 'train/flops', 'train/tokens')
),
p AS (
  SELECT v.run_id AS run_id, v.value AS value, multiIf(
      '${xaxis}' = 'step', toFloat64(v.step),
      '${xaxis}' = 'time', dateDiff('millisecond', min(v.ts) OVER (PARTITION BY v.run_id), v.ts)
        / 1000,
      c.counter) AS at
  FROM v ASOF LEFT JOIN c ON v.run_id = c.run_id AND v.step >= c.step
),
(SELECT greatest(max(at) / @buckets, 1e-9) FROM p) AS w,
assumeNotNull(w) AS width
SELECT floor(p.at / width) * width AS x, any(r.run) AS run, avg(p.value) AS value
FROM p
INNER JOIN (SELECT run_id, @label AS run FROM gaia.runs) AS r ON r.run_id = p.run_id
GROUP BY x, p.run_id
ORDER BY x, run"""

LATEST = """SELECT last AS value FROM gaia.run_latest
WHERE run_id = @run AND metric = '@metric'"""

SYSTEM = """SELECT $__timeInterval(ts) AS time,
  concat(metric, if(proc = 0, '', concat(' #', toString(proc)))) AS metric, avg(value) AS value
FROM gaia.system
WHERE run_id = @run AND $__timeFilter(ts) AND @which
GROUP BY time, metric
ORDER BY time"""

SAMPLES = """SELECT step, name, body AS text FROM gaia.run_texts
WHERE run_id = @run AND kind = 'text'
ORDER BY step DESC
LIMIT 20"""

ALERTS = """SELECT ts AS time, level, name, body AS text, step FROM gaia.run_texts
WHERE run_id = @run AND kind = 'alert'
ORDER BY ts DESC
LIMIT 50"""

FACTS = """SELECT name, status, project, last_step, attempts, started, updated, host, git_commit,
  git_dirty
FROM gaia.runs WHERE run_id = @run"""

CONFIG = """SELECT substring(arrayJoin(mapKeys(config)), 8) AS field,
  config[concat('config.', field)] AS value
FROM gaia.runs WHERE run_id = @run
ORDER BY field"""

FLEET = """SELECT r.run_id AS run_id, r.name AS name, r.project AS project, r.status AS status,
  r.last_step AS step, l.loss AS loss, l.speed AS tokens_per_s, l.mfu AS mfu,
  l.cost AS cost_per_hour,
  dateDiff('second', r.updated, now64(3)) AS silent_s, r.host AS host
FROM gaia.runs AS r
LEFT ANY JOIN (
  SELECT run_id, anyIf(last, metric = 'train/loss') AS loss,
    anyIf(last, metric = 'perf/tokens_per_s') AS speed, anyIf(last, metric = 'perf/mfu') AS mfu,
    anyIf(last, metric = 'run/cost_per_hour') AS cost
  FROM gaia.run_latest
  WHERE metric IN ('train/loss', 'perf/tokens_per_s', 'perf/mfu', 'run/cost_per_hour')
  GROUP BY run_id
) AS l ON l.run_id = r.run_id
WHERE r.status @status AND $__timeFilter(r.updated)
ORDER BY r.updated DESC
LIMIT 200"""

COST = """SELECT sum(last) AS value FROM gaia.run_latest
WHERE metric = 'run/cost_per_hour'
  AND run_id IN (SELECT run_id FROM gaia.runs WHERE status = 'running')"""

EVALS = """SELECT any(r.run) AS run, e.metric AS metric, any(e.last) AS value,
  any(e.last_step) AS step
FROM gaia.run_latest AS e
INNER JOIN (SELECT run_id, @label AS run FROM gaia.runs) AS r ON r.run_id = e.run_id
WHERE e.run_id IN (@run) AND (startsWith(e.metric, 'eval/') OR e.metric = 'train/loss')
GROUP BY e.run_id, e.metric
ORDER BY run, metric"""

FINAL_VALUES = """SELECT any(r.run) AS run, any(r.status) AS status, max(l.last_step) AS step,
  anyIf(l.last, l.metric = 'train/loss') AS loss, anyIf(l.last, l.metric = 'eval/val_bpb') AS bpb,
  anyIf(l.last, l.metric = 'perf/mfu') AS mfu,
  anyIf(l.last, l.metric = 'train/tokens') AS tokens
FROM gaia.run_latest AS l
INNER JOIN (SELECT run_id, status, @label AS run FROM gaia.runs) AS r ON r.run_id = l.run_id
WHERE l.run_id IN (@run)
GROUP BY l.run_id
ORDER BY run"""

RUNS_VARIABLE = """SELECT run_id AS value,
  concat(name, ' ', right(run_id, 4), ' (', status, ')') AS text
FROM gaia.runs WHERE project IN (${project:singlequote}) ORDER BY started DESC LIMIT 500"""
PROJECTS_VARIABLE = "SELECT DISTINCT project FROM gaia.runs ORDER BY project"
METRICS_VARIABLE = """SELECT DISTINCT metric FROM gaia.run_latest
WHERE run_id IN (${run_id:singlequote}) ORDER BY metric"""


def fill(sql: str, **values: str) -> str:
    """Put the fixed parts into a query; ${…} and $__… are left for Grafana."""
    values = {"run": RUN, "buckets": str(BUCKETS), "label": LABEL} | values
    for name in sorted(values, key=len, reverse=True):
        sql = sql.replace(f"@{name}", values[name])
    return sql


def target(sql: str, form: int = TABLE) -> dict:
    """A query of the ClickHouse data source."""
    return {
        "refId": "A",
        "datasource": DATASOURCE,
        "pluginVersion": PLUGIN_VERSION,
        "editorType": "sql",
        "queryType": "table" if form == TABLE else "timeseries",
        "format": form,
        "rawSql": sql,
    }


def panel(kind: str, title: str, sql: str, size: tuple[int, int], **more) -> dict:
    """A panel; `size` is (width, height) in grid units, the layout gives it its place."""
    form = more.pop("form", TABLE)
    return {
        "type": kind,
        "title": title,
        "description": more.pop("description", ""),
        "datasource": DATASOURCE,
        "targets": [target(sql, form)],
        "gridPos": {"x": 0, "y": 0, "w": size[0], "h": size[1]},
        "fieldConfig": {"defaults": more.pop("defaults", {}), "overrides": []},
        "options": more.pop("options"),
        **more,
    }


LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
TOOLTIP = {"mode": "multi", "sort": "desc"}
LINE = {"lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "spanNulls": True}


def one_frame(field: str) -> list[dict]:
    """Long rows (x, `field`, value) -> one frame with a column per `field`."""
    naming = {"asLabels": True}
    return [
        {
            "id": "partitionByValues",
            "options": {"fields": [field], "keepFields": False, "naming": naming},
        },
        {"id": "joinByField", "options": {"byField": "x", "mode": "outer"}},
    ]


def trend(title: str, sql: str, split: str, unit: str = "short", log: bool = False, **more) -> dict:
    """Lines over a numeric x."""
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    custom = LINE | {"scaleDistribution": scale} | more.pop("custom", {})
    return panel(
        "trend",
        title,
        sql,
        more.pop("size", (12, 8)),
        options={"xField": "x", "legend": LEGEND, "tooltip": TOOLTIP},
        defaults={"unit": unit, "custom": custom},
        transformations=one_frame(split),
        **more,
    )


def steps(title: str, which: str, unit: str = "short", **more) -> dict:
    """Metrics of the one chosen run over the step."""
    return trend(title, fill(STEPS, which=which), "metric", unit, **more)


def metric_is(*names: str) -> str:
    """A condition for fixed metric names."""
    return "metric IN (" + ", ".join(f"'{name}'" for name in names) + ")"


def compared(title: str, metric: str, unit: str = "short", **more) -> dict:
    """One metric of the chosen runs over the chosen axis."""
    return trend(title, fill(COMPARE, metric=metric), "run", unit, **more)


def stat(title: str, sql: str, unit: str = "short", width: int = 4) -> dict:
    """One number."""
    return panel(
        "stat",
        title,
        sql,
        (width, 4),
        defaults={"unit": unit},
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "graphMode": "none",
            "colorMode": "none",
            "justifyMode": "auto",
            "textMode": "value",
            "orientation": "auto",
            "showPercentChange": False,
            "wideLayout": True,
            "percentChangeColorMode": "standard",
        },
    )


def table(title: str, sql: str, size: tuple[int, int] = (24, 8), **more) -> dict:
    """Rows."""
    return panel(
        "table",
        title,
        sql,
        size,
        options={"showHeader": True, "cellHeight": "sm", "frameIndex": 0},
        **more,
    )


def system(title: str, which: str, unit: str) -> dict:
    """System values over the clock."""
    return panel(
        "timeseries",
        title,
        fill(SYSTEM, which=which),
        (12, 7),
        form=TIME_SERIES,
        options={"legend": LEGEND, "tooltip": TOOLTIP},
        defaults={"unit": unit, "custom": LINE},
    )


def variable(name: str, label: str, sql: str, multi: bool, all_values: bool = False) -> dict:
    """A choice filled from the database: one column, or value and text."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": sql,
        "refresh": 2,
        "sort": 0,
        "multi": multi,
        "includeAll": all_values,
        "current": {"text": "All", "value": "$__all"} if all_values else {"text": "", "value": ""},
        "options": [],
        "hide": 0,
        "skipUrlSync": False,
    }


def choice(name: str, label: str, values: list[str]) -> dict:
    """A choice from a fixed list."""
    options = [{"text": v, "value": v, "selected": v == values[0]} for v in values]
    return {
        "type": "custom",
        "name": name,
        "label": label,
        "query": ",".join(values),
        "current": options[0],
        "options": options,
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "skipUrlSync": False,
    }


PROJECT = variable("project", "Project", PROJECTS_VARIABLE, multi=True, all_values=True)


def runs(multi: bool) -> dict:
    """The run (or runs) to show."""
    return variable("run_id", "Runs" if multi else "Run", RUNS_VARIABLE, multi)


def dashboard(uid: str, title: str, variables: list[dict], panels: list[dict], **more) -> dict:
    """A dashboard; panels flow from left to right."""
    x = y = row = 0
    for number, item in enumerate(panels, 1):
        place = item["gridPos"]
        if x + place["w"] > 24:
            x, y, row = 0, y + row, 0
        place["x"], place["y"], item["id"] = x, y, number
        x, row = x + place["w"], max(row, place["h"])
    return {
        "uid": uid,
        "title": title,
        "tags": ["gaia"],
        "schemaVersion": 42,
        "editable": False,
        "graphTooltip": 1,
        "refresh": more.get("refresh", "30s"),
        "time": {"from": more.get("since", "now-24h"), "to": "now"},
        "timezone": "browser",
        "templating": {"list": variables},
        "annotations": {"list": []},
        "links": [
            {
                "title": "gaia",
                "type": "dashboards",
                "tags": ["gaia"],
                "asDropdown": False,
                "keepTime": True,
                "includeVars": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "panels": panels,
    }


def latest(title: str, metric: str, unit: str = "short") -> dict:
    """The last value of one metric of the chosen run."""
    return stat(title, fill(LATEST, metric=metric), unit)


def run_dashboard() -> dict:
    """Everything about one run."""
    device = "match(metric, '^hw[.](gpu|tpu|device)[.].*memory[.](usage|peak|limit)$')"
    busy = "match(metric, '(utilization|duty_cycle)$') AND NOT startsWith(metric, 'system.files')"
    return dashboard(
        "gaia-run",
        "Run",
        [PROJECT, runs(multi=False)],
        [
            latest("Loss", "train/loss"),
            latest("Validation bits per byte", "eval/val_bpb"),
            latest("Tokens per second", "perf/tokens_per_s"),
            latest("MFU", "perf/mfu", "percentunit"),
            latest("Tokens", "train/tokens"),
            latest("Cost per hour", "run/cost_per_hour", "currencyUSD"),
            steps("Loss", metric_is("train/loss", "eval/val_loss")),
            steps("Bits per byte", "match(metric, '^eval/.*_bpb$')"),
            steps("Learning rate", "startsWith(metric, 'train/lr')"),
            steps("Gradient norm", metric_is("train/grad_norm"), log=True),
            steps("Tokens per second", metric_is("perf/tokens_per_s")),
            steps("MFU", metric_is("perf/mfu"), "percentunit"),
            trend(
                "Step time",
                fill(BREAKDOWN),
                "metric",
                "ms",
                custom={"fillOpacity": 40, "stacking": {"mode": "normal", "group": "A"}},
                description="Parts of a step, stacked; compute is what the other parts leave",
            ),
            steps("Waiting for data", metric_is("perf/data_wait_ms"), "ms"),
            system("Device memory", device, "bytes"),
            system("Busy", busy, "percentunit"),
            system("Memory of the process", "metric = 'process.memory.usage'", "bytes"),
            system("Network and disk", "match(metric, '^system[.](network|disk)[.]')", "Bps"),
            table("Alerts", fill(ALERTS), (24, 6)),
            table("Samples", fill(SAMPLES), (24, 10)),
            table("Facts", fill(FACTS), (24, 4)),
            table("Config", fill(CONFIG), (24, 10)),
        ],
    )


def compare_dashboard() -> dict:
    """Many runs over one axis."""
    metric = variable("metric", "Metric", METRICS_VARIABLE, multi=False)
    metric["current"] = {"text": "train/loss", "value": "train/loss"}
    axis = choice("xaxis", "x axis", ["step", "tokens", "flops", "time"])
    return dashboard(
        "gaia-compare",
        "Compare runs",
        [PROJECT, runs(multi=True), axis, metric],
        [
            compared("$metric", "${metric:singlequote}", size=(24, 11)),
            compared("Loss", "'train/loss'", size=(12, 9)),
            compared("Validation bits per byte", "'eval/val_bpb'", size=(12, 9)),
            compared("Gradient norm", "'train/grad_norm'", log=True),
            compared("MFU", "'perf/mfu'", "percentunit"),
            table("Last values", fill(FINAL_VALUES)),
        ],
    )


def fleet_dashboard() -> dict:
    """What runs now, what went silent, what it costs."""
    open_run = {
        "links": [
            {
                "title": "Open the run",
                "url": "/d/gaia-run?var-run_id=${__data.fields.run_id}",
                "targetBlank": False,
            }
        ]
    }
    count = "SELECT count() AS value FROM gaia.runs WHERE status = '{}' AND $__timeFilter(updated)"
    return dashboard(
        "gaia-fleet",
        "Fleet",
        [],
        [
            stat("Running", count.format("running"), width=6),
            stat("Lost", count.format("lost"), width=6),
            stat("Crashed", count.format("crashed"), width=6),
            stat("Dollars per hour", COST, "currencyUSD", width=6),
            table("Running", fill(FLEET, status="= 'running'"), (24, 9), defaults=open_run),
            table(
                "Silent or crashed",
                fill(FLEET, status="IN ('lost', 'crashed')"),
                (24, 9),
                defaults=open_run,
                description="Lost: said running, and nothing for two minutes",
            ),
        ],
    )


def evals_dashboard() -> dict:
    """Benchmarks by run."""
    return dashboard(
        "gaia-evals",
        "Evals",
        [PROJECT, runs(multi=True), choice("xaxis", "x axis", ["step", "tokens", "flops", "time"])],
        [
            compared("CORE", "'eval/core'", size=(12, 9)),
            compared("ChatCORE", "'eval/chatcore'", size=(12, 9)),
            compared("Validation bits per byte", "'eval/val_bpb'", size=(24, 8)),
            table("Last results", fill(EVALS), (24, 12)),
        ],
        since="now-30d",
    )


DASHBOARDS = {
    "run.json": run_dashboard,
    "compare.json": compare_dashboard,
    "fleet.json": fleet_dashboard,
    "evals.json": evals_dashboard,
}


def main() -> None:
    """Write every dashboard."""
    for name, build in DASHBOARDS.items():
        text = json.dumps(build(), indent=1) + "\n"
        (HERE / "dashboards" / name).write_text(text)
        print(f"dashboards/{name}")


if __name__ == "__main__":
    main()
