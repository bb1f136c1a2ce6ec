"""Tokens of an imported vocabulary that mean something to us: the first of a document, the last."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gchat.importing.source import ImportRefused
from gchat.vocab import hub

# Separators of documents in pretraining, by which families that have no BOS begin each document.
_SEPARATORS = ("<|endoftext|>", "<|begin_of_text|>", "<s>")
# Ends of a message, which files of chat models often do not name.
_ENDS = ("<|im_end|>", "<|eot_id|>")


def choose_bos(
    definition: str, *, bos: str | int | None, ends: Iterable[Any], where: Path
) -> tuple[str, tuple[str, ...]]:
    """The token that begins a document, and those that end an answer.

    A document begins with what the tokenizer itself puts in front of a text; where that is nothing,
    with the separator of documents in pretraining, then with the stated BOS, then with the EOS.

    Args:
        definition: text of a tokenizer.json.
        bos: stated BOS, by text or id.
        ends: stated ends, by text, id or lists of these.
        where: the file, for messages.

    Raises:
        ImportRefused: no such token.
    """
    tokenizer = hub.parse(definition)
    added = tokenizer.get_added_tokens_decoder()
    specials = {t.content for t in added.values() if t.special}

    def name(token: Any) -> str | None:
        # Some files write -1 where there is no such token.
        if isinstance(token, int) and not isinstance(token, bool) and 0 <= token < 1 << 32:
            return tokenizer.id_to_token(token)
        return token if isinstance(token, str) else None

    flat = [one for end in ends for one in (end if isinstance(end, list) else [end])]
    stops = [text for text in map(name, flat) if text is not None and text in specials]
    stops += [text for text in _ENDS if text in specials]
    in_front = tokenizer.encode("a").tokens[:1]
    candidates = [*in_front, *_SEPARATORS, name(bos), *stops]
    chosen = next((text for text in candidates if text in specials), None)
    if chosen is None:
        raise ImportRefused(
            f"{where}: no special token begins a document (bos_token is {bos!r})",
            "name one in tokenizer_config.json as bos_token, with special true",
        )
    return chosen, tuple(dict.fromkeys(stops))
