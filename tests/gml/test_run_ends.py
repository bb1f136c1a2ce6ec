"""`gml run`: what it refuses before anything is made, and how it ends on what it was given."""

from __future__ import annotations

import json

import pytest

from gml.nodes.create import create
from gml.remote import fanout
from gml.request import NodeRequest
from gml.run import Console, Runner, RunRequest
from gml.store import Store

RUN = ("run", "-p", "local", "--zone", "box", "--timeout", "1h", "--name", "one")


@pytest.mark.parametrize("name", ["/abs", "my runs", "../runs", ".cache", ""])
@pytest.mark.parametrize("how", [("--dry-run",), (), ("--attach", "one")])
def test_a_result_folder_that_cannot_be_fetched_is_refused_first(home, repo, gml, name, how):
    words = (*RUN, "--fetch", "runs", "--fetch", name, *how)
    done = gml(*words, *(() if "--attach" in how else ("--", "true")), cwd=repo)
    assert done.returncode == 2 and f"--fetch {name!r} is not usable" in done.stderr, done.stderr
    assert not (home / "nodes").exists()


def test_a_data_folder_whose_name_cannot_be_sent_is_refused_first(home, repo, gml, tmp_path):
    (tmp_path / "my data").mkdir()
    done = gml(*RUN, "--data", str(tmp_path / "my data"), "--", "true", cwd=repo)
    assert done.returncode == 2 and "'my data' can't be a folder there" in done.stderr
    assert not (home / "nodes").exists()


def test_results_may_be_named_from_the_folder_one_stands_in(hosts, repo, gml):
    planned = gml(*RUN, "--fetch", "./runs/", "--dry-run", "--", "true", cwd=repo)
    assert json.loads(planned.stdout)["fetch"] == ["runs"], planned.stderr
    done = gml(*RUN, "--fetch", "./runs", "--", "mkdir runs; echo r > runs/r", cwd=repo)
    assert done.returncode == 0 and (repo / "runs" / "r").read_text() == "r\n", done.stderr


@pytest.mark.parametrize("made", ["by hand", "for the run", "for a run that keeps it"])
def test_attach_deletes_only_what_was_made_for_the_job(hosts, repo, gml, home, made):
    target = RUN if made != "by hand" else ("run", "--node", "one")
    if made == "by hand":
        words = ("-p", "local", "--zone", "box", "--timeout", "1h", "--name", "one")
        assert gml("node", "create", *words).returncode == 0
    more = ("--keep",) if "keeps" in made else ()
    begun = gml(*target, *more, "--job", "j", "--detach", "--", "true", cwd=repo)
    assert begun.returncode == 0, begun.stderr
    kept = made != "for the run"
    assert ("(log, results)" in begun.stderr) is kept
    done = gml("run", "--attach", "one", cwd=repo)
    assert done.returncode == 0, done.stderr
    assert (Store(home).get("one") is not None) is kept
    assert (hosts[0].home / ".gml" / "node").exists() is kept
    assert ("one is kept" in done.stderr) is kept


def test_a_later_job_on_a_machine_of_a_run_does_not_take_it_along(hosts, repo, gml, home):
    assert gml(*RUN, "--job", "a", "--detach", "--", "sleep 60", cwd=repo).returncode == 0
    later = ("run", "--node", "one", "--job", "b", "--detach", "--", "true")
    assert gml(*later, cwd=repo).returncode == 0
    assert gml("run", "--attach", "one", "--job", "b", cwd=repo).returncode == 0
    assert Store(home).get("one") is not None


@pytest.mark.parametrize("code", [0, 5])
def test_a_job_on_a_slice_ends_with_its_last_host(hosts, repo, fleet, monkeypatch, code):
    monkeypatch.setattr(fanout, "WATCH_S", 0.3)
    request = NodeRequest("local", 3600, provider="local", zone="slice", name="sl")
    node = create(fleet, request)
    command = f"[ $JAX_PROCESS_ID = 2 ] && {{ sleep 2; echo saved > part; exit {code}; }}; exit 0"
    run = RunRequest(command=command, job="j", folder=repo, dest="w", sync=False)
    assert Runner(fleet, run, Console()).run(node, None) == code
    assert (hosts[2].home / "w" / "part").read_text() == "saved\n"


def test_a_group_of_machines_is_left_as_it_was_where_one_is_in_use(hosts, home, gml):
    with (home / "config.toml").open("a") as file:
        file.write(f'second = ["{hosts[1].address}"]\n')
    create = ("node", "create", "-p", "local", "--timeout", "3h", "--zone")
    assert gml(*create, "second", "--name", "two").returncode == 0
    done = gml(*create, "slice", "--name", "one")
    assert (done.returncode, "in use by another node" in done.stderr) == (6, True), done.stderr
    assert not (hosts[0].home / ".gml" / "node").exists()
    assert (hosts[1].home / ".gml" / "node" / "labels.json").exists()  # the other one's stays
    assert [n.id for n in Store(home).all()] == ["two"]
    assert gml(*create, "box", "--name", "three").returncode == 0
