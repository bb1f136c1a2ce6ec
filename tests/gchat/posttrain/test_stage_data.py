"""Entries of `--data`: text or conversations, by what files hold, without a training."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaia.data.manifest import load_manifest
from gaia.errors import ConfigError
from gchat.posttrain import data
from gchat.tokenizer import Tokenizer

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}
SHARE = {"conversations": [{"from": "human", "value": "Hi"}], "text": "Hi"}
ALPACA = {"instruction": "Add.", "input": "", "output": "5", "text": "Add. 5"}
TEXT = {"text": "words of a text", "id": 3}


def rows(path: Path, *written):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(written)), path)
    else:
        path.write_text("".join(f"{json.dumps(row)}\n" for row in written))


@pytest.fixture
def setting(data_dir, tmp_path, monkeypatch):
    """Gives a setting for entries of `--data`, which are looked for in a folder of their own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run = SimpleNamespace(folder=tmp_path / "run")
    base = SimpleNamespace(path=data_dir, tokenizer=Tokenizer.load(data_dir))

    def made(*entries):
        config = SimpleNamespace(stage=SimpleNamespace(data=entries), run=run)
        return SimpleNamespace(config=config, base=base, format=None)

    return made


@pytest.mark.parametrize(
    ("name", "row", "is_text"),
    [
        ("a.jsonl", CHAT, False), ("a.parquet", CHAT, False), ("a.jsonl", CHAT["messages"], False),
        ("a.jsonl", TEXT, True), ("a.parquet", TEXT, True), ("a.parquet", SHARE, False),
        ("a.jsonl", ALPACA, True), ("a.jsonl", [], False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["file", "folder", "glob"])
def test_rows_are_told_by_their_fields(setting, name, row, is_text, place):
    path = Path("set") / "data" / name
    rows(path, row)
    Path("set/README.md").write_text("# A data set of the hub\n")
    given = {"file": str(path), "folder": "set", "glob": f"set/data/*{path.suffix}"}[place]
    assert data._is_text(data._fields(data.Entry(given, 1.0))) == is_text


def test_fine_tuning_takes_chats_beside_a_readme_and_refuses_text(setting, monkeypatch):
    monkeypatch.setattr(data, "_conversations", lambda setting, entries: "chats")
    rows(Path("set/chats.jsonl"), CHAT)
    Path("set/README.md").write_text("# A data set of the hub\n")
    rows(Path("alpaca/train.parquet"), ALPACA)
    assert data.conversations(setting("set", "alpaca")) == "chats"
    assert data.text_or_conversations(setting("set")) == "chats"
    rows(Path("texts.parquet"), TEXT)
    for given in ("texts.parquet", "set/README.md"):
        with pytest.raises(ConfigError, match="is text, of which no answer can be learned"):
            data.conversations(setting("set", given))


def test_several_texts_are_one_preparation(setting):
    """The help of `gchat midtrain` shows it: `--data manual.txt notes.md`."""
    Path("manual.txt").write_text("\n\n".join(f"manual {i} " * 400 for i in range(20)))
    Path("notes.md").write_text("# Notes\n\n" + "notes " * 40)
    rows(Path("more/texts.parquet"), *[TEXT] * 3)
    made = data.text_or_conversations(setting("manual.txt", "notes.md", "more", "manual.txt"))
    assert made.folder is not None
    manifest = load_manifest(made.folder)
    assert [Path(source).name for source in manifest.sources] == [
        "manual.txt", "notes.md", "texts.parquet",
    ]  # fmt: skip
    assert not made.chat and sum(manifest.text_bytes.values()) > 50_000
    # Another content is another set, not an error about what an earlier start left.
    Path("notes.md").write_text("# Other notes\n\n" + "more " * 40)
    again = data.text_or_conversations(setting("manual.txt", "notes.md"))
    assert again.folder != made.folder


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (("a.txt", "chats.jsonl"), r"names text \(a\.txt\) and conversations \(chats\.jsonl\)"),
        (("sums", "a.txt"), r"names text \(a\.txt\) and conversations \(sums\)"),
        (("a.txt", "a.txt@2"), r"a\.txt is text and taken 2 times"),
    ],
)
def test_text_stands_alone_and_is_taken_once(setting, entries, says):
    Path("a.txt").write_text("text\n")
    rows(Path("chats.jsonl"), CHAT)
    with pytest.raises(ConfigError, match=says):
        data.text_or_conversations(setting(*entries))


@pytest.mark.parametrize("name", ["json:mine.jsonl", "gsm8k=mine.jsonl", "gsm8k=.", "smoltalk=."])
def test_an_edited_task_is_another_data_set(setting, name):
    def prepared(answer):
        row = {"question": "2?", "answer": answer}
        if name.startswith("smoltalk"):
            row = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": answer}]}
        rows(Path("train.jsonl" if name.endswith(".") else "mine.jsonl"), *[row] * 5)
        return data._source(data.Entry(name, 1.0), 0).identity(0)

    assert prepared("#### 4") == prepared("#### 4") != prepared("#### 5")


def test_a_made_task_is_known_by_its_seed(setting):
    one, same, other = (
        data._source(data.Entry("sums", 1.0), seed).identity(seed) for seed in (1, 1, 2)
    )
    assert one == same != other
