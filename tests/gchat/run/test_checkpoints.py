"""`gchat checkpoints` and `--step`: what a run's folder holds, and which of it is read."""

import json
import shutil
import time

import numpy as np
import pytest

import runs
from gaia.errors import CheckpointError
from gchat.__main__ import main
from gchat.run.loading import load_run

STEPS = [8, 16, 24, 26]


@pytest.fixture(scope="module")
def made(data_dir, tmp_path_factory):
    """A finished run with a checkpoint every 8 steps, validated at every 16 and at the end."""
    folder = tmp_path_factory.mktemp("made") / "run"
    more = ["--checkpoint.every-steps", "8", "--checkpoint.keep", "9", "--eval.every-steps", "16"]
    assert main(["train", *runs.arguments(data_dir, folder, *more, steps=STEPS[-1])]) == 0
    return folder


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def listed(run, capsys):
    assert main(["checkpoints", str(run), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def with_bpb(run, step, bpb):
    """Rewrites the validation of a step, as a run that got worse would have logged it."""
    path = run / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] == step:
            record["eval/val_bpb"] = bpb
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_list_holds_sizes_times_and_validations(run, capsys):
    logged = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        logged[record["step"]] = record.get("eval/val_bpb")
    answer = listed(run, capsys)
    rows = answer["checkpoints"]
    assert [row["step"] for row in rows] == STEPS and answer["last"] == STEPS[-1]
    assert [row["val_bpb"] for row in rows] == [None, logged[16], None, logged[26]]
    for row in rows:
        files = (run / "checkpoints" / str(row["step"])).rglob("*")
        sizes = {f.name: f.stat().st_size for f in files if f.is_file()}
        assert row["bytes"] == pytest.approx(sum(sizes.values()), rel=0.05)
        assert time.time() - 3600 < row["saved_at"] < time.time()
    assert main(["checkpoints", str(run)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 5 and table[4].endswith("best, last") and " - " in table[1] + " "


def test_best_is_the_lowest_validation_and_the_earliest_of_equals(run, capsys):
    with_bpb(run, 16, 1.5)
    assert listed(run, capsys)["best"] == 16
    with_bpb(run, 26, 1.5)
    assert listed(run, capsys)["best"] == 16
    with_bpb(run, 26, "NaN")  # a diverged run
    assert listed(run, capsys)["best"] == 16


def test_what_is_being_written_is_not_listed(run, capsys):
    (run / "checkpoints/24/checksums.json").unlink()
    shutil.copytree(run / "checkpoints/26", run / "checkpoints/32.orbax-checkpoint-tmp-1")
    (run / "checkpoints/40").mkdir()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 27, "eval/val_b')
    assert [row["step"] for row in listed(run, capsys)["checkpoints"]] == [8, 16, 26]


@pytest.mark.parametrize(
    ("asked", "step"),
    [("best", 16)]
    + [
        pytest.param(a, n, marks=pytest.mark.slow) for a, n in (("8", 8), ("016", 16), ("last", 26))
    ],
)
def test_the_checkpoint_of_a_step_is_read(run, asked, step):
    with_bpb(run, 16, 1.5)
    loaded = load_run(str(run), step=asked)
    (expected,) = (a for path, a in runs.arrays(run, step).items() if "params['embed']" in path)
    assert loaded.step == step
    assert (np.asarray(loaded.params["embed"]["table"]) == expected).all()


def test_sample_and_eval_take_the_step(run, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the small model reads")
    texts = {}
    for step in ("8", "last"):
        assert main(["sample", "--run", str(run), "--prompt", "the", "--max-tokens", "3",
                     "--step", step, "--json"]) == 0  # fmt: skip
        texts[step] = json.loads(capsys.readouterr().out)["step"]
        assert main(["eval", "bpb", "--run", str(run), "--text", str(tmp_path / "text.txt"),
                     "--step", step, "--json"]) == 0  # fmt: skip
        texts[f"bpb {step}"] = json.loads(capsys.readouterr().out)["bpb"]
    assert texts["8"] == 8 and texts["last"] == 26 and texts["bpb 8"] > texts["bpb last"]


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("7", ["has no checkpoint of step 7", "use one of 8, 16, 24, 26, or best or last"]),
        ("first", ["--step is 'first'", "best or last"]),
        ("-1", ["--step is '-1'"]),
        ("", ["--step is ''"]),
    ],
)
def test_a_step_that_is_not_there_is_one_line(made, step, words, capsys):
    assert main(["sample", "--run", str(made), "--prompt", "the", "--step", step]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err


def test_best_without_a_validation_and_a_damaged_step_are_one_line(run):
    damaged = run / "checkpoints/8/meta/metadata"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    with pytest.raises(CheckpointError, match=r"checkpoint 8 is unusable .*crc32c"):
        load_run(str(run), step="8")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"\(8, 16, 24, 26\) was validated at its step"):
        load_run(str(run), step="best")


def test_a_damaged_newest_step_leaves_json_on_standard_output_alone(run, capsys):
    (run / "checkpoints/26/meta/metadata").unlink()
    assert main(["sample", "--run", str(run), "--prompt", "the", "--max-tokens", "1",
                 "--json"]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert json.loads(out)["step"] == 24 and "checkpoint 26 is unusable" in err
