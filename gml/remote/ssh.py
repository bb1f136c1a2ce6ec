"""System ssh with one generated config file, pinned host keys and shared connections.

System ssh rather than a library: the user's agent and hardware keys keep working, own machines (or
all, with `ssh_config = "all"`) follow ~/.ssh/config, and `ssh NODE`, VS Code and Cursor see the
same hosts through one `Include ~/.gml/ssh_config`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from gml.config import Config, parse_host
from gml.errors import NotFound, Unavailable, UsageError
from gml.model import Host, Node
from gml.remote.keys import find_key
from gml.remote.ssh_config import (
    control_folder,
    host_block,
    make_control_folder,
    user_options,
    without_keys,
)
from gml.store import Store, write_private
from gml.threads import on_hosts

BASTION = "gml-bastion"


def tunnel_options(config: Config, node: Node, index: int) -> dict[str, list[str]]:
    """The way to a machine without an external address; {} where it is reached directly (VPN)."""
    tunnel = config.google.tunnel
    if not tunnel:
        return {}
    if tunnel != "iap":
        return {"proxyjump": [BASTION]}
    machines = [r for r in node.resources if "/instances/" in r]
    if index >= len(machines):
        return {}
    name = machines[index].rsplit("/", 1)[-1]
    command = (
        f"gcloud compute start-iap-tunnel {name} %p --listen-on-stdin "
        f"--project {config.project} --zone {node.zone} --verbosity warning"
    )
    return {"proxycommand": [command]}


def host_alias(node: Node, index: int) -> str:
    """Name of a host in the ssh config: the node's id, `id-1` and so on for its further hosts."""
    return node.id if index == 0 else f"{node.id}-{index}"


def key_alias(node: Node, index: int) -> str:
    """The name under which a host's key is pinned: own machines keep theirs across nodes."""
    if node.provider == "local" and node.zone:
        return f"gml-local-{node.zone}-{index}"
    return f"gml-{host_alias(node, index)}"


