"""`gchat research with +NAME VERB …`: a verb, run by this code with ideas applied to it.

The patched tree lies in `runs/with/`, named by what is in it: laid out once, then used again, so
that a model that was trained there can be sampled, chatted with and evaluated there too.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gaia.errors import ConfigError
from gchat.research import worktrees
from gchat.research.driver import laid_out_once
from gchat.research.folder_name import folder_name
from gchat.research.ideas import Idea, read
from gchat.research.source_tree import code_at

FOLDER = Path("runs/with")
TRAINS = ("train", "speedrun")
"""Verbs that take the ideas' options."""
LAYS_OUT = ("compare", "ladder", "research", "sweep")
"""Verbs that train source trees of their own, which would be those of the clone, without ideas."""
HELP = """usage: gchat research with +NAME[+NAME …] VERB [options of the verb]

Run a verb with the code of ideas (`gchat research ideas`) applied to this commit; not compare,
ladder, research and sweep, which train trees of their own.

Examples:
    gchat research with +fast train --data-dir data/notes --run-dir runs/fast
    gchat research with +fast sample --run runs/fast --prompt "The"
    gchat research with +relu2+softcap speedrun"""


def command(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and environment that run a verb in a patched tree, which is laid out.

    Args:
        words: `+NAME[+NAME …]`, a verb, and the verb's own words.

    Raises:
        ConfigError: no idea or no verb is named, an idea is unknown or the name of a branch, too,
            or the verb trains trees of its own.
        TreeError: a patch does not fit.
    """
    if len(words) < 2 or not words[0].startswith("+"):
        raise ConfigError(
            f"gchat research with {' '.join(words)} names no {'verb' if words else 'idea'}",
            "write e.g. gchat research with +fast train --data-dir DIR",
        )
    ideas = [read(name) for name in words[0][1:].split("+")]
    verb, *rest = words[1:]
    if verb in LAYS_OUT:
        raise ConfigError(
            f"gchat {verb} trains source trees of its own, without {words[0]}",
            f"compare main {words[0]}, or make a branch of it: git apply the patches that "
            "gchat research ideas --json names",
        )
    place = _tree(words[0], ideas)
    if verb in TRAINS:
        rest = _with_options(rest, ideas)
    # Safe path: the working directory may be a clone, whose packages would come first.
    environment = os.environ | {"PYTHONPATH": str(place), "PYTHONSAFEPATH": "1"}
    return [sys.executable, "-m", "gchat", verb, *rest], environment


def run(words: Sequence[str]) -> None:
    """Becomes the verb's process; does not return.

    Raises:
        ConfigError: no idea or no verb is named, or an idea is unknown.
        DataError: the working directory is in no clone.
        TreeError: a patch does not fit.
    """
    if words[:1] in (["-h"], ["--help"]):
        print(HELP)
        raise SystemExit(0)
    line, environment = command(words)
    sys.stdout.flush()
    os.execve(line[0], line, environment)


def _tree(name: str, ideas: Sequence[Idea]) -> Path:
    """The patched tree of this commit, made where it is not there yet."""
    root = worktrees.repository()
    for idea in ideas:
        if worktrees.is_commit(root, idea.name):  # which a variant's name would mean
            raise ConfigError(
                f"{idea.name} is a branch of this clone, too",
                "check it out and leave the idea away, or rename the branch",
            )
    commit = worktrees.head(root)
    digest = hashlib.sha256(commit.encode())
    for idea in ideas:
        for patch in idea.patches:
            digest.update(patch.read_bytes())
    folder = FOLDER.resolve() / digest.hexdigest()[:12]
    if code_at(root).changes:
        print("gchat: uncommitted changes are left out; commit them to train them", file=sys.stderr)
    made = folder_name(name)
    return laid_out_once(folder, made, lambda: worktrees.make_tree(root, name, folder, None))


def _with_options(words: Sequence[str], ideas: Sequence[Idea]) -> list[str]:
    """The words with the ideas' preset, if none is named, and options; what is typed counts."""
    named = bool(words) and not words[0].startswith("-")
    presets = [idea.preset for idea in ideas if idea.preset]
    start = [words[0]] if named else presets[:1]
    return [*start, *(o for idea in ideas for o in idea.options), *words[int(named) :]]
