"""Each record has a row of its own in the database, and an older batch restores nothing."""

import os
import subprocess
import time
from pathlib import Path

import pytest

import gaia_metrics
from gaia_metrics import cli, query
from gaia_metrics.sending.sync import sync
from tests.fakes import clickhouse, clickhouse_client, clickhouse_http, otlp
from tests.gaia_metrics.test_dashboards import DEPLOY, RULES

OLD_VIEWS = Path(__file__).parents[1] / "fixtures/clickhouse/views-2.sql"


@pytest.fixture
def database(tmp_path):
    engine = clickhouse.Database(tmp_path / "ch")
    yield engine
    engine.close()


def numbers(database, sql):
    return [[float(value) for value in row] for row in database.rows(sql)]


def test_records_of_one_name_and_step_all_stay(database, tmp_path, monkeypatch):
    with otlp.serve(database.insert, keep=True) as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        run = gaia_metrics.init("p", "a", dir=tmp_path / "a", system_interval=0)
        run.log(5, {"train/loss": 1.0})
        for n in range(8):
            run.text(5, "samples", f"sample {n}")
        for n in range(5):
            run.alert("oom", f"device {n}", "error")
        for n in range(3):
            run.histogram(5, "w", [float(n + 1)])
        meter = run.meter_provider.get_meter("app")
        for route, count in (("/a", 5), ("/b", 7)):
            meter.create_counter("requests").add(count, {"route": route})
        meter.create_up_down_counter("queue").add(3, {"q": "x", "p": "y"})
        meter.create_histogram("duration").record(3.0)
        run.finish()
        first, sent = len(receiver.raw), list(receiver.raw)
        for message in sent:
            receiver.take(message)  # all of it once more
        sync(tmp_path / "a", os.environ, everything=True)
        assert len(receiver.raw) > 2 * first
    count = "SELECT count(), uniqExact(body) FROM gaia.run_texts WHERE kind = "
    assert numbers(database, count + "'text'") == [[8, 8]]
    assert numbers(database, count + "'alert'") == [[5, 5]]
    histograms = database.rows("SELECT metric, sum FROM gaia.run_histograms ORDER BY metric, sum")
    assert histograms == [["duration", 3], ["w", 1], ["w", 2], ["w", 3]]
    system = "SELECT metric, any(value) FROM gaia.system GROUP BY metric ORDER BY metric"
    assert database.rows(system) == [
        ["queue{p=y,q=x}", 3], ["requests{route=/a}", 5], ["requests{route=/b}", 7],
    ]  # fmt: skip


def row(run, metric, value, at_ns, table="gauge", attempt=1, **attributes):
    """A row of the collector's exporter, from a sender that knows nothing of gaia.seq."""
    resource = {"gaia.run.id": run, "gaia.run.attempt": str(attempt), "host.name": "h"}
    return {"ResourceAttributes": resource, "MetricName": metric, "Value": value,
            "Attributes": {k: str(v) for k, v in attributes.items()},
            "StartTimeUnix": at_ns, "TimeUnix": at_ns}  # fmt: skip


def test_other_senders_series_stay_apart_too(database):
    now = 1_795_000_000_000_000_000
    gauges = [row("202611-a", "acc", 0.1, now, step=1, split="dev"),
              row("202611-a", "acc", 0.2, now, step=1, split="test")]  # fmt: skip
    sums = [
        row("202611-a", "http", 5, now, route="/a"),
        row("202611-a", "http", 7, now, route="{}"),
    ]
    histogram = row("202611-a", "took", 0, now, route="/a") | {"Count": 4, "Sum": 2.5}
    del histogram["Value"]
    database.insert({"otel_metrics_gauge": gauges, "otel_metrics_sum": sums,
                     "otel_metrics_histogram": [histogram]})  # fmt: skip
    series = "SELECT metric, value FROM gaia.{} ORDER BY metric"
    assert database.rows(series.format("metrics")) == [
        ["acc{split=dev}", 0.1], ["acc{split=test}", 0.2],
    ]  # fmt: skip
    assert database.rows(series.format("system")) == [
        ["http{route=/a}", 5], ["http{route={}}", 7], ["took.count{route=/a}", 4],
        ["took.sum{route=/a}", 2.5],
    ]  # fmt: skip


def test_an_older_batch_restores_nothing(database):
    now = 1_795_000_000_000_000_000
    old = row("202611-a", "eval/acc", 0.1, now, step=10)
    new = row("202611-a", "eval/acc", 0.9, now + 1_500_000, step=10)  # 1.5 ms later
    resumed = row("202611-a", "eval/acc", 0.5, now - 10**12, step=10, attempt=2)  # a clock behind
    for batch in ([old], [new], [old]):
        database.insert({"otel_metrics_gauge": batch})
    latest = "SELECT last FROM gaia.run_latest WHERE metric = 'eval/acc'"
    assert numbers(database, "SELECT value FROM gaia.metrics") == [[0.9]]
    assert numbers(database, latest) == [[0.9]]
    for batch in ([resumed], [new]):
        database.insert({"otel_metrics_gauge": batch})
    assert numbers(database, "SELECT value, attempt FROM gaia.metrics") == [[0.5, 2]]
    stamp = numbers(database, "SELECT toUnixTimestamp64Milli(ts) FROM gaia.metrics")
    assert stamp == [[(now - 10**12) / 1e6]]


