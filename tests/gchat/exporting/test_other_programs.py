"""Exports in the programs they are for: transformers and llama.cpp, where these are here.

GAIA_LLAMA_CPP names the folder of llama.cpp's libraries, GAIA_TRANSFORMERS a Python with torch and
transformers; tests/golden/make_import.py says how both are had.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

import chats
import exported
import smollm2
from gchat.__main__ import main
from gchat.chat_format import format_of, read_format, write_format
from gchat.importing import gguf_names
from gchat.tokenizer import Tokenizer

pytestmark = pytest.mark.slow
TORTURE = Path(__file__).parents[2] / "golden" / "torture.txt"
PYTHON, LLAMA_CPP = os.environ.get("GAIA_TRANSFORMERS"), os.environ.get("GAIA_LLAMA_CPP")
with_llama_cpp = pytest.mark.skipif(not LLAMA_CPP, reason="GAIA_LLAMA_CPP is not set")
with_transformers = pytest.mark.skipif(not PYTHON, reason="GAIA_TRANSFORMERS is not set")
MODELS = {
    "untied": ({"digits": 1}, {"qk_norm": False}),
    "gqa_tied": ({"digits": 3}, {"qk_norm": False, "tied": True, "heads": 4, "kv_heads": 2}),
    "qk_norm": ({"digits": 1}, {"heads": 4, "kv_heads": 2, "head_dim": 32}),
}


@pytest.fixture(params=MODELS)
def run(request, tmp_path):
    words, sizes = MODELS[request.param]
    sizes = {"seq_len": 256} | sizes
    return exported.make_run(tmp_path / "run", exported.tokenizer(**words), **sizes)


def check(path, run, *options):
    """Status and findings of `gchat export check`."""
    command = ["export", "check", str(path), "--run", str(run), "--texts", str(TORTURE), "--json"]
    return main([*command, *options])


@with_llama_cpp
def test_llama_cpp_computes_the_same(run, tmp_path, capsys):
    out = tmp_path / "m.gguf"
    assert main(["export", "gguf", "--run", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    assert check(out, run) == 0
    found = json.loads(capsys.readouterr().out)["llama.cpp"]
    assert found["texts"]["other"] == 0 and found["texts"]["count"] > 10_000
    assert found["logits"]["largest"] < 1e-3 * found["logits"]["std"]


@with_llama_cpp
def test_without_the_permutation_the_check_fails(tmp_path, capsys, monkeypatch):
    words, sizes = MODELS["untied"]
    run = exported.make_run(tmp_path / "run", exported.tokenizer(**words), seq_len=256, **sizes)
    monkeypatch.setattr(gguf_names, "permuted", lambda w, heads: w)
    monkeypatch.setattr(gguf_names, "unpermuted", lambda w, heads: w)  # our reader is as wrong
    out = tmp_path / "m.gguf"
    assert main(["export", "gguf", "--run", str(run), "--out", str(out)]) == 0
    assert check(out, run, "--random-texts", "10") == 1
    assert "llama.cpp: logits differ" in capsys.readouterr().err


@with_llama_cpp
def test_k_quants(tmp_path, capsys):
    run = exported.make_run(
        tmp_path / "run", exported.tokenizer(), dim=256, head_dim=64, hidden=512, seq_len=256
    )
    out = tmp_path / "m.gguf"
    command = ["export", "gguf", "--run", str(run), "--out", str(out), "--outtype", "q4_K_M"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["types"]) == {"Q4_K", "Q6_K", "F32"} and said["notes"] == [
        "no chat template: the run was not trained on conversations"
    ]
    assert check(out, run, "--random-texts", "10") == 0  # rounded, so nothing is demanded


@with_transformers
def test_transformers_computes_the_same(run, tmp_path, capsys):
    out = tmp_path / "m"
    assert main(["export", "hf", "--run", str(run), "--out", str(out)]) == 0
    capsys.readouterr()
    assert check(out, run, "--python", PYTHON) == 0
    found = json.loads(capsys.readouterr().out)["transformers"]
    assert found["texts"]["other"] == 0 and found["logits"]["largest"] < 1e-4


@with_transformers
@pytest.mark.parametrize("kind", ["native", "smollm2"])
def test_the_exported_template_gives_transformers_our_masks(kind, tmp_path):
    """`return_assistant_tokens_mask` of the exported folder: the tokens that training learns.

    transformers tokenizes the whole text at once. Where an answer begins with a new line, that and
    the header's become one token there, which its own prompt for the answer does not end with: ours
    are then its prompt and its answer, one after the other.
    """
    run, out, asked = tmp_path / "run", tmp_path / "m", tmp_path / "asked.jsonl"
    if kind == "smollm2":
        if smollm2.path() is None:
            pytest.skip(smollm2.MISSING)
        command = ["import", "gguf", str(smollm2.path()), "--out", str(run), "--seq-len", "512"]
        assert main(command) == 0
    else:
        exported.make_run(run, exported.tokenizer(), qk_norm=False)
        write_format(run, format_of(Tokenizer.load(run), wanted="native"))
    assert main(["export", "hf", "--run", str(run), "--out", str(out)]) == 0
    form = read_format(run, Tokenizer.load(run))
    conversations = chats.plain() + [chats.with_tools()] * (kind == "native")
    rows = [json.dumps(conversation.to_json()["messages"]) for conversation in conversations]
    asked.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    command = [str(PYTHON), str(Path(__file__).with_name("plain_masks.py")), str(out), str(asked)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    theirs = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    apart = []
    for conversation, their in zip(conversations, theirs, strict=True):
        ours = form.render(conversation)
        mask = [int(learned) for learned in ours.mask]
        assert 0 < sum(mask) < len(mask)
        if all(their["ids"][: len(prompt)] == prompt for prompt in their["prompts"]):
            assert (their["ids"], their["mask"]) == (ours.ids, mask)
            continue
        apart.append(conversation)
        assert form.tokenizer.decode(their["ids"]) == form.tokenizer.decode(ours.ids)
        learned = []
        for prompt, answer in zip(their["prompts"], their["answers"], strict=True):
            assert ours.ids[: len(prompt)] == prompt
            ended = [*answer, form.end_id]
            assert ours.ids[len(prompt) :][: len(ended)] == ended
            learned += range(len(prompt), len(prompt) + len(ended))
        assert [i for i, one in enumerate(mask) if one] == learned
    assert apart == ([] if kind == "native" else conversations[1:2])


@pytest.fixture(scope="module")
def smol(tmp_path_factory):
    if smollm2.path() is None:
        pytest.skip(smollm2.MISSING)
    run = str(tmp_path_factory.mktemp("smollm2") / "run")
    assert main(["import", "gguf", str(smollm2.path()), "--out", run, "--seq-len", "512"]) == 0
    return run


def goes_out_as_it_came_in(kind, smol, out, capsys, *options):
    """The findings about SmolLM2, exported again: arrays and token ids are equal already."""
    assert main(["export", kind, "--run", smol, "--out", str(out)]) == 0
    capsys.readouterr()
    assert check(out, smol, *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["arrays"]["equal"] == found["arrays"]["tensors"] == 272
    other = found["transformers" if kind == "hf" else "llama.cpp"]
    assert other["texts"]["other"] == 0 and other["texts"]["count"] > 10_000
    assert other["logits"]["places"] == 400 and len(other["greedy"]) == 5
    assert all(row["tokens"] == 100 for row in other["greedy"])
    return other


@with_llama_cpp
def test_smollm2_in_llama_cpp(smol, tmp_path, capsys):
    found = goes_out_as_it_came_in("gguf", smol, tmp_path / "m.gguf", capsys)
    assert found["logits"]["largest"] < 1e-3 * found["logits"]["std"]


@with_transformers
def test_smollm2_in_transformers(smol, tmp_path, capsys):
    found = goes_out_as_it_came_in("hf", smol, tmp_path / "m", capsys, "--python", PYTHON)
    logits = found["logits"]  # of deviation 5, so fp32 rounds five times as much
    assert logits["largest"] < 1e-4 * logits["std"] and found["talks"]["other"] == 0


@with_llama_cpp
def test_types_that_smollm2_falls_back_to(smol, tmp_path, capsys):
    """Its rows of 576 do not divide by the 256 of K-quants: llama.cpp takes others, named here."""
    out = tmp_path / "m.gguf"
    command = ["export", "gguf", "--run", smol, "--out", str(out), "--outtype", "q4_K_M"]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["types"]) - {"F32"} >= {"Q5_0", "Q8_0"}
    notes = [note for note in said["notes"] if "do not divide by 256" in note]
    assert notes and all(note.startswith("rows of 576") for note in notes)
    assert {note.split()[-1] for note in notes} >= {"Q5_0", "Q8_0"}
