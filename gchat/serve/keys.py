"""API keys: only their hashes are kept, in a file or an environment variable.

A line (or, in a variable, a word) is `NAME:sha256:HEX`. Keys are 256 random bits, so one round of
SHA-256 is enough: there is nothing to guess, and a request costs microseconds.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from gaia.errors import ConfigError

PREFIX = "sk-gchat-"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({_NAME.pattern}):sha256:([0-9a-f]{{64}})")
NOBODY = "anonymous"
"""Name of whoever asks where no keys are needed."""


class Keys:
    """Hashes of keys by the names of those who hold them; without any, everybody may ask."""

    def __init__(self, hashes: Mapping[str, str] | None = None) -> None:
        self._hashes = {name: bytes.fromhex(digest) for name, digest in (hashes or {}).items()}

    @property
    def needed(self) -> bool:
        """Tells whether a request needs a key."""
        return bool(self._hashes)

    def holder(self, key: str) -> str | None:
        """Name of the one who holds a key; None for a wrong one.

        All hashes are compared, each in constant time: the answer's time tells nothing.
        """
        given = _hashed(key)
        holder = None
        for name, digest in self._hashes.items():
            if hmac.compare_digest(given, digest):
                holder = name
        return holder


def read(source: str) -> Keys:
    """Keys of a file, or of an environment variable where `source` is `env:NAME`.

    Raises:
        ConfigError: it cannot be read, holds none, or something else; no content is repeated.
    """
    if source.startswith("env:"):
        name = source.removeprefix("env:")
        lines, place = os.environ.get(name, "").split(), f"the variable {name}"
    else:
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(source, error) from None
        lines, place = text.splitlines(), source
    hashes: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ConfigError(
                f"{place}: entry {number} is not NAME:sha256:HEX",
                "make entries with `gchat serve --new-key NAME --api-keys FILE`",
            )
        if match[1] in hashes:
            raise ConfigError(f"{place}: the name {match[1]!r} is there twice", "rename one")
        hashes[match[1]] = match[2]
    if not hashes:
        raise ConfigError(f"{place} holds no key", "make one with `gchat serve --new-key NAME`")
    return Keys(hashes)


def new(name: str) -> tuple[str, str]:
    """A new key and the line that stands for it.

    Raises:
        ConfigError: the name cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--new-key is {name!r}", "use 1 to 64 letters, digits, dots, underscores or hyphens"
        )
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:sha256:{_hashed(key).hex()}"


def add(path: Path, line: str) -> None:
    """Adds a line to a file of keys, which only its owner may read.

    Raises:
        ConfigError: the file has this name already, or cannot be written.
    """
    name = line.partition(":")[0]
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if any(one.partition(":")[0] == name for one in before.splitlines()):
            raise ConfigError(f"{path} has a key of {name!r} already", "delete its line first")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
            file.write(("\n" if before and not before.endswith("\n") else "") + line + "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(str(path), error) from None


def _unusable(path: str, error: OSError | UnicodeDecodeError) -> ConfigError:
    reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
    return ConfigError(f"--api-keys {path!r}: {reason}", "check the path")


def _hashed(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
