"""HumanEval: Python functions to write, graded by their tests (Chen et al. 2021, arXiv 2107.03374).

A model may answer with a block of code, with the whole function, or with its body alone. Programs
run in the sandbox of `gchat.engine.sandbox` only.
"""

import re

from gchat.conversation import Message
from gchat.engine import humaneval, sandbox
from gchat.engine.sandbox import Limits
from gchat.tasks.places import Place
from gchat.tasks.rows import Row
from gchat.tasks.task import Item, assistant, user

PLACE = Place(
    "openai/openai_humaneval",
    "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
    "openai_humaneval",
    files=("HumanEval", "humaneval"),
)
LIMITS = Limits(seconds=10.0, cpu_s=5)
_BLOCK = re.compile(
    r"```[ \t]*(?:python|py)?[ \t]*\r?\n(.*?)(?:\r?\n[ \t]*```|\Z)", re.DOTALL | re.I
)
# A body ends where the next statement stands at the margin: the stop texts of the paper.
_END = re.compile(r"\n(?=\S)")


def item(row: Row) -> Item:
    """The item of a row with `task_id`, `prompt`, `entry_point`, `test`, `canonical_solution`."""
    entry = row.text("entry_point")
    if not entry.isidentifier():
        raise row.wrong("entry_point", f"is {entry!r}, no name of a function")
    prompt = row.text("prompt")
    return Item(
        id=str(row.values.get("task_id", row.name)),
        question=user(prompt),
        answer=assistant(prompt + row.text("canonical_solution")),
        meta={"prompt": prompt, "entry_point": entry, "test": row.text("test")},
    )


def check() -> None:
    """Raises SandboxError where this machine cannot contain programs."""
    sandbox.run("pass", LIMITS)


def grade(asked: Item, said: Message) -> float:
    """1 where the program of the answer passes the tests."""
    head, rest = program(asked, said.content)
    outcome = humaneval.check(head, rest, asked.meta["test"], asked.meta["entry_point"], LIMITS)
    return float(outcome.ok)


def program(asked: Item, text: str) -> tuple[str, str]:
    """What the tests run after: (what the prompt gives, what the answer gives).

    An answer that defines the function comes after the imports and helpers of the prompt; any other
    is the function's body, and goes on with the whole prompt.
    """
    prompt, entry = asked.meta["prompt"], asked.meta["entry_point"]
    match = _BLOCK.search(text)
    code = match[1] if match else text
    begin = re.compile(rf"^(?:async\s+)?def\s+{re.escape(entry)}\b", re.MULTILINE)
    if begin.search(code):
        at = begin.search(prompt)
        return prompt[: at.start() if at else 0] + "\n", code + "\n"
    if code.strip() and not code[0].isspace():  # a body whose indentation the format has cut off
        code = "    " + code if not match else "\n".join(f"    {line}" for line in code.split("\n"))
    return prompt, _END.split(code, maxsplit=1)[0] + "\n"
