"""Conversations to train on, without a grade: SmolTalk, identity files, files of one's own."""

from gaia.errors import ConfigError, DataError
from gchat.chat_format import Conversation
from gchat.tasks.places import Place
from gchat.tasks.rows import Row
from gchat.tasks.task import Item

SMOLTALK = Place(
    "HuggingFaceTB/smol-smoltalk", "f73fe857d519ff6ac5af2ea67c4d3834da7b8bcc", "data",
    files=("smoltalk",),
)  # fmt: skip
IDENTITY = Place(files=("identity", "identity_conversations"))


def item(row: Row) -> Item:
    """The item of a row that `Conversation.from_json` reads; its last message is the answer."""
    try:
        messages = Conversation.from_json(dict(row.values)).messages
    except (ConfigError, DataError) as error:
        raise DataError(f"{row.where}: {error.problem}", error.remedy) from None
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise row.wrong("messages", "does not end with an answer of the assistant")
    return Item(row.name, messages[:-1], messages[-1])
