"""HTML of messages, kept as far as it is small enough: texts of users decide how long it is."""

import threading
from collections import OrderedDict
from collections.abc import Callable

MAX_CHARACTERS = 64_000_000


class Rendered:
    """Renders texts, and keeps the HTML of those that were asked for last; for several threads.

    Args:
        render: makes the HTML of a text.
        most: characters of texts and their HTML that are kept.
    """

    def __init__(self, render: Callable[[str], str], most: int = MAX_CHARACTERS) -> None:
        self._render, self._most = render, most
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def __call__(self, text: str) -> str:
        """The HTML of a text."""
        with self._lock:
            if text in self._kept:
                self._kept.move_to_end(text)
                return self._kept[text]
        html = self._render(text)
        with self._lock:
            if text not in self._kept:  # another thread may have rendered it meanwhile
                self._kept[text] = html
                self._size += len(text) + len(html)
            while self._size > self._most:
                self._size -= sum(map(len, self._kept.popitem(last=False)))
        return html
