"""Local text: what a document is, and what is refused with which words."""

import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError, DataError
from gchat.data.sources import files, text
from gchat.data.sources.unit import Tally


def read(path, **options):
    tally = Tally()
    corpus = text.corpus(str(path), **options)
    return [d for unit in corpus.units for d in unit.documents(tally)], tally.invalid_utf8


def test_plain_text_is_cut_at_blank_lines(tmp_path):
    paragraphs = [f"Paragraph {i} " + "word " * 10 for i in range(20)]
    file = tmp_path / "book.txt"
    file.write_bytes("\r\n\r\n".join(paragraphs).encode())
    documents, invalid = read(file, document_chars=100)
    assert invalid == 0 and len(documents) > 5
    assert all(d.startswith("Paragraph") and d.endswith("word") for d in documents)
    assert all(100 <= len(d) <= 200 for d in documents[:-1])
    assert "\n\n".join(documents).split() == " ".join(paragraphs).split()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.text("ab \n", max_size=50), max_size=12),
    st.integers(1, 30),
)
def test_no_character_of_plain_text_is_lost(blocks, least):
    whole = "".join(blocks)
    documents = list(text._cut(iter(blocks), least))
    assert "".join("".join(documents).split()) == "".join(whole.split())
    assert all(documents) and all(len(d) <= 4 * least + 1 for d in documents)


def test_a_folder_is_read_in_order_and_by_ending(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": " "}\n{"text": "fourth"}')
    (tmp_path / "image.png").write_bytes(b"\0\1\2")
    pq.write_table(
        pa.table({"text": ["fifth", None, "", "sixth"], "n": range(4)}), tmp_path / "d.parquet"
    )
    expected = ["first", "second", "third", "fourth", "fifth", "sixth"]
    assert read(tmp_path)[0] == expected
    assert read(tmp_path / "*.jsonl")[0] == ["third", "fourth"]
    assert read(tmp_path / "**" / "*.md")[0] == ["second"]


def test_invalid_utf8_is_counted_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK", 7)  # so that sequences lie across blocks
    file = tmp_path / "a.txt"
    good = "Grüße 😀, and a real \ufffd here; " * 9
    file.write_bytes(b"\xef\xbb\xbf" + good.encode() + b" bad \xff and \xc3( done")
    documents, invalid = read(file)
    assert invalid == 2
    assert documents == [good + " bad \ufffd and \ufffd( done"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(range(256)) * 40, "NUL bytes"),
        (bytes(range(1, 256)) * 40, "not UTF-8 text"),
        ("Grüße aus Köln".encode("utf-16"), "NUL bytes"),
    ],
)
def test_binary_junk_is_refused(tmp_path, content, message):
    file = tmp_path / "junk.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"junk\.txt .*{message}.*UTF-8"):
        read(file)


def test_missing_and_empty_input_is_refused(tmp_path):
    with pytest.raises(DataError, match="not there"):
        read(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match=r"a folder without \.txt"):
        read(tmp_path)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="holds no text"):
        read(tmp_path)
    (tmp_path / "script.py").write_text("print()")
    with pytest.raises(ConfigError, match=r"ending '\.py'; use files that end in \.txt"):
        read(tmp_path / "script.py")
    with pytest.raises(ConfigError, match="document_chars = 0"):
        read(tmp_path, document_chars=0)


