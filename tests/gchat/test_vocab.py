"""Forced single tokens and SentencePiece: lossless, the same interface, the same ids elsewhere."""

import json
import pickle

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError, DataError, GaiaError
from gchat import tokenizer as tokenizers
from gchat.data import vocabulary
from gchat.tokenizer import SPECIALS, Tokenizer
from gchat.vocab import forced, splits

TEXTS = [
    f"In {month} {year} the Wehrmacht and the Luftwaffe, near Pearl Harbor; page {year * 7}.\n"
    for year in range(1890, 1960, 3)
    for month in forced.MONTHS
]
TERMS = ("Wehrmacht", "Messerschmitt", "Pearl Harbor", "T-34", *forced.MONTHS)
YEARS = forced.years("1900-1949")
PROSE = st.text(st.sampled_from("1942 0Pearl Hbow-T34\n\u2581é😀<|bos|>May"), max_size=60)


@pytest.fixture(scope="module")
def plain():
    return tokenizers.train_bpe(TEXTS, 600)


@pytest.fixture(scope="module")
def made():
    return tokenizers.train_bpe(TEXTS, 600, years=YEARS, terms=TERMS)


@pytest.fixture(scope="module", params=["bpe", "sentencepiece"])
def either(request, made):
    """A tokenizer with forced pieces of each kind."""
    if request.param == "bpe":
        return made
    pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    return tokenizers.train_sentencepiece(TEXTS, 600, years=YEARS, terms=TERMS)


@pytest.fixture(scope="module")
def pieces():
    pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")
    return tokenizers.train_sentencepiece(TEXTS, 500)


def shown(made, text):
    return [made.decode([i]) for i in made.encode(text)]


def test_every_forced_piece_is_one_token(either):
    made = either
    assert made.vocab_size <= 600
    for piece in forced.pieces(YEARS, TERMS):
        assert shown(made, piece) == [piece]
    text = "In June 1944, the Wehrmacht took a T-34 at Pearl Harbor in May."
    found = shown(made, text)
    for piece in (" June", "1944", " Wehrmacht", " T-34", " Pearl Harbor", " May"):
        assert piece in found, found


def test_longer_words_and_numbers_do_not_hold_them(either):
    made = either
    for text in (
        "19440",
        "1944²",
        "١1944",
        "21944",
        "x1944y1945",
        "1,944",
        "Mayor",
        "T-345",
        "Pearl Harbors",
    ):
        found = shown(made, text)
        assert made.decode(made.encode(text)) == text
        years_found = {piece for piece in found if piece in YEARS}
        assert years_found == ({"1944", "1945"} if text == "x1944y1945" else set())
    assert "1950" not in shown(made, "In 1950")


def test_forced_pieces_are_kept_and_sent_to_workers(either, tmp_path):
    either.save(tmp_path)
    text = "In June 1944, the Wehrmacht; 19440 ▁ Pearl Harbor"
    for again in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(either))):
        assert again.sha256 == either.sha256
        assert again.encode(text) == either.encode(text)
        assert again.encode_array(text).tolist() == either.encode(text)
    assert sum(either.token_bytes()[i] for i in either.encode(text)) == len(text.encode())


@settings(max_examples=200, deadline=None)
@given(st.one_of(PROSE, st.text(max_size=60)))
def test_forced_text_comes_back(either, text):
    made = either
    text = text.encode("utf-8", "replace").decode()
    assert made.decode(made.encode(text)) == text


def test_they_are_ordinary_merges(made):
    """Byte-pair encoding by merges alone, without looking pieces up whole, gives the same ids."""
    ranks = {piece: rank for rank, piece in enumerate(made.codec.ranks)}
    words = (" the", " Luftwaffe", " near", " page", "Harbor", "18")
    for piece in (*forced.pieces(YEARS, TERMS), *words):
        parts = forced.apply(piece.encode(), ranks)
        assert [ranks[part] for part in parts] == made.encode(piece)


