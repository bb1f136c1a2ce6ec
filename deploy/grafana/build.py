"""Grafana dashboards as code: writes dashboards/*.json. Run it after a change; a test compares.

    python deploy/grafana/build.py

The SQL is in queries.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from queries import (
    ALERTS,
    BREAKDOWN,
    COMPARE,
    CONFIG,
    COST,
    EVALS,
    FACTS,
    FINAL_VALUES,
    FLEET,
    LATEST,
    METRICS_VARIABLE,
    PROJECTS_VARIABLE,
    RUNS_VARIABLE,
    SAMPLES,
    STEPS,
    SYSTEM,
    fill,
)

HERE = Path(__file__).parent
DATASOURCE = {"type": "grafana-clickhouse-datasource", "uid": "gaia-clickhouse"}
PLUGIN_VERSION = "4.20.0"
TABLE, TIME_SERIES = 1, 0


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
    """Build a table panel."""
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
    """Runs that train now, runs that went silent, and their cost."""
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
            compared("CORE", "'eval/core_v1'", size=(12, 9)),
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
