"""`gchat data chat`: conversations as shards with masks, cut between turns, resumed, counted."""

import functools
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import chats
from gaia.data.loader import iter_examples, make_loader
from gaia.data.manifest import load_manifest
from gaia.data.packing import IGNORE
from gaia.data.shards import verify
from gaia.errors import ConfigError, DataError
from gaia.writer_lock import WriterLock
from gchat.__main__ import main
from gchat.chat_format import Conversation, Message, format_of, read_format
from gchat.data import chat_check, work
from gchat.data.chat_command import Chats, prepare_files
from gchat.data.chats import prepare_conversations
from gchat.data.fitting import Fitted, fit
from gchat.data.sources import text

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@functools.cache
def formats():
    return {
        "native": format_of(chats.native(), wanted="native"),
        "chatml": format_of(chats.native(), wanted="chatml"),
        "imported": format_of(chats.chatml(), wanted="chatml"),
    }


def some(count, seed=0, turns=3, words=8):
    """Conversations of distinct text; every third has an instruction."""
    draw = random.Random(seed)
    for i in range(count):
        messages = [Message("system", f"rule {i}")] if i % 3 == 0 else []
        for turn in range(draw.randint(1, turns)):
            said = [" ".join(draw.choices(WORDS, k=draw.randint(1, words))) for _ in range(2)]
            messages.append(Message("user", f"{i}.{turn} {said[0]}"))
            messages.append(Message("assistant", f"{i}.{turn} {said[1]}"))
        yield Conversation(tuple(messages))


def write(path, conversations, *more):
    rows = [json.dumps(conversation.to_json()) for conversation in conversations]
    path.write_text("\n".join([*rows, *more]) + "\n")
    return path


def prepared(path, out, **options):
    """Prepares a file with the native tags; a stored tokenizer lies beside it."""
    chats.native().save(path.parent / "tok")
    given = {
        "tokenizer": str(path.parent / "tok"),
        "format": "native",
        "seq_len": 128,
        "workers": 1,
    }
    return prepare_files(Chats((str(path),), out, **(given | options)), progress=False)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def answers_in(examples, chat_format):
    """Texts of answers that are learned, with the question before each."""
    answers = []
    for example in examples:
        ids, mask = example.tokens.tolist(), example.loss_mask.tolist()
        edges = np.flatnonzero(np.diff([0, *mask, 0])).tolist()
        for start, end in zip(edges[::2], edges[1::2], strict=True):
            asked = chat_format.tokenizer.decode(ids[:start])
            message = chat_format.parse(ids[start:end])
            assert ids[end - 1] == chat_format.end_id
            answers.append((asked, message.content))
    return answers


# ── Cutting ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["native", "chatml", "imported"])
@settings(max_examples=60, deadline=None)
@given(conversation=chats.conversations(), seq_len=st.integers(8, 120))
def test_every_answer_is_learned_once_with_its_question_or_counted(kind, conversation, seq_len):
    chat_format, counts = formats()[kind], Fitted()
    pieces = fit(conversation, chat_format, seq_len, counts)
    system = conversation.messages[:1] if conversation.messages[0].role == "system" else ()
    learned = []
    for piece in pieces:
        assert len(piece.ids) <= seq_len and any(piece.mask)
        # Each piece is a conversation: the instruction, then whole exchanges.
        first = min(s.message for s in piece.spans if s.role == "user")
        assert first == len(system)
        learned.append(
            sum(piece.ids[i] == chat_format.end_id and m for i, m in enumerate(piece.mask))
        )
    all_learned = [
        i for i, m in enumerate(conversation.messages)
        if m.role == "assistant" and i not in conversation.unlearned
    ]  # fmt: skip
    assert sum(learned) == counts.answers
    assert counts.answers + counts.answers_left_out == len(all_learned)
    assert counts.whole + counts.cut + counts.skipped == counts.conversations == 1
    # What is left out does not fit with its question and the instruction alone.
    fits = [
        len(chat_format.render(Conversation((*system, *conversation.messages[i - 1 : i + 1]))).ids)
        <= seq_len
        for i in all_learned
    ]
    assert counts.answers_left_out == fits.count(False) or counts.whole
    if counts.whole:
        assert pieces == [chat_format.render(conversation)]


def test_a_turn_like_a_book_is_left_out_without_being_encoded(monkeypatch):
    book = Message("user", "word " * 2_000_000)
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    before, after = ([Message(*turn) for turn in turns[i : i + 2]] for i in (0, 2))
    conversation = Conversation((*before, book, Message("assistant", "x"), *after))
    encoded = []
    encode = type(chats.native()).encode
    monkeypatch.setattr(type(chats.native()), "encode",
                        lambda self, t: (encoded.append(len(t)), encode(self, t))[1])  # fmt: skip
    counts = Fitted()
    pieces = fit(conversation, formats()["native"], 64, counts)
    assert [chats.native().decode(p.ids).count("<|bos|>") for p in pieces] == [1, 1]
    assert (counts.cut, counts.answers, counts.answers_left_out) == (1, 2, 1)
    assert max(encoded) < 10


