"""Tables of a queue in SQLite, and the statements that work on them.

`rank` is the moment of adding minus what the priority is worth in seconds, so the order of two
waiting items never changes by itself and an index keeps it: priorities age at no cost.
"""

APPLICATION = 0x67517565  # "gQue" in the file's header, where file(1) and we look
WAITING, DELAYED, LEASED, DONE, DEAD = range(5)

TABLES = """
CREATE TABLE settings(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    payload TEXT NOT NULL,
    priority REAL NOT NULL,
    added REAL NOT NULL,
    rank REAL NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL DEFAULT 0,        -- when the delay or the lease ends
    attempts INTEGER NOT NULL DEFAULT 0,
    receipt TEXT,
    worker TEXT,
    reason TEXT
);
CREATE INDEX by_rank ON items(rank, seq) WHERE state = 0;
CREATE INDEX by_due ON items(due) WHERE state IN (1, 2);
CREATE INDEX by_death ON items(seq) WHERE state = 4;
CREATE TABLE results(
    number INTEGER PRIMARY KEY,
    seq INTEGER NOT NULL UNIQUE REFERENCES items,
    result TEXT NOT NULL,
    cost REAL NOT NULL,
    finished REAL NOT NULL
);
CREATE TABLE failures(kind TEXT PRIMARY KEY, count INTEGER NOT NULL, cost REAL NOT NULL)
    WITHOUT ROWID;
"""

ADD = """
INSERT INTO items(id, payload, priority, added, rank) VALUES (?, ?, ?, ?, ?)
ON CONFLICT(id) DO NOTHING
"""

# Leases that ran out: of items without attempts left first, then all others beside ended delays.
BURY = """
UPDATE items SET state = 4, receipt = NULL, worker = NULL,
    reason = 'lease ran out: its worker ' || worker || ' died or was silent'
WHERE state IN (1, 2) AND due <= :now AND state = 2 AND attempts >= :most
RETURNING seq
"""
WAKE = """
UPDATE items SET state = 0, receipt = NULL, worker = NULL
WHERE state IN (1, 2) AND due <= :now
"""
LEASE = """
UPDATE items SET state = 2, due = :until, worker = :worker, attempts = attempts + 1,
    receipt = lower(hex(randomblob(12)))
WHERE seq IN (SELECT seq FROM items WHERE state = 0 ORDER BY rank, seq LIMIT :n)
RETURNING rank, seq, id, payload, priority, receipt, attempts, due
"""
EXTEND = "UPDATE items SET due = ? WHERE id = ? AND receipt = ? AND state = 2"
COMPLETE = """
UPDATE items SET state = 3, worker = NULL WHERE id = ? AND receipt = ? AND state = 2
RETURNING seq
"""
IS_DONE = "SELECT 1 FROM items WHERE id = ? AND receipt = ? AND state = 3"
RESULT = "INSERT INTO results(seq, result, cost, finished) VALUES (?, ?, ?, ?)"
FAIL = """
UPDATE items SET
    attempts = attempts - :unspent,
    state = CASE
        WHEN :final OR attempts - :unspent >= :most THEN 4 WHEN :wait > 0 THEN 1 ELSE 0 END,
    due = :now + :wait, receipt = NULL, worker = NULL, reason = :reason
WHERE id = :id AND receipt = :receipt AND state = 2
"""
COUNT_FAILURE = """
INSERT INTO failures VALUES (?, ?, ?)
ON CONFLICT(kind) DO UPDATE SET count = count + excluded.count, cost = cost + excluded.cost
"""
RELEASE = """
UPDATE items SET state = 0, attempts = attempts - 1, receipt = NULL, worker = NULL
WHERE id = ? AND receipt = ? AND state = 2
"""
REVIVE = """
UPDATE items SET state = 0, attempts = 0, reason = NULL
WHERE state = 4 AND (:kind IS NULL OR kind_of(reason) = :kind)
"""
PRIORITY = """
UPDATE items SET priority = :value, rank = added - :value * :age_s
WHERE state IN (0, 1, 2) AND matches(payload, :where)
"""
# Lease and delay by the clock of the reader, who changes nothing.
COUNTS = """
SELECT
    (SELECT count(*) FROM items WHERE state = 0)
        + (SELECT count(*) FROM items WHERE state IN (1, 2) AND (state = 1 OR due <= :now)),
    (SELECT count(*) FROM items WHERE state IN (1, 2) AND state = 2 AND due > :now),
    (SELECT count(*) FROM results),
    (SELECT count(*) FROM items WHERE state = 4)
"""
