"""Rewards of answers: a task's own grade, or any Python function in a file.

    def reward(text: str, item: dict) -> float: ...          # --reward FILE.py:reward

`item` has id, question (the last message), messages, answer (the reference, or None), choices, gold
and meta. The function runs in a process of its own, for `rl.reward_seconds` at most; one that
raises, gives no finite number or hangs gives no reward: the answer takes no part in the step.
"""

import contextlib
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from gaia.errors import ConfigError
from gchat.chat_format import Message

_START_SECONDS = 60.0  # a file may import large libraries
_WORKER = Path(__file__).with_name("reward_worker.py")


class Item(Protocol):
    """The part of `gchat.tasks.Item` that rewards read."""

    id: str
    question: tuple[Message, ...]
    answer: Message | None
    choices: tuple[str, ...]
    gold: int | None
    meta: Any


class Task(Protocol):
    """The part of `gchat.tasks.Task` that rewards read."""

    name: str

    def grade(self, item: Any, answer: Any) -> float: ...  # noqa: D102


class Rewards(Protocol):
    """Grades answers."""

    failures: int
    """Answers that could not be graded so far."""
    problem: str
    """The last failure, in words; empty where there was none."""

    def grade(self, items: Sequence[Any], answers: Sequence[Message]) -> list[float]:
        """A reward for each answer; NaN where there is none."""
        ...

    def close(self) -> None:
        """Ends what grading has started."""
        ...


class TaskRewards:
    """Grades with the task that the prompts come from."""

    def __init__(self, task: Task) -> None:
        self._task, self.failures, self.problem = task, 0, ""

    def grade(self, items: Sequence[Any], answers: Sequence[Message]) -> list[float]:
        """The task's grades, 0 to 1."""
        return [
            float(self._task.grade(item, answer))
            for item, answer in zip(items, answers, strict=True)
        ]

    def close(self) -> None:
        """Nothing to end."""


class FunctionRewards:
    """Grades with a function of a Python file.

    Args:
        spec: FILE.py:function.
        seconds: limit of one call.

    Raises:
        ConfigError: there is no such file or function, or importing it fails.
    """

    def __init__(self, spec: str, seconds: float) -> None:
        path, colon, name = spec.rpartition(":")
        if not colon or not name.isidentifier():
            raise ConfigError(f"rl.reward is {spec!r}", "write FILE.py:function")
        if not Path(path).is_file():
            raise ConfigError(f"rl.reward names {path!r}, which does not exist", "check the path")
        self._path, self._name, self._seconds = path, name, seconds
        self.failures, self.problem, self._said = 0, "", set[str]()
        self._process: subprocess.Popen[bytes] | None = None
        if problem := self._start():
            raise ConfigError(f"rl.reward {spec!r} cannot be used: {problem}", "mend the function")

    def grade(self, items: Sequence[Any], answers: Sequence[Message]) -> list[float]:
        """What the function returns for each; NaN where it failed, which is said once a reason."""
        return [self._one(item, m.content) for item, m in zip(items, answers, strict=True)]

    def _one(self, item: Any, text: str) -> float:
        if self._process is None and (problem := self._start()):
            return self._failed(problem)
        question = {"text": text, "item": described(item)}
        answer = self._ask(question, self._seconds)
        if "reward" not in answer:
            return self._failed(answer.get("error", "it gave no answer"))
        if not math.isfinite(answer["reward"]):
            return self._failed(f"it returned {answer['reward']}")
        return float(answer["reward"])

    def _failed(self, problem: str) -> float:
        self.failures, self.problem = self.failures + 1, problem
        if problem not in self._said and len(self._said) < 10:
            self._said.add(problem)
            print(f"reward {self._name}: {problem}; the answer takes no part", flush=True)
        return math.nan

    def _start(self) -> str:
        """Starts the process; says what went wrong, if anything."""
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(_WORKER), self._path, self._name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the trainer, which finishes its step
        )
        answer = self._read(_START_SECONDS)
        if answer.get("ready"):
            return ""
        self.close()
        return answer.get("error", "its process ended")

    def _ask(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self.close()
            return {"error": "its process ended"}
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        """The next line of the process, which is ended where none comes in time."""
        assert self._process is not None and self._process.stdout is not None
        out, line, until = self._process.stdout.fileno(), b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                self.close()
                return {"error": f"it took more than {seconds:g} s (rl.reward_seconds)"}
            chunk = os.read(out, 65536)
            if not chunk:
                self.close()
                return {"error": "its process ended"}
            line += chunk
        return json.loads(line)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def described(item: Any) -> dict[str, Any]:
    """An item of a task as the function gets it: what JSON holds."""
    messages = [{"role": m.role, "content": m.content} for m in item.question]
    return {
        "id": item.id,
        "question": messages[-1]["content"] if messages else "",
        "messages": messages,
        "answer": item.answer.content if item.answer is not None else None,
        "choices": list(item.choices),
        "gold": item.gold,
        "meta": json.loads(json.dumps(item.meta, default=str)),
    }
