"""Exported files, read back by our importer, `gguf`, `safetensors` and `tokenizers`."""

import json
import threading
from dataclasses import replace

import gguf
import numpy as np
import pytest
import safetensors.numpy

import exported
from gchat.__main__ import main
from gchat.chat_format import Message, format_of, read_format, write_format
from gchat.exporting import comparison, gguf_file, place, probes
from gchat.exporting.source import Run
from gchat.importing import gguf_file as gguf_in
from gchat.importing import gguf_names, hub_folder, rope

GQA = {"heads": 4, "kv_heads": 2}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    place = tmp_path_factory.mktemp("llama")
    return exported.make_run(place / "run", exported.tokenizer(), qk_norm=False, tied=True, **GQA)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    place = tmp_path_factory.mktemp("qwen")
    return exported.make_run(place / "run", exported.tokenizer(digits=3), **GQA)


def export(kind, run, out, *options):
    assert main(["export", kind, "--run", str(run), "--out", str(out), *options]) == 0
    return (hub_folder if kind == "hf" else gguf_in).read(out)


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_what_is_read_back_is_the_run(kind, name, request, tmp_path):
    run_path = request.getfixturevalue(name)
    out = tmp_path / ("model" if kind == "hf" else "model.gguf")
    source = export(kind, run_path, out)
    texts = [*probes.AWKWARD, *probes.random_texts(150)]
    with Run(str(run_path)) as run:
        eps = run.layout.norm_eps
        assert source.layout.norm_eps == pytest.approx(eps, rel=1e-7)  # fp32 in a GGUF file
        assert replace(source.layout, norm_eps=eps) == run.layout
        rows = probes.prompts(run.tokenizer, texts, 6, 30)
        asked = comparison.Probes(texts, [], [], rows, [], 1)
        found, _ = comparison.compare(run, source, asked)
        assert source.vocabulary.bos == "<|bos|>"
    assert found["arrays"]["equal"] == found["arrays"]["tensors"] == len(run.parameters())
    assert found["gchat"]["texts"] == {"count": len(texts), "other": 0, "examples": []}


def test_specials_are_listed_by_their_ids(qwen, tmp_path):
    """transformers numbers them as they are listed; in another order each tag is another one."""
    export("hf", qwen, tmp_path / "m")
    listed = json.loads((tmp_path / "m/tokenizer.json").read_text())["added_tokens"]
    ids = [token["id"] for token in listed]
    assert len(ids) > 9 and ids == sorted(ids)


def test_rotated_heads_are_not_those_of_the_run(llama, tmp_path, monkeypatch):
    """The negative control: a file without the permutation is another model."""
    monkeypatch.setattr(gguf_names, "permuted", lambda w, heads: w)
    source = export("gguf", llama, tmp_path / "model.gguf")
    with Run(str(llama)) as run:
        assert comparison.arrays(run, source)["equal"] == len(run.parameters()) - 2 * 2


