"""An import that cannot be is refused in one line that names field, value and remedy."""

import json
import shutil

import numpy as np
import pytest

import foreign
from gchat.__main__ import main
from gchat.importing import hub_folder, run_writer
from gchat.importing.vocabulary import choose_bos

LLAMA, QWEN3 = foreign.CASES["llama_tied"], foreign.CASES["qwen3_untied"]


def refused(kind, path, place, capsys, *options):
    """The one line of an import that must leave nothing behind."""
    before = sorted(p.name for p in place.iterdir())
    status = main(["import", kind, str(path), "--out", str(place / "run"), *options])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    lines = err.strip().splitlines()
    assert len(lines) == 1, lines
    assert sorted(p.name for p in place.iterdir()) == before
    return lines[0]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "mistral"}, "model_type is 'mistral': only llama and qwen3"),
        ({"model_type": None}, "model_type is missing"),
        ({"model_type": ["llama"]}, "model_type is ['llama']: only llama and qwen3"),
        ({"layer_types": 5}, "layer_types is 5: only full attention"),
        ({"layer_types": [["full_attention"]]}, "layer_types is [['full_attention']]"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"sliding_window": 128}, "sliding_window is 128"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is ['full_att"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, "rope_scaling.rope_type is 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4}}, "rope_scaling.type is 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type is 'longrope"),
        ({"hidden_size": "64"}, "hidden_size is '64': needs a whole number"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3: it does not divide"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0: needs a number above 0"),
        (
            {"vocab_size": 400},
            "model.embed_tokens.weight is [320, 64], its configuration says [400",
        ),
        (
            {"vocab_size": 250},
            "model.embed_tokens.weight is [320, 64], its configuration says [250",
        ),
        ({"num_hidden_layers": 3}, "9 tensors are (model.layers.2.input_layernorm.weight"),
        ({"num_hidden_layers": 1}, "9 tensors are (model.layers.1.input_layernorm.weight"),
        ({"tie_word_embeddings": False}, "tensor lm_head.weight is missing"),
    ],
)
def test_options_of_a_folder(changes, said, tmp_path, capsys):
    config = {k: v for k, v in (LLAMA | changes).items() if v is not None}
    folder = foreign.write_folder(tmp_path / "hf", config, tensors=foreign.weights(LLAMA))
    line = refused("hf", folder, tmp_path, capsys)
    assert said in line and "; " in line


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"general.architecture": "gemma3"}, "general.architecture is 'gemma3'"),
        ({"tokenizer.ggml.pre": "tekken"}, "tokenizer.ggml.pre is 'tekken'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["q z"]}, "tokenizer.ggml.merges holds 'q z'"),
        ({"qwen3.rope.scaling.type": "yarn"}, "qwen3.rope.scaling.type is 'yarn'"),
        ({"qwen3.attention.sliding_window": 64}, "qwen3.attention.sliding_window is 64"),
        ({"qwen3.expert_count": 8}, "qwen3.expert_count is 8"),
        ({"qwen3.rope.dimension_count": 16}, "qwen3.rope.dimension_count is 16"),
        ({"qwen3.block_count": None}, "qwen3.block_count is missing"),
        ({"qwen3.vocab_size": 300}, "tokenizer.ggml.tokens is ['<|endoftext|>'"),
        ({"split.count": 2}, "split.count is 2"),
    ],
)
def test_options_of_a_gguf_file(fields, said, tmp_path, capsys):
    file = foreign.write_gguf(tmp_path / "m.gguf", QWEN3, fields=fields)
    line = refused("gguf", file, tmp_path, capsys)
    assert said in line and "; " in line


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path, capsys):
    bias = {"blk.0.attn_q.bias": np.zeros(128, np.float32)}
    file = foreign.write_gguf(tmp_path / "m.gguf", QWEN3, extra=bias)
    line = refused("gguf", file, tmp_path, capsys)
    assert "tensor blk.0.attn_q.bias is not expected (this model has no biases)" in line
    file = foreign.write_gguf(tmp_path / "m.gguf", QWEN3, leave_out=["blk.1.ffn_up.weight"])
    assert "tensor blk.1.ffn_up.weight is missing" in refused("gguf", file, tmp_path, capsys)
    tensors = foreign.weights(LLAMA)
    tensors["model.norm.weight"][3] = np.nan
    folder = foreign.write_folder(tmp_path / "hf", LLAMA, tensors=tensors)
    assert "tensor model.norm.weight holds NaN" in refused("hf", folder, tmp_path, capsys)
    tensors = foreign.weights(LLAMA) | {"lm_head.weight": np.zeros((320, 64), np.float32)}
    foreign.write_folder(folder, LLAMA, tensors=tensors)
    assert "tie_word_embeddings is True, but" in refused("hf", folder, tmp_path, capsys)
    tensors = {name: t.astype(np.int8) for name, t in foreign.weights(LLAMA).items()}
    foreign.write_folder(folder, LLAMA, tensors=tensors)
    assert "is I8; save it as one of F32" in refused("hf", folder, tmp_path, capsys)


@pytest.mark.parametrize("word", [b"qwen3", b"<|endoftext|>"])
def test_a_gguf_file_with_a_damaged_text(word, tmp_path, capsys):
    file = foreign.write_gguf(tmp_path / "m.gguf", QWEN3)
    whole = file.read_bytes()
    at = whole.index(word)  # of general.architecture, the first field; of the first token
    file.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    line = refused("gguf", file, tmp_path, capsys)
    assert "is damaged ('utf-8' codec can't decode byte 0xff" in line and "fetch it again" in line