def test_the_last_step_of_a_synced_run_is_process_0s(database, tmp_path):
    runs = [
        gaia_metrics.init("p", "mp", dir=tmp_path / "mp", system_interval=0.1, process_index=i)
        for i in range(2)
    ]
    for step in range(100):
        runs[0].log(step, {"train/loss": 1.0})
    for run in reversed(runs):
        run.finish()
    with otlp.serve(database.insert) as receiver:
        sync(tmp_path / "mp", {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint})
    assert numbers(database, "SELECT last_step, attempts FROM gaia.runs") == [[99, 1]]


def test_a_process_on_a_new_disk_keeps_what_it_logs_beyond_the_resume_point(database, tmp_path):
    """Process 1 was on a machine that is gone: its new one holds no segment of the run."""

    def go(folder, process, steps, **options):
        run = gaia_metrics.init(
            "p", "mh", dir=tmp_path / folder, run_id="20261130-mh", process_index=process,
            system_interval=0, **options,
        )  # fmt: skip
        for step in steps:
            run.log(step, {"train/loss": float(step)})
        run.finish()
        return run.attempt

    attempt = go("h0", 0, range(10))
    assert go("h1", 1, range(10), attempt=attempt) == 1
    attempt = go("h0", 0, range(6, 16), resume_step=5)
    assert go("h1-new", 1, range(6, 16), resume_step=5, attempt=attempt) == 2
    for folder in ("h1", "h1-new"):  # as after a copy: only process 0 has the run.json
        (tmp_path / folder / "run.json").write_bytes((tmp_path / "h0/run.json").read_bytes())
    with otlp.serve(database.insert) as receiver:
        sync(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint})
    rows = "SELECT proc, count(), max(step) FROM gaia.metrics GROUP BY proc ORDER BY proc"
    assert numbers(database, rows) == [[0, 16, 15], [1, 16, 15]]


@pytest.mark.parametrize(("process", "attempt"), [(0, 2), (1, 0)])
def test_an_attempt_that_is_not_process_0s_is_refused(tmp_path, process, attempt):
    with pytest.raises(gaia_metrics.MetricsError, match=f"attempt={attempt} of process_index"):
        gaia_metrics.init(
            "p", "n", dir=tmp_path / "n", run_id="20261130-n", process_index=process,
            attempt=attempt,
        )  # fmt: skip
    assert not (tmp_path / "n").exists()


def test_alert_labels_of_two_runs_of_one_name_differ(database):
    now = time.time_ns()
    rows = []
    for run in ("20261127-aaaa0001", "20261127-bbbb0001"):
        facts = {"gaia.run.name": "d12", "gaia.project": "p", "gaia.run.status": "running",
                 "gaia.run.resume_step": "-1", "gaia.run.last_step": "299"}  # fmt: skip
        rows.append(row(run, "gaia.run.info", 1.0, now) | {"Attributes": facts})
        rows.append(row(run, "gaia.dropped_points", 3.0, now))
        for step in range(300):
            at = now - 10**9 * (300 - step)
            rows.append(row(run, "train/loss", float("nan") if step == 9 else 2.0, at, step=step))
            rows.append(row(run, "perf/tokens_per_s", 2.0, at, step=step))
    database.insert({"otel_metrics_gauge": rows})
    answered = 0
    for rule in RULES:
        labels = [r[0] for r in database.rows(rule["data"][0]["model"]["rawSql"])]
        assert len(labels) == len(set(labels)), rule["uid"]
        answered += len(labels) == 2
    assert answered >= 5


def test_a_run_is_deleted_here_and_there(tmp_path, monkeypatch, capsys):
    data, root = tmp_path / "ch", tmp_path / "runs"
    for name in ("goes", "stays"):
        run = gaia_metrics.init("p", name, dir=root / name, system_interval=0)
        run.log(1, {"a": 1.0})
        run.text(1, "t", "x")
        run.finish()
    (root / "goes/checkpoints").mkdir()
    with clickhouse_http.serve(data, "gaia_admin") as engine:
        monkeypatch.setenv("GAIA_CLICKHOUSE_USER", "gaia_admin")
        monkeypatch.setenv("GAIA_CLICKHOUSE_PASSWORD", clickhouse_http.PASSWORDS["gaia_admin"])
        with otlp.serve(clickhouse_http.inserter(engine.port, "gaia_admin")) as receiver:
            sync(root, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint})
        database = f"clickhouse://127.0.0.1:{engine.port}"
        for where in (str(root), database):
            assert main_code("delete", "goes", "--dir", where) == 2  # needs --yes
            assert main_code("delete", "goes", "--dir", where, "--dry-run") == 0
            assert len(query.connect(where).runs()) == 2
            assert main_code("delete", "nobody", "--dir", where, "--yes") == 2
            assert main_code("delete", "goes", "--dir", where, "--yes") == 0
            assert [r["name"] for r in query.connect(where).runs()] == ["stays"]
        assert query.connect(database).texts("stays")
    assert [p.name for p in (root / "goes").iterdir()] == ["checkpoints"]
    live = gaia_metrics.init("p", "live", dir=root / "live", system_interval=0)
    assert main_code("delete", "live", "--dir", str(root), "--yes") == 2
    live.finish()
    assert "is being recorded; end the run first" in capsys.readouterr().err


