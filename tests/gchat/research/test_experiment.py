"""Experiments of an agent's loop: their numbers, and the lines of `results.tsv`."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from clones import committed
from gaia.config import flatten, to_dict
from gaia.errors import ConfigError, DataError
from gchat.config import load
from gchat.research import experiment
from gchat.research.cells import Result
from gchat.research.cli import research_main
from gchat.research.measure import measure
from gchat.research.source_tree import Code
from gchat.research.worktrees import Tree


@pytest.fixture
def one(tmp_path, monkeypatch):
    """Runs an experiment in a clone; its training is left out."""
    monkeypatch.chdir(committed(tmp_path / "clone", {"gchat/model.py": "a = 1\n"}))
    places = []

    def trained(*given):
        places.append(given[-1].name)
        if len(places) == run.killed:
            raise KeyboardInterrupt
        return Result("i", "idea", "", 1, "done", 2.0, 100, 1.0, 1.0)

    monkeypatch.setattr(experiment, "_train", trained)
    monkeypatch.setattr(experiment, "data_hash", lambda folder, arguments: "0123456789abcdef")
    monkeypatch.setattr(experiment, "measure_of", lambda run_dir: run.measured)

    def run(description="an idea", minutes=1, preset="cpu", judge="main", seed=1):
        return experiment.run(
            minutes=minutes, arguments=[preset], data_dir="data", seed=seed,
            folder=tmp_path / "out", judge=judge, margin=0.0, description=description,
        )  # fmt: skip

    run.places, run.out, run.killed = places, tmp_path / "out", 0
    run.measured = measure(flatten(to_dict(load(["cpu"], prog="test"))))
    return run


def test_an_experiment_inherits_nothing_of_one_that_was_killed(one):
    one()
    one.killed = 2
    with pytest.raises(KeyboardInterrupt):
        one()
    assert one().diff == "diffs/0003.patch"
    assert one.places == ["0001", "0002", "0003"]
    assert len(experiment.read(one.out / experiment.RESULTS)) == 2


def test_a_tree_that_measures_otherwise_is_no_result(one):
    one.measured |= {"eval.tokens": 256}
    done = one()
    assert (done.status, done.bpb) == ("crash", None)
    assert "eval.tokens is 256 where it was 32768" in done.error


def test_what_a_figure_rests_on_stands_beside_it(one):
    """An agent reads one line, and a person the table."""
    Path("gchat/objective.py").write_text("nats = 0.0\n")
    said = "the figures of . rest on gchat/objective.py, which it changes: read it"
    assert said in one().notes
    (row,) = experiment.read(one.out / experiment.RESULTS)
    assert said in row.notes and row.bpb == 2.0


def test_a_line_written_before_there_were_notes_is_read(tmp_path):
    path = tmp_path / experiment.RESULTS
    header = "\t".join(experiment.COLUMNS[:-1])
    path.write_text(f"{header}\n1.0\tc\tkeep\t2.0\t\t5\t1.0\tan idea\tdiffs/0001.patch\n")
    (row,) = experiment.read(path)
    assert (row.bpb, row.notes) == (2.0, ())


@pytest.mark.parametrize("field", ["tokens", "steps", "tokens-per-param"])
def test_the_minutes_decide_the_length(field):
    with pytest.raises(ConfigError, match="use --minutes, which decides the length"):
        research_main(["--set", f"training.{field}=100"])


def test_another_budget_wants_another_folder(one):
    one()
    with pytest.raises(ConfigError, match=r"minutes is 10, and the experiments in .* have 1"):
        one(minutes=10)


def test_a_seed_that_no_training_takes_is_refused(one):
    with pytest.raises(ConfigError, match="--seed has -1; use 0 to 4294967295"):
        one(seed=-1)
    assert not one.out.exists()


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_budget_is_named(one, text):
    one()
    (one.out / "budget.json").write_text(text)
    with pytest.raises(DataError, match=r"budget\.json is damaged; mend it"):
        one()


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb", "a\u2028b"])
def test_a_description_is_one_line(one, text):
    with pytest.raises(ConfigError, match="--description has a tab or a line break"):
        one(text)
    assert not one.places


ROW = "1.0\tc\tkeep\t2.0\t\t{}\t1.0\tan idea\u2028of two\tdiffs/0001.patch"


@pytest.mark.parametrize(
    ("line", "said"),
    [(ROW.format("many"), ".*'many'.*"), (f"{ROW}\t\tmine", "it has 11 fields where 10 are")],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
    path = tmp_path / experiment.RESULTS
    path.write_text("\n".join(["\t".join(experiment.COLUMNS), ROW.format(100), line]) + "\n")
    with pytest.raises(DataError, match=rf"results.tsv, line 3: {said}; mend or remove"):
        experiment.read(path)


@pytest.mark.parametrize(("last", "stays"), [("1.0\ttorn", False), (ROW.format(300), True)])
def test_lines_of_before_stay_as_they_are(tmp_path, last, stays):
    """All but one that a kill has torn: it is the last, and has no line break."""
    path = tmp_path / experiment.RESULTS
    header = "\t".join(experiment.COLUMNS)
    path.write_text(f"{header}\n{ROW.format('0100')}\n{last}")
    (one,) = experiment.read(path)[:1]
    assert one.tokens == 100
    experiment._append(path, replace(one, tokens=200, notes=("a", "b")))
    kept = [ROW.format("0100"), *[last] * stays, ROW.format(200) + "\ta; b"]
    assert path.read_text() == "\n".join([header, *kept]) + "\n"
    assert [e.tokens for e in experiment.read(path)] == [100, *[300] * stays, 200]


def test_a_table_of_another_program_is_refused_before_anything_is_trained(one):
    one.out.mkdir()
    (one.out / experiment.RESULTS).write_text("commit\tval_bpb\nabc\t1.0\n")
    with pytest.raises(DataError, match=r"begins with 'commit\\tval_bpb', which is no header"):
        one()
    assert not one.places
    assert (one.out / experiment.RESULTS).read_text() == "commit\tval_bpb\nabc\t1.0\n"


def test_a_moved_judge_or_an_edited_preset_wants_another_folder(one):
    preset = one.out.with_name("own.yaml")
    preset.write_text("base: cpu\n")
    one(preset=str(preset))
    preset.write_text("base: cpu\noptim: {warmup_steps: 5}\n")
    with pytest.raises(ConfigError, match=r"the preset file's hash is [0-9a-f]{12}, and the"):
        one(preset=str(preset))
    preset.write_text("base: cpu\n")
    judge = subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "moved"], check=True)
    with pytest.raises(ConfigError, match=f"have {judge}; .* or go back with --judge {judge}"):
        one(preset=str(preset))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains in pretence: `trained(ms, …)` with milliseconds of each step, by number from 1."""
    monkeypatch.setattr(experiment, "data_hash", lambda folder, arguments: "0123456789abcdef")
    lengths = []

    def run_cell(cell, folder, *, watch=lambda so_far: False, timeout_s):
        (length,) = [word for word in cell.arguments if word.startswith("--training.")]
        lengths.append(length)
        kind, amount = length.removeprefix("--training.").split("=")
        steps = int(amount) if kind == "steps" else int(amount) // 1000
        result = Result("i", "idea", "", 1, "done", 2.0, 1000 * steps, 1.0, 1.0)
        folder.mkdir(parents=True)
        with (folder / "metrics.jsonl").open("w") as log:
            for step in range(1, steps + 1):
                values = {"perf/step_ms": run.ms(step), "train/tokens": 1000 * step}
                log.write(json.dumps({"step": step, **values}) + "\n")
                log.flush()
                if watch(result):
                    result = replace(result, status="stopped", tokens=1000 * step)
                    break
        return replace(result, run_dir=str(folder))

    monkeypatch.setattr(experiment, "run_cell", run_cell)

    def run(ms, preset="cpu", minutes=1):
        run.ms = ms
        tree = Tree(".", Code("/x", "c" * 40))
        return experiment._train(tree, minutes, [preset], "data", 1, tmp_path / str(len(lengths)))

    run.lengths = lengths
    return run


def test_tokens_are_those_that_fit_at_the_mean_speed_of_the_first_steps(trained):
    """A probe of 30 steps would be too short for a warm-up or a ramp: it is stopped instead."""
    done = trained(lambda step: 9000 if step == 1 else 500 if step % 5 == 0 else 100)
    assert done.status == "done"
    assert trained.lengths == ["--training.steps=1000000", f"--training.tokens={60_000_000 // 180}"]


def test_a_batch_that_follows_from_the_length_is_timed_at_that_length(trained):
    trained(lambda step: 100.0, preset="speedrun")
    assert trained.lengths == ["--training.steps=1000000", *["--training.tokens=600000"] * 2]


def test_steps_that_grow_slower_behind_the_probe_are_a_crash(trained):
    assert trained(lambda step: 100 if step <= 30 else 115).status == "done"  # noise
    late = trained(lambda step: 100 if step <= 30 else 130, minutes=2)
    assert late.status == "failed"
    assert "its steps took 2.58 minutes where the budget is 2" in late.error


def test_a_log_without_times_is_a_crash(trained):
    assert "does not log perf/step_ms" in trained(lambda step: 0).error
