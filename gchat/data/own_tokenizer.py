"""The tokenizer beside a data set's shards, compared with what their tokens were made with."""

from gaia.data.manifest import Manifest
from gaia.errors import DataError
from gaia.storage.files import join
from gchat.tokenizer import FILE, Tokenizer


def check_tokenizer(place: str, manifest: Manifest) -> None:
    """Reads the tokenizer of a data set, in a folder or at gs://.

    Raises:
        DataError: it is missing, damaged, or another than that of the manifest.
    """
    stored = Tokenizer.load(join(place, FILE))
    if stored.sha256 != manifest.tokenizer.sha256:
        raise DataError(
            f"{join(place, FILE)} is another tokenizer ({stored.sha256[:12]}) than that of the "
            f"shards ({manifest.tokenizer.sha256[:12]})",
            "bring theirs back, or prepare the data again",
        )
