-- Version 3: keys hold what makes a record itself, so nothing collapses and an older batch that is
-- delivered again restores nothing. The tables of version 2 are copied; views.sql drops them.
-- Each statement may run again: equal rows collapse by their key.

-- Training values. `version` orders two values of one key: the later attempt wins, and within an
-- attempt the later log(). Its upper 14 bits are the attempt, the lower 50 the microseconds since
-- 2020 (until 2055); attempt and time are read from it, so it costs no more than they did.
CREATE TABLE IF NOT EXISTS gaia.points
(
    run_id LowCardinality(String),
    metric LowCardinality(String),
    proc UInt16 CODEC(ZSTD(1)),
    step UInt64 CODEC(DoubleDelta, ZSTD(1)),
    value Float64 CODEC(ZSTD(1)),
    version UInt64 CODEC(Delta, ZSTD(1)),
    attempt UInt32 ALIAS toUInt32(bitShiftRight(version, 50)),
    ts DateTime64(3, 'UTC') ALIAS fromUnixTimestamp64Milli(
        toInt64(1577836800000 + intDiv(bitAnd(version, 1125899906842623), 1000)), 'UTC')
)
ENGINE = ReplacingMergeTree(version)
PARTITION BY substring(run_id, 1, 6)
ORDER BY (run_id, metric, proc, step)
SETTINGS index_granularity = 2048;

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_points TO gaia.points
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    gaia_series(MetricName, Attributes) AS metric,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    toUInt64OrZero(Attributes['step']) AS step,
    Value AS value,
    gaia_version(toUInt32OrZero(ResourceAttributes['gaia.run.attempt']),
        toUnixTimestamp64Micro(TimeUnix)) AS version
FROM otel.otel_metrics_gauge
WHERE ResourceAttributes['gaia.run.id'] != '' AND mapContains(Attributes, 'step');

-- Last, least and greatest value that was logged, per attempt, kept while rows come in. Of two
-- values of the last step the one of the higher version is the last.
CREATE TABLE IF NOT EXISTS gaia.latest
(
    run_id LowCardinality(String),
    metric LowCardinality(String),
    attempt UInt32,
    last AggregateFunction(argMax, Float64, UInt128),  -- step and version; a tuple is slower
    last_step SimpleAggregateFunction(max, UInt64),
    vmin SimpleAggregateFunction(min, Float64),
    vmax SimpleAggregateFunction(max, Float64),
    last_ts SimpleAggregateFunction(max, DateTime64(3, 'UTC')),
    nonfinite SimpleAggregateFunction(max, UInt8)
)
ENGINE = AggregatingMergeTree
ORDER BY (run_id, metric, attempt);

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_points_latest TO gaia.latest
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    run_id,
    metric,
    toUInt32(bitShiftRight(version, 50)) AS attempt,
    argMaxState(value, bitOr(bitShiftLeft(toUInt128(step), 64), toUInt128(version))) AS last,
    max(step) AS last_step,
    -- A group without a finite value must not lower the minimum to 0.
    min(if(isFinite(value), value, inf)) AS vmin,
    max(if(isFinite(value), value, -inf)) AS vmax,
    max(fromUnixTimestamp64Milli(
        toInt64(1577836800000 + intDiv(bitAnd(version, 1125899906842623), 1000)), 'UTC')) AS last_ts,
    max(toUInt8(NOT isFinite(value))) AS nonfinite
FROM gaia.points
GROUP BY run_id, metric, attempt;

INSERT INTO gaia.points (run_id, metric, proc, step, value, version)
SELECT run_id, metric, proc, step, value, gaia_version(attempt, toUnixTimestamp64Micro(ts))
FROM gaia.training_metrics FINAL;

-- System values and the OpenTelemetry SDK's gauges and sums, one series per set of attributes.
CREATE TABLE IF NOT EXISTS gaia.system_points
(
    run_id LowCardinality(String),
    metric LowCardinality(String),
    proc UInt16 CODEC(ZSTD(1)),
    ts DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD(1)),
    value Float64 CODEC(ZSTD(1)),
    host LowCardinality(String)
)
ENGINE = ReplacingMergeTree
PARTITION BY substring(run_id, 1, 6)
ORDER BY (run_id, metric, proc, ts);

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_system_points TO gaia.system_points
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    gaia_series(MetricName, Attributes) AS metric,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    TimeUnix AS ts,
    Value AS value,
    ResourceAttributes['host.name'] AS host
FROM otel.otel_metrics_gauge
WHERE ResourceAttributes['gaia.run.id'] != '' AND NOT mapContains(Attributes, 'step')
    AND MetricName != 'gaia.run.info';

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_system_points_sum TO gaia.system_points
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    gaia_series(MetricName, Attributes) AS metric,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    TimeUnix AS ts,
    Value AS value,
    ResourceAttributes['host.name'] AS host
