"""Parts that the backends share."""

import importlib
import json
from types import TracebackType
from typing import Any, Self

from gaia.errors import ConfigError
from gaia.extras import install


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


def driver(name: str, scheme: str) -> Any:
    """The module of a server's official client; ConfigError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        problem = f"{scheme}:// needs the package {error.name!r}, which is not installed"
        raise ConfigError(problem, install("queue")) from None
