"""Imported models against transformers and llama.cpp with the same weights (tests/foreign.py).

The figures in import_*.npz are made by tests/golden/make_import.py, where both programs run.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

import foreign
import tiny
from gchat.__main__ import main
from gchat.run.loading import load_run

GOLDEN = Path(__file__).parents[2] / "golden"


def golden(name):
    with np.load(GOLDEN / f"import_{name}.npz") as file:
        return dict(file)


def imported(kind, path, out, *options):
    assert main(["import", kind, str(path), "--out", str(out), *options, "--json"]) == 0
    return load_run(str(out))


def logits(run):
    ids = np.array([foreign.ids()], np.int32)
    return np.asarray(tiny.logits(run.graph, run.params, ids))[0]


# The default suite has the two that differ most; all of one kind of work is slow.
CASES = [
    pytest.param(name, marks=() if name in ("llama3_untied", "qwen3_tied") else pytest.mark.slow)
    for name in foreign.CASES
]


class Folders:
    """A run of each layout from its Hugging Face folder, made when it is asked for."""

    def __init__(self, place):
        self._place, self._runs = place, {}

    def __getitem__(self, name):
        if name not in self._runs:
            shards = 1 + (name == "llama3_untied")
            folder = foreign.write_folder(self._place / name, foreign.CASES[name], shards=shards)
            self._runs[name] = imported("hf", folder, self._place / f"run-{name}")
        return self._runs[name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("hf"))


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers_and_of_llama_cpp(name, folders):
    theirs, run = golden(name), folders[name]
    ours = logits(run)
    assert np.isneginf(ours[:, foreign.ROWS :]).all()
    ours = ours[theirs["positions"], : foreign.ROWS]
    assert np.abs(ours - theirs["transformers"]).max() < 1e-4
    assert np.abs(ours - theirs["llama_cpp"]).max() < 1e-3 * theirs["std"]


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_gives_the_parameters_of_the_folder(name, folders, tmp_path):
    """llama.cpp computes the same logits from this file (above), so its order of rows is right."""
    file = foreign.write_gguf(tmp_path / "m.gguf", foreign.CASES[name])
    run = imported("gguf", file, tmp_path / "run")
    assert jax.tree.structure(run.params) == jax.tree.structure(folders[name].params)
    jax.tree.map(np.testing.assert_array_equal, run.params, folders[name].params)
    ours, other = run.config.model, folders[name].config.model
    assert np.isclose(ours.norm_eps, other.norm_eps) and ours.tied == other.tied
    if other.rope_factors is None:
        assert ours.rope_factors is None
    else:
        np.testing.assert_allclose(ours.rope_factors, other.rope_factors, rtol=1e-6)


def test_a_run_says_what_it_is(folders):
    folder = folders["qwen3_tied"].config.run.folder
    facts = json.loads((folder / "import.json").read_text())
    sizes = [tensor.size for tensor in foreign.weights(foreign.CASES["qwen3_tied"]).values()]
    assert facts["parameters"] == sum(sizes)
    assert (facts["format"], facts["kinds"], facts["vocabulary"]) == ("hf", ["F32"], foreign.ROWS)
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert not list(folder.parent.glob(".*"))  # nor a scratch folder, nor a lock


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_half_precision_is_read_exactly(dtype, tmp_path):
    import ml_dtypes  # numpy learns bfloat16 from it

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    folder = foreign.write_folder(tmp_path / "hf", foreign.CASES["llama_tied"], dtype=kind)
    run = imported("hf", folder, tmp_path / "run")
    up = foreign.weights(foreign.CASES["llama_tied"])["model.layers.1.mlp.up_proj.weight"]
    kept = np.asarray(run.params["blocks"]["mlp"]["up"]["kernel"][1])
    np.testing.assert_array_equal(kept, up.astype(kind).astype(np.float32).T)


KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=() if kind == "Q4_1" else pytest.mark.slow)
        for kind in KINDS + K_KINDS
    ],
)
def test_quantised_files_give_what_gguf_makes_of_them(kind, tmp_path):
    import gguf

    dtype = gguf.GGMLQuantizationType[kind]
    config = foreign.CASES["qwen3_untied"]
    if kind in K_KINDS:  # their blocks have 256 values
        config = config | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    file = foreign.write_gguf(tmp_path / "m.gguf", config, kind=kind)
    run = imported("gguf", file, tmp_path / "run")
    up = foreign.weights(config)["model.layers.1.mlp.up_proj.weight"]
    if kind in K_KINDS:
        data = foreign.random_blocks(up.shape, kind)
    else:
        data = gguf.quants.quantize(up, dtype)
    kept = np.asarray(run.params["blocks"]["mlp"]["up"]["kernel"][1])
    np.testing.assert_array_equal(kept, gguf.quants.dequantize(data, dtype).T)
    if kind not in K_KINDS:
        assert 0 < np.abs(kept - up.T).max() < 0.1


def test_a_second_import_returns_at_once_and_another_is_refused(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", foreign.CASES["llama_tied"])
    command = ["import", "hf", str(folder), "--out", str(tmp_path / "run")]
    assert main(command) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert main(command) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before
    assert main([*command, "--seq-len", "32"]) == 2
    assert "seq_len None -> 32; choose another --out, or replace" in capsys.readouterr().err
    assert main([*command, "--seq-len", "32", "--overwrite"]) == 0
    assert load_run(str(tmp_path / "run")).config.model.seq_len == 32
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "run"]
