"""Stand-in for the chat shards until they are merged."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gaia.data.lengths import write_lengths
from gaia.data.manifest import MANIFEST, Manifest, load_manifest
from gaia.data.packing import Example
from gaia.data.shards import write_shards
from gaia.errors import DataError
from gchat.chat_format import ChatFormat
from gchat.conversation import Conversation


def prepare_conversations(
    conversations: Iterable[Conversation], fmt: ChatFormat, out: Path, seq_len: int
) -> Manifest:
    """Renders, skips what is too long, writes."""
    if (out / MANIFEST).exists():
        return load_manifest(out)
    train, val = [], []
    for one in conversations:
        rendered = fmt.render(one)
        if len(rendered.ids) > seq_len:
            continue
        example = Example(np.array(rendered.ids), np.array(rendered.mask))
        held = zlib.crc32(repr(one).encode()) % 20 == 0
        (val if held else train).append(example)
    if not train:
        raise DataError("no conversation", "give some")
    if not val:
        val = [train.pop()]
    write_shards(out, train, val, fmt.tokenizer.info)
    write_lengths(out, load_manifest(out))
    fmt.tokenizer.save(str(out / "tokenizer.json"))
    return load_manifest(out)
