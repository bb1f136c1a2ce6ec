"""A restore of the database: the real engine and schema, and the scripts around them."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fakes import clickhouse_client, clickhouse_http

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
NAME = "gaia-20261129-031700.zip"
INSERT = (
    "INSERT INTO otel.otel_metrics_gauge (ResourceAttributes, MetricName, Attributes, TimeUnix, "
    "Value) VALUES (map('gaia.run.id', '202611-a', 'gaia.run.attempt', '1'), 'train/loss', "
    "map('step', '{0}'), '2026-11-01 00:00:00', {0})"
)


class Machine:
    """An engine, and the scripts as the ClickHouse image runs them."""

    def __init__(self, folder, port):
        self.port, self.folder = port, folder
        self.env = clickhouse_client.install(folder, port) | {"BACKUPS_DIR": str(folder / "names")}
        (folder / "names").mkdir(exist_ok=True)
        (folder / "names" / NAME).touch()

    def ask(self, sql):
        return clickhouse_http.ask(self.port, "gaia_admin", sql).strip()

    def run(self, script, *words, **more):
        command = ["sh", str(DEPLOY / "clickhouse" / script), *words]
        return subprocess.run(command, env=self.env | more, capture_output=True, text=True)

    def steps(self):
        sql = "SELECT arrayStringConcat(arraySort(groupArray(step)), ' ') FROM gaia.metrics"
        return self.ask(sql)

    def databases(self):
        wanted = "name LIKE 'gaia%' OR name = 'otel'"
        return self.ask(f"SELECT name FROM system.databases WHERE {wanted} ORDER BY name").split()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with a backup of a database that holds steps 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "backups").mkdir()
    with clickhouse_http.serve(
        folder / "ch", "gaia_admin", schema=False, backups=folder / "backups"
    ) as engine:
        machine = Machine(folder, engine.port)
        assert machine.run("apply-schema.sh").returncode == 0
        machine.ask(INSERT.format(1)), machine.ask(INSERT.format(2))
        machine.ask(f"BACKUP DATABASE gaia TO Disk('backups', '{NAME.removesuffix('.zip')}')")
    return folder / "backups"


def test_a_backup_comes_back_and_no_row_is_lost_on_the_way(saved, tmp_path):
    """On a fresh machine, where up.sh has applied the schema, and every way that may fail."""
    backups = tmp_path / "backups"
    shutil.copytree(saved, backups)
    with clickhouse_http.serve(
        tmp_path / "ch", "gaia_admin", schema=False, backups=backups
    ) as engine:
        machine = Machine(tmp_path, engine.port)
        # A bare server: functions and landing tables are in no backup.
        done = machine.run("restore.sh", NAME)
        assert done.returncode == 0, done.stderr
        assert done.stderr.endswith(f"the database holds {NAME}\n")
        assert machine.steps() == "1 2" and machine.databases() == ["gaia", "otel"]
        functions = "SELECT count() FROM system.functions WHERE name LIKE 'gaia_%'"
        assert machine.ask(functions) == "2"
        machine.ask(INSERT.format(3))
        assert machine.steps() == "1 2 3"

        # Interrupted: the landing tables are gone, so that nothing is accepted, whoever comes.
        done = machine.run("restore.sh", NAME, FAIL_ON="DROP DATABASE IF EXISTS gaia")
        assert done.returncode == 1 and "run it again" in done.stderr
        with pytest.raises(OSError):
            machine.ask(INSERT.format(9))
        refused = machine.run("apply-schema.sh")
        assert refused.returncode == 2 and "run restore.sh again" in refused.stderr
        with pytest.raises(OSError):
            machine.ask(INSERT.format(9))

        # A damaged backup changes nothing, not even what the interrupted one has left.
        damaged = backups / "damaged"
        shutil.copytree(backups / NAME.removesuffix(".zip"), damaged)
        for file in damaged.rglob("data/gaia/points/*/*.bin"):
            file.unlink()
        (tmp_path / "names/damaged.zip").touch()
        done = machine.run("restore.sh", "damaged.zip")
        assert done.returncode == 1
        assert done.stderr.endswith("the database holds what it held before\n")
        assert machine.steps() == "1 2 3" and machine.databases() == ["gaia", "otel"]
        machine.ask(INSERT.format(4))
        assert machine.steps() == "1 2 3 4"

        # In place of a database that is full.
        assert machine.run("restore.sh", NAME).returncode == 0
        assert machine.steps() == "1 2" and machine.databases() == ["gaia", "otel"]
        machine.ask(INSERT.format(5))
        assert machine.steps() == "1 2 5"
        for word in ("absent.zip", "x' y", ""):
            assert machine.run("restore.sh", word).returncode == 2
        assert machine.steps() == "1 2 5"


@pytest.fixture
def called(tmp_path):
    """Runs a script with stand-ins for docker and kubectl; its end, and what they were asked."""
    (tmp_path / "bin").mkdir()

    def call(script, *words, fail="nothing", state="Complete"):
        for name in ("docker", "kubectl"):
            (tmp_path / "bin" / name).write_text(
                f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/calls\n'
                f'case "$*" in *jsonpath*) echo {state} ;; *"apply -f -"*) cat >> {tmp_path}/job ;;'
                ' *--dry-run=client*) echo "[/scripts/restore.sh, NAME_OF_BACKUP]" ;; '
                f'*"{fail}"*) exit 7 ;; esac\n'
            )
            (tmp_path / "bin" / name).chmod(0o755)
        (tmp_path / "calls").write_text("")
        env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "POLL_SECONDS": "0"}
        command = ["bash", DEPLOY / script, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        return done, (tmp_path / "calls").read_text().splitlines()

    return call


def test_the_collector_stands_still_during_a_restore(called):
    done, calls = called("restore.sh", NAME)
    start = "docker compose up --detach --no-deps --no-recreate collector"
    run = f"docker compose run --rm restore {NAME}"
    assert done.returncode == 0 and calls == ["docker compose stop collector", run, start]
    done, calls = called("restore.sh", NAME, fail="run --rm")
    assert done.returncode == 7 and calls[-1] == start
    assert "failed" in done.stderr and "the collector runs again" in done.stderr
    done, calls = called("restore.sh", NAME, fail="compose up")
    assert "the collector is still stopped" in done.stderr
    done, calls = called("restore.sh")
    assert done.returncode == 2 and not calls and done.stderr.count("\n") == 1


def test_so_it_does_on_kubernetes(called, tmp_path):
    done, calls = called("k8s/restore.sh", NAME)
    assert done.returncode == 0, done.stderr
    stop, start = (
        f"kubectl --namespace gaia scale statefulset/collector --replicas {n}" for n in "01"
    )
    assert calls[0] == stop and calls[-1] == start and "wait --for=delete" in calls[2]
    assert (tmp_path / "job").read_text() == f"[/scripts/restore.sh, {NAME}]\n"
    done, calls = called("k8s/restore.sh", NAME, state="Failed")
    assert done.returncode == 1 and calls[-1] == start
    assert "logs job/clickhouse-restore" in done.stderr and "runs again" in done.stderr
    done, calls = called("k8s/restore.sh", "a/b;c")
    assert done.returncode == 2 and not calls