def test_weights_are_divided_over_files(qwen, tmp_path):
    source = export("hf", qwen, tmp_path / "m", "--max-shard-gb", "0.0001", "--outtype", "BF16")
    files = sorted(tmp_path.glob("m/model-*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    one = safetensors.numpy.load_file(files[0])
    assert {str(array.dtype) for array in one.values()} == {"bfloat16"}
    with Run(str(qwen)) as run:
        found = comparison.arrays(run, source)
    assert found["kinds"] == ["BF16"] and 1e-4 < found["relative_error"] < 4e-3


@pytest.mark.parametrize(
    ("kind", "types", "error"),
    [
        ("q8_0", {"Q8_0": 15, "F32": 9}, 0.01),
        ("q4_0", {"Q4_0": 14, "Q8_0": 1, "F32": 9}, 0.12),
        ("f16", {"F16": 15, "F32": 9}, 1e-3),
    ],
)
def test_types_are_read_back(qwen, tmp_path, kind, types, error, capsys):
    path = tmp_path / f"{kind}.gguf"
    source = export("gguf", qwen, path, "--outtype", kind, "--json")
    said = json.loads(capsys.readouterr().out)
    types = dict(types)
    wide = "Q8_0" if kind.startswith("q") else "F16"
    types[wide] = types[wide] + 1  # the head
    assert said["types"] == types
    with Run(str(qwen)) as run:
        found = comparison.arrays(run, source)
    assert 0 < found["relative_error"] < error


def test_rows_that_fit_no_block_are_named(tmp_path, capsys):
    made = exported.tokenizer()
    run = exported.make_run(tmp_path / "run", made, dim=48, head_dim=12, hidden=64, tied=True)
    export("gguf", run, tmp_path / "m.gguf", "--outtype", "q8_0")
    assert "rows of 48 do not divide by 32: 13 of their matrices are F16" in capsys.readouterr().out


def test_metadata(llama, tmp_path):
    path = tmp_path / "m.gguf"
    export("gguf", llama, path, "--name", "Fox", "--licence", "MIT")
    fields = {name: f.contents() for name, f in gguf.GGUFReader(path).fields.items()}
    wanted = {
        "general.architecture": "llama",
        "general.name": "Fox",
        "general.license": "MIT",
        "general.file_type": 0,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.add_bos_token": True,
        "gaia.step": "7",
    }
    assert {name: fields[name] for name in wanted} == wanted
    card = (tmp_path / "m.md").read_text()
    assert card.startswith('---\nlicense: "mit"') and "| step | 7 |" in card
    assert "FROM ./m.gguf" in (tmp_path / "m.Modelfile").read_text()


def test_chat_goes_along(qwen, tmp_path):
    with Run(str(qwen)) as run:
        own = run.tokenizer
    write_format(qwen, format_of(own, wanted="chat"))
    try:
        export("hf", qwen, tmp_path / "m")
        export("gguf", qwen, tmp_path / "m.gguf")
        chat = read_format(qwen, own)
    finally:
        (qwen / "chat.json").unlink()
    folder = tmp_path / "m"
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    assert stated["eos_token"] == "<|assistant_end|>" and stated["pad_token"] == "<|reserved_0|>"
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [own.special("assistant_end"), own.bos_id]
    import jinja2  # as transformers and llama.cpp render: the tag {% generation %} taken out

    text = (folder / "chat_template.jinja").read_text()
    text = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == text
    talk = [Message("system", "Be brief."), Message("user", "12 foxes?")]
    rendered = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    rows = [{"role": m.role, "content": m.content} for m in talk]
    said = rendered.render(messages=rows, add_generation_prompt=True)
    assert said == own.decode(chat.prompt(talk))
    template = (folder / "Modelfile").read_text()
    assert "<|{{ .Role }}_start|>{{ .Content }}<|{{ .Role }}_end|>" in template
    assert 'PARAMETER stop "<|assistant_end|>"' in template


def test_adapters_are_merged(tmp_path):
    from gaia.adapters import merged

    made = exported.tokenizer()
    run = exported.make_run(tmp_path / "run", made, lora_rank=2, **GQA)
    source = export("hf", run, tmp_path / "m")
    with Run(str(run)) as opened:
        model = opened.config.model
    import tiny

    _, params = tiny.make(model)
    whole = merged(params, model.lora_scale)
    q = np.asarray(whole["blocks"]["attn"]["q"]["kernel"])
    assert not np.array_equal(q, np.asarray(params["blocks"]["attn"]["q"]["kernel"]))
    theirs = source.tensors["model.layers.1.self_attn.q_proj.weight"].read()
    np.testing.assert_array_equal(theirs, q[1].T)


def test_scalings_of_rotary_frequencies_come_back():
    stated = rope.llama3(64, 500_000.0, factor=8.0, low=1.0, high=4.0, original=8192)
    assert rope.as_options(stated, 500_000.0) == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert rope.as_options((4.0,) * 8, 1e4) == {"rope_type": "linear", "factor": 4.0}
    assert rope.as_options((1.0, 3.0, 1.5, 2.0), 1e4) is None


def test_one_writer(tmp_path, llama, capsys):
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with place.beside(tmp_path / "m", 0):
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(60)
    try:
        status = main(["export", "hf", "--run", str(llama), "--out", str(tmp_path / "m")])
    finally:
        leave.set()
        thread.join()
    assert status == 2 and "is being written by" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_nothing_stays(llama, tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf_file, "flush", full)
    assert main(["export", "gguf", "--run", str(llama), "--out", str(tmp_path / "m.gguf")]) == 2
    said = capsys.readouterr().err
    assert "no space left on device" in said and "\n" not in said.strip()
    assert list(tmp_path.iterdir()) == []
