"""Seal of a folder: the size and crc32c of each of its files, in a file that is written last.

A folder without it was cut off, one whose files disagree with it was damaged.
"""

import hashlib
import json
from collections.abc import Iterator

import google_crc32c
from etils import epath

CHECKSUMS = "checksums.json"


def write(folder: epath.Path) -> None:
    """Reads all files of a folder, local or gs://, and seals it.

    Raises:
        OSError: a file cannot be read, or the seal not written.
    """
    files = {}
    for path in _walk(folder):
        data = path.read_bytes()
        files[str(path.relative_to(folder))] = (len(data), _crc(data))
    text = json.dumps({"self": _crc(_canonical(files)), "files": files}, indent=1)
    if "://" in str(folder):  # an object appears whole, and cannot be renamed at once
        (folder / CHECKSUMS).write_text(text)
    else:
        partial = folder / f"{CHECKSUMS}.partial"
        partial.write_text(text)
        partial.rename(folder / CHECKSUMS)


def damage(folder: epath.Path) -> str | None:
    """Says what is wrong with a folder's files; None if every one matches its checksum.

    Raises:
        OSError: storage does not answer, which says nothing about the files.
    """
    try:
        expected = json.loads((folder / CHECKSUMS).read_text())
        files = {str(k): (int(v[0]), int(v[1])) for k, v in expected["files"].items()}
        if expected["self"] != _crc(_canonical(expected["files"])):
            return f"{CHECKSUMS} is damaged"
    except FileNotFoundError:
        return "it was never finished"
    except (ValueError, KeyError, TypeError, IndexError):
        return f"{CHECKSUMS} is damaged"
    for name, (size, crc) in files.items():
        try:
            data = (folder / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return f"{name} is missing"
        if len(data) != size:
            return f"{name} has {len(data)} bytes instead of {size}"
        if _crc(data) != crc:
            return f"{name} does not match its crc32c"
    return None


def digest(folder: epath.Path) -> str:
    """Name of a sealed folder by the content of its files, 16 hexadecimal digits.

    Raises:
        ValueError, KeyError, OSError: it has no seal that can be read.
    """
    files = json.loads((folder / CHECKSUMS).read_text())["files"]
    return hashlib.sha256(_canonical(files)).hexdigest()[:16]


def _canonical(files: dict) -> bytes:
    return json.dumps(files, sort_keys=True).encode()


def _crc(data: bytes) -> int:
    return google_crc32c.value(data)


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        elif not path.name.startswith(CHECKSUMS):
            yield path
