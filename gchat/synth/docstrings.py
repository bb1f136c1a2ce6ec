"""Questions on functions and their answers, from docstrings of what is installed; offline.

"What does textwrap.dedent do?" is answered by the first sentence of its docstring. Held out are
whole modules, by the hash of their name, so that no sentence of a held-out module is trained on.
"""

import ast
import hashlib
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gaia.errors import ConfigError, DataError
from gchat.chat_format import Conversation, Message
from gchat.data.sources import docs

QUESTIONS = (
    "What does {0} do?",
    "Explain {0}.",
    "What is {0} for?",
    "Tell me what {0} does.",
    "What happens when I call {0}?",
    "Describe the function {0}.",
    "How would you describe {0}?",
    "I found {0} in some code. What does it do?",
)
_CHARS = range(20, 161)
_SENTENCE = re.compile(
    r"\A([A-Z](?:(?!\n\s*\n).)*?[a-z0-9)\]'\"]\.)(?=\s+[A-Z]|\s*\n|\s*\Z)", re.DOTALL
)
_ODD = re.compile(r">>>|::|\.\.\s|[{}<>|\\]|http")


@dataclass(frozen=True)
class Function:
    """A function with the first sentence of its docstring."""

    name: str
    """Module and function: "textwrap.dedent"."""
    module: str
    says: str


def functions(packages: Sequence[str] = (), processes: int = 2) -> list[Function]:
    """Functions of the standard library and of gchat's requirements, each name and sentence once.

    Args:
        packages: top-level modules to read; all when empty.
        processes: Python processes that parse.

    Raises:
        DataError: there are none.
    """
    paths = [path for path in docs.files() if not packages or _module(path)[0] in packages]
    if not paths:
        raise DataError(f"packages = {list(packages)} hold no module", "use e.g. json os jax")
    found: dict[str, Function] = {}
    said: set[str] = set()
    for group in docs.parsed(paths, processes, _of_files):
        for function in group:
            if function.name not in found and function.says not in said:
                found[function.name] = function
                said.add(function.says)
    return sorted(found.values(), key=lambda one: one.name)


def _module(path: Path) -> list[str]:
    """Names from the top-level package down to the module."""
    names = [path.stem] if path.stem != "__init__" else []
    folder = path.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    return names or [path.parent.name]


def _of_files(paths: Sequence[Path]) -> list[Function]:
    return [function for path in paths for function in _of_file(path)]


def _of_file(path: Path) -> Iterator[Function]:
    module = _module(path)
    if any(name.startswith(("_", "test")) for name in module):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = node.name if isinstance(node, ast.ClassDef) else module[-1]
        for one in inner:
            if not isinstance(one, ast.FunctionDef) or one.name.startswith("_"):
                continue
            if any("property" in ast.unparse(each) for each in one.decorator_list):
                continue  # it is not called
            if not owner.startswith("_") and (says := _first_sentence(ast.get_docstring(one))):
                yield Function(f"{owner}.{one.name}", ".".join(module), says)


def _first_sentence(docstring: str | None) -> str | None:
    """The sentence that begins a docstring; None where it is none that a person would say."""
    match = _SENTENCE.match((docstring or "").strip())
    if match is None:
        return None
    sentence = " ".join(match[1].replace("``", "").replace("`", "").split())
    fits = len(sentence) in _CHARS and sentence.isascii() and sentence.count(" ") >= 3
    return sentence if fits and not _ODD.search(sentence) else None


def held_out(module: str, share: float) -> bool:
    """True for modules that are kept out of training."""
    digest = hashlib.blake2b(module.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64 < share


def pairs(
    found: Sequence[Function], *, count: int | None = None, share: float = 0.1, seed: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows for training, and of held-out modules.

    Args:
        found: functions.
        count: most of them to take, drawn by the seed; all when None.
        share: of modules that are held out.
        seed: of the phrasings and the order.

    Raises:
        ConfigError: a number out of range.
        DataError: a side would be empty.
    """
    if not 0 < share < 1:
        raise ConfigError(f"held_out_share = {share} is out of range", "use e.g. 0.1")
    if count is not None and count < 1:
        raise ConfigError(f"count = {count}", "use at least 1")
    draw = random.Random(f"docstrings {seed}")
    shuffled = list(found)
    draw.shuffle(shuffled)
    sides: tuple[list[dict[str, Any]], ...] = ([], [])
    for function in shuffled[:count]:
        question = draw.choice(QUESTIONS).format(function.name)
        turns = Message("user", question), Message("assistant", function.says)
        row = Conversation(turns).to_json() | {"function": function.name, "module": function.module}
        sides[held_out(function.module, share)].append(row)
    if not all(sides):
        raise DataError(
            f"{len(sides[0])} questions for training and {len(sides[1])} of held-out modules",
            "take more functions, or another --held-out-share",
        )
    return sides[0], sides[1]
