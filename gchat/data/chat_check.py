"""Prepared conversations beside the run that reads them: the same format, rows long enough."""

from gaia.data.manifest import Manifest
from gaia.errors import ConfigError, DataError
from gchat.chat_format import ChatFormat
from gchat.data.chats import SOURCE, sha256_text


def check_chats(manifest: Manifest, chat_format: ChatFormat, seq_len: int, packing: str) -> None:
    """Refuses prepared conversations for a model of another format, and rows that would cut them.

    Args:
        manifest: of any data; other data than conversations passes.
        chat_format: of the model.
        seq_len: T of the training.
        packing: of the training.

    Raises:
        DataError: the data was rendered otherwise.
        ConfigError: rows are shorter than the longest piece, or not packed whole.
    """
    made = manifest.parameters
    if made.get("source") != SOURCE:
        return
    template = chat_format.template
    ours = chat_format.kind, None if template is None else sha256_text(template.text)
    if (made["format"], made["template"]) != ours:
        raise DataError(
            f"the conversations were prepared with the format {made['format']}, and the model's is "
            f"{ours[0]}" + " (with another template)" * (made["format"] == ours[0]),
            "prepare them again with --base and this run",
        )
    check_rows(manifest, seq_len, packing)


def check_rows(manifest: Manifest, seq_len: int, packing: str) -> None:
    """Refuses rows that would cut prepared conversations; other data passes.

    Raises:
        ConfigError: rows are shorter than the longest piece, or not packed whole.
    """
    made = manifest.parameters
    if made.get("source") != SOURCE:
        return
    if packing == "split":
        raise ConfigError(
            "data.packing = 'split' cuts conversations, and lets one see another",
            "use best_fit",
        )
    if seq_len < made["seq_len"]:
        raise ConfigError(
            f"model.seq_len = {seq_len} is shorter than the conversations, which were prepared for "
            f"rows of {made['seq_len']}",
            f"prepare them again with --seq-len {seq_len}",
        )
