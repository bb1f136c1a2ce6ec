"""A worker in a process of its own, which kills itself at a point that its parent names.

    python queue_victim.py URL LOG POINT [K]

LOG gets a line for each answer: who pays for work sees in it what was done twice. POINT is one of
POINTS, or "none"; the process dies the K-th time it comes there.
"""

import asyncio
import os
import random
import signal
import sys
import time

from gchat.queue import Failed, Rules, open_queue, run_worker

POINTS = (
    "before lease", "after lease", "after the response", "between result and completion",
    "after completion", "in heartbeat", "with a stale receipt",
)  # fmt: skip
CONCURRENCY = 4
LEASE_S = float(os.environ.get("VICTIM_LEASE_S", "0.6"))
TIMES_FAILED: dict[str, int] = {}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class At:
    """Counts down to a point."""

    def __init__(self, point, k):
        self.point, self.left = point, k

    def __call__(self, point):
        if point == self.point:
            self.left -= 1
            if self.left <= 0:
                die()


def arm(queue, at):
    """Puts the points into a queue's calls."""
    lease, complete, extend = queue.lease, queue.complete, queue.extend

    def lease_and_die(*args):
        at("before lease")
        got = lease(*args)
        if got:
            at("after lease")
        return got

    def complete_and_die(*args):
        done = complete(*args)
        at("after completion" if done else "with a stale receipt")
        return done

    def extend_and_die(*args):
        at("in heartbeat")
        return extend(*args)

    queue.lease, queue.complete, queue.extend = lease_and_die, complete_and_die, extend_and_die
    kind = type(queue).__name__
    if kind == "SqliteQueue":  # within the transaction: the item is marked, its result is not there
        queue._db.set_trace_callback(
            lambda text: at("between result and completion") if "INTO results" in text else None
        )
    elif kind == "PostgresQueue":
        import psycopg

        execute = psycopg.Cursor.execute

        def execute_and_die(self, text, *args, **kwargs):
            if "INSERT INTO" in text and ".results" in text:
                at("between result and completion")
            return execute(self, text, *args, **kwargs)

        psycopg.Cursor.execute = execute_and_die
    elif kind == "RedisQueue":  # sent, and the answer not read
        script = queue._scripts["COMPLETE"]
        sent = queue._redis.connection_pool.connection_class.send_packed_command

        def send_and_die(self, command, *args, **kwargs):
            sent(self, command, *args, **kwargs)
            if script.sha.encode() in b"".join(map(bytes, command)):
                at("between result and completion")

        queue._redis.connection_pool.connection_class.send_packed_command = send_and_die
    elif hasattr(queue, "store"):
        put = queue.store.put

        def put_and_die(*args):
            new = put(*args)
            at("between result and completion")
            return new

        queue.store.put = put_and_die


def answer(payload):
    """The result of a payload; some fail at times, some always."""
    if payload.get("never"):
        raise Failed("schema: never right", after_s=0.01)
    if random.random() < payload.get("fails", 0.0):
        raise Failed(random.choice(["endpoint 500: x", "time-out: y", "schema: z"]), after_s=0.01)
    return {"square": payload["n"] ** 2, "cost": 0.001}


def main(url, log, point="none", k="1"):
    at = At(point, int(k))
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    asleep = False

    async def do(payload):
        nonlocal asleep
        if point == "with a stale receipt" and not asleep:
            asleep = True
            print("asleep", file=sys.stderr, flush=True)
            time.sleep(3 * LEASE_S)
        await asyncio.sleep(payload.get("sleep_s", 0.0) + 1.2 * LEASE_S * (point == "in heartbeat"))
        result = answer(payload)
        os.write(out, f"{payload['n']}\n".encode())
        at("after the response")
        return result

    queue = open_queue(url)
    arm(queue, at)
    rules = Rules(concurrency=CONCURRENCY, lease_s=LEASE_S, backoff_s=0.01)
    tally, _ = run_worker(queue, do, rules)
    print(tally.done, tally.lost, tally.failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
