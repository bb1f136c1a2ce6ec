"""Runs and options that no other program can follow: one line each, and nothing is written."""

import json

import pytest

import exported
from gchat import tokenizer as tokenizers
from gchat.__main__ import main
from gchat.exporting import vocabulary
from gchat.exporting.source import ExportRefused, layout_of
from gchat.model import GPTConfig
from gchat.vocab import byte_level, hub, splits

TEXTS = [
    *exported.TEXTS,
    "1944 Pearl Harbor don’t 12345 \r\n\r\n\t x  'ſ '’s",
    "¹²³ ½ ١٢٣٤ 日本 🇩🇪",
]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positions": "learned"}, "model.positions is 'learned'"),
        ({"window_pattern": "SL", "window": 16}, "model.window_pattern is 'SL'"),
    ],
)
def test_models_of_no_known_layout(options, said):
    model = GPTConfig(depth=2, dim=32, head_dim=16, seq_len=64, **options).derive(100, 128)
    with pytest.raises(ExportRefused, match=said):
        layout_of(model)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = exported.tokenizer(digits=2)
    return exported.make_run(tmp_path_factory.mktemp("run") / "r", made)


@pytest.mark.parametrize(
    ("verb", "out", "options", "said"),
    [
        ("gguf", "m.gguf", [], "numbers of two digits"),
        ("gguf", "m", [], "is no GGUF file"),
        ("gguf", "m.gguf", ["--outtype", "q9"], "outtype = 'q9' is unknown"),
        ("hf", "m", ["--outtype", "q4_K_M"], "'q4_K_M' is for GGUF files only"),
        ("hf", "m", ["--step", "3"], "3"),
        ("hf", "m", ["--step", "x"], "--step is 'x'"),
        ("hf", "m", ["--max-shard-gb", "0"], "max_shard_gb is 0"),
        ("gguf", "m.gguf", ["--outtype", "q4_K_M", "--llama-cpp", "."], "holds no libllama"),
        ("gguf", "m.gguf", ["--llama-cpp", "."], "llama_cpp is not used for outtype f32"),
    ],
)
def test_bad_input(run, tmp_path, verb, out, options, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", verb, "--run", str(run), "--out", out, *options]) == 2
    line = capsys.readouterr().err.strip()
    assert said in line and "\n" not in line
    assert list(tmp_path.iterdir()) == []


def test_what_lies_there_stays(run, tmp_path, capsys):
    mine = tmp_path / "m"
    mine.mkdir()
    (mine / "thesis.txt").write_text("all of it")
    command = ["export", "hf", "--run", str(run), "--out", str(mine)]
    assert main([*command, "--overwrite"]) == 2
    assert "holds something else" in capsys.readouterr().err
    other = [*command[:-1], str(tmp_path / "n")]
    assert main(other) == 0 and main(other) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert main([*other, "--overwrite"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "n"]


@pytest.mark.parametrize("out", [".", "../here", "below/..", "../../{}/here"])
def test_the_folder_that_one_is_in(run, tmp_path, out, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    place = out.format(tmp_path.name)
    assert main(["export", "hf", "--run", str(run), "--out", place]) == 0, capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    assert (tmp_path / "here/export.json").is_file()
    monkeypatch.chdir(tmp_path / "here")  # a new folder stands in the place of the one before
    assert main(["export", "hf", "--run", str(run), "--out", place]) == 2
    assert "add --overwrite" in capsys.readouterr().err


FORCED = {"years": ("1944", "1945"), "terms": ("Pearl Harbor", "clock")}


@pytest.mark.parametrize("options", [{"digits": 1}, {"digits": 2}, {"digits": 3}, FORCED])
def test_a_tokenizer_json_gives_the_same_ids(options):
    made = exported.tokenizer(**options)
    theirs = hub.parse(vocabulary.definition(made))
    for text in TEXTS:
        if "ſ" in text and options.get("digits") == 2:
            continue
        assert theirs.encode(text, add_special_tokens=False).ids == made.encode(text), text
    assert theirs.encode("a").tokens[0] == "<|bos|>"


def test_forced_vocabularies_are_not_for_llama_cpp():
    made = exported.tokenizer(**FORCED)
    with pytest.raises(ExportRefused, match="forced pieces"):
        vocabulary.for_llama_cpp(made, made.vocab_size)
    letters_only = exported.tokenizer(terms=("Größe",))  # which no pattern cuts
    assert vocabulary.for_llama_cpp(letters_only, 400).pre == "qwen2"


def test_sentencepiece_is_refused():
    pytest.importorskip("sentencepiece")
    made = tokenizers.train_sentencepiece(exported.TEXTS, 360)
    for refused in (
        lambda: vocabulary.definition(made),
        lambda: vocabulary.for_llama_cpp(made, made.vocab_size),
    ):
        with pytest.raises(ExportRefused, match="sentencepiece"):
            refused()


def test_pieces_that_no_merge_makes_are_refused():
    made = exported.tokenizer()
    ranks = [*made.codec.ranks, b"zqx"]
    other = tokenizers.Tokenizer(
        "bpe",
        tokenizers.BytePairs(made.codec.pattern, ranks),
        {name: i + 1 for name, i in made.specials.items()},
    )
    with pytest.raises(ExportRefused, match="'zqx', are no result of its merges"):
        vocabulary.for_llama_cpp(other, other.vocab_size)


def test_merges_say_what_ranks_say():
    ranks = [bytes([b]) for b in range(256)] + [b"ab", b"bc", b"abc"]
    assert byte_level.merges_of(ranks) == [
        *((b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")),
    ]


@pytest.mark.parametrize("name", splits.SPLITS)
def test_splits_of_imported_tokenizers_are_recognised(name):
    """Each of llama.cpp's splits, as a tokenizer.json states it."""
    made, split = exported.tokenizer(), splits.SPLITS[name]
    letters = byte_level.spelled(made.codec.ranks)
    stored = byte_level.tokenizer_json(
        {letter: i for i, letter in enumerate(letters)},
        [],
        {"<|bos|>": (len(letters), True)},
        split.patterns,
        ignore_merges=split.ignore_merges,
    )
    codec = hub.Codec(stored, len(letters) + 1, "<|bos|>")
    pre = vocabulary._imported(codec, len(letters) + 3)
    assert splits.SPLITS[pre.pre].patterns == split.patterns
    assert pre.tokens[-1] == f"[PAD{len(letters) + 2}]" and pre.add_bos is False
    other = json.loads(stored)
    other["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\w+"}
    with pytest.raises(ExportRefused, match="splits text by a pattern"):
        vocabulary._imported(hub.Codec(json.dumps(other), len(letters) + 1, "<|bos|>"), 400)
