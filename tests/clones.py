"""Small clones that tests of research work in."""

import subprocess
from pathlib import Path

AUTHOR = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")


def committed(root: Path, files: dict[str, str]) -> Path:
    """Makes a repository at `root` whose branch main holds these files; returns `root`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), (*AUTHOR, "commit", "-qm", "main")):
        subprocess.run(["git", "-C", root, *words], check=True)
    return root
