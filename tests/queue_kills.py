"""Kills of workers at every point and at random, on any queue: what must hold afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from gchat.queue import Item, open_queue
from queue_victim import CONCURRENCY, POINTS

ROOT = Path(__file__).parents[1]


def start(url, log, point="none", k=1, **environment):
    """A worker process."""
    words = [sys.executable, str(ROOT / "tests/queue_victim.py"), url, str(log), point, str(k)]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}
    return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def check(url, log, count, never=()):
    """Each item done once, or in the dead letter; none lost, none twice, no result of another."""
    with open_queue(url) as queue:
        counts = queue.counts()
        assert (counts.waiting, counts.leased) == (0, 0), counts
        done = {}
        for one in queue.results():
            assert one.id not in done, f"{one.id} is done twice"
            done[one.id] = one.result
        dead = [one.item.id for one in queue.dead()]
        assert Counter(dead) == Counter(f"i{n}" for n in never)
        assert done.keys() == {f"i{n}" for n in range(count)} - set(dead)
        assert all(result["square"] == int(id[1:]) ** 2 for id, result in done.items())
        if not hasattr(queue, "_broker"):  # there workers note costs, two seconds apart
            assert queue.facts().cost >= 0.001 * len(done) - 1e-6
    return Counter(Path(log).read_text().split())


def at_every_point(url, log, count=60):
    """One worker after the other dies, each at its point; the last one finishes."""
    with open_queue(url, create=True, attempts=100) as queue:
        assert queue.add(Item(f"i{n}", {"n": n}) for n in range(count)) == count
    victims = [start(url, log, point, 2 if "before" in point else 1) for point in POINTS[:-1]]
    # Its lease runs out while it sleeps, another worker takes the item: its own answer is too late.
    victims.append(start(url, log, POINTS[-1]))
    assert victims[-1].stderr.readline() == b"asleep\n"
    helper = start(url, log)  # takes the item whose worker sleeps
    for victim, point in zip(victims, POINTS, strict=True):
        assert victim.wait(240) == -signal.SIGKILL, (point, victim.stderr.read().decode())
        victim.stderr.close()
    assert helper.wait(240) == 0, helper.stderr.read().decode()
    helper.stderr.close()
    answers = check(url, log, count)
    assert sum(answers.values()) > count  # some answers were lost with their workers, and paid for


def at_random(url, log, *, count=5000, kills=50, workers=3, seed=0):
    """Kills one of several workers again and again while they work."""
    draw = random.Random(seed)
    never = draw.sample(range(count), 20)
    # The kills take 0.325 s each: however fast the machine, there is work for twice as long.
    sleep_s = 2 * 0.325 * kills * workers * CONCURRENCY / count
    with open_queue(url, create=True, attempts=30) as queue:
        queue.add(
            Item(f"i{n}", {"n": n, "fails": 0.05, "sleep_s": sleep_s, "never": n in never})
            for n in range(count)
        )
    env = {"VICTIM_LEASE_S": "2"}
    running = [start(url, log, **env) for _ in range(workers)]
    made = 0
    while made < kills:
        time.sleep(draw.uniform(0.05, 0.6))
        place = draw.randrange(workers)
        victim = running[place]
        assert victim.poll() is None, f"ended before the {made + 1}th kill: {victim.returncode}"
        victim.kill()
        victim.wait()
        victim.stderr.close()
        made += 1
        running[place] = start(url, log, **env)
    for worker in running:
        assert worker.wait(300) == 0, worker.stderr.read().decode()
        worker.stderr.close()
    answers = check(url, log, count, never)
    return sum(answers.values()) - (count - len(never))
