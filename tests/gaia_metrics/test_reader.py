"""The database as its users see it: the real engine with the profiles and grants of deploy/.

The rows are written by the user that the collector has, and read by the one that Grafana and
`gaia_metrics.query` have, with the settings that Grafana's data source sends.
"""

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

import gaia_metrics
from gaia_metrics import query
from gaia_metrics.errors import MetricsError
from tests.fakes import clickhouse_http, otlp
from tests.fakes.clickhouse_http import ask
from tests.gaia_metrics.test_dashboards import DASHBOARDS, DEPLOY, expand

USER = "grafana_reader"


def refused(port, user, sql, **settings):
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(port, user, sql, **settings)
    with caught.value as error:
        return int(error.headers["x-clickhouse-exception-code"])


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """(port of the reader's engine, run id), one run recorded and written as otel_writer."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("reader")
    data = root / "ch"
    with clickhouse_http.serve(data, "gaia_admin"):
        pass
    with clickhouse_http.serve(data, "otel_writer") as writer:  # noqa: SIM117
        with otlp.serve(clickhouse_http.inserter(writer.port, "otel_writer")) as receiver:
            patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
            run = gaia_metrics.init("gchat", "d12", {"model": {"depth": 12}}, dir=root / "d12")
            for step in range(50):
                run.log(step, {"train/loss": 5.0 - step / 50, "train/tokens": 10.0 * step})
            run.log(50, {"train/loss": math.nan})
            run.text(7, "samples", "once")
            run.histogram(7, "w", [1.0, 2.0])
            run.alert("oom", "device 3", "error")
            run.finish()
            assert not list((root / "d12/metrics/spool").glob("*.otlp"))
    with clickhouse_http.serve(data, USER) as reader:
        patch.setenv("GAIA_CLICKHOUSE_USER", USER)
        patch.setenv("GAIA_CLICKHOUSE_PASSWORD", clickhouse_http.PASSWORDS[USER])
        patch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
        yield reader.port, run.id
    patch.undo()


def grafana_settings():
    """Settings that come with each query of the data source.

    clickhouse-datasource's driver.go passes queryTimeout to sqlds, which makes it the context's
    deadline; clickhouse-go's context.go sends max_execution_time = seconds left + 5.
    """
    path = DEPLOY / "grafana/provisioning/datasources/clickhouse.yaml"
    source = yaml.safe_load(path.read_text())["datasources"][0]
    return {"max_execution_time": int(source["jsonData"]["queryTimeout"]) + 5}


def grafana_queries():
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            yield f"{path.stem} {panel['title']}", panel["targets"][0]["rawSql"]
        for item in board["templating"]["list"]:
            if item["type"] == "query":
                text = item["query"]
                yield item["name"], text if isinstance(text, str) else text["rawSql"]
    rules = yaml.safe_load((DEPLOY / "grafana/provisioning/alerting/rules.yaml").read_text())
    for rule in rules["groups"][0]["rules"]:
        yield rule["uid"], rule["data"][0]["model"]["rawSql"]


def test_grafana_may_run_every_query(stage):
    port, run_id = stage
    settings, rows = grafana_settings(), 0
    for name, sql in grafana_queries():
        sql = expand(sql, {"d12": run_id, "other": run_id})
        answer = json.loads(ask(port, USER, sql, default_format="JSONCompact", **settings))
        rows += len(answer["data"])
        assert answer["meta"], name
    assert rows > 100


def test_the_client_reads_as_that_user(stage):
    port, run_id = stage
    source = query.connect(f"clickhouse://127.0.0.1:{port}")
    (row,) = source.runs()
    assert (row["run"], row["status"], row["last_step"]) == (run_id, "finished", 50)
    assert source.config("d12")["model.depth"] == "12"
    values = source.series(["d12"], ["train/loss"])["value"]
    assert values[:2] == [5.0, 4.98] and math.isnan(values[-1]) and len(values) == 51
    assert source.series(["d12"], ["train/loss"], "tokens")["x"][:2] == [0.0, 10.0]
    assert [t["text"] for t in source.texts("d12")] == ["once"]
    alerts = source.texts("d12", "alert")
    assert {"oom", "not a number"} == {a["name"] for a in alerts}
    assert {m["metric"]: m["count"] for m in source.metrics("d12")}["train/loss"] == 51
    with pytest.raises(MetricsError, match="is not in the database"):
        source.metrics("it's\tnot\\there")


def test_limits_hold(stage):
    port, _ = stage
    for sql in ("INSERT INTO gaia.points (run_id) VALUES ('x')",
                "DROP TABLE gaia.points", "SELECT * FROM gaia.text_records",
                "SELECT * FROM file('/etc/passwd', 'LineAsString')",
                "SELECT * FROM url('http://127.0.0.1:1/', 'LineAsString')",
                "CREATE TABLE gaia.z (a Int8) ENGINE = Memory"):  # fmt: skip
        assert refused(port, USER, sql) in (164, 497), sql
    assert refused(port, USER, "SELECT 1", max_execution_time=3600) == 452
    assert refused(port, USER, "SELECT 1", max_memory_usage=0) in (164, 452)
    assert refused(port, USER, "SELECT sum(number) FROM numbers(1000000000000)") == 158
    with pytest.raises(urllib.error.HTTPError, match="403"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", b"SELECT 1")
        urllib.request.urlopen(request)


@pytest.mark.slow
def test_batches_of_many_months_and_many_small_ones_are_taken(tmp_path):
    """150 months in one batch, as imported runs may come, and 400 batches of one row."""
    now = 1_795_000_000_000_000_000

    def row(run, step):
        return {"ResourceAttributes": {"gaia.run.id": run, "gaia.run.attempt": "1"}, "Value": 1.0,
                "MetricName": "a", "Attributes": {"step": str(step)}, "StartTimeUnix": now,
                "TimeUnix": now}  # fmt: skip

    with clickhouse_http.serve(tmp_path / "ch", "gaia_admin"):
        pass
    months = [f"{2010 + n // 12}{n % 12 + 1:02}-a" for n in range(150)]
    with clickhouse_http.serve(tmp_path / "ch", "otel_writer") as writer:
        insert = clickhouse_http.inserter(writer.port, "otel_writer")
        insert({"otel_metrics_gauge": [row(run, 0) for run in months]})
        for step in range(400):
            insert({"otel_metrics_gauge": [row("202611-b", step)]})
    with clickhouse_http.serve(tmp_path / "ch", "gaia_admin") as admin:

        def rows(sql):
            return json.loads(ask(admin.port, "gaia_admin", sql, default_format="JSONCompact"))

        counts = rows("SELECT uniqExact(run_id), count() FROM gaia.metrics")["data"]
        assert [int(n) for n in counts[0]] == [151, 550]
        parts = "SELECT max(n) FROM (SELECT count() n FROM system.parts WHERE active AND "
        parts += "database = 'gaia' GROUP BY table, partition)"
        # 300 parts of a partition delay inserts (parts_to_delay_insert's own default is 1000).
        assert int(rows(parts)["data"][0][0]) < 300


def test_the_documented_address_reaches_the_database():
    """README's notebook line: Caddy passes the loopback port on, and nothing else is published."""
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    assert "127.0.0.1:8123:8123" in compose["caddy"]["ports"]
    assert "database" in compose["caddy"]["networks"]
    caddyfile = (DEPLOY / "caddy/Caddyfile").read_text()
    assert "http://:8123 {\n\treverse_proxy clickhouse:8123\n}" in caddyfile
    assert "clickhouse://127.0.0.1:8123" in (Path(DEPLOY) / "README.md").read_text()
