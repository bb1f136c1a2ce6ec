"""Parts that the backends share."""

from types import TracebackType
from typing import Self


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
