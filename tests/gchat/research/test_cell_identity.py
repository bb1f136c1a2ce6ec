"""A cell is told apart by its code, configuration, seed and data, and by nothing else."""

import shutil
from pathlib import Path

import pytest
import yaml

from gaia.errors import ConfigError
from gchat.research import cells, source_tree, sweep
from gchat.research.source_tree import Code
from gchat.research.sweep_file import read_sweep
from sweeps import result, written

ROOT = Path(__file__).parents[3]


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