FROM otel.otel_metrics_sum
WHERE ResourceAttributes['gaia.run.id'] != '';

-- Histograms with buckets of the sender's choice: their count and sum, as two series.
CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_system_points_histogram TO gaia.system_points
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    gaia_series(concat(MetricName, part.1), Attributes) AS metric,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    TimeUnix AS ts,
    part.2 AS value,
    ResourceAttributes['host.name'] AS host
FROM otel.otel_metrics_histogram
ARRAY JOIN [('.count', toFloat64(Count)), ('.sum', Sum)] AS part
WHERE ResourceAttributes['gaia.run.id'] != '';

INSERT INTO gaia.system_points SELECT run_id, metric, proc, ts, value, host
FROM gaia.system_metrics FINAL;

-- Texts and alerts. `seq` tells records of one name and step apart: the sender's running number
-- (attribute gaia.seq), or the nanosecond where a sender has none.
CREATE TABLE IF NOT EXISTS gaia.text_records
(
    run_id LowCardinality(String),
    kind LowCardinality(String),
    name LowCardinality(String),
    step UInt64,
    proc UInt16,
    attempt UInt32,
    seq UInt64,
    ts DateTime64(3, 'UTC'),
    level LowCardinality(String),
    body String CODEC(ZSTD(3))
)
ENGINE = ReplacingMergeTree
PARTITION BY substring(run_id, 1, 6)
ORDER BY (run_id, kind, name, step, proc, attempt, seq);

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_text_records TO gaia.text_records
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    LogAttributes['gaia.kind'] AS kind,
    LogAttributes['gaia.name'] AS name,
    toUInt64OrZero(LogAttributes['step']) AS step,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    toUInt32OrZero(ResourceAttributes['gaia.run.attempt']) AS attempt,
    if(mapContains(LogAttributes, 'gaia.seq'), toUInt64OrZero(LogAttributes['gaia.seq']),
        toUInt64(toUnixTimestamp64Nano(Timestamp))) AS seq,
    Timestamp AS ts,
    multiIf(SeverityNumber >= 17, 'error', SeverityNumber >= 13, 'warn', 'info') AS level,
    Body AS body
FROM otel.otel_logs
WHERE ResourceAttributes['gaia.run.id'] != '' AND mapContains(LogAttributes, 'gaia.kind');

INSERT INTO gaia.text_records
SELECT run_id, kind, name, step, 0, attempt, seq, ts, level, body FROM gaia.texts FINAL;

CREATE TABLE IF NOT EXISTS gaia.histogram_records
(
    run_id LowCardinality(String),
    metric LowCardinality(String),
    proc UInt16,
    step UInt64,
    attempt UInt32,
    seq UInt64,
    ts DateTime64(3, 'UTC'),
    count UInt64,
    sum Float64,
    min Float64,
    max Float64,
    scale Int32,
    zero_count UInt64,
    positive_offset Int32,
    positive Array(UInt64),
    negative_offset Int32,
    negative Array(UInt64)
)
ENGINE = ReplacingMergeTree
PARTITION BY substring(run_id, 1, 6)
ORDER BY (run_id, metric, proc, step, attempt, seq);

CREATE MATERIALIZED VIEW IF NOT EXISTS gaia.mv_histogram_records TO gaia.histogram_records
DEFINER = CURRENT_USER SQL SECURITY DEFINER AS
SELECT
    ResourceAttributes['gaia.run.id'] AS run_id,
    gaia_series(MetricName, Attributes) AS metric,
    toUInt16OrZero(ResourceAttributes['gaia.process.index']) AS proc,
    toUInt64OrZero(Attributes['step']) AS step,
    toUInt32OrZero(ResourceAttributes['gaia.run.attempt']) AS attempt,
    if(mapContains(Attributes, 'gaia.seq'), toUInt64OrZero(Attributes['gaia.seq']),
        toUInt64(toUnixTimestamp64Nano(TimeUnix))) AS seq,
    TimeUnix AS ts,
    Count AS count,
    Sum AS sum,
    Min AS min,
    Max AS max,
    Scale AS scale,
    ZeroCount AS zero_count,
    PositiveOffset AS positive_offset,
    PositiveBucketCounts AS positive,
    NegativeOffset AS negative_offset,
    NegativeBucketCounts AS negative
FROM otel.otel_metrics_exp_histogram
WHERE ResourceAttributes['gaia.run.id'] != '';

INSERT INTO gaia.histogram_records
SELECT run_id, metric, proc, step, attempt, 0, ts, count, sum, min, max, scale, zero_count,
    positive_offset, positive, negative_offset, negative
FROM gaia.histograms FINAL;