def test_a_gguf_file_cut_anywhere(tmp_path, capsys):
    whole = foreign.write_gguf(tmp_path / "m.gguf", QWEN3).read_bytes()
    cut = tmp_path / "m.gguf"
    for size in (0, 3, 10, 24, 100, 3000, 20_000, len(whole) - 40_000, len(whole) - 1):
        cut.write_bytes(whole[:size])
        line = refused("gguf", cut, tmp_path, capsys)
        assert (str(cut) in line and "fetch it again" in line) or "give a GGUF file" in line
    assert "is not a file" in refused("gguf", tmp_path / "none", tmp_path, capsys)


def test_safetensors_cut_or_damaged(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:7], whole[:500], whole[:-1], b"\xff" * 8 + whole[8:]):
        file.write_bytes(damaged)
        assert f"{file} is damaged" in refused("hf", folder, tmp_path, capsys)
    file.unlink()
    assert "holds no model.safetensors" in refused("hf", folder, tmp_path, capsys)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "PyTorch's own files can run code" in refused("hf", folder, tmp_path, capsys)
    shutil.rmtree(folder)
    foreign.write_folder(folder, LLAMA, shards=2)
    next(folder.glob("model-00002*")).unlink()
    assert "holds no model-00002-of-00002.safetensors" in refused("hf", folder, tmp_path, capsys)


def test_a_folder_without_tokenizer_or_with_another(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    stored = folder / "tokenizer.json"
    stored.unlink()
    line = refused("hf", folder, tmp_path, capsys)
    assert "holds no tokenizer.json; save it with transformers" in line
    for content, said in (
        ("{", "tokenizer.json is damaged"),
        ('{"a": 1}', "tokenizer.json is damaged"),
        (json.dumps(foreign.tokenizer(decoder=None)), "decoder is none, not ByteLevel"),
        (json.dumps(foreign.tokenizer(added_tokens=[])), "no special token begins a document"),
    ):
        stored.write_text(content)
        assert said in refused("hf", folder, tmp_path, capsys)
    larger = foreign.tokenizer()
    larger["model"]["vocab"] |= {f"x{i}": 300 + i for i in range(40)}
    stored.write_text(json.dumps(larger))
    line = refused("hf", folder, tmp_path, capsys)
    assert "tokenizer.json has ids up to 339, the model's vocabulary is 320" in line


@pytest.mark.parametrize("number", [-1, 1 << 32, 1 << 70, True, 1.5, [[0]], {"a": 1}])
def test_numbers_that_are_no_token(number):
    """Some files write -1 where there is no such token; the others say nothing either."""
    definition = json.dumps(foreign.tokenizer())
    plain = choose_bos(definition, bos=None, ends=[None], where="x")
    assert choose_bos(definition, bos=number, ends=[number], where="x") == plain


def test_texts_of_a_folder_that_are_damaged(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    line = refused("hf", folder, tmp_path, capsys)
    assert "chat_template.jinja is damaged ('utf-8' codec" in line and "fetch it again" in line
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("[" * 100_000)
    assert "tokenizer_config.json is damaged (" in refused("hf", folder, tmp_path, capsys)


@pytest.mark.parametrize(
    ("stated", "template"),
    [("a", "a"), ([{"name": ["x"]}, {"name": "default", "template": "b"}], "b"), ([], None),
     ([{"name": "default", "template": 5}], None), ({"default": "c"}, None)],
)  # fmt: skip
def test_chat_templates_of_all_forms(stated, template):
    assert hub_folder._template(stated) == template


def test_out_that_holds_something_else(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("model: {}\n")
    for options in ((), ("--overwrite",)):
        line = refused("hf", folder, tmp_path, capsys, *options)
        assert "holds a run that was trained; choose another --out" in line
    assert (tmp_path / "run/config.yaml").read_text() == "model: {}\n"
    line = refused("hf", folder, tmp_path, capsys, "--seq-len", "999")
    assert "holds a run" in line
    shutil.rmtree(tmp_path / "run")
    line = refused("hf", folder, tmp_path, capsys, "--seq-len", "999")
    assert "seq_len is 999, the model's context is 256" in line


def test_out_below_a_file(tmp_path, capsys):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    (tmp_path / "thesis.txt").write_text("all of it")
    assert main(["import", "hf", str(folder), "--out", str(tmp_path / "thesis.txt/run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "thesis.txt/run' cannot be written (" in line and "choose another --out" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "thesis.txt"]


def test_the_folder_that_one_is_in(tmp_path, capsys, monkeypatch):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["import", "hf", str(folder), "--out", "."]) == 0, capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["here", "hf"]
    facts = json.loads((tmp_path / "here/import.json").read_text())
    assert facts["name"] == "hf" and "name: here" in (tmp_path / "here/config.yaml").read_text()


def test_a_full_disk_and_a_killed_import_leave_nothing(tmp_path, capsys, monkeypatch):
    folder = foreign.write_folder(tmp_path / "hf", LLAMA)
    killed = tmp_path / ".run.importing"  # what kill -9 leaves
    (killed / "checkpoints").mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    with monkeypatch.context() as patched:
        patched.setattr(run_writer.shutil, "disk_usage", lambda _: usage)
        assert main(["import", "hf", str(folder), "--out", str(tmp_path / "run")]) == 2
    assert "no space left on device" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]
    killed.mkdir()
    assert main(["import", "hf", str(folder), "--out", str(tmp_path / "run")]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "run"]


def test_verbs_are_named(capsys):
    assert main(["import", "guff", "x"]) == 2
    assert "did you mean `gchat import gguf`?" in capsys.readouterr().err
    assert main(["import"]) == 2
    assert "use one of hf, gguf" in capsys.readouterr().err
