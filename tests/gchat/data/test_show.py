"""`gchat data show`: what is printed is what the batch holds."""

import json

import numpy as np
import pytest

from gaia.data.batch import IGNORE
from gaia.data.lengths import write_lengths
from gaia.data.packing import Example
from gaia.data.shards import write_shards
from gaia.errors import ConfigError
from gchat import tokenizer as tokenizers
from gchat.data.cli import parse_verb


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chats")
    made = tokenizers.train_bpe(["who are you the answer is a machine "] * 9, 290)
    made.save(folder)
    examples = []
    for i in range(30):
        asked = [made.bos_id, made.special("user_start"), *made.encode(f"who are you {i}")]
        said = [*made.encode("a machine"), made.special("assistant_end")]
        mask = [False] * (len(asked) + 1) + [True] * len(said)
        tokens = [*asked, made.special("assistant_start"), *said]
        examples.append(Example(np.array(tokens), np.array(mask)))
    write_lengths(folder, write_shards(folder, examples, examples[:1], made.info))
    return folder


def test_learned_and_read_text_are_told_apart(chats, capsys):
    batch = parse_verb("show", [str(chats), "--seq-len", "96", "--rows", "3"]).run()
    out = capsys.readouterr().out
    assert "packing: best_fit" in out and "tokens-00000.arrayrecord row" in out
    assert out.count("›a machine<|assistant_end|>\n") == batch.segments_BT.max(1).sum()
    assert "‹<|bos|><|user_start|>who are you" in out and "\x1b" not in out
    parse_verb("show", [str(chats), "--seq-len", "96", "--color", "always"]).run()
    assert "\x1b[32m" in capsys.readouterr().out


def test_json_holds_every_token_of_the_batch(chats, capsys):
    batch = parse_verb("show", [str(chats), "--seq-len", "96", "--json", "--step", "2"]).run()
    rows = json.loads(capsys.readouterr().out)["rows"]
    for b, row in enumerate(rows):
        tokens = [token for segment in row["segments"] for token in segment["tokens"]]
        assert tokens == batch.inputs_BT[b][batch.segments_BT[b] > 0].tolist()
        learned = sum(sum(segment["learned"]) for segment in row["segments"])
        assert learned == (batch.targets_BT[b] != IGNORE).sum()


def test_one_stream_is_one_segment(chats, capsys):
    parse_verb("show", [str(chats), "--packing", "split", "--seq-len", "40", "--rows", "1"]).run()
    assert "40 of 40 places, 1 segments" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="step = -1"):
        parse_verb("show", [str(chats), "--step", "-1"]).run()
