"""The vocabulary of a GGUF file as a tokenizer.json: byte-level BPE by its pre-tokenizer's name."""

from typing import Any

from gchat.importing.options import Options
from gchat.importing.source import ImportRefused, Vocabulary
from gchat.importing.vocabulary import choose_bos
from gchat.vocab.byte_level import tokenizer_json
from gchat.vocab.splits import SAME, SPLITS

# Kinds of tokens (GGUF's token_type).
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
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
    split = SPLITS.get(SAME.get(str(name), str(name)))
    if split is None:
        options.refuse(
            "tokenizer.ggml.pre",
            f"only {', '.join(SPLITS)} are supported",
            "import the model's Hugging Face folder",
        )
    bos = _token(options, "bos_token_id", tokens)
    add_bos = options.get("tokenizer.ggml.add_bos_token", split.add_bos)
    by_kind = list(enumerate(zip(tokens, kinds, strict=True)))
    added = {t: (i, k == CONTROL) for i, (t, k) in by_kind if k in (CONTROL, USER_DEFINED)}
    definition = tokenizer_json(
        {token: i for i, (token, kind) in by_kind if kind != UNUSED},
        _merges(options, tokens),
        added,
        split.patterns,
        ignore_merges=split.ignore_merges,
        bos=bos if add_bos and bos in added else None,
    )
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
