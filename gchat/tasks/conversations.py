"""Conversations to train on, without a grade: SmolTalk, identity files, files of one's own."""

from gaia.errors import DataError
from gchat.conversation import Conversation
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
        read = Conversation.from_json(row.values)
    except DataError as error:
        raise DataError(f"{row.where}: {error.problem}", error.remedy) from None
    unlearned = {"unlearned": read.unlearned} if read.unlearned else {}
    return Item(row.name, read.messages[:-1], read.messages[-1], meta=unlearned)
