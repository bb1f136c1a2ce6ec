"""Tables of a queue in PostgreSQL, and the statements that work on them; `{s}` is its schema.

One row of `totals` counts results and their cost. Completing an item locks it until the commit,
so that numbers of results appear in their order: who reads on from a number misses none. JSON is
text here: `jsonb` takes no NUL, and a model may write one.
"""

TABLES = """
CREATE SCHEMA {s};
CREATE TABLE {s}.settings(name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE {s}.items(
    seq bigserial PRIMARY KEY,
    id text NOT NULL UNIQUE,
    payload text NOT NULL,
    priority float8 NOT NULL,
    added float8 NOT NULL,
    rank float8 NOT NULL,
    state smallint NOT NULL DEFAULT 0,
    due float8 NOT NULL DEFAULT 0,
    attempts int NOT NULL DEFAULT 0,
    receipt text,
    worker text,
    reason text
);
CREATE INDEX ON {s}.items(rank, seq) WHERE state = 0;
CREATE INDEX ON {s}.items(due) WHERE state IN (1, 2);
CREATE INDEX ON {s}.items(seq) WHERE state = 4;
CREATE TABLE {s}.results(
    number bigint PRIMARY KEY,
    seq bigint NOT NULL UNIQUE REFERENCES {s}.items,
    result text NOT NULL,
    finished float8 NOT NULL
);
CREATE TABLE {s}.totals(results bigint NOT NULL, cost float8 NOT NULL);
INSERT INTO {s}.totals VALUES (0, 0);
CREATE TABLE {s}.failures(kind text PRIMARY KEY, count bigint NOT NULL)
"""

NOW = "extract(epoch FROM clock_timestamp())::float8"

ADD = """
INSERT INTO {s}.items(id, payload, priority, added, rank)
SELECT id, payload, priority, now, now - priority * %(age)s FROM (
    SELECT *, {now} AS now
    FROM unnest(%(ids)s::text[], %(payloads)s::text[], %(priorities)s::float8[])
        WITH ORDINALITY AS given(id, payload, priority, place)
) AS new ORDER BY place
ON CONFLICT (id) DO NOTHING
"""
BURY = """
UPDATE {s}.items SET state = 4, receipt = NULL, worker = NULL,
    reason = 'lease ran out: its worker ' || worker || ' died or was silent'
WHERE seq IN (SELECT seq FROM {s}.items
    WHERE state IN (1, 2) AND state = 2 AND due <= {now} AND attempts >= %(most)s
    FOR UPDATE SKIP LOCKED)
"""
WAKE = """
UPDATE {s}.items SET state = 0, receipt = NULL, worker = NULL
WHERE seq IN (SELECT seq FROM {s}.items
    WHERE state IN (1, 2) AND due <= {now} AND (state = 1 OR attempts < %(most)s)
    FOR UPDATE SKIP LOCKED)
"""
LEASE = """
UPDATE {s}.items SET state = 2, due = {now} + %(seconds)s, worker = %(worker)s,
    attempts = attempts + 1, receipt = %(token)s || '-' || seq
WHERE seq IN (SELECT seq FROM {s}.items WHERE state = 0 ORDER BY rank, seq LIMIT %(n)s
    FOR UPDATE SKIP LOCKED)
RETURNING rank, seq, id, payload, priority, receipt, attempts, due
"""
HELD = "id = %(id)s AND receipt = %(receipt)s AND state = 2"
EXTEND = f"UPDATE {{s}}.items SET due = {{now}} + %(seconds)s WHERE {HELD}"
COMPLETE = f"UPDATE {{s}}.items SET state = 3, worker = NULL WHERE {HELD} RETURNING seq"
IS_DONE = "SELECT 1 FROM {s}.items WHERE id = %(id)s AND receipt = %(receipt)s AND state = 3"
RESULT = """
WITH counted AS (
    UPDATE {s}.totals SET results = results + 1, cost = cost + %(cost)s RETURNING results
)
INSERT INTO {s}.results SELECT results, %(seq)s, %(result)s, {now} FROM counted
"""
FAIL = f"""
UPDATE {{s}}.items SET
    attempts = attempts - %(unspent)s,
    state = CASE WHEN %(final)s OR attempts - %(unspent)s >= %(most)s THEN 4
        WHEN %(wait)s > 0 THEN 1 ELSE 0 END,
    due = {{now}} + %(wait)s, receipt = NULL, worker = NULL, reason = %(reason)s
WHERE {HELD}
"""
COUNT_FAILURE = """
INSERT INTO {s}.failures VALUES (%(kind)s, %(count)s)
ON CONFLICT (kind) DO UPDATE SET count = failures.count + excluded.count
"""
ADD_COST = "UPDATE {s}.totals SET cost = cost + %(cost)s"
RELEASE = f"""
UPDATE {{s}}.items SET state = 0, attempts = attempts - 1, receipt = NULL, worker = NULL
WHERE {HELD}
"""
# ->> refuses a text that holds a NUL anywhere; who asks reads those few himself.
HAS_NUL = "strpos(payload, '\\u0000') > 0"
WITH_NUL = f"SELECT seq, payload FROM {{s}}.items WHERE state IN (0, 1, 2) AND {HAS_NUL}"
PRIORITY = f"""
UPDATE {{s}}.items SET priority = %(value)s, rank = added - %(value)s * %(age)s
WHERE state IN (0, 1, 2) AND CASE WHEN {HAS_NUL} THEN seq = ANY(%(seqs)s) ELSE (
    SELECT coalesce(bool_and(coalesce(payload::json ->> w.key = w.value, false)), true)
    FROM jsonb_each_text(%(where)s::jsonb) AS w) END
"""
COUNTS = """
SELECT
    (SELECT count(*) FROM {s}.items WHERE state = 0)
        + (SELECT count(*) FROM {s}.items WHERE state IN (1, 2) AND (state = 1 OR due <= {now})),
    (SELECT count(*) FROM {s}.items WHERE state IN (1, 2) AND state = 2 AND due > {now}),
    (SELECT results FROM {s}.totals),
    (SELECT count(*) FROM {s}.items WHERE state = 4)
"""
RECENT = """
SELECT count(*), coalesce({now} - min(finished), 0) FROM (
    SELECT finished FROM {s}.results WHERE finished > {now} - %(window)s) AS newest
"""
OLDEST = "SELECT coalesce(max({now} - added), 0) FROM {s}.items WHERE state = 0"
WORKERS = """
SELECT worker, count(*) FROM {s}.items WHERE state IN (1, 2) AND state = 2 AND due > {now}
GROUP BY worker ORDER BY worker
"""
RESULTS = """
SELECT number, id, result FROM {s}.results JOIN {s}.items USING (seq)
WHERE number > %(since)s ORDER BY number LIMIT 1000
"""
DEAD = """
SELECT seq, id, payload, priority, reason, attempts FROM {s}.items WHERE state = 4 ORDER BY seq
"""
REVIVE = """
UPDATE {s}.items SET state = 0, attempts = 0, reason = NULL WHERE state = 4 AND seq = ANY(%(seqs)s)
"""
SETTING = """
INSERT INTO {s}.settings VALUES (%(name)s, %(value)s)
ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
