"""Several real processes on loopback (gloo): one run, whatever their number and whoever is hit.

What the batches hold is compared bit for bit through a hash that each process writes of the rows
it was given; losses agree to 1e-5, as sums over rows are added in another order.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import runs

STEPS = 60

# The trainer as it is, with a note of every batch: step and, for each row, a hash of its tokens.
NOTING = """
import hashlib, json, sys
import gchat.train, gchat.run.training_data
from gaia.errors import run_cli
notes = open(sys.argv[1], "a")
def noting(make):
    def noting_loader(*args, **kwargs):
        loader = make(*args, **kwargs)
        if "rows_here" not in kwargs:  # the rows of the n-gram baselines
            return loader
        batch, rows = loader.batch, kwargs["rows_here"].tolist()
        def noted(step):
            made = batch(step)
            hashes = [hashlib.sha256(row.tobytes()).hexdigest()[:12] for row in made.inputs_BT]
            print(json.dumps([step, rows, hashes]), file=notes, flush=True)
            return made
        loader.batch = noted
        return loader
    return noting_loader
for name in ("make_loader", "make_lane_loader"):
    data = gchat.run.training_data
    setattr(data, name, noting(getattr(data, name)))
sys.exit(run_cli("gchat", gchat.train.run, sys.argv[2:]))
"""


PROMPTS = ("the small",)


def arguments(data_dir, run_dir, *more, prompts=()):
    """Arguments of the run; a folder without a manifest is trained on as text."""
    if not (data_dir / "manifest.json").exists():
        tokenizer = data_dir / "tokenizer.json"
        more = ("--data.text", data_dir / "*.jsonl", "--data.tokenizer", tokenizer, *more)
    args = runs.arguments(data_dir, run_dir, *more, steps=STEPS, prompts=prompts)
    for name, value in {"--model.dropout": "0.0", "--checkpoint.every-steps": "0"}.items():
        args[args.index(name) + 1] = value
    if "--data.text" in args:
        at = args.index("--data-dir")
        del args[at : at + 2]
    return args


started = []


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """A failed test leaves processes that wait for one another."""
    yield
    while started:
        process = started.pop()
        process.kill()
        process.wait()


class Team:
    """All processes of one start; what each printed is collected by a thread."""

    def __init__(self, count, args, env, notes, by_flags=False, cwd=lambda i: None):
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
        self.out, self._new = [[] for _ in range(count)], threading.Condition()
        self.processes, self._threads = [], []
        for i in range(count):
            names = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(i),
            }
            flags = ["--coordinator", address, "--num-processes", count, "--process-id", i]
            alone = count == 1
            process = subprocess.Popen(
                [sys.executable, "-c", NOTING, str(notes / f"{os.urandom(4).hex()}.jsonl")]
                + [*(args(i) if callable(args) else args)]
                + [str(f) for f in flags if by_flags and not alone],
                env=env if by_flags or alone else env | names,
                cwd=cwd(i),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self.processes.append(process)
            started.append(process)
            self._threads.append(threading.Thread(target=self._read, args=(i,), daemon=True))
            self._threads[-1].start()

    def _read(self, i):
        with self.processes[i].stdout as output:
            for line in output:
                with self._new:
                    self.out[i].append(line.rstrip("\n"))
                    self._new.notify_all()
        with self._new:
            self.out[i].append(None)
            self._new.notify_all()

    def step_reached(self, step):
        """Waits until process 0 printed a step; False if it ended before."""
        with self._new:
            while True:
                steps = [re.match(r"step (\d+)/", line or "") for line in self.out[0]]
                if any(m and int(m[1]) >= step for m in steps):
                    return True
                if None in self.out[0]:
                    return False
                self._new.wait()

    def end(self):
        """Exit statuses, once all have ended."""
        statuses = [p.wait() for p in self.processes]
        for thread in self._threads:
            thread.join()
        return statuses

    def text(self, i):
        return "\n".join(line for line in self.out[i] if line is not None)


def order_of(notes):
    """{step: hashes of the whole batch, in order}; a step seen twice must have been the same."""
    seen = {}
    for path in notes.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            step, rows, hashes = json.loads(line)
            batch = seen.setdefault(step, {})
            for row, value in zip(rows, hashes, strict=True):
                assert batch.setdefault(row, value) == value, (step, row)
    return {step: [seen[step][row] for row in sorted(seen[step])] for step in seen}


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory, user_environment):
    """The same run by one process, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    team = Team(1, arguments(data_dir, folder / "run", prompts=PROMPTS), user_environment, folder)
    assert team.end() == [0], team.text(0)
    return folder


def chain(counts, data_dir, folder, env, prompts=PROMPTS):
    """Trains with counts[0] processes, SIGTERMs one, goes on with counts[1], …; to the end."""
    args = arguments(data_dir, folder / "run", "--log-interval", "1", prompts=prompts)
    for k, count in enumerate(counts):
        last = k == len(counts) - 1
        team = Team(count, [*args, *(["--resume"] if k else [])], env, folder, by_flags=k % 2 == 1)
        if not last:
            saved = int(runs.newest(folder / "run").name) if k else 0
            assert team.step_reached(saved + 5), team.text(0)
            team.processes[-1].send_signal(signal.SIGTERM)
        assert team.end() == [0] * count, "\n".join(team.text(i) for i in range(count))
        newest = int(runs.newest(folder / "run").name)
        if last:
            assert newest == STEPS
        else:
            assert f"stopped after step {newest} of {STEPS} and saved" in team.text(0)
        for i in range(1, count):  # only process 0 talks, but for the signal's own line
            lines = [line for line in team.out[i] if line and not line.startswith("[Gloo]")]
            assert all("finishing this step" in line for line in lines), lines
    return folder


