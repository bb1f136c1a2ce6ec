"""The text of gml's own ssh configuration, and what the user's has to say about a host."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from gml.model import Host

# Unix sockets have 104 characters (macOS); ssh adds 40 for %C and 17 while it binds.
_LONGEST_CONTROL = 104 - 1 - 40 - 18
_OPTIONS = """\
  ServerAliveInterval 15
  ServerAliveCountMax 4
  ConnectTimeout 15
  ControlMaster auto
  ControlPath {control}
  ControlPersist 120
  UserKnownHostsFile {known}
  StrictHostKeyChecking accept-new
  LogLevel ERROR
"""


def host_block(
    names: str,
    host: Host,
    key_alias: str,
    *,
    control: Path,
    known: Path,
    identity: Path | None,
    user_options: dict[str, list[str]],
) -> str:
    """One `Host` block. What gml's configuration says wins over `user_options` (`ssh -G`)."""
    address = user_options.get("hostname", [host.address])[0]
    port = host.port if host.port != 22 else int(user_options.get("port", ["22"])[0])
    user = host.user or user_options.get("user", [""])[0]
    lines = [f"Host {names}", f"  HostName {address}", f"  Port {port}"]
    lines += [f"  User {user}"] if user else []
    lines += [f"  HostKeyAlias {key_alias}"]
    for name in ("ProxyJump", "ProxyCommand", "IdentityAgent"):
        lines += [f"  {name} {value}" for value in user_options.get(name.lower(), [])]
    lines += [f"  ProxyCommand {jump(v)}" for v in user_options.get("jump", [])]
    identities = [Path(p).expanduser() for p in user_options.get("identityfile", [])]
    identities += [identity] if identity else []
    kept = dict.fromkeys(p for p in identities if p.exists())
    lines += [f"  IdentityFile {quoted(p)}" for p in kept]
    options = _OPTIONS.format(control=quoted(control / "%C"), known=quoted(known))
    return "\n".join(lines) + "\n" + options


def quoted(path: Path) -> str:
    """A path as ssh_config takes it; only a percent sign has a meaning inside of quotes."""
    return f'"{path}"'


def user_options(address: str) -> dict[str, list[str]]:
    """Options of the user's own ssh configuration for an address or alias, by lower-case name.

    `ssh -G` reads Include, Match and all; {} where there is no configuration.
    """
    if not (Path.home() / ".ssh" / "config").exists():
        return {}
    try:
        done = subprocess.run(
            ["ssh", "-G", "-F", str(Path.home() / ".ssh" / "config"), address],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return {}
    options: dict[str, list[str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        name, _, value = line.partition(" ")
        if value and value != "none":
            options.setdefault(name, []).append(value)
    # Its hosts may be aliases, which only the user's own file knows.
    options["jump"] = options.pop("proxyjump", [])
    return options


def jump(hosts: str) -> str:
    """The command that goes through these hosts as the user's own configuration has them."""
    *first, last = hosts.split(",")
    through = f"-J {','.join(first)} " if first else ""
    return f"ssh -F {quoted(Path.home() / '.ssh' / 'config')} {through}-W [%h]:%p {last}"


def control_folder(home: Path) -> Path:
    """Folder of the shared connections: below `home` where that is short enough."""
    folder = home / "cm"
    if len(str(folder)) <= _LONGEST_CONTROL:
        return folder
    tag = hashlib.sha256(str(home).encode()).hexdigest()[:8]
    return Path(f"/tmp/gml-{os.getuid()}-{tag}")


def make_control_folder(folder: Path) -> bool:
    """Makes the folder; False where it is somebody else's, who could listen in."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    return status.st_uid == os.getuid() and status.st_mode & 0o077 == 0


def without_keys(lines: Iterable[str], aliases: set[str]) -> list[str]:
    """Lines of a known_hosts file, less those of these names."""
    return [x for x in lines if x.split(" ", 1)[0].strip("[]") not in aliases]
