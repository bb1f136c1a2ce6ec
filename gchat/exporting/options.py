"""Number formats of exported files, by the names that people type."""

from typing import NamedTuple

from gaia.errors import ConfigError

PLAIN = ("F32", "F16", "BF16")
BLOCKS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""Formats that `gguf`, llama.cpp's own package, writes: blocks of 32 values with a scale."""
BLOCK = 32
K_QUANTS = (
    *("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"),
    "IQ4_NL",
    "IQ4_XS",
)
"""Mixtures that only llama.cpp's library writes."""
LARGEST_F16 = 65_504.0


class Outtype(NamedTuple):
    """A number format of an exported file."""

    name: str
    by_llama_cpp: bool


def outtype(text: str, *, hf: bool) -> Outtype:
    """The format that a text names, in any case: q4_K_M, Q4_K_M, q4_k_m.

    Args:
        text: as typed.
        hf: of a Hugging Face folder.

    Raises:
        ConfigError: no format, or none of such a file.
    """
    name = text.upper()
    names = PLAIN if hf else (*PLAIN, *BLOCKS, *K_QUANTS)
    if name not in names:
        known = name in (*BLOCKS, *K_QUANTS)
        raise ConfigError(
            f"outtype = {text!r} is {'for GGUF files only' if known else 'unknown'}",
            f"use one of {', '.join(n.lower() for n in names)}",
        )
    return Outtype(name, name in K_QUANTS)
