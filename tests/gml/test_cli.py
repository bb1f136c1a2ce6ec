"""The command line: help, exit codes, JSON, dry runs, and one clear line for every bad input."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gml.cli import listing, terminal
from gml.durations import format_duration, parse_duration
from gml.errors import UsageError
from gml.model import Node, check_id
from gml.remote.secrets import is_secret
from gml.remote.sync import check_dest
from gml.store import Store
from tests.fakes.gml_kit import make_fleet

ROOT = Path(__file__).parents[2]
NODE = ("node", "create", "-p", "google", "--timeout", "1h", "--no-ssh")


def test_the_kept_help_is_the_real_help(gml):
    real = gml("--debug", "node", "--help")
    assert "list-types" in real.stdout
    code = (
        "from gml.cli import entry\n"
        "entry.build()(['--help'], standalone_mode=False, prog_name='gml')\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout == (ROOT / "gml" / "help.txt").read_text(), "run the CLI and save its help"
    shown = gml("--help")
    assert (shown.returncode, shown.stdout) == (0, done.stdout)


def test_the_two_fast_commands_do_not_load_typer(home):
    code = (
        "import sys\nfrom gml.cli import entry\n"
        "entry.run(['--help']); entry.run(['ls', '--cached'])\n"
        "print([m for m in ('typer', 'jax', 'httpx', 'google.auth') if m in sys.modules])\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    "words,code,says",
    [
        (("-t", "v6e-9"), 2, "nearest: "),
        (("-t", "v5p-4x2"), 2, "v5p-16 (2x2x2, 8 chips"),
        (("-t", "v6e-8", "--name", "a; rm -rf /"), 2, "is not usable"),
        (("-t", "v6e-8", "--name", "../../etc"), 2, "is not usable"),
        (("-t", "v6e-8", "--name", "a\nb"), 2, "is not usable"),
        (("-t", "v6e-8", "--name", "A" * 80), 2, "is not usable"),
        (("-t", "v6e-8", "--strategy", "magic"), 2, "auto, gce, flex, queued, node"),
        (("-t", "v6e-16", "--strategy", "node"), 2, "has 4 hosts"),
        (("-t", "tpu7x-8", "--strategy", "flex"), 2, "not served by the TPU API"),
        (("-t", "v6e-8", "--max-price", "1"), 2, "the cheapest is $21.60/h"),
        (("-t", "v6e-8", "--zone", "mars"), 6, "offered nowhere in mars"),
        (("-t", "v6e-8", "--idle", "soon"), 2, "--idle 'soon' is not a duration"),
        ((), 2, "--instance-type is missing"),
    ],
)
def test_bad_input_to_create(server, gml, words, code, says):
    done = gml(*NODE, *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert server.cloud.mutations() == []


@pytest.mark.parametrize(
    "text,says",
    [
        ("", "every machine needs an end"),
        ("3", "not a duration"),
        ("10s", "between 1 minute"),
        ("99d", "between 1 minute"),
        ("3fortnights", "unknown unit"),
    ],
)
def test_timeout_missing_or_absurd(server, gml, text, says):
    done = gml("node", "create", "-t", "v6e-8", "-p", "google", "--timeout", text)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert server.cloud.log == []


def test_dry_run_prints_exactly_what_create_sends(server, gml):
    for strategy in ("node", "queued", "flex", "gce"):
        words = (
            *NODE,
            "-t",
            "v6e-8",
            "--strategy",
            strategy,
            "--zone",
            "us-east5-a",
            "--name",
            "same",
        )
        planned = json.loads(gml(*words, "--dry-run").stdout)["requests"]
        assert server.cloud.mutations() == []
        server.cloud.log.clear()
        assert gml(*words).returncode == 0
        sent = [
            c for c in server.cloud.mutations() if c.method == "POST" and "setLabels" not in c.path
        ]
        assert [p["method"] for p in planned] == [c.method for c in sent]
        assert [p["url"].split("?")[0] for p in planned] == [
            f"{server.url}/{c.service}/{c.path}" for c in sent
        ]

        def scrub(body):
            return {
                k: v
                for k, v in body.items()
                if k in ("runDuration", "acceleratorType", "disks", "machineType")
            }

        assert [scrub(p["body"]).keys() for p in planned] == [scrub(c.body).keys() for c in sent]
        assert gml("node", "delete", "same").returncode == 0
        server.cloud.log.clear()


LOOKS = {"ls", "node list", "node show", "node list-types", "offers", "cost", "doctor", "logs",
         "queue ls", "queue logs"}  # fmt: skip


def test_every_command_takes_json_and_those_that_change_something_dry_run():
    import typer

    from gml.cli import entry

    def leaves(command, path=()):
        children = getattr(command, "commands", None)
        if children is None:
            yield " ".join(path), {o for p in command.params for o in p.opts}
            return
        for name, child in children.items():
            yield from leaves(child, (*path, name))

    found = dict(leaves(typer.main.get_command(entry.build())))
    assert len(found) >= 24 and set(found) >= LOOKS
    assert {n for n, options in found.items() if "--json" not in options} == set()
    assert {n for n, options in found.items() if "--dry-run" not in options} == LOOKS


def test_yes_stands_anywhere_and_nothing_is_assumed_without(server, gml):
    gml(*NODE, "-t", "v6e-8", "--strategy", "node", "--zone", "us-east5-b", "--name", "y")
    asked = gml("node", "timeout", "remove", "y")
    assert (asked.returncode, "add --yes" in asked.stderr) == (2, True), asked.stderr
    for words in (("-y", "node", "timeout", "remove", "y"), ("ls", "--yes", "--refresh")):
        assert gml(*words, "--dry-run" if "remove" in words else "--json").returncode == 0
    # After -- it belongs to the remote command.
    plan = gml("exec", "y", "--dry-run", "--", "apt", "install", "-y")
    assert json.loads(plan.stdout)["command"] == ["apt", "install", "-y"], plan.stderr


def test_overdue_machines_are_named_by_every_command(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "late")
    store = Store(home)
    record = store.get("late")
    store.put(record.replace(deadline=record.created - 600))
    said = gml("cost")
    assert said.returncode == 0 and "late is 10m" in said.stderr and "gml reap" in said.stderr
    assert "past its end" not in gml("node", "delete", "late").stderr
    assert "past its end" not in gml("cost").stderr


def test_json_everywhere_and_json_errors(server, gml):
    made = json.loads(gml(*NODE, "-t", "v6e-8", "--name", "j", "--json").stdout)
    assert (made["id"], made["state"], made["usd_per_hour"]) == ("j", "ready", 21.6)
    assert json.loads(gml("ls", "--json").stdout)["nodes"][0]["id"] == "j"
    assert json.loads(gml("node", "show", "j", "--json").stdout)["left_s"] > 0
    assert json.loads(gml("offers", "v6e-8", "-p", "google", "--json").stdout)[0]["price"] == 21.6
    assert json.loads(gml("cost", "--json").stdout)["nodes"][0]["id"] == "j"
    assert json.loads(gml("reap", "--json").stdout)["kept"] == ["j"]
    assert json.loads(gml("node", "delete", "j", "--json").stdout)[0]["deleted"] is True
    types = json.loads(gml("node", "list-types", "--json").stdout)["types"]
    assert {"v6e-8", "8xH100"} <= {t["type"] for t in types}
    error = gml("node", "show", "nobody", "--json")
    assert (error.returncode, json.loads(error.stdout)["code"]) == (7, 7)


def test_extend_and_reset_say_what_the_provider_allows(server, gml):
    gml(
        *NODE,
        "-t",
        "v6e-8",
        "--strategy",
        "gce",
        "--zone",
        "us-east5-a",
        "--name",
        "g",
        "--limit",
        "2h",
    )
    assert gml("node", "extend", "g", "30m").returncode in (0, 8)
    far = gml("node", "extend", "g", "9h")
    assert (far.returncode, "google itself deletes g at" in far.stderr) == (10, True), far.stderr
    gone = gml("node", "timeout", "remove", "g", "--yes")
    assert (gone.returncode, "can't be removed" in gone.stderr) == (10, True)


def test_lists_flag_orphans_and_losses(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "a")
    gml(*NODE, "-t", "v6e-8", "--name", "b")
    (home / "nodes" / "a.json").unlink()
    cloud = server.cloud
    cloud.resources = {n: r for n, r in cloud.resources.items() if not n.endswith("gml-b")}
    notes = {
        n["id"]: n["note"] for n in json.loads(gml("ls", "--refresh", "--json").stdout)["nodes"]
    }
    assert notes == {"a": "orphan", "b": "lost"}


def test_a_corrupted_record_is_rebuilt_from_the_cloud(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "c")
    for garbage in ("", "{", '{"id": "../x"}', "null", '{"id": "c", "hosts": 3}'):
        (home / "nodes" / "c.json").write_text(garbage)
        done = gml("node", "show", "c", "--json")
        assert done.returncode == 0, (garbage, done.stderr)
        assert json.loads(done.stdout)["type"] == "v6e-8"
    assert gml("node", "delete", "c").returncode == 0
    assert list((home / "nodes").iterdir()) == []


def test_two_clis_at_once(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "l")
    with Store(home).lock("l"):
        busy = gml("node", "delete", "l")
    assert (busy.returncode, f"process {os.getpid()}" in busy.stderr) == (9, True)
    assert gml("node", "delete", "l").returncode == 0


def test_another_owners_node_is_not_deleted(server, gml, monkeypatch, home):
    monkeypatch.setenv("GML_OWNER", "bob")
    gml(*NODE, "-t", "v6e-8", "--name", "bobs")
    monkeypatch.setenv("GML_OWNER", "ada")
    done = gml("node", "delete", "bobs")
    assert (done.returncode, "belongs to bob" in done.stderr) == (4, True), done.stderr
    assert json.loads(gml("ls", "--refresh", "--json").stdout)["nodes"][0]["note"] == ""
    (home / "nodes" / "bobs.json").unlink()
    assert json.loads(gml("ls", "--refresh", "--json").stdout)["nodes"] == []
    assert gml("node", "delete", "bobs").returncode == 7
    server.cloud.offset = 7200
    from gml.reaper import reap

    report = reap(make_fleet(server.cloud.now))
    assert (report.deleted, report.foreign) == ([], 1)
    assert len(server.cloud.billable()) == 1
    report = reap(make_fleet(server.cloud.now), all_owners=True)
    assert [n.id for n in report.deleted] == ["bobs"]


def test_a_name_that_others_use_is_left_alone(server, gml):
    name = "projects/proj-123/locations/us-east5-b/nodes/gml-x"
    server.cloud.put(name, {"name": name, "state": "READY", "labels": {"team": "prod"}})
    done = gml(*NODE, "-t", "v6e-8", "--zone", "us-east5-b", "--name", "x")
    assert (done.returncode, "is not ours" in done.stderr) == (2, True), done.stderr
    server.cloud.drain()
    assert server.cloud.resources[name]["state"] == "READY"


@pytest.mark.parametrize(
    "text,says",
    [
        ("owner = ", "not valid TOML"),
        ("colour = 'red'", "unknown field 'colour'"),
        ("[google]\nprojekt = 'x'", "google.projekt is unknown"),
        ("[google]\nproject = 3", "must be a string"),
        ("owner = 'Ada Lovelace!'", "owner 'Ada Lovelace!' is not usable"),
        ("[local.hosts]\nbox = 'a b'", "local.hosts.box 'a b' is not a host"),
    ],
)
def test_bad_configuration(gml, home, text, says):
    (home / "config.toml").write_text(text)
    done = gml("ls", "--refresh")
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr


def test_state_is_private_and_holds_no_token(server, gml, home):
    gml(*NODE, "-t", "v6e-8", "--name", "p")
    gml("ls", "--refresh")
    from tests.fakes.cloud import TOKEN

    for path in home.rglob("*"):
        if path.is_file():
            assert path.stat().st_mode & 0o077 == 0, path
            assert TOKEN.encode() not in path.read_bytes(), path
    for call in server.cloud.log:
        assert TOKEN not in json.dumps(call.body) and TOKEN not in call.path
    raw = json.dumps([r for r in server.cloud.resources.values()])
    assert TOKEN not in raw and "PRIVATE KEY" not in raw


@settings(max_examples=60, deadline=None)
@given(st.integers(60, 30 * 86400))
def test_durations_round_trip(seconds):
    hours, rest = divmod(seconds, 3600)
    assert parse_duration(f"{hours}h{rest // 60}m{rest % 60}s") == seconds
    assert format_duration(seconds)


def test_documented_durations():
    assert [parse_duration(t) for t in ("3hr", "3h", "90m", "1h30m", "2 days")] == [
        10800, 10800, 5400, 5400, 172800,
    ]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_only_harmless_names_pass(text):
    try:
        check_id(text)
    except UsageError:
        return
    assert text.replace("-", "a").isalnum() and text.islower() and len(text) <= 30


@pytest.mark.parametrize("dest", ["/etc", "../x", "a/../../b", "a b", "$(id)", "-rf", "a\nb", ""])
def test_remote_folders_stay_below_the_home(dest):
    with pytest.raises(UsageError):
        check_dest(dest)


def test_secret_names():
    assert all(is_secret(n) for n in (".env", "a/.env.prod", "x.pem", "k/id_rsa", ".netrc"))
    assert not any(is_secret(n) for n in (".env.example", "env.py", "keys.py", "monkey.md"))


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("fund=false\n# any mirror serves\nomit-lockfile-registry-resolved=true\n", False),
        ("fund=false\n//registry.npmjs.org/:_authToken=npm_x\n", True),
        ("_auth = dTpw\n", True),
        ("registry=https://u:pw@npm.example.org\n", True),
    ],
)
def test_settings_are_secret_where_they_log_in(tmp_path, text, secret):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / ".npmrc").write_text(text)
    assert is_secret("web/.npmrc", tmp_path) is secret
    assert is_secret("web/.npmrc") and is_secret("gone/.npmrc", tmp_path)


def test_listing_formats(capsys):
    node = Node("n", "google", "o", "v6e-8", created=1000, deadline=4600, price=36.0, state="ready")
    listing.show([node, node.replace(id="late", deadline=100)], [], 2800, False)
    out = capsys.readouterr().out
    assert "30m00s" in out and "$18.00" in out and "OVERDUE" in out and "gml reap" in out


def _read_until(fd: int, seen: bytes, what: bytes) -> bytes:
    """A pseudo-terminal hands its text over in pieces, some of them late: one read is not all."""
    while what not in seen:
        assert select.select([fd], [], [], 60)[0], seen
        seen += os.read(fd, 65536)
    return seen


def test_a_log_on_the_terminal_has_no_spinner_in_it(monkeypatch):
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as tty:
        monkeypatch.setattr(sys, "stderr", tty)
        monkeypatch.setattr(sys, "stdout", tty)
        with terminal.Spinner() as progress:
            progress("working")
            seen = _read_until(master, b"", b"working")
            with terminal.streaming(None):
                for text in ("first line", "second line"):
                    print(text, flush=True)
                    time.sleep(0.35)  # three frames of the spinner, were it drawn
                terminal.say("said meanwhile")
        seen = _read_until(master, seen, b"said meanwhile")
    os.close(master)
    log = seen[seen.index(b"first line") : seen.index(b"said meanwhile")]
    assert b"working" not in log and log.split() == [*b"first line second line".split(), b"\x1b[K"]


@pytest.mark.parametrize(
    "line,number,offered",
    [
        ("gml no", 1, ["node"]),
        ("gml node cre", 2, ["create"]),
        ("gml connect ", 2, ["v6e-8-abcde"]),
        ("gml node create --retry", 3, ["--retry-until-up"]),
    ],
)
def test_shell_completion(home, line, number, offered):
    Store(home).put(Node("v6e-8-abcde", "google", "o", "v6e-8", deadline=None))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "_GML_COMPLETE": "complete_bash"}
    env |= {"COMP_WORDS": line, "COMP_CWORD": str(number)}
    done = subprocess.run(
        [sys.executable, "-m", "gml"], capture_output=True, text=True, env=env
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, offered), done.stderr
