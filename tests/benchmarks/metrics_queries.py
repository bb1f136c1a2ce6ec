"""Per-run queries on our schema against the collector's stock schema, in the real engine (chdb).

    python tests/benchmarks/metrics_queries.py [--quick] [--points 50e6]

1,000 runs of 20 metrics over 91 days, 11 runs a day, plus one long run. Both tables hold the same
values: ours is merged, a day of the stock table is one or two parts; timings are warm medians.
`ours_ms` reads as gaia_metrics.query does: the table with FINAL, with the void tails of the runs
that were resumed cut off (a twentieth of the runs; their tails are asked for before, `tails_ms`).
`view_ms` is the same through the view gaia.metrics, as dashboards have it. `floor_ms` is
`SELECT 1`: what a query costs that does nothing.

Limits, from the project's issue on observability: one run and metric 5 ms, ten runs 20 ms, all
metrics of a run 20 ms, 4.5 bytes per point on disk.

`--quick` takes 10M points. The stock table is exporter/clickhouseexporter's own (contrib v0.159.0).
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT))

METRICS = 20
RUNS, PER_DAY, DAYS = 1000, 11, 91
MAP = "Map(LowCardinality(String), String) CODEC(ZSTD(1))"
TEXT = "String CODEC(ZSTD(1))"
STOCK = f"""CREATE TABLE stock (
  ResourceAttributes {MAP}, ResourceSchemaUrl {TEXT}, ScopeName {TEXT}, ScopeVersion {TEXT},
  ScopeAttributes {MAP}, ScopeDroppedAttrCount UInt32 CODEC(ZSTD(1)), ScopeSchemaUrl {TEXT},
  ServiceName LowCardinality(String) CODEC(ZSTD(1)), MetricName {TEXT},
  MetricDescription {TEXT}, MetricUnit {TEXT}, Attributes {MAP},
  StartTimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)), TimeUnix DateTime64(9) CODEC(Delta, ZSTD(1)),
  Value Float64 CODEC(ZSTD(1)), Flags UInt32 CODEC(ZSTD(1)),
  INDEX i1 mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i2 mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i3 mapKeys(ScopeAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i4 mapValues(ScopeAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i5 mapKeys(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX i6 mapValues(Attributes) TYPE bloom_filter(0.01) GRANULARITY 1)
ENGINE = MergeTree PARTITION BY toDate(TimeUnix)
ORDER BY (ServiceName, MetricName, Attributes, toUnixTimestamp64Nano(TimeUnix))
SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1"""

# One row per point; run r starts on day r / 11 of 91 and logs every 30 s. Values as float32 have
# them: a decaying loss with noise.
SOURCE = """SELECT intDiv(number, {per_run}) + {first} AS r,
  intDiv(number % {per_run}, {metrics}) AS step, number % {metrics} AS m,
  concat('2026', if(r < 500, '08', '09'), '01-', leftPad(toString(r), 6, '0')) AS run,
  concat('train/metric_', toString(m)) AS name,
  toDateTime64('2026-08-01 00:00:00', 9, 'UTC') + intDiv(r, 11) * 86400 + (r % 11) * 3600
    + step * 30 + (cityHash64(number) % 1000) / 1000 AS at,
  toFloat64(toFloat32(m + 5 * exp(-step / 500.) + (cityHash64(number, 7) % 10000) / 50000)) AS v
FROM numbers({count})"""

WHERE = "ResourceAttributes['gaia.run.id']"
STEP = "toUInt64(Attributes['step'])"


OURS = "gaia.points FINAL"
CUT = "NOT arrayExists((r, a, c) -> run_id = r AND attempt = a AND toInt64(step) > c, {}, {}, {})"


def without_tails(session, sql: str) -> str:
    """`sql` over the view (@) as the query API reads it from the table."""
    voids = json.loads(
        session.query(
            "SELECT groupArray(run_id) AS r, groupArray(attempt) AS a, groupArray(cutoff) AS c "
            f"FROM gaia.void_tails WHERE run_id IN ({runs_of(sql)})",
            "JSONCompact",
        ).data()
    )["data"][0]
    if voids[0]:
        cut = CUT.format(voids[0], voids[1], [int(c) for c in voids[2]])
        sql = sql.replace(" WHERE ", f" WHERE {cut} AND ")
    return sql.replace("@", OURS)


TAILS = "SELECT run_id, attempt, cutoff FROM gaia.void_tails WHERE run_id IN ({})"


def runs_of(sql: str) -> str:
    """The run ids that a query names."""
    return ",".join(sorted(set(re.findall(r"'2026\d{4}-\d{6}'", sql)))) or "''"


def queries(run: str, ten: str, long_run: str) -> dict[str, tuple[str, str]]:
    """Name -> (ours, with @ for view or table; stock)."""
    name = "train/metric_3"
    bucket = "intDiv(step, greatest(1, intDiv({n}, 1000)))"
    return {
        "one run, one metric": (
            f"SELECT step, value FROM @ WHERE run_id = '{run}' AND metric = '{name}' ORDER BY step",
            f"SELECT {STEP} AS step, Value FROM stock WHERE MetricName = '{name}' "
            f"AND {WHERE} = '{run}' ORDER BY step",
        ),
        "ten runs, one metric": (
            f"SELECT run_id, step, value FROM @ WHERE run_id IN ({ten}) AND metric = '{name}' "
            "ORDER BY step",
            f"SELECT {WHERE} AS run, {STEP} AS step, Value FROM stock "
            f"WHERE MetricName = '{name}' AND {WHERE} IN ({ten}) ORDER BY step",
        ),
        "all metrics of one run": (
            "SELECT metric, intDiv(step, 10) AS x, avg(value) FROM @ "
            f"WHERE run_id = '{run}' GROUP BY metric, x ORDER BY metric, x",
            f"SELECT MetricName, intDiv({STEP}, 10) AS x, avg(Value) FROM stock "
            f"WHERE {WHERE} = '{run}' GROUP BY MetricName, x ORDER BY MetricName, x",
        ),
        "long run, 1000 buckets": (
            f"SELECT {bucket.format(n=10_000)} AS x, avg(value), min(value), max(value) FROM @ "
            f"WHERE run_id = '{long_run}' AND metric = '{name}' GROUP BY x ORDER BY x",
            f"SELECT intDiv({STEP}, 10) AS x, avg(Value), min(Value), max(Value) FROM stock "
            f"WHERE MetricName = '{name}' AND {WHERE} = '{long_run}' GROUP BY x ORDER BY x",
        ),
        "metric names of a run": (
            f"SELECT DISTINCT metric FROM gaia.latest WHERE run_id = '{run}'",
            f"SELECT DISTINCT MetricName FROM stock WHERE {WHERE} = '{run}'",
        ),
        "last loss of every run": (
            f"SELECT run_id, last FROM gaia.run_latest WHERE metric = '{name}'",
            f"SELECT {WHERE} AS run, argMax(Value, {STEP}) FROM stock "
            f"WHERE MetricName = '{name}' GROUP BY run",
        ),
    }


def fill(session, points: int, days: range = range(DAYS)) -> float:
    """Load both tables with the same points, day by day; seconds.

    A day of the stock table is a partition and comes in one insert, so that it has few parts
    without a merge of everything, which would take longer than the load.
    """
    begin = time.perf_counter()
    per_run = max(METRICS, int(points * 0.9) // RUNS // METRICS * METRICS)
    jobs = [(day * PER_DAY, min(PER_DAY, RUNS - day * PER_DAY), per_run) for day in days]
    if days.stop == DAYS:  # the long run belongs to no day
        jobs.append((RUNS, 1, (points - per_run * RUNS) // METRICS * METRICS))
    for first, count, size in jobs:
        source = SOURCE.format(per_run=size, metrics=METRICS, count=count * size, first=first)
        session.query(
            "INSERT INTO gaia.points (run_id, metric, proc, step, value, version) "
            "SELECT run, name, 0, step, v, "
            f"gaia_version(1, toUnixTimestamp64Micro(toDateTime64(at, 6))) FROM ({source})"
        )
        session.query(
            "INSERT INTO stock SELECT map('service.name', 'gaia', 'gaia.run.id', run, "
            "'gaia.run.attempt', '1', 'gaia.process.index', '0', 'host.name', 'node-0'), '', "
            "'gaia_metrics', '', map(), 0, '', 'gaia', name, '', '', "
            f"map('step', toString(step)), at, at, v, 0 FROM ({source}) "
            "SETTINGS max_partitions_per_insert_block = 1000, max_insert_threads = 2"
        )
    for table in ("gaia.points", "gaia.latest"):
        session.query(f"OPTIMIZE TABLE {table} FINAL")
    # As in life: a few runs resumed, so that there are tails to hide.
    session.query(
        "INSERT INTO gaia.cutoffs SELECT DISTINCT run_id, 1, 1000000 FROM gaia.latest "
        "WHERE cityHash64(run_id) % 20 = 0 AND run_id NOT IN (SELECT run_id FROM gaia.cutoffs)"
    )
    return time.perf_counter() - begin


def timed(session, sql: str, times: int) -> tuple[float, list]:
    """Median milliseconds, warm, and the first row count seen."""
    rows = session.query(sql, "CSV").rows_read()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        session.query(sql, "Native")
        taken.append((time.perf_counter() - begin) * 1e3)
    return statistics.median(taken), [min(taken), max(taken), rows]


def disk(session, database: str, table: str, points: int) -> float:
    """Bytes on disk per point."""
    sql = (
        "SELECT sum(bytes_on_disk) FROM system.parts "
        f"WHERE database = '{database}' AND table = '{table}' AND active"
    )
    return int(session.query(sql, "CSV").data()) / points


def main(args: argparse.Namespace) -> dict:
    from tests.fakes.clickhouse import Database

    points = 10_000_000 if args.quick else int(args.points)
    with tempfile.TemporaryDirectory(prefix="gaia-queries-") as folder:
        database = Database(Path(folder) / "ch")
        session = database.session
        session.query("CREATE DATABASE IF NOT EXISTS bench")
        session.query("USE bench")
        session.query(STOCK)
        loaded = fill(session, points)
        ten = ",".join(f"'20260801-{r:06d}'" for r in range(40, 140, 10))
        rows = []
        for name, (ours, stock) in queries("20260801-000123", ten, "20260901-001000").items():
            mine, facts = timed(session, without_tails(session, ours), 15)
            view, _ = timed(session, ours.replace("@", "gaia.metrics"), 9)
            other, other_facts = timed(session, stock, 3)
            rows.append(
                {
                    "query": name,
                    "ours_ms": round(mine, 2),
                    "ours_ms_min": round(facts[0], 2),
                    "ours_ms_max": round(facts[1], 2),
                    "view_ms": round(view, 2),
                    "stock_ms": round(other, 2),
                    "ratio": round(other / mine, 1),
                    "ours_rows": facts[2],
                    "stock_rows": other_facts[2],
                }
            )
        result = {
            "points": points,
            "rows": rows,
            "bytes_per_point": round(disk(session, "gaia", "points", points), 2),
            "stock_bytes_per_point": round(disk(session, "bench", "stock", points), 2),
            "load_s": round(loaded, 1),
            "tails_ms": round(timed(session, TAILS.format(ten), 9)[0], 2),
            "floor_ms": round(timed(session, "SELECT 1", 9)[0], 2),
        }
        database.close()
    print(f"{'query':26}{'ours ms':>10}{'view ms':>10}{'stock ms':>10}{'ratio':>8}")
    for row in rows:
        print(
            f"{row['query']:26}{row['ours_ms']:>10}{row['view_ms']:>10}{row['stock_ms']:>10}"
            f"{row['ratio']:>8}"
        )
    print(f"void tails of ten runs {result['tails_ms']} ms, SELECT 1 {result['floor_ms']} ms")
    print(f"bytes per point: {result['bytes_per_point']}, stock {result['stock_bytes_per_point']}")
    return result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--points", type=float, default=50e6, help="points in each table")


if __name__ == "__main__":
    harness.run(main, __doc__, arguments)
