"""The command that installs an optional extra.

It names the clone, because a package of this name on the public registry is somebody else's.
"""


def install(*extras: str) -> str:
    """A remedy for errors: the command for these extras of pyproject.toml."""
    return f"run `pip install -e '.[{','.join(extras)}]'` in the clone of gaia"
