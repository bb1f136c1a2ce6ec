"""The vocabulary of a GGUF file as a tokenizer.json: byte-level BPE by its pre-tokenizer's name.

The split patterns are llama.cpp's (src/llama-vocab.cpp), by the names that GGUF files carry.
"""

import json
from typing import Any, NamedTuple

from gchat.importing.options import Options
from gchat.importing.source import ImportRefused, Vocabulary
from gchat.importing.vocabulary import choose_bos

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|%s|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Split(NamedTuple):
    """A pre-tokenizer: patterns applied one after the other."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A piece that is a token as it stands becomes that token, whatever the merges say."""
    add_bos: bool = False


_SPLITS = {
    "gpt-2": _Split((_GPT2,)),
    "smollm": _Split((r"\p{N}", _GPT2)),
    "starcoder": _Split((r"\p{N}", _GPT2)),
    "refact": _Split((r"\p{N}", _GPT2)),
    "llama-bpe": _Split((_CL100K % r"\p{N}{1,3}",), ignore_merges=True, add_bos=True),
    "qwen2": _Split((_CL100K % r"\p{N}",)),
}
_SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "falcon3": "llama-bpe"}
_SAME |= {"deepseek-r1-qwen": "qwen2", "olmo": "gpt-2"}
# Kinds of tokens (GGUF's token_type).
_CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 3, 4, 5, 6
_ADDED = "tokenizer.ggml."


def read(options: Options, rows: int) -> Vocabulary:
    """The vocabulary of a file's fields.

    Args:
        options: fields of the file.
        rows: ids of the model.

    Raises:
        ImportRefused: fields are missing, or a kind of tokenizer that is not known exactly.
    """
    tokens = _listed(options, "tokens", str)
    kinds = _listed(options, "token_type", int)
    if len(tokens) > rows:
        options.refuse("tokenizer.ggml.tokens", f"{len(tokens):,} tokens for {rows:,} rows")
    if len(kinds) != len(tokens):
        options.refuse("tokenizer.ggml.token_type", f"{len(kinds):,} for {len(tokens):,} tokens")
    model = options.get("tokenizer.ggml.model")
    if model != "gpt2":
        options.refuse(
            "tokenizer.ggml.model",
            "only gpt2 (byte-level BPE) is supported",
            "import the model's Hugging Face folder",
        )
    name = options.get("tokenizer.ggml.pre")
    split = _SPLITS.get(_SAME.get(str(name), str(name)))
    if split is None:
        options.refuse(
            "tokenizer.ggml.pre",
            f"only {', '.join(_SPLITS)} are supported",
            "import the model's Hugging Face folder",
        )
    definition = _definition(tokens, kinds, _merges(options, tokens), split)
    bos = _token(options, "bos_token_id", tokens)
    add_bos = options.get("tokenizer.ggml.add_bos_token", split.add_bos)
    ends = [
        _token(options, key, tokens) for key in ("eos_token_id", "eot_token_id", "eom_token_id")
    ]
    first, stops = choose_bos(definition, bos=bos, ends=ends, where=options.where)
    if add_bos and bos is not None:
        first = bos
    return Vocabulary(definition, first, stops, options.get("tokenizer.chat_template"))


def _listed(options: Options, name: str, kind: type) -> list[Any]:
    listed = options.get(f"{_ADDED}{name}")
    if not isinstance(listed, list | tuple) or not all(isinstance(x, kind) for x in listed):
        raise ImportRefused(
            f"{options.where}: {_ADDED}{name} is missing or damaged",
            "take a file that holds its tokenizer",
        )
    return list(listed)


def _token(options: Options, name: str, tokens: list[str]) -> str | None:
    number = options.get(f"{_ADDED}{name}")
    if number is None or number >= len(tokens):
        return None
    return tokens[number]


def _merges(options: Options, tokens: list[str]) -> list[list[str]]:
    known, merges = set(tokens), []
    for merge in _listed(options, "merges", str):
        # A space inside of a piece cannot be: byte-level BPE writes it as another letter.
        pair = merge.split(" ")
        if len(pair) != 2 or not known.issuperset((*pair, "".join(pair))):
            raise ImportRefused(
                f"{options.where}: tokenizer.ggml.merges holds {merge!r}, which the vocabulary "
                "cannot make",
                "fetch it again",
            )
        merges.append(pair)
    return merges


def _definition(tokens: list[str], kinds: list[int], merges: list[list[str]], split: _Split) -> str:
    """Text of a tokenizer.json."""
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps: list[dict[str, Any]] = [
        {
            "type": "Split",
            "pattern": {"Regex": pattern},
            "behavior": "Isolated",
            "invert": False,
        }
        for pattern in split.patterns
    ]
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": split.ignore_merges,
        "vocab": {t: i for i, (t, k) in enumerate(zip(tokens, kinds, strict=True)) if k != _UNUSED},
        "merges": merges,
    }
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [*steps, byte_level | {"use_regex": False}],
            },
            "post_processor": None,
            "decoder": byte_level | {"use_regex": True},
            "model": model,
        },
        ensure_ascii=False,
    )
