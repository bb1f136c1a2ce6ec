"""The work tree of a job, kept as a document from `gml queue add` until the job runs.

A tar of what `gml sync` would send, with the last commit as its git history, so that the machine
gets what it would have got from here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gml.documents import NEW, Conflict, Documents
from gml.errors import NotFound, UsageError
from gml.remote.git import git_argv, run_git
from gml.remote.history import head_of, holds_secret, packing, ref_lines, shallow_lines
from gml.remote.sync import files_to_send

# Larger trees are data: they belong into a bucket.
LARGEST_BYTES = 64_000_000


def store_code(documents: Documents, queue: str, root: Path) -> tuple[str, list[str]]:
    """Stores the work tree; the document's name, and the files held back as secrets.

    Raises:
        UsageError: the tree is larger than 64 MB when packed.
    """
    files, withheld = files_to_send(root)
    packed = io.BytesIO()
    with (
        tempfile.TemporaryDirectory() as scratch,
        tarfile.open(fileobj=packed, mode="w:gz", compresslevel=6) as tar,
    ):
        for name in files:
            tar.add(root / name, arcname=name, recursive=False, filter=_plain)
        for path, name in _history(root, Path(scratch)):
            tar.add(path, arcname=name, recursive=False, filter=_plain)
    data = packed.getvalue()
    if len(data) > LARGEST_BYTES:
        raise UsageError(
            f"the work tree is {len(data) / 1e6:.0f} MB packed, more than "
            f"{LARGEST_BYTES / 1e6:.0f} MB",
            "put data into a bucket (--data gs://…) or into .gitignore",
        )
    name = f"code/{queue}/{hashlib.sha256(data).hexdigest()[:32]}"
    with contextlib.suppress(Conflict):  # it is there already
        documents.write(name, {"tar": base64.b64encode(data).decode()}, NEW)
    return name, withheld


@contextlib.contextmanager
def unpacked(documents: Documents, name: str) -> Iterator[Path]:
    """The work tree in a folder of its own; raises NotFound."""
    there = documents.read(name)
    if there is None:
        raise NotFound(f"{name} is missing in {documents.where}", "add the job again")
    with tempfile.TemporaryDirectory(prefix="gml-code-") as scratch:
        folder = Path(scratch) / "tree"
        with tarfile.open(fileobj=io.BytesIO(base64.b64decode(there[0]["tar"]))) as tar:
            tar.extractall(folder, filter="tar")
        if (folder / ".git").exists():
            _git(folder, "reset", "-q")
        else:
            _git(folder, "init", "-q")
            _git(folder, "add", "-A", "-f")
        yield folder


def _history(root: Path, scratch: Path) -> list[tuple[Path, str]]:
    """Files of a repository with the last commit alone; none where it would hold a secret."""
    head = head_of(root)
    if head is None or holds_secret(root, last_only=True):
        return []
    _git(scratch, "init", "-q", "--template=", "tree")
    tree = scratch / "tree"
    with packing(root, head, shallow=True) as pack:
        argv = git_argv(tree, "index-pack", "--stdin")
        done = subprocess.run(argv, stdin=pack, capture_output=True)
    if done.returncode != 0:
        return []
    lines = [shallow_lines(root, head, True, False), ref_lines(head)]
    subprocess.run(["bash", "-c", "\n".join(lines)], cwd=tree, capture_output=True)
    paths = sorted((tree / ".git").rglob("*"))
    return [(p, str(p.relative_to(tree))) for p in paths]


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member


def _git(folder: Path, *words: str) -> None:
    run_git(folder, *words)
