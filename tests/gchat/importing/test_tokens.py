"""The tokenizer of an imported model: its ids are those of transformers, its specials stay text."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import foreign
from gaia.errors import ConfigError, DataError
from gchat import tokenizer as tokenizers
from gchat.importing.vocabulary import choose_bos
from gchat.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "golden"
TORTURE = (GOLDEN / "torture.txt").read_bytes().decode()


def make(**changes):

    definition = json.dumps(foreign.tokenizer(**changes))
    return tokenizers.imported(
        definition, rows=foreign.ROWS, bos="<|endoftext|>", stops=["<|im_end|>"]
    )


@pytest.fixture(scope="module")
def made():
    return make()


def test_ids_are_those_of_transformers(made):
    with np.load(GOLDEN / "import_llama_tied.npz") as golden:
        assert made.encode(TORTURE) == golden["text_ids"].tolist()
    assert np.array_equal(made.encode_array(TORTURE), made.encode(TORTURE))


def test_text_comes_back_with_its_bytes(made):
    ids = made.encode(TORTURE)
    assert made.decode(ids) == TORTURE
    assert made.token_bytes()[ids].sum() == len(TORTURE.encode())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(foreign.SPECIALS), st.text(max_size=5)), max_size=6))
def test_specials_cannot_come_out_of_text(made, parts):
    text = "".join(parts)
    ids = made.encode(text)
    assert not any(map(made.is_special, ids))
    assert made.decode(ids) == text


def test_specials_stand_among_the_ids(made):
    assert (made.vocab_size, made.padded_vocab_size) == (foreign.ROWS, 384)
    assert (made.bos_id, made.stop_ids) == (0, (0, 2))
    assert made.special("im_start") == made.special("<|im_start|>") == 1
    assert made.decode([1, *made.encode("user"), 2]) == "<|im_start|>user<|im_end|>"
    assert made.token_bytes()[[0, 1, 2]].tolist() == [0, 0, 0]
    last = foreign.ROWS - 1  # a row of the model that no text becomes
    assert made.decode([last]) == "" and made.token_bytes()[last] == 0
    with pytest.raises(DataError, match="outside the vocabulary"):
        made.decode([foreign.ROWS])
    with pytest.raises(ConfigError, match="assistant_end"):
        made.special("assistant_end")


def test_a_stored_tokenizer_is_the_same(made, tmp_path):
    made.save(tmp_path)
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(made))):
        assert (other.sha256, other.kind, other.stop_ids) == (made.sha256, "imported", (0, 2))
        assert other.encode(TORTURE) == made.encode(TORTURE)
        assert other.info == made.info
    assert make(normalizer={"type": "NFC"}).sha256 != made.sha256


def test_what_a_file_would_add_or_cut_is_left_out():
    """Special tokens in front, truncation and padding are for those who serve, not for data."""
    first = "<|im_start|>"

    def sequence(name, kind):
        return {"Sequence": {"id": name, "type_id": kind}}

    in_front = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": first, "type_id": 0}}, sequence("A", 0)],
        "pair": [sequence("A", 0), sequence("B", 1)],
        "special_tokens": {first: {"id": first, "ids": [1], "tokens": [first]}},
    }
    cut = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    odd = make(post_processor=in_front, truncation=cut)
    assert odd.encode(TORTURE) == make().encode(TORTURE)


def choose(bos=None, ends=(), **changes):

    definition = json.dumps(foreign.tokenizer(**changes))
    return choose_bos(definition, bos=bos, ends=ends, where=Path("tokenizer.json"))


def test_the_token_in_front_of_a_document():
    assert choose(bos="<|im_start|>")[0] == "<|endoftext|>"  # the separator, where nothing is added
    renamed = foreign.tokenizer()["added_tokens"]
    renamed[0] = renamed[0] | {"content": "<|doc|>"}
    assert choose(bos="<|doc|>", added_tokens=renamed)[0] == "<|doc|>"
    assert choose(bos=1, added_tokens=renamed)[0] == "<|im_start|>"
    assert choose(ends=[[2, 1], None]) == ("<|endoftext|>", ("<|im_end|>", "<|im_start|>"))


def test_pieces_of_sentencepiece_are_bytes_and_spaces():
    """A vocabulary of Llama 2's kind: a space is U+2581, unknown characters fall back to bytes."""
    pieces = ["<s>", "▁", "t", "h", "e", "▁t", "he", "▁the", *(f"<0x{b:02X}>" for b in range(256))]
    merges = [["▁", "t"], ["h", "e"], ["▁t", "he"]]
    model = {"type": "BPE", "vocab": {p: i for i, p in enumerate(pieces)}, "merges": merges}
    model |= {"byte_fallback": True, "unk_token": None, "fuse_unk": True}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    added = [foreign.tokenizer()["added_tokens"][0] | {"content": "<s>"}]

    definition = foreign.tokenizer(
        model=model, pre_tokenizer=None, normalizer=replace, decoder=None, added_tokens=added
    )
    made = tokenizers.imported(json.dumps(definition), rows=264, bos="<s>")
    assert made.encode("the é the") == [2, 6, 1, 8 + 0xC3, 8 + 0xA9, 7]
    assert made.decode(made.encode("the é the")) == "the é the"
    assert made.token_bytes()[[0, 7, 8 + 0xC3]].tolist() == [0, 4, 1]


WORDS = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model": WORDS}, "model.type is 'WordLevel'"),
        ({"decoder": {"type": "WordPiece", "prefix": "#", "cleanup": True}}, "is WordPiece"),
    ],
)
def test_other_kinds_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        make(**changes)


def test_stored_damage_is_named(made, tmp_path):

    made.save(tmp_path)
    stored = tmp_path / "tokenizer.json"
    whole = json.loads(stored.read_text())
    for change in ({"bos": "<|nobody|>"}, {"rows": 10}, {"tokenizer": {}}, {"rows": "x"}):
        stored.write_text(json.dumps(whole | change))
        with pytest.raises(DataError):
            Tokenizer.load(stored)
