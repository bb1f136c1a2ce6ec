"""Sweeps: what they read, what they train, and that nothing is trained twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from gaia.errors import ConfigError
from gaia.writer_lock import FolderInUse, WriterLock
from gchat.__main__ import main
from gchat.research import cells, source_tree, sweep
from gchat.research.cells import Result
from gchat.research.source_tree import Code
from gchat.research.sweep_file import read_sweep

ROOT = Path(__file__).parents[3]


def written(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("variants: {main: {}}\nvariant: 1", "perhaps you meant variants"),
        ("variants: {wide: {model.dimm: 64}}", "variant wide: unknown option --model.dimm"),
        ("set: {trainin.tokens: 5}\nvariants: {main: {}}", "training.tokens"),
        ("variants: {}", "names no variants"),
        ("variants: [main]", "variants is"),
        ("variants: {main: {}}\nseeds: [1, 1]", "seeds is [1, 1]; give one or more, each once"),
        ("variants: {main: {}}\nseeds: []", "seeds is []; give one or more"),
        ("variants: {main: {}}\nseeds: [1, -2]", "seeds has -2; use 0 to 4294967295"),
        ("variants: {1: {}, '1': {model.depth: 2}}", "one name twice, as a word and as a number"),
        ("set: {data.text: x}\nvariants: {main: {}}", "the field data.text is given; use --data"),
        ("variants: {main: {}, main: {model.depth: 2}}", "the key 'main' is given twice"),
        ("variants: {main: {}}\nseeds: 3", "a list of whole numbers"),
        ("variants: {main: {}}\nearly_stop: {at: 0.5}", "lacks behind"),
        ("variants: {main: {}}\nearly_stop: {at: 2, behind: 1}", "early_stop.at is 2"),
        ("variants: {main: {}}\nearly_stop: {at: half, behind: 1}", "early_stop.at is 'half'"),
        ("variants: {main: {}}\nset: [x]", "set is ['x']"),
        ("variants: {main: {}}\npreset: cpuu", "cpuu"),
        ("variants: {main: {model.depth: two}}", "variant main"),
        ("variants: {main: {training.seed: 9}}", "the field training.seed is given; use --seeds"),
        ("set: {run.dir: x}\nvariants: {main: {}}", "the field run.dir is given"),
        ("set: {checkpoint.dir: x}\nvariants: {main: {}}", "keeps checkpoints of its own"),
        ("variants: {main: {run.mirror: x}}", "would mix their files"),
        ("variants: {big: {data.vocab_size: 512}}", "data.vocab_size is set; move it to `set`"),
        ("variants: {a: {}}\nsizes: {x: {data.source: docs}}", "a sweep has one data set"),
        ("data: d\nset: {data.tokenizer: bpe}\nvariants: {main: {}}", "`data` names a prepared"),
        (
            "variants: {main: {}}\nsizes: {d2: {data-dir: x}}",
            "the field data-dir is given; use --data",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, named):
    with pytest.raises(ConfigError) as refused:
        read_sweep(written(tmp_path, text))
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_cells_are_told_apart_by_what_decides_them():
    code = Code("/x", "c" * 40)
    base = cells.Cell("a", "", 1, ("cpu",), code, "data", "d")
    others = [
        cells.Cell("a", "", 2, ("cpu",), code, "data", "d"),
        cells.Cell("a", "", 1, ("cpu", "--depth=2"), code, "data", "d"),
        cells.Cell("a", "", 1, ("cpu",), Code("/x", "c" * 40, "dirty"), "data", "d"),
        cells.Cell("a", "", 1, ("cpu",), code, "data", "e"),
    ]
    assert len({base.id, *(cell.id for cell in others)}) == 5
    begun = cells.Cell("a", "", 1, ("cpu",), code, "data", "d", start_hash="s")
    of_preset = cells.Cell("a", "", 1, ("cpu",), code, "data", "d", preset_hash="s")
    assert len({base.id, begun.id, of_preset.id}) == 3
    assert base.id == "89337e94dd93"  # results that are there already keep their names
    moved = cells.Cell("b", "d2", 1, ("cpu",), Code("/y", "c" * 40), "elsewhere", "d")
    assert moved.id == base.id


@pytest.fixture
def clone(tmp_path):
    """A committed clone of one package, with a training that is only said to be one."""
    root = tmp_path / "clone"
    (root / "gchat").mkdir(parents=True)
    (root / "requirements").mkdir()
    (root / "requirements" / "cpu.txt").write_text("jax\n")
    (root / "gchat" / "model.py").write_text("import os, beside.x\n")
    (root / "gchat" / "train.py").write_text("print('a word')\n")
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q"), ("add", "-A"), (*author, "commit", "-qm", "main")):
        subprocess.run(["git", "-C", root, *words], check=True)
    return root


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        *((f"gchat/{name}", True) for name in ("train.py", "new.py", "configs/new.yaml")),
        *((name, False) for name in ("sweep.yaml", "docs/notes.py", "gchat/NOTES.md")),
        ("pyproject.toml", True),
        ("requirements/cpu.txt", True),
        ("beside/x.py", True),
        ("below/x.py", True),
        ("alone.py", False),
    ],
)
def test_only_what_decides_a_training_is_another_code(clone, name, counts):
    (clone / "beside").mkdir()
    (clone / "beside" / "x.py").write_text("from below import x\n")
    before = source_tree.code_at(clone)
    (clone / name).parent.mkdir(exist_ok=True)
    (clone / name).write_text("from below import x\nother = 1\n")
    assert (source_tree.code_at(clone) != before) is counts


def test_a_tree_that_imports_nothing_beside_it_keeps_its_name(clone):
    (clone / "tests.py").write_text("import gchat\n")
    assert not source_tree.code_at(clone).changes


def test_a_preset_s_content_is_part_of_a_cell(data_dir, tmp_path):
    def ids(**of_preset):
        preset.write_text(yaml.safe_dump(of_preset))
        file = written(tmp_path, "preset: mine.yaml\nvariants: {main: {}}\nseeds: [1]")
        code, data = Code("/x", "c" * 40), str(data_dir)
        return [cell.id for cell in read_sweep(file)[0].cells(code, data)]

    preset, base = tmp_path / "mine.yaml", tmp_path / "below.yaml"
    first = ids(base="cpu", model={"depth": 2})
    assert ids(model={"depth": 2}, base="cpu") == first
    assert ids(base="cpu", model={"depth": 3}) != first
    base.write_text("model: {depth: 2}")
    below = ids(base="below")
    base.write_text("model: {depth: 3}")
    assert ids(base="below") != below


def test_a_mixture_s_content_is_part_of_a_cell(data_dir, tmp_path):
    """Named in a preset or by a variant; the data set beside it gives tokenizer and validation."""
    one, two = (shutil.copytree(data_dir, tmp_path / name) for name in ("one", "two"))
    preset = tmp_path / "mine.yaml"
    preset.write_text(yaml.safe_dump({"base": "cpu", "data": {"mixture": {"a": str(one)}}}))
    mixed = ("cpu", "--data.mixture", "a", str(two), "b", str(data_dir), "--model.depth=2")

    def hashes():
        data = str(data_dir)
        return [cells.data_hash(data, words) for words in ((), ("cpu",), (str(preset),), mixed)]

    first = hashes()
    assert first[0] == first[1] and len({*first}) == 3
    for place, changed in ((one, [2]), (two, [2, 3])):
        with (place / "manifest.json").open("a") as file:
            file.write("\n")
        assert [i for i in range(4) if hashes()[i] != first[i]] == changed


@pytest.mark.parametrize("changed", ["train.py", "mine.yaml", "data"])
def test_a_cell_trains_nothing_but_what_its_identity_says(clone, data_dir, tmp_path, changed):
    """Code, preset and data may be changed while the cells before it train."""
    preset, code = tmp_path / "mine.yaml", clone / "gchat" / "train.py"
    preset.write_text("model: {depth: 2}")
    digest, data = cells.preset_hash([str(preset)]), shutil.copytree(data_dir, tmp_path / "data")
    given = (str(data), cells.data_hash(str(data)), digest)
    wanted = [
        cells.Cell("a", "", seed, (str(preset),), source_tree.code_at(clone), *given)
        for seed in (1, 2)
    ]

    def say(line):
        if line.startswith("  "):  # what became of the first cell
            if changed == "data":
                with (data / "manifest.json").open("a") as file:
                    file.write("\n")
            else:
                (preset if changed == preset.name else code).write_text("model: {depth: 3}")

    with pytest.raises(ConfigError, match=f"(clone|{changed}).* has changed since this began"):
        sweep.run_cells(wanted, tmp_path / "out", say=say)
    kept = cells.read_results(tmp_path / "out" / "results.jsonl")
    assert list(kept) == [wanted[0].id]


def test_code_that_is_edited_while_a_cell_starts_is_not_recorded_as_it_was(
    clone, data_dir, tmp_path
):
    """In place of the user: the training itself, which is too short to be looked at."""
    code, said = clone / "gchat" / "train.py", []
    code.write_text("import sys\nfrom pathlib import Path\n"
                    "Path(sys.argv[sys.argv.index('--run-dir') + 1]).mkdir(parents=True)\n"
                    "Path('gchat/model.py').write_text('edited = 1')\n")  # fmt: skip
    data = (str(data_dir), cells.data_hash(str(data_dir)))
    cell = cells.Cell("a", "", 1, ("cpu",), source_tree.code_at(clone), *data)
    with pytest.raises(sweep.Changed, match="clone has changed since this began"):
        sweep.run_cells([cell], tmp_path / "out", say=said.append)
    assert not cells.read_results(tmp_path / "out" / "results.jsonl")
    assert not (tmp_path / "out" / "cells" / cell.name).exists()


@pytest.mark.parametrize("edited_at", [0, 2])
def test_only_edits_before_the_first_step_are_another_training(
    clone, data_dir, tmp_path, monkeypatch, edited_at
):
    def train(cell, place, *, watch):
        for number, tokens in enumerate((0, 32, 64)):
            if number == edited_at:
                (clone / "gchat" / "train.py").write_text("other = 1\n")
                (place / "checkpoints" / "64").mkdir(parents=True)
            watch(result(tokens=tokens))
        return result(id=cell.id)

    monkeypatch.setattr(cells, "run_cell", train)
    data = (str(data_dir), cells.data_hash(str(data_dir)))
    cell = cells.Cell("a", "", 1, ("cpu",), source_tree.code_at(clone), *data)
    before = tmp_path / "out" / "cells" / cell.name / "checkpoints" / "32"
    before.mkdir(parents=True)
    if edited_at:
        assert sweep.run_cells([cell], tmp_path / "out", say=lambda line: None)
    else:
        with pytest.raises(sweep.Changed):
            sweep.run_cells([cell], tmp_path / "out", say=lambda line: None)
        # What was saved before is still of this code.
        assert [path.name for path in before.parent.iterdir()] == ["32"]


def result(**given):
    values = {"id": "i", "variant": "v", "size": "", "seed": 1, "status": "done", "bpb": 2.0}
    return Result(**values | {"tokens": 100, "flops": 1.0, "seconds": 1.0} | given)


def test_results_survive_a_torn_line(tmp_path):
    path = tmp_path / "results.jsonl"
    cells.append_result(path, result())
    with path.open("a") as file:
        file.write('{"id": "torn", "vari')
    cells.append_result(path, result(id="j"))
    assert set(cells.read_results(path)) == {"i", "j"}


def test_only_what_is_far_behind_is_stopped():
    stop = sweep.EarlyStop(at=0.5, behind=0.1)
    reference = result(curve=[[0, 0, 0, 4.0], [50, 0, 0, 3.0], [100, 0, 0, 2.0]])
    assert not stop.ends(result(curve=[[49, 0, 0, 9.0]]), reference)
    assert not stop.ends(result(curve=[[50, 0, 0, 3.05]]), reference)
    assert stop.ends(result(curve=[[50, 0, 0, 3.2]]), reference)
    assert not stop.ends(result(curve=[[50, 0, 0, 3.2]]), None)


def run_again(monkeypatch, tmp_path, cell, kept, stop=None):
    """Results of a sweep of one cell of which a line is there; training it gives 1.0."""
    cells.append_result(tmp_path / sweep.RESULTS, kept)
    monkeypatch.setattr(sweep, "_check_unchanged", lambda cell: None)
    monkeypatch.setattr(cells, "run_cell", lambda cell, *_, **__: result(id=cell.id, bpb=1.0))
    return sweep.run_cells([cell], tmp_path, early_stop=stop, say=lambda line: None)


def test_a_result_is_shown_under_the_name_that_its_variant_has_now(monkeypatch, tmp_path):
    cell = cells.Cell("old", "d2", 1, (), Code("/x", "c" * 40), "data", "d")
    kept = result(id=cell.id, variant="main")
    (again,) = run_again(monkeypatch, tmp_path, cell, kept)
    assert (again.variant, again.size, again.bpb) == ("old", "d2", 2.0)


def test_two_variants_of_one_identity_are_trained_once(monkeypatch, tmp_path):
    """`gchat compare main .` where nothing has changed."""
    code, trained = Code("/x", "c" * 40), []

    def train(cell, *_, **__):
        trained.append(cell.name)
        return result(id=cell.id, variant=cell.variant)

    monkeypatch.setattr(sweep, "_check_unchanged", lambda cell: None)
    monkeypatch.setattr(cells, "run_cell", train)
    wanted = [cells.Cell(name, "", seed, (), code, "data", "d")
              for seed in (1, 2) for name in ("main", ".")]  # fmt: skip
    ended = sweep.run_cells(wanted, tmp_path, say=lambda line: None)
    assert [cell.split("-")[0] for cell in trained] == ["main", "main"]
    assert [one.variant for one in ended] == ["main", ".", "main", "."]


def test_what_was_stopped_early_goes_on_where_nothing_stops_it_now(monkeypatch, tmp_path):
    cell = cells.Cell("idea", "", 1, (), Code("/x", "c" * 40), "data", "d")
    (again,) = run_again(monkeypatch, tmp_path, cell, result(id=cell.id, status="stopped"))
    assert again.bpb == 1.0


@pytest.mark.parametrize(
    ("action", "code", "status"),
    [("stop", 1, "diverged"), ("skip", 1, "failed"), ("stop", -9, "failed")],
)
def test_only_a_bad_step_that_ended_a_training_is_divergence(tmp_path, action, code, status):
    (tmp_path / "bad_steps.jsonl").write_text(json.dumps({"step": 3, "action": action}) + "\n")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    log = tmp_path / "log"
    log.write_text("gchat: the last word\n")
    assert cells._judge(cell, tmp_path, log, code, "").status == status


@pytest.mark.parametrize("saved", [False, True])
def test_nothing_trains_beside_a_training_that_outlived_its_sweep(tmp_path, saved):
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    run = tmp_path / "run"
    with WriterLock(run / cells.LOCK, "a training"):
        (run / "metrics.jsonl").write_text("{}")
        if saved:
            (run / "checkpoints" / "20").mkdir(parents=True)
        with pytest.raises(FolderInUse, match=f"is being written by process {os.getpid()}"):
            cells.run_cell(cell, run)
    assert (run / "metrics.jsonl").exists()
    assert not (tmp_path / "run.log").exists()


def ended(run, *lines, attempts=(), **summary):
    """The result of a training that wrote these lines to its log and ended well."""
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "run.json").write_text(json.dumps({"attempts": list(attempts)}))
    (run / "summary.json").write_text(json.dumps({"finished": True} | summary))
    (run / "config.yaml").write_text("{}")
    (run / "log").write_text("")
    cell = cells.Cell("a", "", 1, (), Code(str(run), "c" * 40), "data", "d")
    return cells._judge(cell, run, run / "log", 0, "")


def step(number, seconds, step_ms=1000.0, **more):
    values = {"train/tokens": 32.0 * number, "train/seconds": seconds, "perf/step_ms": step_ms}
    return {"step": number, "time": 1.0} | values | more


@pytest.mark.parametrize(
    ("first", "last", "status", "bpb"),
    [(3.0, 2.0, "done", 2.0), (3.0, "NaN", "diverged", None), ("NaN", "NaN", "diverged", None)],
)
def test_an_earlier_evaluation_does_not_pass_for_the_last_one(tmp_path, first, last, status, bpb):
    values = [{"eval/val_bpb": value} for value in (first, last)]
    done = ended(tmp_path / "run", step(1, 9.0, **values[0]), step(2, 10.0, **values[1]))
    assert (done.status, done.bpb) == (status, bpb)
    assert ("not finite" in sweep._outcome(done)) is (status == "diverged")


def test_every_start_of_a_training_is_left_out_of_its_time(tmp_path):
    """Steps take a second; the first waits nine for the compiler, and that after a kill four."""
    steps = [step(1, 10.0, 9000.0), step(2, 11.0), step(3, 12.0), step(4, 17.0, 5000.0)]
    steps.append(step(5, 18.0, **{"eval/val_bpb": 2.0}))
    attempts = [{"resume_step": number} for number in (0, 3, 3)]
    done = ended(tmp_path / "run", *steps, attempts=attempts)
    assert (done.seconds, done.start_seconds) == (18.0, 14.0)


def test_a_result_says_what_device_it_was_trained_on(tmp_path):
    last = step(1, 9.0, **{"eval/val_bpb": 2.0})
    done = ended(tmp_path / "run", last, device="1 x NVIDIA H200")
    assert done.machine["device"] == "1 x NVIDIA H200" and done.machine["jax"]
    assert "device" not in ended(tmp_path / "older", last).machine


WAITS = """import signal, sys, time
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir()
def stop(*_):
    (run / "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
(run / "begun").touch()
until = time.monotonic() + 60
while time.monotonic() < until:
    time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_training_ends_with_the_sweep_that_is_told_to(tmp_path, number):
    """In place of the training: a process that saves when it is asked to stop, as that does."""
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text(WAITS)
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    before, run = signal.getsignal(number), tmp_path / "run"

    def watch(_so_far):
        if (run / "begun").exists():
            os.kill(os.getpid(), number)
        return False

    with pytest.raises(SystemExit) as ended:
        cells.run_cell(cell, run, watch=watch)
    assert ended.value.code == 128 + number
    assert (run / "saved").exists()
    assert signal.getsignal(number) is before


@pytest.mark.slow
def test_a_training_that_does_not_stop_is_killed(tmp_path, monkeypatch):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text(WAITS.replace("sys.exit(0)", "pass"))
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    monkeypatch.setattr(cells, "KILL_S", 1.0)
    run = tmp_path / "run"
    deaf = cells.run_cell(cell, run, watch=lambda _: (run / "begun").exists())
    assert deaf.status == "stopped" and (run / "saved").exists()


def test_a_cell_killed_in_its_first_save_begins_again(tmp_path):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text("import sys\nprint(*sys.argv[1:])\n")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    (tmp_path / "run" / "checkpoints" / "20.orbax-checkpoint-tmp").mkdir(parents=True)
    assert cells.run_cell(cell, tmp_path / "run").error.endswith("--resume --allow-restart")


def test_a_training_that_says_nothing_is_a_result_too(tmp_path):
    (tmp_path / "gchat").mkdir()
    (tmp_path / "gchat" / "train.py").write_text("")
    cell = cells.Cell("a", "", 1, (), Code(str(tmp_path), "c" * 40), "data", "d")
    silent = cells.run_cell(cell, tmp_path / "run")
    assert (silent.status, silent.error) == ("interrupted", "exit status 0")


SWEEP = """
preset: cpu
data: {data}
set:
  model: {{dim: 32, head_dim: 16, hidden: 64, depth: 1, seq_len: 32}}
  optim: {{name: adamw, lr: 0.003, warmup_steps: 2}}
  training: {{batch_size: 4, steps: 6}}
  eval: {{every_steps: 3, tokens: 400, sample_tokens: 1}}
seeds: [1]
variants:
  main: {{}}
  broken: {{optim.lr: 1.0e+30, guards.policy: stop}}
"""


TRAINS = """import json, sys
from pathlib import Path
run = Path(sys.argv[sys.argv.index("--run-dir") + 1])
run.mkdir(parents=True)
broken = any(word.startswith("--optim.lr=1e+30") for word in sys.argv)
lines = [{"step": n, "time": 1.0, "train/tokens": 128 * n, "train/seconds": n, "perf/step_ms": 1.0}
         | ({"eval/val_bpb": 4.0 - n / 6} if n % 3 == 0 else {}) for n in range(7)]
(run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
(run / "config.yaml").write_text("{}")
(run / "summary.json").write_text(json.dumps({"finished": not broken}))
if broken:
    (run / "bad_steps.jsonl").write_text(json.dumps({"step": 3, "action": "stop"}) + "\\n")
    sys.exit("the loss is nan")
"""


@pytest.mark.parametrize("trained", ["in its place", pytest.param("truly", marks=pytest.mark.slow)])
def test_a_killed_sweep_goes_on_and_repeats_nothing(
    trained, clone, data_dir, tmp_path, user_environment, monkeypatch, capsys
):
    """One variant diverges: it is kept and marked, and the rest goes on."""
    file, out = written(tmp_path, SWEEP.format(data=data_dir)), tmp_path / "out"
    words, root = ["sweep", str(file), "--out", str(out)], ROOT
    if trained != "truly":  # in a clone whose trainer only writes what one writes
        root = clone
        (root / "gchat" / "train.py").write_text(TRAINS)
        user_environment = user_environment | {"PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gchat", *words], cwd=root, env=user_environment,
        start_new_session=True,
    )  # fmt: skip
    while not (out / "results.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = (out / "results.jsonl").read_text()
    monkeypatch.chdir(root)
    for name in os.environ.keys() - user_environment.keys():
        monkeypatch.delenv(name)
    assert main([*words, "--json"]) == 0
    after = (out / "results.jsonl").read_text()
    assert after.startswith(before)
    assert len(after.splitlines()) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [(r["variant"], r["seed"], r["status"]) for r in rows] == [
        ("main", 1, "done"),
        ("broken", 1, "diverged"),
    ]
    assert all(len(r["curve"]) == 3 and r["tokens"] == 6 * 4 * 32 for r in rows if r["bpb"])
    assert (out / "curves.png").stat().st_size > 10_000
    assert main(words) == 0
    assert "2 of 2 cells are there already" in capsys.readouterr().err
    assert (out / "results.jsonl").read_text() == after
