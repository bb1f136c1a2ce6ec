-- The read side, applied at every `up` and install, so a change here reaches a running database.
-- Views run as their definer: the readers need no rights on the tables (but on points, which
-- programs read directly; see void_tails).

-- Training values: one per (run_id, metric, proc, step), of the last attempt that reached the
-- step, without the tail of an attempt that a later one started before (attempt 1 came to step
-- 1000, attempt 2 resumed at 600 and stopped at 800: 801 to 1000 are void).
-- Tried: NOT IN, an anti join with an inequality, arrays with transform(); none is faster.
CREATE OR REPLACE VIEW gaia.metrics
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    t.run_id AS run_id,
    t.metric AS metric,
    t.proc AS proc,
    t.step AS step,
    t.ts AS ts,
    t.value AS value,
    t.attempt AS attempt
FROM gaia.points AS t FINAL
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
CREATE OR REPLACE VIEW gaia.void_tails
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT run_id, attempt, min(cutoff) AS cutoff
FROM gaia.cutoffs
GROUP BY run_id, attempt;

-- Last, least and greatest finite value of every metric of every run. Runs with one attempt come
-- from the states; the few that resumed are computed from their values, to be exact.
CREATE OR REPLACE VIEW gaia.run_latest
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
FROM gaia.latest
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
CREATE OR REPLACE VIEW gaia.runs
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

CREATE OR REPLACE VIEW gaia.run_texts
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    t.run_id AS run_id,
    t.kind AS kind,
    t.name AS name,
    t.step AS step,
    t.ts AS ts,
    t.level AS level,
    t.body AS body
FROM gaia.text_records AS t FINAL
LEFT ANY JOIN
(
    SELECT run_id, attempt, min(cutoff) AS cutoff
    FROM gaia.cutoffs
    GROUP BY run_id, attempt
) AS c ON t.run_id = c.run_id AND t.attempt = c.attempt
WHERE c.attempt = 0 OR toInt64(t.step) <= c.cutoff OR t.kind = 'alert';

CREATE OR REPLACE VIEW gaia.system
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT run_id, metric, proc, ts, value, host
FROM gaia.system_points FINAL;

CREATE OR REPLACE VIEW gaia.run_histograms
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT h.*
FROM gaia.histogram_records AS h FINAL
LEFT ANY JOIN
(
    SELECT run_id, attempt, min(cutoff) AS cutoff
    FROM gaia.cutoffs
    GROUP BY run_id, attempt
) AS c ON h.run_id = c.run_id AND h.attempt = c.attempt
WHERE c.attempt = 0 OR toInt64(h.step) <= c.cutoff;

-- Tables of version 2, whose rows 03-keys.sql has copied.
DROP VIEW IF EXISTS gaia.mv_training;
DROP VIEW IF EXISTS gaia.mv_latest;
DROP VIEW IF EXISTS gaia.mv_system;
DROP VIEW IF EXISTS gaia.mv_system_sum;
DROP VIEW IF EXISTS gaia.mv_texts;
DROP VIEW IF EXISTS gaia.mv_histograms;
DROP TABLE IF EXISTS gaia.training_metrics;
DROP TABLE IF EXISTS gaia.run_latest_state;
DROP TABLE IF EXISTS gaia.system_metrics;
DROP TABLE IF EXISTS gaia.texts;
DROP TABLE IF EXISTS gaia.histograms;
