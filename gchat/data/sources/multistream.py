"""Row of bz2 streams, one behind the other, of which each can be read alone."""

import bz2
from collections.abc import Iterable, Iterator, Sequence


def groups(
    edges: Sequence[tuple[int, int]], most: int, *, joined: bool
) -> Iterator[list[tuple[int, int]]]:
    """Ranges in groups of up to `most` bytes; `joined` ones lie side by side."""
    group: list[tuple[int, int]] = []
    for edge in edges:
        size = sum(end - start for start, end in group)
        apart = joined and group and group[-1][1] != edge[0]
        if group and (apart or size + edge[1] - edge[0] > most):
            yield group
            group = []
        group.append(edge)
    if group:
        yield group


def is_sound(part: bytes) -> bool:
    """True where bz2 finds its own checksums right (each block has a CRC, and the stream)."""
    try:
        for _ in decompressed([part]):
            pass
    except (OSError, EOFError):
        return False
    return True


def decompressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Content of bz2 streams, one behind the other, in blocks."""
    decompressor = bz2.BZ2Decompressor()
    begun = False
    for part in parts:
        while part:
            if block := decompressor.decompress(part):
                yield block
            begun = not decompressor.eof
            part = b""
            if decompressor.eof:
                part, decompressor = decompressor.unused_data, bz2.BZ2Decompressor()
    if begun:
        raise EOFError("a bz2 stream is cut off")


class Blocks:
    """Blocks of bytes as the file that an XML parser reads."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks

    def read(self, size: int = -1, /) -> bytes:
        """The next block, whatever its size."""
        return next(self._blocks, b"")
