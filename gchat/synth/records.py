"""Records and rejects: one JSON line each, traceable to their window, style and prompt.

    {"id", "kind": "qa"|"contrast"|"qpt", "source": {"article", "title", "window", "sentences"},
     "style", "split", "question", "answer", "choices"?, "fact"?, "pair"?, "model", "tokens"?,
     "cost"?}

A reject is the same with "phase", "filter" and "why", and what was written where no record came of
it as "text".
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gaia.errors import DataError
from gchat.synth.windows import Window

KINDS = ("qa", "contrast", "qpt")


def record_id(window: str, style: str, *more: object) -> str:
    """Id of the record of a window, a style and a seed: the same in every run."""
    text = " ".join(map(str, (window, style, *more)))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def source_of(window: Window) -> dict[str, Any]:
    """The place that a record comes from: sentences is [first, end) within the article."""
    return {
        "article": window.article,
        "title": window.title,
        "window": window.id,
        "sentences": [window.start, window.start + len(window.sentences)],
    }


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file of JSON lines.

    Raises:
        DataError: it cannot be read; the line is named.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                yield row
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r} ({error.strerror})", "check the path") from None
    except ValueError as error:
        raise DataError(f"{path}: a line is no JSON object ({error})", "mend it") from None
