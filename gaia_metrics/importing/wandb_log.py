"""W&B's transaction log, `run-ID.wandb`: the records of one run, as protobufs.

A file is `:W&B`, u16 0xBEE1 and a version byte, then LevelDB's log format: blocks of 32 KiB of
chunks `u32 crc32 | u16 length | u8 type`, where a record is one chunk (type 1) or several (2, 3 …,
4), and the checksum is zlib's over type and data. W&B 0.31 has no reader in Python any more; its
Go program prints records by `wandb leet inspect --json`, which the tests hold this one against.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia_metrics.errors import FormatError

MAGIC = b":W&B" + struct.pack("<H", 0xBEE1)
BLOCK = 32 << 10
CHUNK = struct.Struct("<IHB")
WHOLE, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (bytes read so far, record) of a log; a torn or damaged end ends it.

    Raises:
        FormatError: the file is no log of W&B.
    """
    load: Any = importlib.import_module  # an extra, absent in a base install
    make = load("wandb.proto.wandb_internal_pb2").Record
    for offset, data in _payloads(path):
        yield offset, make.FromString(data)


def _payloads(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        head = file.read(len(MAGIC) + 1)
        if head[: len(MAGIC)] != MAGIC:
            raise FormatError(f"{path} is no log of W&B", "give a run folder of W&B")
        block, offset, record = head + file.read(BLOCK - len(head)), len(head), b""
        done = 0
        while block:
            while offset + CHUNK.size <= len(block):
                checksum, length, kind = CHUNK.unpack_from(block, offset)
                data = block[offset + CHUNK.size : offset + CHUNK.size + length]
                if kind == 0 and length == 0:  # the rest of the block is padding
                    break
                if len(data) < length or zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                    return
                offset += CHUNK.size + length
                record = data if kind in (WHOLE, FIRST) else record + data
                if kind in (WHOLE, LAST):
                    yield done + offset, record
            done += len(block)
            block, offset = file.read(BLOCK), 0
