"""The queries of clickhouse.py; `@values`, `@only` and the like are replaced there."""

RUNS = """
SELECT r.run_id AS run, r.name AS name, r.project AS project, r.status AS status,
  r.last_step AS last_step, l.loss AS loss, l.bpb AS bpb, r.attempts AS attempts,
  toUnixTimestamp64Milli(r.started) / 1000 AS started,
  toUnixTimestamp64Milli(r.updated) / 1000 AS updated, r.git_commit AS commit, r.host AS host
FROM gaia.runs AS r
LEFT ANY JOIN (
  SELECT run_id, anyIf(last, metric = {loss:String}) AS loss,
    anyIf(last, metric = {bpb:String}) AS bpb
  FROM gaia.run_latest WHERE metric IN ({loss:String}, {bpb:String}) GROUP BY run_id
) AS l ON l.run_id = r.run_id
ORDER BY started DESC
"""
# Run ids of the keys: an id, or the newest run of that name.
IDS = """
SELECT key, argMax(run_id, (run_id = key, started)) AS run FROM (
  SELECT arrayJoin([run_id, name]) AS key, run_id, started FROM gaia.runs
  WHERE run_id IN {keys:Array(String)} OR name IN {keys:Array(String)})
WHERE key IN {keys:Array(String)} GROUP BY key
"""
# Attempts that a later one cut short: their values hold up to the step `cutoff`.
VOIDS = """
SELECT run_id, attempt, cutoff FROM gaia.void_tails WHERE run_id IN {runs:Array(String)}
"""
# As in run folders, another process's series has its number behind the name.
VALUES = """
SELECT run_id AS run, if(proc = 0, metric, concat(metric, ' #', toString(proc))) AS name,
  step, ts, value
FROM gaia.points FINAL
WHERE run_id IN {runs:Array(String)}@only
"""
ONLY = " AND metric IN {metrics:Array(String)}"
CUT = """
  AND NOT arrayExists((r, a, c) -> run_id = r AND attempt = a AND toInt64(step) > c,
    {cut_runs:Array(String)}, {cut_attempts:Array(UInt32)}, {cutoffs:Array(Int64)})
"""
METRICS = """
SELECT name AS metric, count() AS count, argMax(value, step) AS last, max(step) AS last_step,
  minIf(value, isFinite(value)) AS min, maxIf(value, isFinite(value)) AS max
FROM (@values) GROUP BY name ORDER BY name
"""
CONFIG = "SELECT toJSONString(config) AS config FROM gaia.runs WHERE run_id = {run:String}"
SERIES = """
WITH v AS (
  SELECT run, name AS metric, step, toUnixTimestamp64Milli(ts) / 1000 AS time, value
  FROM (@values) WHERE name IN {names:Array(String)}),
xs AS (@x),
b AS (
  SELECT *, if({points:UInt32} = 0, toFloat64(step),
    least(toFloat64({points:UInt32}) - 1,
      floor((x - min(x) OVER w) * {points:UInt32} / greatest(max(x) OVER w - min(x) OVER w, 1e-9))))
    AS bucket
  FROM xs WINDOW w AS (PARTITION BY run))
SELECT run, metric, avg(b.x) AS x, avg(b.value) AS value, min(b.value) AS low,
  max(b.value) AS high, max(b.step) AS step
FROM b GROUP BY run, metric, bucket ORDER BY run, metric, x
"""
X = {
    "step": "SELECT *, toFloat64(step) AS x FROM v",
    "time": "SELECT *, time - min(time) OVER (PARTITION BY run) AS x FROM v",
}
ASOF = """
SELECT v.run AS run, v.metric AS metric, v.step AS step, v.time AS time, v.value AS value,
  c.value AS x
FROM v ASOF JOIN (SELECT run, step, value FROM (@counter) WHERE name = '{counter}') AS c
ON v.run = c.run AND v.step >= c.step
"""
SYSTEM = """
WITH v AS (
  SELECT if(proc = 0, metric, concat(metric, ' #', toString(proc))) AS metric, value,
    toUnixTimestamp64Milli(ts) / 1000 AS time
  FROM gaia.system WHERE run_id = {run:String}),
b AS (
  SELECT *, time - min(time) OVER () AS x, least(toFloat64({points:UInt32}) - 1,
    floor((time - min(time) OVER ()) * {points:UInt32}
      / greatest(max(time) OVER () - min(time) OVER (), 1e-9))) AS bucket FROM v)
SELECT metric, avg(b.x) AS x, avg(b.value) AS value FROM b
GROUP BY metric, bucket ORDER BY metric, x
"""
HISTOGRAMS = """
SELECT step, metric AS name, toUnixTimestamp64Milli(ts) / 1000 AS time, count, sum, min, max, scale,
  zero_count, positive_offset, negative_offset, toJSONString(positive) AS positive_counts,
  toJSONString(negative) AS negative_counts
FROM gaia.run_histograms WHERE run_id = {run:String} ORDER BY step, time
"""
TEXTS = """
SELECT step, toUnixTimestamp64Milli(ts) / 1000 AS time, name, body AS text, level
FROM gaia.run_texts WHERE run_id = {run:String} AND kind = {kind:String} ORDER BY time, step
"""
TABLES = (
    "points", "latest", "system_points", "text_records", "histogram_records", "run_info",
    "attempts", "cutoffs",
)  # fmt: skip
