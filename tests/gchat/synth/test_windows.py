"""Articles, windows of sentences, and the split by source: nothing held out reaches training."""

import json
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError, DataError
from gchat.synth import corpus
from gchat.synth.corpus import Article
from gchat.synth.split import split
from gchat.synth.windows import sentences, windows

ARTICLES = Path(__file__).parents[2] / "fixtures/synth/articles.md"
WIKITEXT = """ = First Battle = 

 The first battle , fought in 1 @,@ 942 ( or so ) , was long . It was " hard " for all . 

 = = Later = = 

 Nobody 's <unk> was there . The end came soon after that . 

 = Second Battle = 

 The second one didn 't last as long as the first . 
"""


def article(text, title="T"):
    return Article("a" * 12, title, text)


def numbered(count):
    return " ".join(f"Sentence number {i} is here for all." for i in range(count))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_windows_overlap_and_leave_no_sentence_out(count, size, stride):
    stride = min(size, stride)
    made = list(windows(article(numbered(count)), size=size, stride=stride))
    covered = [w.start + i for w in made for i in range(len(w.sentences))]
    assert set(covered) == set(range(count))
    assert [w.start for w in made] == [i * stride for i in range(len(made))]
    assert all(len(w.sentences) == size for w in made[:-1])
    assert made[-1].start + len(made[-1].sentences) == count
    assert len({w.id for w in made}) == len(made)


def test_eight_sentences_four_apart_are_the_default():
    made = list(windows(article(numbered(20))))
    assert [(w.start, len(w.sentences)) for w in made] == [(0, 8), (4, 8), (8, 8), (12, 8)]


def test_numbers_that_leave_sentences_out_are_refused():
    for size, stride, named in ((0, 1, "window"), (4, 5, "stride"), (4, 0, "stride")):
        with pytest.raises(ConfigError, match=named):
            list(windows(article("x"), size=size, stride=stride))


def test_abbreviations_end_no_sentence():
    text = (
        "Dr. Smith met the U.S. Army at 5 p.m. on Monday. He left. Then he came back, e.g. twice."
    )
    assert sentences(text) == ["Dr. Smith met the U.S. Army at 5 p.m. on Monday. He left.",
                               "Then he came back, e.g. twice."]  # fmt: skip
    # Nothing of a passage vanishes, but a heading is none.
    assert sentences("Later\n\nHe won. Nobody had thought so.") == [
        "He won. Nobody had thought so."
    ]


def test_a_wikitext_file_holds_several_articles_whose_tokenization_is_undone(tmp_path):
    (tmp_path / "wiki.txt").write_text(WIKITEXT)
    made = corpus.articles([str(tmp_path)])
    assert [a.title for a in made] == ["First Battle", "Second Battle"]
    assert sentences(made[0].text) == [
        "The first battle, fought in 1,942 (or so), was long.",
        'It was "hard" for all.',
        "The end came soon after that.",  # the one with an unknown word is left out
    ]
    assert sentences(made[1].text) == ["The second one didn't last as long as the first."]


def test_lines_of_a_fixed_width_are_paragraphs_again(tmp_path):
    code = "```\na = 1  # of one line\n```"
    for width in (50, 72, 98):
        text = f"{numbered(30)} It ended.\n\n{numbered(9)}"
        body = "\n\n".join(textwrap.fill(part, width) for part in text.split("\n\n"))
        lists = "- the first thing that was to be done by them all\n- the second of these"
        (tmp_path / "hard_wrapped.txt").write_text(f"{body}\n\n{lists}\n\n{code}\n")
        [made] = corpus.articles([str(tmp_path)])
        assert made.text.split("\n\n") == [*text.split("\n\n"), lists, code]
        read = sentences(made.text)
        assert read[:39] == sentences(text) and read[29].endswith("for all. It ended.")
    poem = "\n".join(["Rough winds do shake the darling buds of May,", "And summer's lease"] * 9)
    assert corpus.unwrapped(poem) == poem


