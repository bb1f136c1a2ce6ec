"""The reason for which a record goes."""

from typing import NamedTuple


class Reason(NamedTuple):
    """A filter's name, and what it met."""

    filter: str
    why: str
