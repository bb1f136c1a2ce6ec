"""Experiments of an agent's loop: their numbers, and the lines of `results.tsv`."""

import subprocess
from pathlib import Path

import pytest

from gaia.config import flatten, to_dict
from gaia.errors import ConfigError, DataError
from gchat.config import load
from gchat.research import experiment
from gchat.research.cells import Result
from gchat.research.cli import research_main
from gchat.research.measure import measure


@pytest.fixture
def one(tmp_path, monkeypatch):
    """Runs an experiment in a clone; its training is left out."""
    root = tmp_path / "clone"
    (root / "gchat").mkdir(parents=True)
    (root / "gchat" / "model.py").write_text("a = 1\n")
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), (*author, "commit", "-qm", "main")):
        subprocess.run(["git", "-C", root, *words], check=True)
    monkeypatch.chdir(root)
    places = []

    def trained(*given):
        places.append(given[-1].name)
        if len(places) == killed:
            raise KeyboardInterrupt
        return Result("i", "idea", "", 1, "done", 2.0, 100, 1.0, 1.0)

    monkeypatch.setattr(experiment, "_train", trained)
    monkeypatch.setattr(experiment, "data_hash", lambda folder: "0123456789abcdef")
    monkeypatch.setattr(experiment, "measure_of", lambda run_dir: run.measured)
    killed = 2

    def run(description="an idea", minutes=1):
        return experiment.run(
            minutes=minutes, arguments=["cpu"], data_dir="data", seed=1, folder=tmp_path / "out",
            judge="main", margin=0.0, description=description,
        )  # fmt: skip

    run.places, run.out = places, tmp_path / "out"
    run.measured = measure(flatten(to_dict(load(["cpu"], prog="test"))))
    return run


def test_an_experiment_inherits_nothing_of_one_that_was_killed(one):
    one()
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
    path.write_text("header\n1.0\tc\tkeep\t2.0\t\t5\t1.0\tan idea\tdiffs/0001.patch\n")
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


@pytest.mark.parametrize("text", ["a\tb", "a\nb", "a\rb", "a\u2028b"])
def test_a_description_is_one_line(one, text):
    with pytest.raises(ConfigError, match="--description has a tab or a line break"):
        one(text)
    assert not one.places


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / experiment.RESULTS
    row = "1.0\tc\tkeep\t2.0\t\t{}\t1.0\tan idea\u2028of two\tdiffs/0001.patch"
    lines = ["\t".join(experiment.COLUMNS), row.format(100)]
    path.write_text("\n".join([*lines, "1.0\ttorn"]))
    assert [e.tokens for e in experiment.read(path)] == [100]
    path.write_text("\n".join([*lines, row.format("many")]) + "\n")
    with pytest.raises(DataError, match=r"results.tsv, line 3: .*'many'.*; mend or remove"):
        experiment.read(path)
