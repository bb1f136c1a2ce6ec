"""Frames of segments and spool files: length, checksum, payload; and the way past a damaged one.

    u32 length | u32 crc32c(payload) | payload            little-endian

A killed process leaves a frame cut short at the end of a file. A disk may damage any frame: the
ones behind it are whole, so a reader jumps over the damaged one, and no more than that is lost.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

FRAME = struct.Struct("<II")
Checksum = Callable[[bytes], int]


def payload(data: bytes, at: int, crc: Checksum) -> bytes | None:
    """Return the payload of the frame at `at`; None where it is cut short or damaged."""
    if at + FRAME.size > len(data):
        return None
    length, want = FRAME.unpack_from(data, at)
    if not 0 < length <= len(data) - at - FRAME.size:  # before a slice copies megabytes
        return None
    content = data[at + FRAME.size : at + FRAME.size + length]
    return content if crc(content) == want else None


def behind(data: bytes, at: int, crc: Checksum, kinds: re.Pattern[bytes]) -> int | None:
    """Find where the next whole frame begins behind a bad one at `at`; None where there is none.

    Args:
        kinds: matches the first byte of a payload, so that few places need a checksum.
    """
    if at + FRAME.size > len(data):
        return None
    stated = at + FRAME.size + FRAME.unpack_from(data, at)[0]
    if stated > at + FRAME.size and payload(data, stated, crc) is not None:
        return stated  # the length was not what was damaged
    for kind in kinds.finditer(data, at + FRAME.size + 1):
        if payload(data, kind.start() - FRAME.size, crc) is not None:
            return kind.start() - FRAME.size
    return None


def cut_short(data: bytes, at: int) -> bool:
    """Tell whether what begins at `at` looks like a write that was interrupted."""
    if at + FRAME.size > len(data):
        return True
    return at + FRAME.size + FRAME.unpack_from(data, at)[0] > len(data)
