"""Measures the work queue: items a second, one transaction each, and how full workers keep slots.

    python tests/benchmarks/synth_queue.py [--quick] [--no-servers]

An item is leased alone and completed alone: two transactions, of which the second is synced to the
disk before the call returns (SQLite: after an fsync of the log; leases without one; the row
`sqlite, normal` leaves results to checkpoints too, as `sqlite:FILE?sync=normal` does). One worker
is limited by the disk: `fsyncs_per_s` of 4 KiB appended to a file in the same folder, timed in turn
with the queue. `items_per_s` is that of 64 threads on one open queue, a transaction an item still,
whose waits share fsyncs; the aim is 2,000 however slow the disk is. Redis (`appendonly yes`,
`appendfsync always`, and `everysec`) and PostgreSQL (`synchronous_commit` on) stand beside it where
they are installed, with one worker and with four.

`busy_share` is the time of all items in work over 64 times the wall time, of `gchat synth worker`'s
loop on an endpoint that answers after half a second; the aim is 0.95. Its wall time begins with the
first lease and ends with the last result. `lost` and `doubled` are counted over all runs: 0.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness

sys.path[:0] = [str(harness.ROOT), str(harness.ROOT / "tests")]


def main(args: argparse.Namespace) -> dict:
    count, seconds = (200, 0.1) if args.quick else (20_000, 2.0)
    rounds = 2 if args.quick else 5
    with tempfile.TemporaryDirectory(prefix="gaia-queue-", dir=args.folder) as folder:
        syncs, alone, shared, normal, errors = [], [], [], [], [0, 0]
        for turn in range(rounds):
            syncs.append(fsyncs(folder, seconds))
            alone.append(items(f"{folder}/q{turn}", count // rounds, 1, errors))
            shared.append(items(f"{folder}/s{turn}", count // rounds, 64, errors, one=True))
            normal.append(items(f"{folder}/n{turn}?sync=normal", count // rounds, 1, errors))
        beside = items(f"{folder}/beside", count // rounds, 4, errors)
        sqlite = {
            **harness.spread("items_per_s", alone, 0), "four_workers_items_per_s": round(beside),
            "sync": "an fsync after adding, results and failures; none after leases",
        }  # fmt: skip
        together = {
            **harness.spread("items_per_s", shared, 0),
            "sync": "the same, shared by what waits at once",
        }
        unsynced = items(f"{folder}/unsynced?sync=normal", count // rounds, 4, errors)
        rows = [
            {"backend": "sqlite", **sqlite},
            {
                "backend": "sqlite, normal", **harness.spread("items_per_s", normal, 0),
                "four_workers_items_per_s": round(unsynced),
                "sync": "an fsync after adding; none after the rest",
            },
            {"backend": "sqlite, 64 threads", **together},
        ]  # fmt: skip
        if not args.no_servers:
            rows += servers(count // rounds, errors)
        share = busy_share(f"{folder}/busy", 128 if args.quick else 3840, errors)
    limit = harness.spread("fsyncs_per_s", syncs, 0)
    print("backend              items/s  four workers")
    for row in rows:
        name = f"{row['backend']:20}"
        four = row.get("four_workers_items_per_s")
        print(f"{name}{row['items_per_s']:8,.0f}{'-' if four is None else f'{four:,}':>14}")
    print(f"limit: {limit['fsyncs_per_s']:,.0f} fsyncs/s; busy share {share:.3f}")
    return {
        "items_per_s": together["items_per_s"],
        "alone_items_per_s": sqlite["items_per_s"],
        "normal_items_per_s": rows[1]["items_per_s"],
        **limit,
        "ratio_to_fsyncs": round(together["items_per_s"] / limit["fsyncs_per_s"], 3),
        "rows": rows,
        "busy_share": round(share, 4),
        "lost": errors[0],
        "doubled": errors[1],
    }


def fsyncs(folder: str, seconds: float) -> float:
    """Appended blocks of 4 KiB that reach the disk in a second, one after the other."""
    path, block, done = f"{folder}/fsyncs", b"x" * 4096, 0
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        os.write(file, block)
        os.fsync(file)
        done += 1
    took = time.perf_counter() - begun
    os.close(file)
    os.unlink(path)
    return done / took


def items(url: str, count: int, workers: int, errors: list[int], *, one: bool = False) -> float:
    """Items that are leased and completed in a second, each by itself.

    Args:
        url: of a queue to make.
        count: items.
        workers: threads.
        errors: lost and doubled items, added to.
        one: share one open queue, as the slots of a worker do.
    """
    from gchat.queue import Item, open_queue

    with open_queue(url, create=True) as queue:
        queue.add(Item(f"i{n}", {"n": n, "text": "x" * 200}) for n in range(count))

    opened = open_queue(url)

    def work() -> None:
        with contextlib.nullcontext(opened) if one else open_queue(url) as queue:
            while leases := queue.lease(1, 600, "w"):
                n = leases[0].item.payload["n"]
                queue.complete(leases[0], {"n": n, "text": "y" * 200})

    threads = [threading.Thread(target=work) for _ in range(workers)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - begun
    opened.close()
    _check(url, count, errors)
    return count / took


def servers(count: int, errors: list[int]) -> list[dict]:
    """The same on the servers that are installed."""
    import shutil

    from queue_servers import postgres_programs, postgres_server, redis_server

    rows = []
    kinds = {
        "redis, always": lambda: redis_server("--appendonly", "yes", "--appendfsync", "always"),
        "redis, everysec": lambda: redis_server("--appendonly", "yes"),
        "postgresql": postgres_server,
    }
    for name, server in kinds.items():
        driver, there = ("psycopg", postgres_programs()) if name == "postgresql" else (
            "redis", shutil.which("redis-server"))  # fmt: skip
        if not there or not harness._installed(driver):
            continue
        with contextlib.ExitStack() as stack:
            url = stack.enter_context(server())
            one, four = (items(f"{url}?name=w{w}", count, w, errors) for w in (1, 4))
            rows.append(
                {
                    "backend": name,
                    "items_per_s": round(one),
                    "four_workers_items_per_s": round(four),
                }
            )
    return rows


def busy_share(path: str, count: int, errors: list[int]) -> float:
    """Share of 64 slots that a worker keeps in work."""
    from gchat.queue import Item, Rules, open_queue, run_worker

    ends: list[float] = []

    async def do(payload: dict) -> dict:
        await asyncio.sleep(0.5 * (0.8 + 0.4 * (payload["n"] * 7919 % 97) / 97))
        ends.append(time.monotonic())
        return {"n": payload["n"], "text": "y" * 2000}

    with open_queue(path, create=True) as queue:
        queue.add(Item(f"i{n}", {"n": n, "text": "x" * 2000}) for n in range(count))
        begun = time.monotonic()
        tally, _ = run_worker(queue, do, Rules(concurrency=64))
    _check(path, count, errors)
    # The last wave has no items to fill it with: up to the 64th last end all slots have work.
    last = sorted(ends)[-64]
    wall = last - begun
    in_work = tally.busy_s - sum(end - last for end in ends if end > last)
    return in_work / (64 * wall)


def _check(url: str, count: int, errors: list[int]) -> None:
    from gchat.queue import open_queue

    with open_queue(url) as queue:
        ids = [one.id for one in queue.results() if one.id == f"i{one.result['n']}"]
    errors[0] += count - len(set(ids))
    errors[1] += len(ids) - len(set(ids))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--folder", type=Path, help="folder on the disk to measure")
    parser.add_argument("--no-servers", action="store_true", help="SQLite alone")


if __name__ == "__main__":
    harness.run(main, __doc__, add_arguments)