# ── Shards ──────────────────────────────────────────────────────────────────────────────────────


def test_conversations_come_back_from_rows_with_their_masks(tmp_path):
    conversations = list(some(60))
    source = write(tmp_path / "a.jsonl", conversations)
    manifest = prepared(source, tmp_path / "out", seq_len=512)
    chat_format = formats()["native"]
    assert (manifest.version, manifest.parameters["format"]) == (2, "native")
    assert read_format(tmp_path / "out", chats.native()).kind == "native"
    assert verify(tmp_path / "out") == manifest
    stored = [e for split in ("train", "val") for e in iter_examples(tmp_path / "out", split)]
    wanted = {json.dumps(chat_format.render(c)[:2]) for c in conversations}
    got = {json.dumps([e.tokens.tolist(), e.loss_mask.tolist()]) for e in stored}
    assert got == wanted and manifest.documents["val"] > 0
    with make_loader(
        tmp_path / "out", seq_len=512, batch_size=2, seed=1, packing="best_fit", prefetch=0
    ) as loader:
        rows = [loader.batch(step) for step in range(len(loader.rows) // 2)]
    for batch in rows:
        segments = batch.segments_BT
        for row, targets, numbers in zip(batch.inputs_BT, batch.targets_BT, segments, strict=True):
            for number in range(1, int(numbers.max()) + 1):
                here = np.flatnonzero(numbers == number)
                assert row[here[0]] == chats.native().bos_id  # BOS begins each piece
                assert (targets[here] != IGNORE).any()  # none without a target
                assert targets[here[-1]] == IGNORE  # nothing crosses into the next


def test_long_conversations_are_cut_between_turns_and_counted(tmp_path, capsys):
    conversations = list(some(40, turns=6))
    source = write(tmp_path / "a.jsonl", conversations)
    prepared(source, tmp_path / "out", seq_len=64)
    said = capsys.readouterr().err
    counts = json.loads((tmp_path / "out" / "chats.json").read_text())
    assert f"{counts['cut']} cut between turns" in said and counts["cut"] > 5
    stored = [e for split in ("train", "val") for e in iter_examples(tmp_path / "out", split)]
    answers = answers_in(stored, formats()["native"])
    assert len(answers) == counts["answers"]
    expected = {
        conversation.messages[i].content: conversation.messages[i - 1].content
        for conversation in conversations
        for i, message in enumerate(conversation.messages)
        if message.role == "assistant"
    }
    assert counts["answers"] + counts["answers_left_out"] == len(expected)
    assert len({answer for _, answer in answers}) == len(answers)
    for asked, answer in answers:
        assert asked.endswith(f"<|user_start|>{expected[answer]}<|user_end|><|assistant_start|>")
    manifest = load_manifest(tmp_path / "out")
    chat_check.check_rows(manifest, 64, "best_fit")
    with pytest.raises(ConfigError, match=r"seq_len = 63 is shorter .* rows of 64"):
        chat_check.check_rows(manifest, 63, "best_fit")
    with pytest.raises(ConfigError, match="cuts conversations"):
        chat_check.check_rows(manifest, 64, "split")
    with pytest.raises(DataError, match="the format native, and the model's is chatml"):
        chat_check.check_chats(manifest, formats()["chatml"], 64, "best_fit")


def test_a_template_without_bos_packs_too_and_the_same_program_prepares_objects(tmp_path):
    chat_format, conversations = formats()["imported"], list(some(30))
    manifest = prepare_conversations(conversations, chat_format, tmp_path / "out", 128)
    assert (
        prepare_conversations(iter(conversations), chat_format, tmp_path / "out", 128) == manifest
    )
    with pytest.raises(DataError, match=r"made with other parameters: files"):
        prepare_conversations(conversations[1:], chat_format, tmp_path / "out", 128)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with make_loader(
        tmp_path / "out", seq_len=128, batch_size=1, seed=0, packing="best_fit", prefetch=0
    ) as loader:
        batch = loader.batch(0)
    assert batch.inputs_BT[0, 0] == chats.chatml().special("<|im_start|>")


@pytest.mark.parametrize("stop_at", ["encode", "shuffle", "manifest"])
def test_an_interrupted_preparation_goes_on(tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(text, "PART_BYTES", 1500)
    monkeypatch.setattr(text, "UNIT_BYTES", 1)
    source = write(tmp_path / "a.jsonl", some(40))
    prepared(source, tmp_path / "whole")
    done = []
    encode, shuffle = work.Encode.__call__, work.Shuffle.__call__

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if stop_at == "encode":
            patch.setattr(
                work.Encode,
                "__call__",
                lambda s, t: interrupt() if t[0] == 2 else (done.append(t[0]), encode(s, t))[1],
            )
        if stop_at == "shuffle":
            patch.setattr(work.Shuffle, "__call__", interrupt)
        if stop_at == "manifest":
            patch.setattr("gchat.data.ending.write_manifest", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepared(source, tmp_path / "cut")
    assert not (tmp_path / "cut" / "manifest.json").exists()
    if stop_at == "encode":  # what was finished is not done again
        monkeypatch.setattr(
            work.Encode, "__call__", lambda s, t: (done.append(t[0]), encode(s, t))[1]
        )
    prepared(source, tmp_path / "cut")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert len(set(done)) == len(done)
    assert shuffle


def test_one_writer_and_no_other_data_set(tmp_path):
    source = write(tmp_path / "a.jsonl", some(20))
    with (
        WriterLock(tmp_path / "out" / ".gaia.lock", "x"),
        pytest.raises(DataError, match="process"),
    ):
        prepared(source, tmp_path / "out")
    first = prepared(source, tmp_path / "out")
    assert prepared(source, tmp_path / "out") == first
    with pytest.raises(DataError, match="seq_len 128 -> 64"):
        prepared(source, tmp_path / "out", seq_len=64)
    assert prepared(source, tmp_path / "out", seq_len=64, overwrite=True) != first


# ── Input ───────────────────────────────────────────────────────────────────────────────────────


def test_parquet_gives_what_jsonl_gives(tmp_path):
    conversations = list(some(20))
    rows = [conversation.to_json() for conversation in conversations]
    table = pa.Table.from_pylist(
        [row | {"id": str(i), "prompt": None} for i, row in enumerate(rows)]
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b").mkdir()
    prepared(tmp_path / "a.parquet", tmp_path / "one")
    prepared(write(tmp_path / "b" / "a.jsonl", conversations), tmp_path / "two")
    name = "tokens-00000.arrayrecord"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


BAD = ['{"prompt": "x"}', "{nonsense", '{"messages": [{"role": "assistant", "content": "x"}]}',
       '{"messages": ' + "[" * 100_000]  # fmt: skip


def test_bad_rows_stop_the_work_with_file_and_line_or_are_counted(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", some(20), *BAD)
    chats.native().save(tmp_path / "tok")
    args = ["data", "chat", str(source), "--out", str(tmp_path / "out"), "--seq-len", "128",
            "--tokenizer", str(tmp_path / "tok"), "--workers", "1"]  # fmt: skip
    assert main(args) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"gchat: {source} line 21: prompt has no completion beside it; add it"
    assert main([*args, "--max-bad", "3"]) == 2
    assert "line 24 is not JSON (nested too deeply)" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*args, "--max-bad", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["bad"] == 4 and json.loads(out)["conversations"] == 20
    assert f"4 rows that are no conversation were left out, the first is {source} line 21" in err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["--seq-len", "8"], "0 training and 0 validation documents; use more conversations"),
        (["--seq-len", "7"], "seq_len = 7 is too small"),
        (["--val-fraction", "1"], "val_fraction = 1"),
        (["--tokenizer", "nowhere"], "tokenizer = 'nowhere' is unknown"),
        (["--base", "nowhere"], "both --tokenizer and --base"),
        (["--out", "gs://b/x"], "is not a local folder"),
        (["--max-bad", "-1"], "max_bad = -1 is negative"),
        (["nowhere.jsonl"], "nowhere.jsonl' is not there"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_nothing(tmp_path, capsys, changes, problem):
    source = write(tmp_path / "a.jsonl", some(9))
    chats.native().save(tmp_path / "tok")
    options = {"--out": str(tmp_path / "out"), "--tokenizer": str(tmp_path / "tok")}
    options |= dict([changes]) if len(changes) == 2 else {}
    named = str(source) if len(changes) == 2 else changes[0]
    args = ["data", "chat", named, *(word for pair in options.items() for word in pair)]
    before = sorted(tmp_path.iterdir())
    assert main(args) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert problem in lines[-1] and len(lines) <= 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path):
    source = write(tmp_path / "a.jsonl", some(4000))
    chats.native().save(tmp_path / "tok")
    command = [sys.executable, "-m", "gchat", "data", "chat", str(source), "--seq-len", "128",
               "--tokenizer", str(tmp_path / "tok"), "--workers", "2", "--out"]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=300)
    draw = random.Random(1)
    kills = 0
    for _ in range(40):
        process = subprocess.Popen([*command, str(tmp_path / "cut")], start_new_session=True)
        try:
            process.wait(draw.uniform(0.5, 6))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
            time.sleep(0.2)
        else:
            break
    subprocess.run([*command, str(tmp_path / "cut")], check=True, timeout=300)
    assert kills and content(tmp_path / "cut") == content(tmp_path / "whole")
