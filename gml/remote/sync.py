"""Git-aware sync: what git tracks plus what it does not ignore, deletions too, secrets never."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import subprocess
import threading
import time
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from gml.errors import Unavailable, UsageError
from gml.model import Node
from gml.remote.data import UPLINK
from gml.remote.git import git_argv, git_says, run_git
from gml.remote.history import Head, head_of, push_history
from gml.remote.secrets import is_secret
from gml.remote.ssh import Ssh, host_alias
from gml.store import write_private

# More than this is announced before it is sent.
LARGE_BYTES = 100_000_000
_DEST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")


@dataclass(frozen=True)
class SyncReport:
    """Result of a sync. `withheld` are files that look like secrets; `note` is to be said."""

    files: int
    deleted: int
    withheld: tuple[str, ...]
    seconds: float
    dest: str
    note: str = ""


def check_dest(dest: str) -> str:
    """A folder below the remote home; raises UsageError for absolute or climbing paths."""
    if not _DEST.fullmatch(dest) or ".." in dest.split("/"):
        raise UsageError(f"remote folder {dest[:80]!r} is not usable", "use a name below the home")
    return dest.rstrip("/")


def check_result(name: str) -> str:
    """A result to fetch, below the work tree; a leading `./` is taken off. Raises UsageError."""
    try:
        return check_dest(name.removeprefix("./"))
    except UsageError:
        raise UsageError(
            f"--fetch {name[:80]!r} is not usable",
            "name a file or folder below the work tree, for example runs or out/model.bin",
        ) from None


def check_data(data: str) -> None:
    """Raises UsageError for a folder that `gml run --data` could not send, by its name alone."""
    name = Path(data).name
    if not data or data.startswith("gs://"):
        return
    try:
        check_dest(f"data/{name}")
    except UsageError:
        raise UsageError(
            f"--data {data!r}: its last part {name!r} can't be a folder there",
            "rename it, or name a link to it: letters, digits, _, - and .",
        ) from None


def repository_root(folder: Path) -> Path:
    """Root of the git work tree around `folder`; raises UsageError outside of one."""
    done = run_git(folder, "rev-parse", "--show-toplevel")
    if done.returncode != 0:
        raise UsageError(
            f"{folder} is not in a git repository",
            "sync sends what git tracks: run `git init`, or stand in the repository",
        )
    return Path(done.stdout.strip())


def files_to_send(root: Path) -> tuple[list[str], list[str]]:
    """Existing files that are tracked or untracked-but-not-ignored, and those held back.

    git lists a submodule or a clone within the tree as one entry; its own listing is taken inside.
    """
    listing = subprocess.run(
        git_argv(root, "ls-files", "-z", "-c", "-o", "--exclude-standard"),
        capture_output=True,
        check=True,
    )
    send, withheld = [], []
    for raw in dict.fromkeys(listing.stdout.split(b"\0")):
        if not raw:
            continue
        path = os.fsdecode(raw)
        full = root / path
        if full.is_dir() and not full.is_symlink():
            path = path.rstrip("/")
            if not (full / ".git").exists():
                continue
            inner, held = files_to_send(full)
            send += [f"{path}/{name}" for name in inner]
            withheld += [f"{path}/{name}" for name in held]
        elif is_secret(path, root):
            withheld.append(path)
        elif full.is_symlink() or full.is_file():
            send.append(path)
    return send, withheld


def links_out(root: Path, files: list[str]) -> list[str]:
    """Links among the files that point out of the tree: there they lead nowhere."""
    top = root.resolve()
    links = [f for f in files if (root / f).is_symlink()]
    return [f for f in links if not (root / f).resolve().is_relative_to(top)]


@dataclass(frozen=True)
class Listing:
    """Files to send, with their sizes in bytes, and those held back."""

    sizes: dict[str, int]
    withheld: tuple[str, ...]


def listing_of(root: Path) -> Listing:
    """Lists a work tree once, for the announcement and for every host."""
    files, withheld = files_to_send(root)
    return Listing({f: (root / f).lstat().st_size for f in files}, tuple(withheld))


def announcement(ssh: Ssh, node: Node, root: Path, dest: str, listing: Listing) -> list[str]:
    """Lines to say before a push: links that lead out of the tree, and anything above 100 MB.

    The size is told when it has grown by so much since the last push from here.
    """
    sizes = listing.sizes
    lines = [
        f"{link} -> {os.readlink(root / link)} points out of the tree and leads nowhere there"
        for link in links_out(root, list(sizes))[:5]
    ]
    total = sum(sizes.values())
    if total - _sent_bytes(ssh, node, dest) > LARGE_BYTES:
        largest = max(sizes, key=lambda f: sizes[f])
        minutes = max(1, round(total / UPLINK / 60))
        lines.append(
            f"sending {total / 1e9:.2f} GB, about {minutes} min at 100 Mbit/s (the largest is "
            f"{largest}, {sizes[largest] / 1e9:.2f} GB); what is in .gitignore stays here"
        )
    return lines


def _record(ssh: Ssh, node: Node, index: int) -> tuple[Path, dict]:
    path = ssh.config.home / "sync" / f"{host_alias(node, index)}.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = {}
    return path, value if isinstance(value, dict) else {}


def _sent_bytes(ssh: Ssh, node: Node, dest: str) -> int:
    sizes = _record(ssh, node, 0)[1].get("bytes")
    return int(sizes.get(dest, 0)) if isinstance(sizes, dict) else 0


def push(
    ssh: Ssh,
    node: Node,
    root: Path,
    dest: str,
    *,
    index: int = 0,
    history: bool = True,
    listing: Listing | None = None,
) -> SyncReport:
    """Sends `root` to `~/dest` on one host and deletes there what has gone here.

    With `history` the git history goes along, where the commit here is another than last time.

    Raises:
        Unavailable: rsync or ssh failed.
    """
    begun = time.monotonic()
    dest = check_dest(dest)
    listing = listing or listing_of(root)
    files = list(listing.sizes)
    alias = host_alias(node, index)
    record, known = _record(ssh, node, index)
    head = head_of(root) if history else None
    heads = dict(known.get("heads", {}))
    if head is not None and heads.get(dest) == head.key:
        head = None  # all of it is there
    sent = heads.get(dest, "").partition(" ")[0]
    sending = _History(ssh, node, root, dest, head, index, sent)
    _rsync(
        ssh,
        ["--from0", "--files-from=-", f"{root}/", f"{alias}:{dest}/"],
        stdin=b"".join(os.fsencode(f) + b"\0" for f in files),
        dest=dest,
    )
    # What we sent last time and no longer have is deleted there. Without a record of last time
    # (another laptop) the remote manifest is asked; it is written by every sync that changes it.
    digest = hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest()
    total = sum(listing.sizes.values())
    deleted = 0
    if known.get(dest) != digest:
        deleted = _apply_manifest(ssh, node, index, dest, files)
    sizes = {**known.get("bytes", {}), dest: total}
    note = sending.finish()
    if head is not None:
        heads[dest] = head.key
    changed = {**known, dest: digest, "bytes": sizes, "heads": heads}
    if changed != known:
        write_private(record, json.dumps(changed))
    return SyncReport(len(files), deleted, listing.withheld, time.monotonic() - begun, dest, note)


class _History(threading.Thread):
    """Sends the git history beside the files; nothing where `head` is None."""

    def __init__(
        self,
        ssh: Ssh,
        node: Node,
        root: Path,
        dest: str,
        head: Head | None,
        index: int,
        sent: str,
    ) -> None:
        super().__init__(daemon=True)
        self.arguments = (ssh, node, root, dest)
        self.head, self.index, self.sent = head, index, sent
        self.note = ""
        self.error: Exception | None = None
        if head is not None:
            self.start()

    def run(self) -> None:
        """Keeps what `finish` returns or raises."""
        assert self.head is not None
        try:
            self.note = push_history(*self.arguments, self.head, self.index, self.sent)
        except Exception as error:
            self.error = error

    def finish(self) -> str:
        """Waits for it; a line to say, or what it raised."""
        if self.head is not None:
            self.join()
        if self.error is not None:
            raise self.error
        return self.note


def _apply_manifest(ssh: Ssh, node: Node, index: int, dest: str, files: list[str]) -> int:
    listing = b"".join(sorted(os.fsencode(f) + b"\0" for f in files))
    script = f"""set -eu
