"""The SQL of the dashboards, over the views of ../clickhouse/schema/views.sql.

Step axes need care:

- Grafana's time macros would force a time filter, so steps are put into buckets here (at most
  BUCKETS of them) and the trend panel draws them.
- A trend panel takes ONE frame with ascending x. Several lines come as long rows ordered by x,
  which partitionByValues splits and joinByField (outer, on x) makes one frame of.

@name is a fixed part, put in by `fill`; ${…} and $__… are Grafana's.
"""

BUCKETS = 1000
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