def main_code(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


@pytest.mark.slow  # a process per call of clickhouse-client
def test_an_older_schema_is_migrated_with_its_rows(tmp_path):
    """Version 2 is filled, the newest is applied (interrupted once), every row is readable."""
    schema = DEPLOY / "clickhouse/schema"
    with clickhouse_http.serve(tmp_path / "ch", "gaia_admin", schema=False) as engine:
        env = clickhouse_client.install(tmp_path, engine.port)

        def ask(sql):
            return clickhouse_http.ask(engine.port, "gaia_admin", sql).strip()

        def apply(**more):
            command = ["sh", str(DEPLOY / "clickhouse/apply-schema.sh")]
            return subprocess.run(command, env=env | more, capture_output=True, text=True)

        for file in (schema / "01-landing.sql", schema / "02-gaia.sql", OLD_VIEWS):
            for statement in clickhouse.statements(file):
                ask(statement.rstrip(";"))
        for attempt, steps in ((1, range(0, 1000)), (2, range(600, 800))):
            run = f"map('gaia.run.id', '202611-a', 'gaia.run.attempt', '{attempt}')"
            span = f"numbers({steps.start}, {len(steps)})"
            ask("INSERT INTO otel.otel_metrics_gauge (ResourceAttributes, MetricName, Attributes, "
                f"TimeUnix, Value) SELECT {run}, 'train/loss', map('step', toString(number)), "
                f"toDateTime64('2026-11-01 00:00:00', 9) + number, number FROM {span}")  # fmt: skip
        for _ in range(2):
            ask("INSERT INTO otel.otel_logs (ResourceAttributes, LogAttributes, Timestamp, Body) "
                "VALUES (map('gaia.run.id', '202611-a'), map('gaia.kind', 'text', 'step', '3'), "
                "'2026-11-01 00:00:00', 'hello')")  # fmt: skip
        assert ask("SELECT count() FROM gaia.metrics") == "1000"
        assert apply(FAIL_AFTER="9").returncode == 1  # in the middle of 03-keys.sql
        for _ in range(2):
            done = apply()
            assert done.returncode == 0, done.stderr
        assert "03-keys" not in done.stdout and "views.sql" in done.stdout
        got = ask("SELECT count(), sum(value), sum(attempt), min(ts) FROM gaia.metrics")
        assert got.split("\t") == ["1000", "499500", "1200", "2026-11-01 00:00:00.000"]
        assert ask("SELECT last_step, last FROM gaia.run_latest") == "999\t999"
        assert ask("SELECT step, body FROM gaia.run_texts") == "3\thello"
        tables = ask("SELECT name FROM system.tables WHERE database = 'gaia'").split()
        assert not {"training_metrics", "texts", "mv_training"} & set(tables)
        # New rows arrive once, and a changed view reaches the database.
        ask("INSERT INTO otel.otel_metrics_gauge (ResourceAttributes, MetricName, Attributes, "
            "TimeUnix, Value) VALUES (map('gaia.run.id', '202611-b'), 'a', map('step', '1'), "
            "'2026-11-01 00:00:00', 1)")  # fmt: skip
        assert ask("SELECT count() FROM gaia.metrics WHERE run_id = '202611-b'") == "1"
        ask("CREATE OR REPLACE VIEW gaia.void_tails AS SELECT 1 AS nonsense")
        assert apply(KEEP_DAYS="100000").returncode == 0
        assert ask("SELECT count() FROM gaia.void_tails") == "0"
        kept = "SELECT countIf(engine_full LIKE '% TTL %') FROM system.tables WHERE database='gaia'"
        assert ask(kept) == "4"
        for days, ttls, points in (("0", "0", "1001"), ("1", "4", "0")):
            assert apply(KEEP_DAYS=days).returncode == 0
            ask("OPTIMIZE TABLE gaia.points FINAL")
            assert (ask(kept), ask("SELECT count() FROM gaia.metrics")) == (ttls, points)
        refused = apply(KEEP_DAYS="-3")
        assert refused.returncode == 2 and "is no number of days" in refused.stderr
