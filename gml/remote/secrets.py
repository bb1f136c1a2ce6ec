"""Names of files that hold secrets: these never leave this machine, tracked by git or not."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

# Never sent, tracked or not: a file of this kind on a rented machine is a leak.
SECRET_NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*",
    ".netrc", ".pypirc", ".git-credentials", "credentials.json", "service-account*.json",
    "application_default_credentials.json", "lambda_key", ".htpasswd",
)  # fmt: skip
ALLOWED = (".env.example", ".env.sample", ".env.template")
SETTINGS = (".npmrc",)
"""Names of settings that projects commit and people log in with: the text tells them apart."""
# npm's settings of logins (docs.npmjs.com, "npmrc", "Auth related configuration"), any address
# (it may hold a password), and variables.
_LOGIN = re.compile(r"auth|pass|user|token|key|cert|otp|secret|email|//|\$\{", re.IGNORECASE)


def is_secret(path: str, root: Path | None = None) -> bool:
    """Tells whether a file holds a secret: by its name, for settings below `root` by its text."""
    name = path.rsplit("/", 1)[-1]
    if name in ALLOWED:
        return False
    if name in SETTINGS:
        return root is None or holds_login(_text(root / path))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRET_NAMES)


def holds_login(text: str) -> bool:
    """Tells whether a file of settings may log somebody in."""
    return _LOGIN.search(text) is not None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "a key, for all we know"


def pathspecs() -> list[str]:
    """Names of secrets as arguments for git, without those of settings."""
    return [
        *(f":(glob)**/{name}" for name in SECRET_NAMES),
        *(f":(exclude,glob)**/{name}" for name in ALLOWED),
    ]


def settings_pathspecs() -> list[str]:
    """Names of settings as arguments for git."""
    return [f":(glob)**/{name}" for name in SETTINGS]