def test_a_missing_text_column_lists_those_there_are(tmp_path):
    pq.write_table(pa.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has no column 'text'; it has: body, id"):
        read(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", text_column="body")[0] == ["a"]
    with pytest.raises(DataError, match="column 'id' is int64, not text; columns: body, id"):
        read(tmp_path / "a.parquet", text_column="id")
    (tmp_path / "b.jsonl").write_text(json.dumps({"body": "x", "id": 1}))
    with pytest.raises(DataError, match=r"line 1 has no field 'text'; it has: body, id"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="field 'id' is int, not text"):
        read(tmp_path / "b.jsonl", text_column="id")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2 is not JSON"),
        ("a.jsonl", b'["text"]', "line 1 has no field 'text'; it has: a list"),
        ("a.parquet", b"PAR1 nonsense PAR1", "not readable as parquet"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path, ending):
    lines = "\n".join(json.dumps({"text": f"document {i} {i**9}"}) for i in range(3000))
    whole = tmp_path / f"a.jsonl.{ending}"
    if ending == "gz":
        whole.write_bytes(gzip.compress(lines.encode()))
    else:
        with pa.CompressedOutputStream(str(whole), "zstd") as stream:
            stream.write(lines.encode())
    assert read(tmp_path)[0] == [json.loads(line)["text"] for line in lines.split("\n")]
    cut = tmp_path / f"cut.jsonl.{ending}"
    cut.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"cut\.jsonl\.{ending} is truncated or damaged"):
        read(cut)
    cut.write_bytes(b"no such thing")
    with pytest.raises(DataError, match=rf"cut\.jsonl\.{ending} is truncated or damaged"):
        read(cut)


@pytest.mark.parametrize("window_log", [20, 28, 31])
def test_zstd_windows_up_to_two_gib_are_read(tmp_path, window_log):
    """`zstd --long=31` writes them (Pushshift's dumps); pyarrow stops at 128 MiB."""
    sink = io.BytesIO()
    with files.zstd.open(sink, "wb") as stream:
        stream.write(b'{"text": "found it"}\n')
        stream.flush()  # the end is not known yet, so the header holds a window instead of a size
        stream.write(b'{"text": "and this"}\n')
    frame = bytearray(sink.getvalue())
    # https://www.rfc-editor.org/rfc/rfc8878#section-3.1.1.1: magic (4), descriptor whose bit 5 is
    # "single segment", then the window descriptor: exponent, above 2**10, in its upper five bits.
    assert not frame[4] & 0x20
    frame[5] = (window_log - 10) << 3
    (tmp_path / "a.jsonl.zst").write_bytes(frame)
    if window_log > 27:
        with pytest.raises(OSError, match="too much memory"):
            pa.input_stream(str(tmp_path / "a.jsonl.zst"), compression="zstd").read()
    assert read(tmp_path)[0] == ["found it", "and this"]


def test_a_line_that_is_no_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LINE_BYTES", 3 << 20)
    (tmp_path / "a.jsonl").write_text('{"text": "short"}\n{"text": "' + "word " * 1_000_000)
    with pytest.raises(DataError, match=r"a\.jsonl line 2 is longer than 3 MiB; write one"):
        read(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("word " * 1_000_000)  # plain text is cut at spaces
    documents, _ = read(tmp_path / "b.txt")
    assert sum(len(d.split()) for d in documents) == 1_000_000
    assert max(map(len, documents)) <= 4 * text.DOCUMENT_CHARS


LETTERS = st.characters(codec="utf-8", exclude_characters="\n\r\0")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(LETTERS, max_size=9), max_size=30),
    st.integers(1, 40),
    st.sampled_from(["\n", "\r\n"]),
)
def test_parts_of_a_file_hold_each_line_once(tmp_path_factory, lines, part, end):
    file = tmp_path_factory.mktemp("parts") / "a.txt"
    data = end.join(lines).encode()
    file.write_bytes(data)
    found = []
    for start in range(0, len(data), part):
        text_of = "".join(files.decoded(file, Tally(), (start, min(start + part, len(data)))))
        found.append(text_of)
    assert "".join(found) == "\n".join(lines).removeprefix("\ufeff")


def test_large_files_are_read_in_parts(tmp_path, monkeypatch):
    rows = [f"document {i} " + "x" * (1 + i % 17) for i in range(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": r}) for r in rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "b.parquet", row_group_size=20)
    for name in ("a.jsonl", "b.parquet"):
        whole = read(tmp_path / name)[0]
        with monkeypatch.context() as patch:
            patch.setattr(text, "UNIT_BYTES", 900)
            patch.setattr(text, "PART_BYTES", 900)
            units = text.corpus(str(tmp_path / name)).units
            assert len(units) > 5
            assert read(tmp_path / name)[0] == whole == rows


def test_rows_keep_what_the_file_says(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one", "url": "http://x.org/a", "score": 3}')
    pq.write_table(pa.table({"text": ["two"], "title": ["T"], "n": [1]}), tmp_path / "b.parquet")
    found = [row for unit in text.corpus(str(tmp_path)).units for row in unit.read(Tally())]
    assert found == [
        ("one", {"url": "http://x.org/a", "file": "a.jsonl"}),
        ("two", {"title": "T", "file": "b.parquet"}),
    ]


def test_the_identity_follows_the_content(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    first = text.corpus(str(file)).identified()
    assert text.corpus(str(file)).identified() == first
    file.write_text("two")
    assert text.corpus(str(file)).identified() != first


def test_small_files_are_grouped(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "UNIT_BYTES", 10)
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("seven b")
    units = text.corpus(str(tmp_path)).units
    assert [unit.name for unit in units] == ["0.txt … 1.txt", "2.txt … 3.txt", "4.txt"]
    assert sum(unit.text_bytes for unit in units) == 35