class Ssh:
    """Commands on the hosts of nodes, through `HOME/ssh_config`."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config = config
        self.store = store
        self.file = config.home / "ssh_config"
        self.known = config.home / "known_hosts"
        self.control = control_folder(config.home)
        if shutil.which("ssh") is None:
            raise UsageError("ssh is not installed", "install openssh-client")

    def write_config(self) -> None:
        """Writes every known node's hosts into `HOME/ssh_config` (0600)."""
        if not self.known.exists():
            write_private(self.known, "")
        key = self._identity()
        blocks = ["# written by gml; changes are lost"]
        for node in [*self.store.all(), *self.probes()]:
            for index, host in enumerate(node.hosts):
                alias = host_alias(node, index)
                blocks.append(
                    host_block(
                        alias if index or len(node.hosts) == 1 else f"{alias} {node.id}-0",
                        host,
                        key_alias(node, index),
                        control=self.control,
                        known=self.known,
                        identity=key,
                        user_options=self._user_options(node, host, index),
                    )
                )
        blocks += self._bastion(key)
        text = "\n".join(blocks) + "\n"
        with contextlib.suppress(FileNotFoundError):
            if self.file.read_text(encoding="utf-8") == text:
                return
        write_private(self.file, text)

    def _identity(self) -> Path | None:
        if not make_control_folder(self.control):
            raise UsageError(f"{self.control} belongs to somebody else", "remove it")
        try:
            key = find_key(self.config)
        except UsageError:
            return None  # own machines may have one in ~/.ssh/config
        if key.identity == self.config.home / "agent_key.pub":
            write_private(key.identity, f"{key.public}\n")
        return key.identity

    def _bastion(self, key: Path | None) -> list[str]:
        """The block of the bastion, where there is one: its key is pinned like any other."""
        tunnel = self.config.google.tunnel
        if tunnel in ("", "iap"):
            return []
        host = parse_host(tunnel, "google.tunnel")
        options = user_options(host.address) if self.config.ssh_config != "none" else {}
        return [
            host_block(
                BASTION, host, BASTION, control=self.control, known=self.known, identity=key,
                user_options=options,
            )
        ]  # fmt: skip

    def _user_options(self, node: Node, host: Host, index: int) -> dict[str, list[str]]:
        wanted = self.config.ssh_config
        if node.provider == "google" and host.address == host.internal:
            tunnel = tunnel_options(self.config, node, index)
            if tunnel:
                return tunnel
        if wanted == "all" or (wanted == "own" and node.provider == "local"):
            return user_options(host.address)
        return {}

    def forget_keys(self, node: Node) -> None:
        """Drops the pinned keys of a name that another machine gets now."""
        if self.known.exists() and node.provider != "local":
            stem = f"gml-{node.id}"
            lines = self.known.read_text(encoding="utf-8").splitlines(keepends=True)
            names = {x.split(" ", 1)[0].strip("[]") for x in lines}
            old = {n for n in names if n == stem or re.fullmatch(rf"{re.escape(stem)}-\d+", n)}
            if old:
                self._control(node.id, "exit")
                write_private(self.known, "".join(without_keys(lines, old)))

    def probes(self) -> list[Node]:
        """The configured local machines under names of their own, to look at them at any time."""
        return [
            Node(f"probe-{name}", "local", self.config.owner, "local", zone=name, hosts=hosts)
            for name, hosts in self.config.local_hosts.items()
        ]

    def forget(self, node: Node) -> None:
        """Drops pinned keys and shared connections of a node that is gone."""
        for index in range(len(node.hosts)):
            self._control(host_alias(node, index), "exit")
        with contextlib.suppress(FileNotFoundError):
            if node.provider == "local":
                return self.write_config()
            names = {key_alias(node, i) for i in range(max(1, len(node.hosts)))}
            lines = self.known.read_text(encoding="utf-8").splitlines(keepends=True)
            write_private(self.known, "".join(without_keys(lines, names)))
        self.write_config()

    def pin(self, node: Node, index: int, keys: Sequence[str]) -> None:
        """Pins host keys that the provider vouches for (`ssh-ed25519 AAAA…`), before any login."""
        alias = key_alias(node, index)
        known = self.known.read_text(encoding="utf-8") if self.known.exists() else ""
        write_private(self.known, known + "".join(f"{alias} {key}\n" for key in keys))

    def _control(self, alias: str, action: str) -> None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["ssh", "-F", str(self.file), "-O", action, alias],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=5,
            )

    def argv(self, node: Node, index: int = 0, *options: str) -> list[str]:
        """`ssh -F … host`, to which a remote command may be appended."""
        if index >= len(node.hosts):
            raise NotFound(f"{node.id} has no host {index}", f"it has {len(node.hosts)}")
        return ["ssh", "-F", str(self.file), *options, host_alias(node, index)]

    def run(
        self,
        node: Node,
        script: str,
        *,
        index: int = 0,
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Runs a bash script that travels over stdin, so nothing in it shows in any argv.

        Raises:
            Unavailable: ssh could not connect, or the time ran out; with `check`, also when the
                script failed.
        """
        argv = self.argv(node, index, "-T")
        try:
            done = subprocess.run(
                [*argv, "bash -s"], input=script.encode(), capture_output=True, timeout=timeout_s
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"{argv[-1]} did not answer within {timeout_s:.0f} s", "try `gml doctor`"
            ) from None
        if done.returncode == 255 or (check and done.returncode != 0):
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            text = lines[-1].removeprefix("ssh: ") if lines else f"exit code {done.returncode}"
            raise Unavailable(
                f"ssh {argv[-1]}: {text}",
                "see `gml doctor` for keys, firewall and OS Login",
            )
        return done

    def wait(self, node: Node, limit_s: float, progress=lambda what: None) -> None:
        """Waits until every host takes a login; raises Unavailable after `limit_s` seconds."""
        self.write_config()
        until = time.monotonic() + limit_s
        progress(f"waiting for a login on {node.id}{_hosts(node)}")

        def login(index: int) -> None:
            pause = 0.2
            while True:
                try:
                    self.run(node, "true", index=index, timeout_s=25)
                    return
                except Unavailable as error:
                    if "host key" in error.problem.lower() or time.monotonic() + pause > until:
                        raise
                time.sleep(pause)
                pause = min(pause * 1.5, 5.0)

        on_hosts(len(node.hosts), login)


def _hosts(node: Node) -> str:
    return "" if len(node.hosts) == 1 else f" (all {len(node.hosts)} hosts)"


def include_line(config: Config) -> str:
    """The one line that `~/.ssh/config` needs."""
    path = str(config.home / "ssh_config")
    return f'Include "{path}"' if " " in path else f"Include {path}"


def install_include(config: Config, ssh_config: Path | None = None) -> bool:
    """Puts the Include line first in `~/.ssh/config` (later it would fall inside a Host block).

    Returns:
        Whether the file was changed.
    """
    # Where the file is a link (dotfiles in a repository), what it points to is changed.
    path = (ssh_config or Path.home() / ".ssh" / "config").resolve()
    line = include_line(config)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if line in text.splitlines():
        return False
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    write_private(path, f"{line}\n{text}")
    os.chmod(path, mode)
    return True


def quote(words: Sequence[str]) -> str:
    """Words as one shell command line."""
    return " ".join(shlex.quote(w) for w in words)


def address_of(host: Host) -> str:
    """`user@address:port`."""
    return f"{host.user + '@' if host.user else ''}{host.address}:{host.port}"