def test_nothing_before_the_first_heading_is_lost_and_comments_are_no_headings(tmp_path):
    lead = "This stands before any heading and is a text."
    code = "```bash\n# install everything first\n## then the rest\nrun it\n```"
    (tmp_path / "the_guide.md").write_text(
        f"---\ntitle: of no use here at all\n---\n{lead}\n\n# Use\n\nBefore the code here is text."
        f"\n\n{code}\n\n## Part\n\nBehind the code is text as well.\n"
    )
    made = corpus.articles([str(tmp_path)])
    assert [(a.title, a.text) for a in made] == [
        ("the guide", lead),
        ("Use", f"Before the code here is text.\n\n{code}\n\n\n\nBehind the code is text as well."),
    ]


def test_articles_of_every_kind_of_file(tmp_path):
    (tmp_path / "one_file.txt").write_text("A text without headings is one article, whole.\n" * 400)
    (tmp_path / "b.md").write_text(ARTICLES.read_text())
    rows = [{"title": "Row", "text": f"Row {i} is an article of its own here."} for i in range(3)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    made = corpus.articles([str(tmp_path)])
    titles = [a.title for a in made]
    assert titles[0:6:5] == ["Siege of Leningrad", "Fall of Singapore"]
    assert titles[6:] == ["Row", "Row", "Row", "one file"]  # the copy is there once
    assert len({a.id for a in made}) == len(made)


def test_an_empty_corpus_is_one_clear_line(tmp_path):
    (tmp_path / "a.txt").write_text("Too short.")
    with pytest.raises(DataError, match="no article of 5 words"):
        corpus.articles([str(tmp_path)])


# ── The split ───────────────────────────────────────────────────────────────────────────────────


def test_planted_leaks_of_held_out_articles_are_found():
    listed = corpus.articles([str(ARTICLES)])
    secret = "The code word of the whole operation was never written down by anybody at all."
    # A copy, an article that repeats a tenth of another, and one that quotes a single sentence.
    copy = Article("copy", "A copy", listed[0].text)
    part = Article("part", "A part", " ".join(sentences(listed[0].text)[:4]) + " " + numbered(12))
    first = Article("first", "Secret", f"{secret} {numbered(30)}")
    other = " ".join(f"Another line {i} stands only here, in this very text." for i in range(30))
    quote = Article("quote", "Quote", f"{other} {secret.upper()} {other}")
    everything = [*listed, copy, part, first, quote]
    for seed in range(12):
        chosen = split(everything, [["a", "b"]], heldout=0.3, heldout_styles=0, seed=seed)
        assert len({a in chosen.articles for a in (listed[0].id, "copy", "part")}) == 1
        if "first" in chosen.articles and "quote" not in chosen.articles:
            leaking = [w for w in windows(quote) if chosen.leaks(w)]
            holding = [w for w in windows(quote) if secret.upper() in w.text]
            assert leaking == holding and len(holding) == 2  # overlapping windows included
            break
    else:
        raise AssertionError("no seed held one of the two out")
    assert not any(chosen.leaks(w) for w in windows(first))  # it is held out itself


def test_the_split_is_a_function_of_seed_and_names_alone():
    listed = corpus.articles([str(ARTICLES)])
    styles = [f"style-{i}" for i in range(20)]
    one = split(listed, [styles], heldout=0.2, heldout_styles=0.1, seed=3)
    again = split(listed[::-1], [styles[::-1]], heldout=0.2, heldout_styles=0.1, seed=3)
    assert one == again and len(one.articles) == 1 and len(one.styles) == 2
    window = next(windows(next(a for a in listed if a.id not in one.articles)))
    assert one.part(window, "none") == "train"
    assert one.part(window, min(one.styles)) == "heldout_phrasing"


def test_a_split_that_leaves_nothing_to_train_on_is_refused():
    listed = corpus.articles([str(ARTICLES)])[:1]
    with pytest.raises(ConfigError, match="leaves none to train on"):
        split(listed, [], heldout=0.1, heldout_styles=0)
    with pytest.raises(ConfigError, match=r"heldout_styles = 1\.5"):
        split(listed, [], heldout=0, heldout_styles=1.5)
