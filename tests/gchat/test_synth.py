"""Q-PT and questions from docstrings: passages and sentences as they are, modules held out."""

import json
import re
import textwrap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError
from gchat.__main__ import main
from gchat.chat_format import Conversation
from gchat.data.sources import docs
from gchat.data.sources.unit import Row
from gchat.synth import docstrings, qpt

ARTICLE = """# Omaha Beach

Omaha Beach was one of five sectors. It lay in Normandy. Troops of the U.S. Army landed there.

The cliffs are 30 metres high. "Nobody could see us," a soldier said.
"""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ── Q-PT ────────────────────────────────────────────────────────────────────────────────────────


def test_there_are_28_phrasings_in_five_styles():
    known = qpt.phrasings()
    assert len({text for _, text in known}) == 28 and len({style for style, _ in known}) == 5
    assert all(text.count("{topic}") == 1 for _, text in known)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(st.sampled_from("ab.!? \nÜ1"), min_size=1, max_size=60), min_size=1),
    st.integers(50, 200),
)
def test_passages_are_the_text_in_order_cut_at_ends_of_sentences(parts, chars):
    body = ". ".join(parts)
    pieces = [p.text for p in qpt.passages(Row(body, {"title": "T"}), chars)]
    at = 0
    for piece in pieces:
        at = body.index(piece, at) + len(piece)
    for piece in pieces[:-1]:
        assert piece[-1] in ".!?\"”’')" or "\n\n" in body


def test_what_a_passage_is_about():
    whole = list(qpt.passages(Row(ARTICLE, {}), 1000))
    assert len(whole) == 1 and whole[0].topic == "Omaha Beach"
    assert whole[0].text == ARTICLE.partition("\n\n")[2].strip()  # the heading is in the question
    cut = [p.text for p in qpt.passages(Row(ARTICLE, {}), 80)]
    assert cut[0] == "Omaha Beach was one of five sectors. It lay in Normandy."
    assert cut[1].startswith("Troops of the U.S. Army")  # no end of a sentence in there
    assert {p.topic for p in qpt.passages(Row("x y z one two.", {"title": "My  Title"}), 99)} == {
        "My Title"
    }
    assert (
        qpt.topic_of("It was Kant who said so. Then Kant left. A man called Hume stayed.") == "Kant"
    )
    assert qpt.topic_of("nothing here has a name, so the first words are taken.") == (
        '"nothing here has a name, so"'
    )


def test_the_command_writes_each_passage_with_as_many_questions(tmp_path, capsys):
    (tmp_path / "a.md").write_text(ARTICLE)
    texts = [f"Sentence number {i} is here for all. " * 9 for i in range(9)]
    rows = [{"title": f"T {i}", "text": text} for i, text in enumerate(texts)]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.jsonl"
    args = ["synth", "qpt", str(tmp_path / "a.md"), str(tmp_path / "b.jsonl"), "--out", str(out)]
    assert main([*args, "--per-passage", "3", "--passage-chars", "5000", "--json"]) == 0
    facts, made = json.loads(capsys.readouterr().out), lines(out)
    assert facts["rows"] == len(made) == 30
    asked = {}
    for row in made:
        question, answer = Conversation.from_json(row).messages
        assert row["topic"] in question.content
        asked.setdefault(answer.content, []).append(question.content)
    assert all(len(set(questions)) == 3 for questions in asked.values())
    assert rows[4]["text"].strip() in asked
    for more, problem in (
        (["--per-passage", "29"], "per_passage = 29; use 1 to 28"),
        (["--passage-chars", "9"], "passage_chars = 9"),
        (["--max-bad", "-1"], "max_bad = -1"),
        ([], "exists; choose another name"),
    ):
        overwrite = ["--overwrite"] * bool(more)
        assert main([*args, *more, *overwrite]) == 2
        assert problem in capsys.readouterr().err and len(lines(out)) == 30
    (tmp_path / "b.jsonl").write_text('{"text": 3}')
    assert main([*args, "--overwrite"]) == 2
    assert "line 1" in capsys.readouterr().err and len(lines(out)) == 30
    assert len(list(tmp_path.iterdir())) == 3


