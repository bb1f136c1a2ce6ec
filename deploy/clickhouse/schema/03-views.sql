-- The read side. Views run as their definer: the readers need no rights on the tables (but on
-- training_metrics, which programs read directly; see void_tails).

-- Training values: one per (run_id, metric, proc, step), of the last attempt that reached the
-- step, without the tail of an attempt that a later one started before (attempt 1 came to step
-- 1000, attempt 2 resumed at 600 and stopped at 800: 801 to 1000 are void).
-- Tried: NOT IN, an anti join with an inequality, arrays with transform(); none is faster.
CREATE VIEW IF NOT EXISTS gaia.metrics
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    t.run_id AS run_id,
    t.metric AS metric,
    t.proc AS proc,
    t.step AS step,
    t.ts AS ts,
    t.value AS value,
    t.attempt AS attempt
FROM gaia.training_metrics AS t FINAL
LEFT ANY JOIN
(
    SELECT run_id, attempt, min(cutoff) AS cutoff
    FROM gaia.cutoffs
    GROUP BY run_id, attempt
) AS c ON t.run_id = c.run_id AND t.attempt = c.attempt
WHERE c.attempt = 0 OR toInt64(t.step) <= c.cutoff;

-- The attempts that a later one cut short, and the step up to which their values hold. A program
-- that reads many series asks this first and then the table itself (FINAL, without the tails):
-- the join of gaia.metrics costs more than reading the values of one run and metric.
CREATE VIEW IF NOT EXISTS gaia.void_tails
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT run_id, attempt, min(cutoff) AS cutoff
FROM gaia.cutoffs
GROUP BY run_id, attempt;

-- Last, least and greatest finite value of every metric of every run. Runs with one attempt come
-- from the states; the few that resumed are computed from their values, to be exact.
CREATE VIEW IF NOT EXISTS gaia.run_latest
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    run_id,
    metric,
    argMaxMerge(last) AS last,
    max(last_step) AS last_step,
    min(vmin) AS vmin,
    max(vmax) AS vmax,
    max(last_ts) AS last_ts,
    max(nonfinite) AS nonfinite
FROM gaia.run_latest_state
WHERE run_id NOT IN (SELECT run_id FROM gaia.cutoffs)
GROUP BY run_id, metric
UNION ALL
SELECT
    run_id,
    metric,
    argMax(value, step) AS last,
    max(step) AS last_step,
    min(if(isFinite(value), value, inf)) AS vmin,
    max(if(isFinite(value), value, -inf)) AS vmax,
    max(ts) AS last_ts,
    max(toUInt8(NOT isFinite(value))) AS nonfinite
FROM gaia.metrics
WHERE run_id IN (SELECT run_id FROM gaia.cutoffs)
GROUP BY run_id, metric;

-- The list of runs. A run whose process is silent for two minutes is "lost", whatever it said last.
CREATE VIEW IF NOT EXISTS gaia.runs
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    i.run_id AS run_id,
    i.name AS name,
    i.project AS project,
    if(i.status = 'running' AND i.updated < now64(3) - INTERVAL 2 MINUTE, 'lost', i.status)
        AS status,
    i.last_step AS last_step,
    a.attempts AS attempts,
    a.started AS started,
    i.updated AS updated,
    i.git_commit AS git_commit,
    i.git_branch AS git_branch,
    i.git_dirty AS git_dirty,
    i.host AS host,
    i.config AS config,
    i.versions AS versions
FROM gaia.run_info AS i FINAL
LEFT ANY JOIN
(
    SELECT run_id, count() AS attempts, min(started) AS started
    FROM gaia.attempts FINAL
    GROUP BY run_id
) AS a ON i.run_id = a.run_id;

CREATE VIEW IF NOT EXISTS gaia.run_texts
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    t.run_id AS run_id,
    t.kind AS kind,
    t.name AS name,
    t.step AS step,
    t.ts AS ts,
    t.level AS level,
    t.body AS body
FROM gaia.texts AS t FINAL
LEFT ANY JOIN
(
    SELECT run_id, attempt, min(cutoff) AS cutoff
    FROM gaia.cutoffs
    GROUP BY run_id, attempt
) AS c ON t.run_id = c.run_id AND t.attempt = c.attempt
WHERE c.attempt = 0 OR toInt64(t.step) <= c.cutoff OR t.kind = 'alert';

CREATE VIEW IF NOT EXISTS gaia.system
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT run_id, metric, proc, ts, value, host
FROM gaia.system_metrics FINAL;

CREATE VIEW IF NOT EXISTS gaia.run_histograms
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT * FROM gaia.histograms FINAL;
