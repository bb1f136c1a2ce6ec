"""Faults: the process killed at every write, and a database that is locked, full or gone.

Whatever happens, text that was shown is there afterwards, once, and how an answer ended is said.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx2
import pytest

import chat_site
from chat_site import add_user, events, text_of
from gaia.errors import ConfigError
from gchat.serve.site import migrating
from gchat.serve.site.database import Database
from gchat.serve.site.messages import INTERRUPTED
from gchat.serve.site.only_one import only_one
from tests.fakes import openai_api

ROOT = Path(__file__).parents[4]
WORDS = " ".join(f"word{i}" for i in range(12))
# Runs a site in a process that kills itself at a given statement or commit of a writing
# transaction, counted from when the file `armed` is there.
KILLED = """
import os, signal, sys, time
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import chat_site
from sqlalchemy import event
url, upstream, folder = sys.argv[1:4]

def wait_for(place):  # a process for each boundary, forked from one that has imported everything
    while not os.path.exists(place):
        time.sleep(0.01)

def serve(boundary, name):
    site = chat_site.make_site(url.replace("NAME", name), upstream)
    counted = [0]

    def at(connection, *args):
        if connection.get_execution_options().get("gchat_writes") and os.path.exists(armed):
            counted[0] += 1
            if counted[0] == boundary:
                os.kill(os.getpid(), signal.SIGKILL)

    armed = f"{{folder}}/{{name}}.armed"
    event.listen(site.database.engine, "before_cursor_execute", at)
    event.listen(site.database.engine, "commit", at)


    running = chat_site.Running(site)
    with open(f"{{folder}}/{{name}}.port.part", "w") as file:
        file.write(running.url)
    os.rename(file.name, f"{{folder}}/{{name}}.port")
    wait_for(f"{{folder}}/{{name}}.over")
    running.stop()

for line in sys.stdin:
    boundary, name = line.split()
    if os.fork() == 0:
        serve(int(boundary), name)
        os._exit(0)
"""


class Killer:
    """Forks sites that die at a boundary."""

    def __init__(self, folder, upstream):
        self.folder = folder
        command = [sys.executable, "-c", KILLED.format(root=str(ROOT)),
                   f"sqlite:///{folder}/NAME.db", upstream, str(folder)]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def start(self, boundary, name):
        self.process.stdin.write(f"{boundary} {name}\n")
        self.process.stdin.flush()
        place = self.folder / f"{name}.port"
        end = time.monotonic() + 60
        while not place.exists():
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.01)
        return place.read_text()

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def slow_upstream():
    with openai_api.serve() as made:
        made.reply = lambda body: WORDS
        made.delay_s = 0.015
        yield made


@pytest.fixture(scope="module")
def killer(tmp_path_factory, slow_upstream):
    made = Killer(tmp_path_factory.mktemp("killed"), slow_upstream.url)
    yield made
    made.close()


def killed_at(killer, upstream, boundary):
    """Asks a site that dies at a boundary; checks what is left. False where it lived on."""
    name = f"k{boundary}"
    url = f"sqlite:///{killer.folder}/{name}.db"
    site = chat_site.make_site(url, upstream.url)
    add_user(site, "alice")
    site.database.close(), site.passwords.close()
    client = chat_site.Client(killer.start(boundary, name))
    client.login("alice")
    made = client.json("POST", "/api/conversations", json={"title": "t"})["id"]
    (killer.folder / f"{name}.armed").touch()
    seen, lived = [], False
    try:
        with client.stream("POST", "/api/chat", conversationId=made, content="a question") as coming:
            for one in coming:
                seen.append(one)
        lived = True
    except httpx2.HTTPError:
        pass
    client.close()
    (killer.folder / f"{name}.armed").unlink()
    (killer.folder / f"{name}.over").touch()
    assert not lived or seen[-1][1] == "end"
    if lived:
        return False
    site = chat_site.make_site(url, upstream.url)
    with chat_site.running(site) as place:
        there = place.client("alice").json("GET", f"/api/conversations/{made}")
        found = place.client("alice").json("GET", "/api/conversations?search=question")["items"]
    roles = [message["role"] for message in there["messages"]]
    assert roles in ([], ["user", "assistant"])  # both or neither, and none twice
    assert bool(found) == bool(roles)
    if seen:
        assert roles
        answer = there["messages"][1]
        assert answer["content"].startswith(text_of(seen)) and WORDS.startswith(answer["content"])
        assert (answer["status"], answer["error"]) in (("failed", INTERRUPTED), ("done", None))
        assert answer["status"] == "failed" or answer["content"] == WORDS
    return True


@pytest.mark.parametrize("boundary", [1, 9, 17, 23])
def test_a_kill_while_an_answer_streams_loses_nothing_that_was_shown(
    killer, slow_upstream, boundary
):
    assert killed_at(killer, slow_upstream, boundary)


@pytest.mark.slow
def test_a_kill_at_every_boundary(killer, slow_upstream):
    """Until the answer is through: every statement and commit of it was one to die at."""
    boundary = 1
    while killed_at(killer, slow_upstream, boundary):
        boundary += 1
    print(f"killed at {boundary - 1} boundaries")
    assert boundary > 30
