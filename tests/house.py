"""Rules of the house that no linter knows, and the debts that are still allowed to break them.

    PYTHONPATH=tests python -m house       (in the repository's root)

lists what breaks a rule and is no known debt, and takes paid debts out of house_debts.txt. Nothing
adds to that file: what is new keeps the rules.
"""

import ast
import re
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEBTS = Path(__file__).with_name("house_debts.txt")
PACKAGES = ("gaia", "gchat", "gml", "gaia_metrics")
# A text that begins so is half a sentence: "Of the shuffle." for "Seed of the shuffle."
HALF_SENTENCE = re.compile(
    r"(What|Where|Whether|How|Of|Least|Most|As|When|Which|Who|Why)\b(?! soon as| long as)"
)
FILE_LINES, FUNCTION_LINES, MEDIAN_LINES = 400, 60, 150


def sources() -> Iterator[tuple[str, Path, ast.Module, int]]:
    """(package, path, tree, number of lines) of every module."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            yield package, path, ast.parse(text), len(text.splitlines())


def texts(tree: ast.AST) -> Iterator[str]:
    """Docstrings, those of attributes too (tyro's help), and `help="…"` (typer's)."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value.strip()
        if isinstance(node, ast.keyword) and node.arg in ("help", "short_help", "epilog"):
            for part in ast.walk(node.value):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value.strip()
                    break


def documented(tree: ast.AST) -> Iterator[str]:
    """Docstrings of modules, classes and functions."""
    for node in ast.walk(tree):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def stored_names(tree: ast.AST) -> Iterator[str]:
    """Names that are assigned, looped over or taken as a parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def measure() -> dict[str, int]:
    """Everything that breaks a rule, each with its number; a number above a debt's is a defect.

    Texts and functions are named by package, not by file, so that moving one is no new debt.
    """
    broken: Counter[str] = Counter()
    sizes = []
    for package, path, tree, lines in sources():
        sizes.append(lines)
        name = path.relative_to(ROOT)
        if path.name == "utils.py":
            broken[f"file named utils.py: {name}"] += 1
        if lines > FILE_LINES:
            broken[f"file over {FILE_LINES} lines: {name}"] = lines
        for text in texts(tree):
            if HALF_SENTENCE.match(text):
                broken[f"half a sentence: {package}: {text.splitlines()[0]}"] += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                if length > FUNCTION_LINES:
                    key = f"function over {FUNCTION_LINES} lines: {package}: {node.name}"
                    broken[key] = max(broken[key], length)
        if count := sum(stored == "found" for stored in stored_names(tree)):
            broken[f"variables named found: {package}"] += count
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for text in documented(ast.parse(path.read_text())):
            if HALF_SENTENCE.match(text):
                broken[f"half a sentence: tests: {text.splitlines()[0]}"] += 1
    median = round(statistics.median(sizes))
    if median > MEDIAN_LINES:
        broken[f"median file over {MEDIAN_LINES} lines"] = median
    return dict(sorted(broken.items()))


def debts() -> dict[str, int]:
    """Reads house_debts.txt: how often each rule may be broken."""
    lines = [line for line in DEBTS.read_text().splitlines() if line and line[0] != "#"]
    return {rule: int(most) for most, rule in (line.split(" ", 1) for line in lines)}


def defects(broken: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """One line for each rule that is broken more than its debt allows."""
    return [
        f"{rule}: {number}" + (f", allowed {allowed[rule]}" if rule in allowed else "")
        for rule, number in broken.items()
        if number > allowed.get(rule, 0)
    ]


def main() -> None:
    """Takes paid debts out of the list and prints what must be mended."""
    broken, allowed = measure(), debts()
    kept = {rule: min(most, broken[rule]) for rule, most in allowed.items() if rule in broken}
    head = [line for line in DEBTS.read_text().splitlines() if line.startswith("#")]
    DEBTS.write_text("\n".join([*head, *(f"{most} {rule}" for rule, most in kept.items())]) + "\n")
    print(f"{len(allowed) - len(kept)} debts paid, {len(kept)} left")
    print("\n".join(defects(broken, allowed)))


if __name__ == "__main__":
    main()