def test_hugging_face_agrees(made):
    """The merges alone, in another implementation: what an exported model will be run with."""
    library = pytest.importorskip("tokenizers", reason="needs Hugging Face tokenizers")
    order = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = [b for b in range(256) if b not in order]
    letter = {b: chr(b) for b in order} | {b: chr(256 + i) for i, b in enumerate(rest)}
    ranks = {piece: rank for rank, piece in enumerate(made.codec.ranks)}
    written = {piece: "".join(letter[b] for b in piece) for piece in ranks}
    merges = []
    for piece, rank in ranks.items():
        if len(piece) > 1:
            below = {other: r for other, r in ranks.items() if r < rank}
            first, second = forced.apply(piece, below)
            merges.append((written[first], written[second]))
    model = library.models.BPE(vocab={written[p]: r for p, r in ranks.items()}, merges=merges)
    other = library.Tokenizer(model)
    other.pre_tokenizer = library.pre_tokenizers.Sequence(
        [
            library.pre_tokenizers.Split(library.Regex(made.codec.pattern), "isolated"),
            library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in [*TEXTS, "19440 x1944y T-34s Pearl Harbor, May 1,944", "Mayor Wehrmachts 1899"]:
        assert other.encode(text).ids == made.encode(text), text


def test_without_forced_pieces_nothing_changes(plain):
    assert tokenizers.train_bpe(TEXTS, 600, years=(), terms=()).sha256 == plain.sha256
    assert plain.codec.pattern == splits.DIGITS[splits.DEFAULT_DIGITS]


def test_year_ranges_become_short_patterns():
    assert forced.years("1944-1946") == ("1944", "1945", "1946")
    assert forced._any_of(forced.years("1938-1952")) == r"194\d|1938|1939|1950|1951|1952"
    for bad in ("1949-1900", "44-45", "1944", "x"):
        with pytest.raises(ConfigError, match="is no range"):
            forced.years(bad)


def test_what_cannot_be_forced_is_refused():
    with pytest.raises(ConfigError, match="' x' cannot be a token"):
        forced.pieces((), [" x"])
    with pytest.raises(ConfigError, match=r"vocab_size = 300 is too small.*100 forced pieces"):
        tokenizers.train_bpe(TEXTS, 300, terms=[f"word{i}" for i in range(50)])
    with pytest.raises(ConfigError, match="too many"):
        forced.pieces((), [f"word{i}" for i in range(20_000)])


def test_the_published_format_did_not_change(plain, tmp_path):
    """A stored tokenizer of the first version keeps its SHA-256, which manifests name."""
    raw = json.loads(plain._text)
    assert sorted(raw) == ["format", "kind", "pattern", "ranks", "specials", "version"]


def test_sentencepiece_has_the_same_interface(pieces, tmp_path):
    assert pieces.kind == "sentencepiece" and pieces.vocab_size == 500
    assert tuple(pieces.specials) == SPECIALS and pieces.bos_id == 484
    pieces.save(tmp_path)
    for other in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(pieces))):
        assert other.sha256 == pieces.sha256 == other.info.sha256
        assert other.encode(TEXTS[5]) == pieces.encode(TEXTS[5])
    lengths = pieces.token_bytes()
    text = "Grüße \u2581 in May 1944\n\n"
    assert lengths[pieces.encode(text)].sum() == len(text.encode())
    assert pieces.encode_array(text).tolist() == pieces.encode(text)
    assert pieces.decode([pieces.bos_id, *pieces.encode("a\u2581b")]) == "<|bos|>a\u2581b"
    assert max(pieces.encode("<|bos|> <0x41>")) < min(pieces.specials.values())
    assert np.array_equal(np.sort(list(pieces.specials.values())), np.arange(484, 500))


@settings(max_examples=200, deadline=None)
@given(st.one_of(PROSE, st.text(max_size=60)))
def test_sentencepiece_text_comes_back(pieces, text):
    text = text.encode("utf-8", "replace").decode()
    assert pieces.decode(pieces.encode(text)) == text
    lengths = pieces.token_bytes()
    assert lengths[pieces.encode(text)].sum() == len(text.encode())


def test_sentencepiece_training_is_deterministic(pieces):
    assert tokenizers.train_sentencepiece(iter(TEXTS), 500).sha256 == pieces.sha256


def test_without_forced_pieces_sentencepiece_is_stored_as_before(pieces):
    assert set(pieces.codec.definition()) == {"model"}


def test_sentencepiece_refuses_what_it_cannot_make(pieces, tmp_path):
    with pytest.raises(ConfigError, match=r"vocab_size = 100 is too small"):
        tokenizers.train_sentencepiece(TEXTS, 100)
    with pytest.raises(ConfigError, match="SentencePiece cannot make 49984 pieces"):
        tokenizers.train_sentencepiece(TEXTS[:3], 50_000)
    pieces.save(tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | {"model": raw["model"][:400]}))
    with pytest.raises(DataError, match="is damaged"):
        Tokenizer.load(tmp_path)


def test_the_commands(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    (tmp_path / "terms.txt").write_text("Wehrmacht\nPearl Harbor\n")
    vocabulary.Train(
        out=tmp_path / "tok", input=str(tmp_path / "a.txt"), vocab_size=600,
        forced_years="1900-1949", forced_months=True, forced_terms=str(tmp_path / "terms.txt"),
    ).run()  # fmt: skip
    assert " ids, 78 forced pieces" in capsys.readouterr().out
    found = vocabulary.Eval(
        text=(f"prose={tmp_path / 'a.txt'}",),
        tokenizer=(str(tmp_path / "tok"),),
        train_on=str(tmp_path / "a.txt"),
        sizes=(300, 600),
        out=tmp_path / "report.md",
    ).run()
    rows = found["rows"]
    assert [row["tokenizer"] for row in rows] == [str(tmp_path / "tok"), "bpe 300", "bpe 600"]
    assert rows[1]["vocab_size"] == 300 and rows[1]["tokens"] > rows[2]["tokens"]
    assert rows[0]["against_first"] == 1.0 != rows[1]["against_first"]
    assert all(row["lossless"] for row in rows)
    assert rows[0]["bytes_per_token"] == pytest.approx(rows[0]["bytes"] / rows[0]["tokens"], 1e-3)
    assert "| prose |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (vocabulary.Eval(text=("a.txt",), tokenizer=("gpt2",)), "not NAME=PATH"),
        (vocabulary.Eval(text=("a=no.txt",), tokenizer=("gpt2",)), "not there"),
        (vocabulary.Train(out="x", input="in.txt", forced_years="19-20"), "is no range"),
        (vocabulary.Train(out="x", input="in.txt", forced_terms="no.txt"), "forced_terms"),
        (vocabulary.Train(out="x", input="no.txt"), "not there"),
    ],
)
def test_wrong_commands_are_refused(tmp_path, monkeypatch, command, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.txt").write_text("some words")
    with pytest.raises(GaiaError, match=message):
        command.run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.txt"]


def test_a_term_may_hold_what_a_pattern_means():
    made = tokenizers.train_bpe(TEXTS, 500, terms=("C++ (new)", "a|b"))
    assert shown(made, "a|b") == ["a|b"]
    assert " C++ (new)" in shown(made, "see C++ (new) now")
    tiktoken.Encoding("x", pat_str=made.codec.pattern, mergeable_ranks={b"a": 0}, special_tokens={})