cd -- {dest!r}
umask 077; mkdir -p ~/.gml/sync
old=~/.gml/sync/{dest.replace("/", "__")}; [ -e "$old" ] || : > "$old"
base64 -d > "$old.new" <<'EOF'
{base64.b64encode(listing).decode()}
EOF
export LC_ALL=C
comm -z -23 "$old" "$old.new" > "$old.gone"
tr -cd '\\0' < "$old.gone" | wc -c
xargs -0 -r rm -f -- < "$old.gone"
xargs -0 -r -n1 dirname -z -- < "$old.gone" | sort -zu |
  while IFS= read -r -d '' d; do
    [ "$d" = . ] || rmdir -p --ignore-fail-on-non-empty -- "$d" 2>/dev/null || :
  done
mv "$old.new" "$old"; rm -f "$old.gone"
"""
    done = ssh.run(node, script, index=index, timeout_s=120)
    return int(done.stdout.split()[0])


def pull(ssh: Ssh, node: Node, remote: str, target: Path, *, index: int = 0) -> None:
    """Fetches `~/remote` (file or folder) into `target`; raises Unavailable."""
    remote = check_dest(remote)
    target.mkdir(parents=True, exist_ok=True)
    # -rlt without -p and without devices or hard links; names stay below target by rsync's own
    # checks, and links that point out of the tree are left out.
    _rsync(ssh, ["--safe-links", f"{host_alias(node, index)}:{remote}", f"{target}/"])


def push_folder(ssh: Ssh, node: Node, folder: Path, dest: str, *, index: int = 0) -> None:
    """Sends a data folder as it is (no git rules) to `~/dest`."""
    dest = check_dest(dest)
    _rsync(ssh, [f"{folder}/", f"{host_alias(node, index)}:{dest}/"], dest=dest, limit_s=6 * 3600)


def git_credential(folder: Path) -> dict[str, str]:
    """The stored github.com login (`username`, `password`); raises UsageError without one."""
    done = subprocess.run(
        ["git", "-C", str(folder), "credential", "fill"],
        input="protocol=https\nhost=github.com\n\n",
        capture_output=True,
        text=True,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    answer = dict(x.split("=", 1) for x in done.stdout.splitlines() if "=" in x)
    if done.returncode != 0 or not answer.get("password"):
        raise UsageError(
            "git has no stored credential for github.com", "run `gh auth setup-git` first"
        )
    return answer


def default_dest(root: Path) -> str:
    """Remote folder of a work tree: its name, with a dash for what a shell could take amiss."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", root.name) or "work"


