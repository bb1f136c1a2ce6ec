"""The command line: what is asked for is done, or one line says why not."""

import contextlib
import http.client
import json
import shutil
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import gaia_metrics
from gaia_metrics import cli, query
from gaia_metrics.importing import event_files
from gaia_metrics.reading import remote
from gaia_metrics.recording import mirror


def record(folder, name="d12", steps=20):
    run = gaia_metrics.init("p", name, dir=folder, system_interval=0)
    for step in range(steps):
        run.log(step, {"train/loss": 100.0 + step})
    run.finish()
    return run.id


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def folders(root):
    return sorted(path.name for path in root.iterdir())


def test_delete_takes_the_folder_that_was_meant(call, tmp_path):
    root = tmp_path / "runs"
    run_id = record(root / "d12")
    shutil.copytree(root / "d12", root / "copy")
    record(root / "zzz", "other")
    for key in (run_id, "d12"):  # an id of two folders; a folder's name and another one's name
        code, _, err = call("delete", key, "--yes")
        assert code == 2 and "runs/copy" in err and "runs/d12" in err
        assert len(err.splitlines()) == 1
    with pytest.raises(gaia_metrics.MetricsError, match="means several"):
        query.connect(root).delete(run_id)
    code, out, _ = call("delete", "copy", "--yes", "--json")
    assert code == 0 and json.loads(out)["deleted"] == [run_id]
    assert folders(root) == ["d12", "zzz"]
    shutil.copytree(root / "d12", root / "copy")
    assert call("delete", "runs/d12", "other", "zzz", "--yes")[0] == 0
    assert folders(root) == ["copy"]
    assert call("delete", "nobody", "--yes")[0] == 2


def test_what_was_not_deleted_is_not_said_to_be(call, tmp_path, monkeypatch):
    run_id = record(tmp_path / "runs/d12")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    for answer, deleted in ((False, []), (True, [run_id])):
        monkeypatch.setattr("typer.confirm", lambda *args, answer=answer, **options: answer)
        _, out, _ = call("delete", "d12", "--json")
        assert json.loads(out)["deleted"] == deleted
    assert folders(tmp_path / "runs") == []


def test_export_writes_the_whole_file_or_says_why_not(call, tmp_path):
    record(tmp_path / "runs/d12")
    code, _, err = call("export", "d12", "-o", "x.csv", "--json")
    assert code == 2 and "give one of them" in err and not (tmp_path / "x.csv").exists()
    for out in ("nodir/x.csv", "nodir/x.parquet", "runs", "/proc/x.csv"):
        code, _, err = call("export", "d12", "-o", out)
        assert code == 2 and len(err.splitlines()) == 1 and f"--out='{out}'" in err
    (tmp_path / "old.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("old.csv")
    assert call("export", "d12", "-o", "link.csv")[0] == 0
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "old.csv").read_text().splitlines()[1].split(",")[1:3] == [
        "train/loss",
        "0.0",
    ]
    assert call("export", "d12", "-o", "/dev/null")[0] == 0
    assert not list(tmp_path.glob("*.tmp"))
    assert call("export", "d12")[1].encode() == (tmp_path / "old.csv").read_bytes()


def test_no_number_collapses_or_turns_what_is_read(call, tmp_path):
    record(tmp_path / "runs/d12")
    code, _, err = call("export", "d12", "--points", "-1")
    assert code == 2 and "--points" in err
    with pytest.raises(gaia_metrics.MetricsError, match="points=-1"):
        query.connect(tmp_path / "runs").series(["d12"], ["train/loss"], points=-1)
    assert call("tail", "d12", "-n", "0") == (0, "", "")
    assert call("tail", "d12", "-n", "-3")[0] == 2
    assert [len(call("tail", "d12", "-n", n)[1].splitlines()) for n in (1, 20, 99)] == [1, 20, 20]


