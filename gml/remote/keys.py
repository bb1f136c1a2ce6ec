"""The user's ssh key: which one it is, and whether it can sign without a question."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gml.config import DEFAULT_KEY, Config
from gml.errors import UsageError

# A token that has not answered by then waits to be touched.
TOUCH_S = 3.0
# In the order of ssh's own defaults that are worth having; -sk are hardware keys.
_NAMES = ("id_ed25519", "id_ed25519_sk", "id_ecdsa", "id_ecdsa_sk", "id_rsa")


@dataclass(frozen=True)
class Key:
    """A key as ssh is told of it: `identity` is its private file, or a public one (agent)."""

    public: str
    identity: Path


def find_key(config: Config) -> Key:
    """The key of the configuration, else the first of ssh's defaults, else the agent's first.

    Raises:
        UsageError: there is none; it names the command that makes one.
    """
    path = Path(config.ssh_key).expanduser()
    paths = [path]
    if config.ssh_key == DEFAULT_KEY:
        paths = [path.with_name(name) for name in _NAMES]
    for candidate in paths:
        key = _key_at(candidate)
        if key is not None:
            return key
    held = agent_keys() if config.ssh_key == DEFAULT_KEY else []
    if held:
        shown = config.home / "agent_key.pub"
        return Key(held[0], shown)
    raise UsageError(
        f"ssh_key {config.ssh_key} does not exist", f"run: ssh-keygen -t ed25519 -f {path}"
    )


def public_key(config: Config) -> str:
    """Public key of the user, one line."""
    return find_key(config).public


def check_key(config: Config) -> Key:
    """The key, once it is clear that ssh will take it without a question.

    Raises:
        UsageError: others may read it, or it has a passphrase and no agent holds it.
    """
    key = find_key(config)
    path = key.identity
    if path.suffix == ".pub":
        if not _held(key.public):
            raise UsageError(f"the agent does not hold {path}", "run: ssh-add (and ssh-add -l)")
        return key
    if path.stat().st_mode & 0o077:
        raise UsageError(f"ssh_key {path} is readable by others", f"run: chmod 600 {path}")
    if key.public.startswith("sk-") and not _held(key.public):
        _check_token(path)
        return key
    if _held(key.public) or _derive(path) is not None:
        return key
    raise UsageError(
        f"ssh_key {path} has a passphrase (or is damaged), and no agent holds it",
        f"run: ssh-add {path}",
    )


def _check_token(path: Path) -> None:
    """Raises UsageError where a hardware key's token is missing, not where it waits for a touch."""
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-n", "gml", "-f", str(path)],
            input=b"gml", capture_output=True, timeout=TOUCH_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return  # it waits for a finger, so it is there
    except OSError:
        return  # without ssh-keygen nothing can be told
    text = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode != 0:
        why = text[-1] if text else f"exit code {done.returncode}"
        raise UsageError(
            f"ssh_key {path} is a hardware key, and its token does not answer ({why})",
            "plug it in, or set another ssh_key in config.toml",
        )


def agent_keys() -> list[str]:
    """Public keys that the ssh agent holds; none without an agent."""
    if not os.environ.get("SSH_AUTH_SOCK"):
        return []
    done = _run(["ssh-add", "-L"])
    return done.stdout.splitlines() if done is not None and done.returncode == 0 else []


def _key_at(path: Path) -> Key | None:
    public = path if path.suffix == ".pub" else path.with_name(f"{path.name}.pub")
    if public.exists():
        line = public.read_text(encoding="utf-8").splitlines()[0].strip()
        return Key(line, path if path.exists() else public)
    if path.exists():
        derived = _derive(path)
        if derived is not None:
            return Key(derived, path)
    return None


def _held(public: str) -> bool:
    return public.split()[1:2] in [line.split()[1:2] for line in agent_keys()]


def _derive(path: Path) -> str | None:
    """The public key of a private one without a passphrase; None where it has one."""
    done = _run(["ssh-keygen", "-y", "-P", "", "-f", str(path)])
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def _run(argv: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
