"""Text of an answer as it grows: whole characters, and nothing of a stop text."""

import codecs
from collections.abc import Callable, Sequence


class TextStream:
    """Turns ids into text piece by piece; the pieces together are the text of all ids.

    Args:
        decode_bytes: bytes of ids; those of a list are those of its ids, joined.
        stops: texts that end the answer.
    """

    def __init__(
        self, decode_bytes: Callable[[Sequence[int]], bytes], stops: Sequence[str]
    ) -> None:
        self._decode_bytes, self._stops = decode_bytes, tuple(stops)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # the beginning of what may become a stop text
        self.stopped_by: str | None = None

    def add(self, token: int) -> str:
        """Text that is certain now; `stopped_by` is set where a stop text has been completed."""
        return self._show(self._utf8.decode(self._decode_bytes([token])))

    def end(self) -> str:
        """The rest, when no token follows: what looked like the beginning of a stop text."""
        if self.stopped_by is not None:
            return ""
        text, self._held = self._show(self._utf8.decode(b"", final=True)) + self._held, ""
        return text

    def _show(self, text: str) -> str:
        text = self._held + text
        self._held = ""
        places = {stop: at for stop in self._stops if (at := text.find(stop)) >= 0}
        if places:
            self.stopped_by = min(places, key=lambda stop: places[stop])
            return text[: places[self.stopped_by]]
        longest = max(
            (n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        if longest:
            text, self._held = text[:-longest], text[-longest:]
        return text
