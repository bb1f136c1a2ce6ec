"""Workers that are killed: each item is done once or in the dead letter, none lost, none twice."""

import pytest

from queue_kills import at_every_point, at_random
from queue_servers import postgres_server, redis_server


def test_kills_at_every_point(tmp_path):
    at_every_point(f"{tmp_path}/q", tmp_path / "log")


@pytest.mark.slow
def test_fifty_random_kills(tmp_path):
    again = at_random(f"{tmp_path}/q", tmp_path / "log")
    print(f"{again} answers were made again")


@pytest.mark.slow
@pytest.mark.parametrize("server", [redis_server, postgres_server])
def test_kills_on_servers(server, tmp_path):
    with server() as url:
        at_every_point(f"{url}?name=points", tmp_path / "points")
        at_random(f"{url}?name=random", tmp_path / "random")
