"""A work queue that loses nothing, on SQLite, Redis, PostgreSQL, SQS or Pub/Sub; its workers.

with open_queue("work.queue", create=True) as queue:
    queue.add(Item(f"{i}", {"text": text}) for i, text in enumerate(texts))
    run_worker(queue, do, concurrency=64)
    for result in queue.results(): ...
"""

from gchat.queue.failed import Failed
from gchat.queue.opening import open_queue
from gchat.queue.protocol import Counts, Dead, Facts, Item, Lease, Queue, QueueError, Result
from gchat.queue.rules import Rules, Tally
from gchat.queue.running import run_worker
from gchat.queue.threads import in_threads
from gchat.queue.worker import work

__all__ = [
    "Counts", "Dead", "Facts", "Failed", "Item", "Lease", "Queue", "QueueError", "Result", "Rules",
    "Tally", "in_threads", "open_queue", "run_worker", "work",
]  # fmt: skip
