"""The queue on real servers: the same machine of calls as the file's."""

import itertools
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from gchat.__main__ import main
from gchat.queue import Item, open_queue
from queue_model import Machine
from queue_servers import postgres_server, redis_server

pytestmark = pytest.mark.slow
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def redis_url():
    with redis_server() as url:
        yield url


@pytest.fixture(scope="module")
def postgres_url():
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["redis", "postgres"])
def url(request):
    """The address of a queue that does not exist yet."""
    return f"{request.getfixturevalue(f'{request.param}_url')}?name=q{next(NUMBERS)}"


@pytest.mark.parametrize("kind", ["redis", "postgres"])
def test_any_calls_in_any_order(kind, request):
    base = request.getfixturevalue(f"{kind}_url")

    class ServerMachine(Machine):
        def open(self, attempts):
            return open_queue(f"{base}?name=m{next(NUMBERS)}", create=True, attempts=attempts)

    run_state_machine_as_test(
        ServerMachine,
        settings=settings(max_examples=40 if kind == "redis" else 12, stateful_step_count=30),
    )


def test_priorities_of_payloads_with_a_nul(url):
    """PostgreSQL's JSON takes none, and a page of somebody's may hold one."""
    payloads = [{"text": "a\0b", "kind": "x"}, {"text": "\\u0000", "kind": "x"}, {"kind": "x"},
                {"text": "\0", "kind": "y"}]  # fmt: skip
    with open_queue(url, create=True) as queue:
        assert queue.add(Item(f"i{n}", payload) for n, payload in enumerate(payloads)) == 4
        assert queue.priority({}, 7) == 4 and queue.priority({"kind": "x"}, -5) == 3
        assert [lease.item.id for lease in queue.lease(4, 60, "w")] == ["i3", "i0", "i1", "i2"]


def test_a_plan_names_its_queue_without_the_password(redis_url, tmp_path, capsys):
    texts = Path(__file__).parents[2] / "fixtures/synth/articles.md"
    address = redis_url.replace("//", "//default:secret@") + "?name=plan"
    for more in ((), ("--json",)):
        words = ["synth", "generate", str(texts), "--out", str(tmp_path / "out"), "--max-windows"]
        assert main([*words, "3", "--queue", address, "--plan-only", *more]) == 0
        said = capsys.readouterr().out
        assert "redis://127.0.0.1" in said and "secret" not in said