class Events:
    """Stands for TensorBoard's loader: a file of events holds the word."""

    def __init__(self, path):
        self.path = path

    def Load(self):
        session = SimpleNamespace(status=0)
        summary = SimpleNamespace(value=[])
        if "events" in Path(self.path).read_text():
            yield SimpleNamespace(
                ByteSize=lambda: 0, wall_time=1.7e9, session_log=session, step=0, summary=summary
            )


def test_what_holds_no_event_is_no_run(call, tmp_path, monkeypatch):
    modules = SimpleNamespace(EventFileLoader=Events, make_ndarray=None, HParamsPluginData=None)
    extra = SimpleNamespace(import_module=lambda name: modules)
    monkeypatch.setattr(event_files, "importlib", extra)
    monkeypatch.setattr(mirror, "installed", lambda package: True)
    (tmp_path / "logs/a").mkdir(parents=True)
    (tmp_path / "logs/a/tfevents.1").write_text("hostname")
    code, _, err = call("import", "tensorboard", "logs/a/tfevents.1")
    assert code == 2 and "holds no readable event" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    (tmp_path / "logs/b").mkdir()
    (tmp_path / "logs/b/tfevents.2").write_text("events")
    code, out, _ = call("import", "tensorboard", "logs", "--json")
    assert code == 0 and "holds no readable event" in json.loads(out)[0]["status"]
    assert folders(tmp_path / "runs") == ["b"]
    code, _, err = call("import", "tensorboard", "logs/b", "--dir", "/proc/runs")
    assert code == 2 and "/proc/runs cannot be written" in err and len(err.splitlines()) == 1


@contextlib.contextmanager
def answering(answer):
    """The address of a server that gives these bytes and closes, whatever it is asked.

    It reads the whole request first: a close over unread bytes resets the connection, and the
    answer is lost with it.
    """

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with connection, connection.makefile("rb") as request:
                    headers = http.client.parse_headers(request) if request.readline() else {}
                    request.read(int(headers.get("Content-Length", 0)))
                    connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"clickhouse://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def plain(status, body):
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body


LIMIT = b"Code: 396. DB::Exception: Limit for result exceeded. (TOO_MANY_ROWS_OR_BYTES)"
FEWER = "ask for fewer runs or metrics, or for --points N"