# ── Docstrings ──────────────────────────────────────────────────────────────────────────────────

SOURCE = '''
def dedent(text):
    """Remove any common ``leading`` whitespace from
    every line in `text`. More is said here."""

def shout(text):
    """Return str.upper(text)."""

def _hidden():
    """Return what nobody should ask for at all."""

def short(x):
    """Too short."""

def example():
    """Return an example. >>> x"""

class Reader:
    """Reads."""
    @property
    def size(self):
        """Return the number of bytes that are left."""
    def read(self, n):
        """Read at most n bytes from the underlying file.

        Another paragraph.
        """
    def again(self):
        """Read at most n bytes from the underlying file."""
'''


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Twelve small modules in place of what is installed."""
    folder = tmp_path / "pack"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for i in range(12):
        (folder / f"m{i}.py").write_text(SOURCE.replace("whitespace", f"whitespace {i}"))
    (folder / "broken.py").write_text("def x(:")
    (folder / "_private.py").write_text(SOURCE)
    monkeypatch.setattr(docs, "files", lambda: sorted(folder.glob("*.py")))
    return folder


def test_functions_have_first_sentences_and_each_is_taken_once(modules):
    found = docstrings.functions(processes=1)
    by_name = {one.name: one.says for one in found}
    assert by_name["m3.dedent"] == "Remove any common leading whitespace 3 from every line in text."
    assert by_name["m3.dedent"] != by_name["m4.dedent"]
    assert {name.split(".")[1] for name in by_name} == {"dedent", "read"}
    assert sum(name == "Reader.read" for name in by_name) == 1
    assert len({one.says for one in found}) == len(found)
    assert {one.module for one in found} <= {f"pack.m{i}" for i in range(12)}


def test_modules_are_held_out_whole_and_the_rows_are_the_same_each_time(modules):
    found = docstrings.functions(processes=1)
    train, unseen = docstrings.pairs(found, share=0.4)
    assert (train, unseen) == docstrings.pairs(found, share=0.4)
    assert train and unseen
    assert not {row["module"] for row in train} & {row["module"] for row in unseen}
    for row in train + unseen:
        question, answer = Conversation.from_json(row).messages
        assert row["function"] in question.content
        assert re.fullmatch(r"[A-Z].*\.", answer.content)
    for changes, problem in (({"share": 1}, "held_out_share = 1"), ({"count": 0}, "count = 0")):
        with pytest.raises(ConfigError, match=problem):
            docstrings.pairs(found, **changes)


def test_the_command_writes_both_sides(modules, tmp_path, capsys):
    args = ["synth", "docstrings", "--workers", "1", "--held-out-share", "0.4",
            "--out", str(tmp_path / "a"), "--held-out", str(tmp_path / "b")]  # fmt: skip
    assert main([*args, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = [*lines(tmp_path / "a"), *lines(tmp_path / "b")]
    assert facts["rows"] + facts["held_out_rows"] == len(rows) == 13
    assert main(args) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*args, "--packages", "nothing", "--overwrite"]) == 2
    assert "hold no module" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_reads_the_standard_library(tmp_path, capsys):
    args = ["synth", "docstrings", "--packages", "json", "textwrap", "heapq", "--workers", "1",
            "--held-out-share", "0.4", "--out", str(tmp_path / "a"),
            "--held-out", str(tmp_path / "b")]  # fmt: skip
    assert main([*args, "--json"]) == 0
    rows = [*lines(tmp_path / "a"), *lines(tmp_path / "b")]
    said = {row["function"]: row["messages"][1]["content"] for row in rows}
    first = " ".join(textwrap.dedent.__doc__.split("\n\n")[0].split()).replace("`", "")
    assert said["textwrap.dedent"] == first
