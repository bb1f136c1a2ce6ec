"""The offline corpus: English docstrings and help topics of what is installed anyway.

It needs no network, so that the whole pipeline can be shown on any machine. Taken are the standard
library and the packages that gchat itself requires (found through their metadata, so that the
corpus stays the same when others are installed beside them), about 16 MB. Files are parsed with
`ast`; nothing is imported or run. The text depends on the versions installed, which the
manifest's `sources` name.
"""

import ast
import functools
import hashlib
import multiprocessing
import platform
import re
import sysconfig
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from gchat.data.sources.unit import Corpus, Unit

T = TypeVar("T")
MIN_CHARS = 200
# The packages of the `train` extra; their requirements are followed.
ROOTS: tuple[str, ...] = (
    "jax", "flax", "optax", "orbax-checkpoint", "grain", "array_record", "google-crc32c",
    "huggingface_hub", "matplotlib", "numpy", "psutil", "pyarrow", "pyyaml", "rustbpe", "tiktoken",
    "tqdm", "tyro",
)  # fmt: skip
_SKIPPED_FOLDERS = {"test", "tests", "testing", "site-packages", "idlelib", "lib2to3", "_vendor"}
# Most files hold no docstring that is long enough, and parsing costs ten times this look.
_LONG_STRING = re.compile(rb"^[ \t]*[rRuU]?(\"\"\"|''')(?:(?!\1).){200}", re.MULTILINE | re.DOTALL)
_HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = (ast.If, ast.Try, ast.With)


def corpus() -> Corpus:
    """The whole corpus as one unit, parsed when it is first read."""
    read = functools.cache(lambda: tuple(documents()))  # both the tokenizer and the shards read it
    return Corpus(
        units=[Unit(name="docs", documents=lambda _: iter(read()))],
        sources=tuple(versions()),
        identity={"packages": fingerprint()},
    )


def documents(processes: int = 2) -> Generator[str, None, None]:
    """Docstrings of more than 200 characters, each once, in a fixed order.

    Args:
        processes: Python processes that parse (the parsing takes about 30 s of CPU time).
    """
    seen: set[bytes] = set()
    for group in parsed(files(), processes, _docstrings):
        for text in group:
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                yield text


def fingerprint() -> str:
    """A hash of the packages read: another set of them is another corpus."""
    return hashlib.sha256("\n".join(versions()).encode()).hexdigest()


def versions() -> list[str]:
    """The packages read, as `name version`, for the manifest."""
    return [
        f"python {platform.python_version()}",
        *sorted(f"{d.name} {d.version}" for d in _distributions().values()),
    ]


def files() -> list[Path]:
    """The Python files read, packages in alphabetical order, then the standard library."""
    paths = []
    for _, distribution in sorted(_distributions().items()):
        for file in sorted(distribution.files or [], key=str):
            if file.suffix == ".py" and not _SKIPPED_FOLDERS.intersection(file.parts[:-1]):
                paths.append(Path(str(distribution.locate_file(file))))
    root = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(root.rglob("*.py")):
        if not _SKIPPED_FOLDERS.intersection(file.relative_to(root).parts[:-1]):
            paths.append(file)
    return paths


def _distributions() -> dict[str, metadata.Distribution]:
    """The roots and what they require, as far as it is installed."""
    distributions: dict[str, metadata.Distribution] = {}
    waiting = list(ROOTS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in distributions:
            continue
        try:
            distributions[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in distributions[name].requires or []:
            match = re.match(r"[A-Za-z0-9._-]+", requirement)
            # A requirement of somebody's extra is not ours. Other markers need no reading: what
            # does not apply here is not installed.
            if match and "extra ==" not in requirement:
                waiting.append(match.group())
    return distributions


def parsed(
    paths: Sequence[Path], processes: int, read: Callable[[Sequence[Path]], list[T]]
) -> Iterator[list[T]]:
    """Results of `read` for each group of files, in the order of the files."""
    groups = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    # A daemonic worker may not have children, and a process that is itself being spawned must
    # not spawn: both read alone.
    if processes < 2 or multiprocessing.parent_process() is not None:
        yield from map(read, groups)
        return
    # Not fork: a process with JAX threads may deadlock in its child.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        yield from pool.map(read, groups)


def _docstrings(paths: Sequence[Path]) -> list[str]:
    texts = []
    for path in paths:
        try:
            source = path.read_bytes()
        except OSError:
            continue
        if path.parent.name == "pydoc_data" and path.name == "topics.py":
            texts += _topics(source)
        elif _LONG_STRING.search(source):
            texts += _of_source(source)
    return texts


def _of_source(source: bytes) -> list[str]:
    """Docstrings of a module, its classes and functions, in source order."""
    tree = _parse(source)
    texts = []
    waiting: list[ast.AST] = [tree] if tree else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, _HOLDERS):
            text = ast.get_docstring(node)
            if text and len(text) > MIN_CHARS:
                texts.append(_printable(text))
        if isinstance(node, _HOLDERS + _BLOCKS):
            children = [
                child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)
            ]
            waiting.extend(reversed(children))
    return texts


def _topics(source: bytes) -> list[str]:
    """The texts of Python's `help("…")`, kept in one dictionary literal."""
    tree = _parse(source)
    for node in tree.body if tree else []:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return [_printable(t.strip()) for t in topics.values() if len(t) > MIN_CHARS]
    return []


def _parse(source: bytes) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's sources
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError):
            return None


def _printable(text: str) -> str:
    """Without lone surrogates, which a source may spell but UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
