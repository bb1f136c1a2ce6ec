"""Names of files that hold secrets: these never leave this machine, tracked by git or not."""

from __future__ import annotations

import fnmatch

# Never sent, tracked or not: a file of this kind on a rented machine is a leak.
SECRET_NAMES = (
    ".env", ".env.*", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*",
    ".netrc", ".pypirc", ".npmrc", ".git-credentials", "credentials.json", "service-account*.json",
    "application_default_credentials.json", "lambda_key", ".htpasswd",
)  # fmt: skip
ALLOWED = (".env.example", ".env.sample", ".env.template")


def is_secret(path: str) -> bool:
    """Tells whether a file name says that it holds a secret."""
    name = path.rsplit("/", 1)[-1]
    if name in ALLOWED:
        return False
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in SECRET_NAMES)


def pathspecs() -> list[str]:
    """The same as arguments for git."""
    return [
        *(f":(glob)**/{name}" for name in SECRET_NAMES),
        *(f":(exclude,glob)**/{name}" for name in ALLOWED),
    ]
