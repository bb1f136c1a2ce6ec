"""Both tokenizers: known ids, lossless text, specials that text cannot reach, storage."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError, DataError
from gchat import tokenizer as tokenizers
from gchat.tokenizer import SPECIALS, Tokenizer
from gchat.vocab import splits

GPT2 = Path(__file__).parents[3] / "shared" / "data" / "gpt2-bpe"
GOLDEN = Path(__file__).parents[1] / "golden"
TEXTS = [f"The {i} quick brown foxes, it's {i * 37} o'clock.\n\nGrüße {i}!" for i in range(200)]
# As published: nanochat's split pattern, and tiktoken's own for GPT-2.
NANOCHAT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # and of Llama 3: llama.cpp, src/llama-vocab.cpp of v0.5.0
LLAMA3_PATTERN = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
R50K_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PROSE = st.text(st.sampled_from("ab'slLſéß 1239 \t\n\r,.!<|>\u3000😀"), max_size=60)


@pytest.fixture(scope="module")
def bpe():
    return tokenizers.train_bpe(TEXTS, 380, digits=3)  # single digits give fewer pieces


@pytest.fixture(scope="module")
def gpt2():
    if not GPT2.is_dir():
        pytest.skip("needs the GPT-2 files in ../shared/data/gpt2-bpe")
    return tokenizers.gpt2(GPT2)


def test_gpt2_has_the_published_ids(gpt2):
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.encode("The quick brown fox") == [464, 2068, 7586, 21831]
    assert gpt2.special("<|endoftext|>") == 50256
    assert (gpt2.vocab_size, gpt2.padded_vocab_size, gpt2.bos_id) == (50273, 50304, 50257)


def test_the_codecs_own_special_is_text(bpe):
    """tiktoken is given one (see BytePairs) that no text may reach, and no id."""
    ids = bpe.encode("a <|none|> b")
    assert bpe.decode(ids) == "a <|none|> b" and len(ids) > 5
    assert [list(row) for row in bpe.encode_batch(["a <|none|> b"])] == [ids]


def test_bpe_keeps_the_specials_at_the_end(bpe):
    assert bpe.vocab_size == 380
    assert bpe.padded_vocab_size == 384
    assert sorted(bpe.specials.values()) == list(range(364, 380))
    assert tuple(bpe.specials) == SPECIALS
    assert bpe.special("assistant_end") == bpe.special("<|assistant_end|>")
    with pytest.raises(ConfigError, match=r"<\|nobody\|>"):
        bpe.special("<|nobody|>")


def test_chats_of_both_styles_have_their_tags(bpe):
    assert len(SPECIALS) == len(set(SPECIALS)) == 16
    roles = ("user", "assistant", "system", "python", "output")
    tags = {f"<|{role}_{end}|>" for role in roles for end in ("start", "end")}
    assert tags | {"<|bos|>", "<|im_start|>", "<|im_end|>"} == {
        name for name in SPECIALS if "reserved" not in name
    }
    assert bpe.decode([bpe.special("im_start")]) == "<|im_start|>"


def test_a_tokenizer_of_the_first_version_stays_what_it_was(tmp_path):
    """Made by the code of version 1; data sets and runs hold such files and their SHA-256."""
    known = json.loads((GOLDEN / "tokenizer_v1_ids.json").read_text())
    old = Tokenizer.load(GOLDEN / "tokenizer_v1.json")
    for made in (old, pickle.loads(pickle.dumps(old))):
        facts = (made.sha256, made.bos_id, made.vocab_size, made.padded_vocab_size, made.specials)
        assert facts == tuple(
            known[name]
            for name in ("sha256", "bos_id", "vocab_size", "padded_vocab_size", "specials")
        )
        assert {text: made.encode(text) for text in known["ids"]} == known["ids"]
        assert [made.decode(ids) for ids in known["ids"].values()] == list(known["ids"])
        with pytest.raises(ConfigError, match=r"'im_start' is unknown .*\(version 1\)"):
            made.special("im_start")
    old.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (GOLDEN / "tokenizer_v1.json").read_bytes()


def test_training_is_deterministic(bpe):
    assert tokenizers.train_bpe(iter(TEXTS), 380, digits=3).sha256 == bpe.sha256


def test_a_small_corpus_gives_a_smaller_vocabulary():
    small = tokenizers.train_bpe(["aaaa bbbb"], 5000)
    assert 256 + len(SPECIALS) < small.vocab_size < 300
    assert small.decode(small.encode("bbbb aaaa")) == "bbbb aaaa"


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_text_comes_back(bpe, text):
    text = text.encode("utf-8", "replace").decode()
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.encode_array(text).tolist() == ids


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(SPECIALS), st.text("<|bos>a ", max_size=9)), max_size=6))
def test_text_never_becomes_a_special_token(bpe, parts):
    text = "".join(parts)
    assert max(bpe.encode(text), default=0) < min(bpe.specials.values())
    assert bpe.decode(bpe.encode(text)) == text


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (splits.DIGITS[1], QWEN2_PATTERN),
        (splits.DIGITS[2], NANOCHAT_PATTERN),
        (splits.DIGITS[3], LLAMA3_PATTERN),
        (splits.GPT2_PATTERN, R50K_PATTERN),
    ],
)
def test_the_faster_patterns_split_as_the_published_ones(bpe, ours, published):
    def encoding(pattern):
        ranks = {piece: rank for rank, piece in enumerate(bpe.codec.ranks)}
        return tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

    mine, theirs = encoding(ours), encoding(published)

    @settings(max_examples=400, deadline=None)
    @given(st.one_of(PROSE, st.text(max_size=40)))
    def same(text):
        text = text.encode("utf-8", "replace").decode()
        assert mine.encode_ordinary(text) == theirs.encode_ordinary(text)

    same()


def test_batches_equal_single_texts(bpe):
    for threads in (1, 2):
        batch = bpe.encode_batch(TEXTS, threads)
        assert [ids.tolist() for ids in batch] == [bpe.encode(text) for text in TEXTS]


def test_token_bytes_count_what_text_takes(bpe):
    lengths = bpe.token_bytes()
    assert lengths.dtype == np.uint16 and lengths.shape == (384,)
    assert not lengths[364:].any()
    text = "Grüße, 12345 ducks\n"
    assert lengths[bpe.encode(text)].sum() == len(text.encode())


def test_ids_outside_the_vocabulary_have_no_text(bpe):
    assert bpe.decode([bpe.bos_id]) == "<|bos|>"
    with pytest.raises(DataError, match="id 380 is outside the vocabulary of 380"):
        bpe.decode([380])


def test_storing_keeps_it_the_same(bpe, tmp_path):
    bpe.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["kind"] == "bpe"
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(bpe))):
        assert other.sha256 == bpe.sha256 == other.info.sha256
        assert [other.encode(text) for text in TEXTS] == [bpe.encode(text) for text in TEXTS]
        assert (other.bos_id, other.vocab_size) == (bpe.bos_id, bpe.vocab_size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw | {"ranks": raw["ranks"][:300] + raw["ranks"][301:]},
        lambda raw: raw | {"ranks": ["$", *raw["ranks"][1:]]},
        lambda raw: raw | {"specials": {"<|bos|>": 364}},
        lambda raw: raw | {"version": 3},
        lambda raw: raw | {"version": 1, "specials": {}},
        lambda raw: [raw],
    ],
)
def test_a_damaged_file_is_refused(bpe, tmp_path, damage):
    bpe.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(DataError):
        Tokenizer.load(tmp_path)


def test_impossible_requests_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size = 271 is too small"):
        tokenizers.train_bpe(TEXTS, 271)
    with pytest.raises(DataError, match="does not exist"):
        Tokenizer.load(tmp_path)
    with pytest.raises(DataError, match=r"no vocab\.bpe or merges\.txt"):
        tokenizers.gpt2(tmp_path)
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\n")
    with pytest.raises(DataError, match="not the published file"):
        tokenizers.gpt2(tmp_path)


def test_gpt2_is_found_in_the_cache(gpt2, tmp_path, monkeypatch):
    monkeypatch.delenv("GAIA_GPT2_DIR", raising=False)
    monkeypatch.setenv("GAIA_HOME", str(tmp_path))
    cached = tmp_path / "gpt2-bpe" / "merges.txt"
    cached.parent.mkdir()
    cached.write_bytes((GPT2 / "vocab.bpe").read_bytes())
    assert tokenizers.gpt2().sha256 == gpt2.sha256


def test_a_failed_download_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.delenv("GAIA_GPT2_DIR", raising=False)
    monkeypatch.setenv("GAIA_HOME", str(tmp_path))
    monkeypatch.setattr(tokenizers, "GPT2_URL", "http://127.0.0.1:1/vocab.bpe")
    with pytest.raises(DataError, match=r"download failed.*--tokenizer bpe"):
        tokenizers.gpt2()
    assert not list(tmp_path.iterdir())