@pytest.mark.parametrize(("answer", "said"), [
    (b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n[\"a\"]\r\n", "IncompleteRead"),
    (b"no HTTP at all\r\n\r\n", "BadStatusLine"),
    (plain(200, b""), "ends its answer early: it is cut short"),
    (plain(200, b'["run"]\n["String"]\n["x"'), "ends its answer early: it is cut short"),
    (plain(200, b'["run"]\n["String"]\n["x"]\n' + LIMIT), FEWER),
    (plain(500, LIMIT), FEWER),
    *((plain(500, b"Code: %d. x" % code), FEWER) for code in (158, 159, 201, 202, 241)),
    (plain(403, b"Code: 516. DB::Exception: x"), "GAIA_CLICKHOUSE_PASSWORD"),
    (plain(403, b"Code: 497. DB::Exception: x"), "grants"),
    (b"HTTP/1.1 500 x\r\nContent-Length: 999\r\n\r\nCode: 396. DB", FEWER),
])  # fmt: skip
def test_whatever_the_database_answers_is_one_line(call, answer, said):
    with answering(answer) as where:
        code, _, err = call("ls", "--dir", where)
    assert code == 2 and len(err.splitlines()) == 1 and said in err and "unexpected" not in err


@pytest.mark.parametrize("where", ["h:abc", "[h", "", ":8123", "h:99999"])
def test_an_address_that_is_none_is_one_line(call, where):
    code, _, err = call("ls", "--dir", f"clickhouse://{where}")
    assert code == 2 and len(err.splitlines()) == 1 and "clickhouse://HOST:PORT" in err


def test_later_stages_in_folders_of_a_run_are_runs(call, tmp_path):
    root = tmp_path / "runs"
    ids = {record(root / place, name) for place, name in (("d12", "d12"), ("d12/sft", "d12-sft"))}
    for hidden in ("metrics", "mirrors", "checkpoints"):  # these hold no runs, but many files
        shutil.copytree(root / "d12/sft", root / "d12" / hidden / "copy")
    (root / "d12/sft/self").symlink_to(root / "d12")
    for where in (root, root / "d12"):
        code, out, _ = call("ls", "-d", where, "--json")
        assert code == 0 and {row["run"] for row in json.loads(out)} == ids
        assert len(json.loads(out)) == 2
    assert call("show", "sft")[0] == call("export", "d12-sft")[0] == 0
    assert len(json.loads(call("compare", "d12", "sft", "--json")[1])) == 2
    shutil.rmtree(root / "d12/checkpoints")
    assert call("delete", "d12", "--yes")[0] == 0  # the base run alone
    assert [row["name"] for row in json.loads(call("ls", "--json")[1])] == ["d12-sft"]
    assert call("delete", "sft", "--yes")[0] == 0
    assert json.loads(call("ls", "--json")[1]) == []


def test_tail_follows_a_run_on_another_machine(call, tmp_path, monkeypatch):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(remote, "REFRESH_S", 0.0)
    record(tmp_path / "there/d12", steps=3)
    pauses = iter(range(3, 6))

    def pause(_):
        step = next(pauses, None)
        if step is None:
            raise KeyboardInterrupt
        with open(tmp_path / "there/d12/metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "time": 1.0, "train/loss": 1.0}) + "\n")

    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=pause))
    code, out, err = call("tail", "d12", "-f", "--json", "-d", f"file://{tmp_path}/there")
    assert (code, err) == (130, "")
    assert [json.loads(line)["step"] for line in out.splitlines()] == list(range(6))


def test_tail_leaves_out_a_line_that_a_disk_has_changed(call, tmp_path):
    record(tmp_path / "runs/d12", steps=4)
    path = tmp_path / "runs/d12/metrics.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(rows[0] + rows[1].replace(b"{", b"[") + b"3\n\xff\n" + rows[2] + rows[3][:-1])
    code, out, err = call("tail", "d12", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["step"] for line in out.splitlines()] == [0, 2]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", {"attempts": [{"attempt": 1}]}),
        ("run.json", {"attempts": [{"started": "noon", "host": "h"}]}),
        ("run.json", {"attempts": 3}),
        ("run.json", {"git": []}),
        ("status.json", {"time": "noon"}),
        ("status.json", {"latest": []}),
    ],
)
def test_a_run_without_its_facts_is_listed_as_damaged(call, tmp_path, name, change):
    record(tmp_path / "runs/good")
    record(tmp_path / "runs/bad")  # of the same name
    path = tmp_path / "runs/bad" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    code, out, err = call("ls", "--json")
    assert (code, err) == (0, "")
    rows = {row["path"].rpartition("/")[2]: row for row in json.loads(out)}
    assert (rows["good"]["status"], rows["bad"]["status"]) == ("finished", "damaged")
    assert "runs/bad has no whole run.json" in rows["bad"]["problem"]
    assert call("show", "d12")[0] == 0


def test_two_readers_fill_one_mirror_in_turn(tmp_path, monkeypatch):
    monkeypatch.setenv("GAIA_HOME", str(tmp_path / "home"))
    record(tmp_path / "there/d12")
    address, met, both = f"file://{tmp_path}/there", [], threading.Barrier(2)
    copy = remote.RemoteSource._copy

    def copying(self):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.3)
            met.append(self)
        copy(self)

    monkeypatch.setattr(remote.RemoteSource, "_copy", copying)
    names = []
    readers = [
        threading.Thread(target=lambda: names.append(query.connect(address).runs()[0]["name"]))
        for _ in range(2)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert names == ["d12", "d12"] and not met
