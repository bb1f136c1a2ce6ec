"""Runs that trainings begin with, and other paths among their options."""

import json

import pytest

from gaia.errors import ConfigError
from gchat.research import cells, options, sweep
from gchat.research.source_tree import Code


def base_run(folder, *checkpoints, **config):
    """A run whose checkpoints hold these contents, step by step; one without content is torn."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps({"field": "of another branch"} | config))
    for step, content in enumerate(checkpoints):
        place = folder / "checkpoints" / str(step)
        place.mkdir(parents=True, exist_ok=True)
        if content:
            (place / "checksums.json").write_text(content)
    return folder


def identities(data_dir, *words):
    plan = sweep.Sweep(("cpu", *words), {"main": ()}, {"": ()}, (1,))
    return [cell.id for cell in plan.cells(Code("/x", "c" * 40), str(data_dir))]


@pytest.mark.parametrize("typed", ["--training.init_from={}", "--init-from {}"])
def test_the_content_of_the_run_to_begin_with_is_part_of_a_cell(data_dir, tmp_path, typed):
    words = typed.format(base_run(tmp_path / "base", "one")).split()
    first = identities(data_dir, *words)
    base_run(tmp_path / "base", "one", "")
    assert identities(data_dir, *words) == first
    base_run(tmp_path / "base", "one", "two")
    assert identities(data_dir, *words) != first


def test_a_preset_s_run_to_begin_with_counts_too(data_dir, tmp_path):
    base = base_run(tmp_path / "base", "one")
    (tmp_path / "mine.yaml").write_text(f"training: {{init_from: {base}}}")

    def identity():
        return (
            sweep.Sweep((str(tmp_path / "mine.yaml"),), {"main": ()}, {"": ()}, (1,))
            .cells(Code("/x", "c" * 40), str(data_dir))[0]
            .id
        )

    first = identity()
    base_run(tmp_path / "base", "other")
    assert identity() != first


def test_a_preset_s_place_that_all_trainings_would_share_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: cpu\nrun: {mirror: gs://bucket/run}")
    with pytest.raises(ConfigError, match=r"run\.mirror of .*mine\.yaml is set; use --out"):
        cells.preset_hash([str(tmp_path / "mine.yaml")])


def test_a_run_to_begin_with_that_has_no_checkpoint_is_named(data_dir, tmp_path):
    base = base_run(tmp_path / "base", "")
    with pytest.raises(ConfigError, match=f"init_from is '{base}', which holds no finished"):
        identities(data_dir, f"--training.init_from={base}")


def test_a_cell_is_not_trained_from_another_run_than_its_identity_says(
    data_dir, tmp_path, monkeypatch
):
    base = base_run(tmp_path / "base", "one")
    cell = cells.Cell(
        "a", "", 1, ("cpu", f"--init-from={base}"), Code("/x", "c"), str(data_dir),
        cells.data_hash(str(data_dir)), start_hash="of another content",
    )  # fmt: skip
    monkeypatch.setattr(sweep, "code_at", lambda path: cell.code)
    with pytest.raises(sweep.Changed, match=r"the run of training\.init_from has changed"):
        sweep.run_cells([cell], tmp_path / "out", say=lambda line: None)


def test_relative_paths_are_those_of_the_folder_they_are_typed_in(tmp_path, monkeypatch):
    """Runs start in the folder of their code."""
    for name in ("base", "a=b", "text.md", "bpe"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    others = ["data.tokenizer=bpe", "model.positions=base"]
    for name, place in (("init-from", "base"), ("training.init_from", "a=b")):
        assert options.training_words("cpu", [f"{name}={place}", *others])[1:] == [
            f"--{name}={tmp_path}/{place}", *(f"--{other}" for other in others),
        ]  # fmt: skip
    fields = {"eval": {"chat_tasks": ["json:text.md", "mine=text.md", "mmlu", "gs://b/text.md"],
                       "files": ["notes", "text.md"]}}  # fmt: skip
    assert options.options(fields) == (
        "--eval.chat_tasks", f"json:{tmp_path}/text.md", f"mine={tmp_path}/text.md", "mmlu",
        "gs://b/text.md", "--eval.files", "notes", f"{tmp_path}/text.md",
    )  # fmt: skip


def test_a_preset_s_path_that_runs_would_not_find_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(base_run(tmp_path / "here", "one").parent)
    preset = tmp_path / "mine.yaml"
    preset.write_text("training: {init_from: here}")
    with pytest.raises(ConfigError, match=r"training\.init_from of .*mine.yaml is 'here'"):
        cells.preset_hash([str(preset)])
    preset.write_text(f"training: {{init_from: {tmp_path}/here}}")
    assert cells.preset_hash([str(preset)])