def check_same(alone, folder, samples=True):
    expected, got = order_of(alone), order_of(folder)
    assert {s: got[s] for s in range(STEPS)} == {s: expected[s] for s in range(STEPS)}
    a, b = runs.losses(alone / "run"), runs.losses(folder / "run")
    assert list(a) == list(b) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=1e-5)
    validated = [
        {r["step"]: r["eval/val_loss"] for r in runs.logged(f / "run") if "eval/val_loss" in r}
        for f in (alone, folder)
    ]
    assert validated[0].keys() == validated[1].keys()
    np.testing.assert_allclose(list(validated[1].values()), list(validated[0].values()), rtol=1e-4)
    if not samples:
        return
    texts = [(f / "run" / "samples.txt").read_text() for f in (alone, folder)]
    assert texts[0].count("step 60") == texts[1].count("step 60") == 1


def test_two_processes_stop_and_one_goes_on(alone, data_dir, tmp_path, user_environment):
    """Without samples, for which each process would compile the engine: the slow ones take them."""
    ended = chain([2, 1], data_dir, tmp_path, user_environment, prompts=())
    check_same(alone, ended, samples=False)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [[4, 1], [4, 2, 4], [2, 4], [1, 2, 2], [4, 4]])
def test_any_number_of_processes_goes_on(alone, data_dir, tmp_path, user_environment, counts):
    check_same(alone, chain(counts, data_dir, tmp_path, user_environment))


@pytest.mark.slow
def test_text_is_tokenized_by_any_number_of_processes(data_dir, tmp_path, user_environment):
    """Each tokenizes what its own rows lie in; the batches are those of one process."""
    corpus, rng = tmp_path / "corpus", np.random.default_rng(2)
    corpus.mkdir()
    words = runs.TEXT.split()
    texts = [" ".join(rng.choice(words, size=rng.integers(20, 90))) for _ in range(2000)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    assert len(lines) > 8 * 65536  # units of 64 KiB, so that there are four lanes
    (corpus / "a.jsonl").write_text(lines)
    shutil.copy(data_dir / "tokenizer.json", corpus)
    folders = [tmp_path / name for name in ("one", "several")]
    for folder in folders:
        folder.mkdir()
    team = Team(
        1, arguments(corpus, folders[0] / "run", prompts=PROMPTS), user_environment, folders[0]
    )
    assert team.end() == [0], team.text(0)
    check_same(folders[0], chain([2, 4, 1], corpus, folders[1], user_environment))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(data_dir, tmp_path, user_environment, victim):
    args = arguments(data_dir, tmp_path / "run", "--checkpoint.every-steps", "5")
    args += ["--log-interval", "1", "--max-steps", "100000"]
    team = Team(2, args, user_environment, tmp_path, by_flags=True)
    assert team.step_reached(12), team.text(0)
    team.processes[victim].kill()
    statuses = team.end()
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] != 0
    team = Team(1, [*args, "--resume"], user_environment, tmp_path)
    assert team.step_reached(14), team.text(0)
    team.processes[0].send_signal(signal.SIGTERM)
    assert team.end() == [0], team.text(0)


def mistaken(team, run_dir):
    """Errors of two processes that cannot work: one line, with nothing written."""
    statuses = team.end()
    assert statuses[0] == 2 and statuses[1] != 0, team.text(0) + team.text(1)
    texts = [team.text(0), team.text(1)]
    assert not any("Traceback" in text for text in texts)
    assert not (run_dir / "config.yaml").exists()
    return texts


@pytest.mark.slow
def test_a_host_without_the_data_is_named(data_dir, tmp_path, user_environment):
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    (tmp_path / "0" / "here").symlink_to(data_dir)
    args = arguments(data_dir, tmp_path / "run", "--data-dir", "here")
    team = Team(2, args, user_environment, tmp_path, cwd=lambda i: tmp_path / str(i))
    said = mistaken(team, tmp_path / "run")
    assert "process 1 failed: " in said[0] and "here" in said[0]
    assert "gchat: " in said[1] and "here" in said[1]


@pytest.mark.slow
def test_a_batch_that_does_not_divide_over_the_hosts(data_dir, tmp_path, user_environment):
    args = arguments(data_dir, tmp_path / "run", "--batch-size", "5")
    said = mistaken(Team(2, args, user_environment, tmp_path), tmp_path / "run")
    assert all("rows per micro-batch is 5, which does not divide over" in text for text in said)


@pytest.mark.slow
def test_a_checkpoint_folder_of_one_host_only(data_dir, tmp_path, user_environment):
    args = arguments(data_dir, tmp_path / "run", "--checkpoint-dir", "checkpoints")
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    team = Team(2, args, user_environment, tmp_path, cwd=lambda i: tmp_path / str(i))
    said = mistaken(team, tmp_path / "run")
    assert all("is not the same folder on process 1" in text for text in said)
