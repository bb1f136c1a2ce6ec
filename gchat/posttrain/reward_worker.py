"""Calls a reward function in a process of its own: python reward_worker.py FILE.py function

Reads one JSON object a line, {"text": …, "item": {…}}, and answers {"reward": number} or
{"error": text} on the descriptor that was its standard output; what the function prints goes to
standard error. It imports nothing but the standard library, so that it starts at once.
"""

import importlib.util
import json
import os
import sys


def _load(path: str, name: str):
    """The function of a file."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    spec = importlib.util.spec_from_file_location("gchat_reward", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gchat_reward"] = module  # dataclasses and pickles look there
    spec.loader.exec_module(module)
    function = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} is no function")
    return function


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main(path: str, name: str) -> None:
    """Answers until its input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a function that prints must not break the protocol

    def answer(**values) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        function = _load(path, name)
    except BaseException as error:
        answer(error=_line(error))
        return
    answer(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer(reward=float(function(asked["text"], asked["item"])))
        except (Exception, SystemExit) as error:
            answer(error=_line(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
