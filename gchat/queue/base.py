"""Parts that the backends share."""

import json
from types import TracebackType
from typing import Any, Self


class Closing:
    """A context manager that closes at its end."""

    def close(self) -> None:
        """Lets go of connections and files."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def to_json(value: Any) -> str:
    """JSON in few bytes. Raises TypeError or ValueError for what is none."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text.encode()  # a lone surrogate, which no database takes
    return text