def send_git_identity(ssh: Ssh, node: Node, index: int, folder: Path, credentials: bool) -> None:
    """The local git name and address, and with `credentials` the github.com token, over stdin."""
    lines = []
    for key in ("user.name", "user.email"):
        value = git_says(folder, "config", key)
        if value:
            lines.append(f"git config --global {key} {shlex.quote(value)}")
    if credentials:
        answer = git_credential(folder)
        user = urllib.parse.quote(answer.get("username", "git"), safe="")
        secret = urllib.parse.quote(answer["password"], safe="")
        lines += [
            "umask 077",
            f"cat > ~/.git-credentials <<'EOF'\nhttps://{user}:{secret}@github.com\nEOF",
            "git config --global credential.helper store",
        ]
    if lines:
        # A machine without git can still run jobs.
        script = "command -v git >/dev/null || exit 0\n" + "\n".join(lines) + "\n"
        ssh.run(node, script, index=index)


def _rsync(
    ssh: Ssh, tail: list[str], *, stdin: bytes = b"", dest: str = "", limit_s: float = 1800
) -> None:
    # Permissions matter for code (scripts are executable) and not for results.
    flags = "-rltpz" if dest else "-rltz"
    argv = ["rsync", flags, "-e", f"ssh -F '{ssh.file}'"]
    if dest:
        argv.append(f"--rsync-path=mkdir -p {dest} && rsync")
    try:
        done = subprocess.run([*argv, *tail], input=stdin, capture_output=True, timeout=limit_s)
    except FileNotFoundError:
        raise UsageError("rsync is not installed", "install rsync here") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"rsync did not end within {limit_s:.0f} s", "try again") from None
    if done.returncode not in (0, 24):
        text = done.stderr.decode(errors="replace").strip().splitlines()
        raise Unavailable(
            f"rsync: {text[0] if text else done.returncode}", "is rsync installed on both sides?"
        )
