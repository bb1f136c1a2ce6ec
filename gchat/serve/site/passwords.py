"""Passwords as argon2id hashes, computed off the event loop, few at a time: each takes 64 MiB."""

import asyncio
import secrets
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_AT_ONCE = 2


class Passwords:
    """Makes and checks hashes.

    Args:
        costs: of argon2: time_cost, memory_cost (KiB), parallelism; pwdlib's when left out.
    """

    def __init__(self, **costs: int) -> None:
        from pwdlib import PasswordHash
        from pwdlib.hashers.argon2 import Argon2Hasher

        hasher: Any = Argon2Hasher
        self._hashes: Any = PasswordHash((hasher(**costs),))
        self._pool = ThreadPoolExecutor(_AT_ONCE, "argon2")
        self._nobodys = self.hash_now(secrets.token_urlsafe(16))

    def hash_now(self, password: str) -> str:
        """The hash of a password, made in this thread."""
        return self._hashes.hash(_spelled(password))

    async def hash(self, password: str) -> str:
        """The hash of a password."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.hash_now, password)

    async def check(self, password: str, stored: str | None) -> tuple[bool, str | None]:
        """Tells whether it is the password, and its new hash where the old one is too cheap.

        Without a stored hash it takes as long, so that nobody learns which names there are.
        """

        def check() -> tuple[bool, str | None]:
            right, new = self._hashes.verify_and_update(_spelled(password), stored or self._nobodys)
            return right and bool(stored), new if stored else None

        return await asyncio.get_running_loop().run_in_executor(self._pool, check)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()


def _spelled(password: str) -> str:
    # One password typed on two keyboards; halves of characters are kept apart from one another.
    whole = password.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return unicodedata.normalize("NFKC", whole)
