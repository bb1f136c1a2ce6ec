"""Local paths and `gs://` addresses alike: list, read, write atomically, checksum."""

from gaia.storage.files import (
    FULL,
    StorageError,
    atomic_path,
    crc32c,
    crc32c_file,
    exists,
    home,
    is_remote,
    join,
    list_names,
    local_file,
    make_folder,
    open_atomic,
    read_bytes,
    read_text,
    sha256_file,
    size,
    write_bytes,
    write_text,
)

__all__ = [
    "FULL", "StorageError", "atomic_path", "crc32c", "crc32c_file", "exists", "home", "is_remote",
    "join", "list_names", "local_file", "make_folder", "open_atomic", "read_bytes", "read_text",
    "sha256_file", "size", "write_bytes", "write_text",
]  # fmt: skip
