"""Generated functions against the tests of their problems, contained."""

import pytest

from gaia.errors import ConfigError
from gchat.engine import humaneval, sandbox
from gchat.engine.sandbox import Limits

if reason := sandbox.unavailable():
    pytest.skip(reason, allow_module_level=True)

LIMITS = Limits(seconds=20, cpu_s=2, memory_mb=256, files_mb=1, processes=4, output_kb=4)
PROMPT = '''from typing import List

def largest(numbers: List[int]) -> int:
    """ Return the largest number.
    >>> largest([1, 3, 2])
    3
    """
'''
TEST = """
METADATA = {'author': 'x'}

def check(candidate):
    assert candidate([1, 3, 2]) == 3
    assert candidate([-5]) == -5
"""


def check(completion):
    return humaneval.check(PROMPT, completion, TEST, "largest", LIMITS)


def test_a_right_solution_passes_and_a_wrong_one_says_why():
    right = check("    return max(numbers)\n")
    assert right.ok and right.stdout == ""
    wrong = check("    return numbers[0]\n")
    assert not wrong.ok and wrong.stderr.rstrip().endswith("AssertionError")
    assert "SyntaxError" in check("    return max(numbers\n").stderr


@pytest.mark.parametrize(
    ("body", "ended"),
    [
        ("raise SystemExit(0)", "exit"),
        ("import os; os._exit(0)", "exit"),
        ("print('passed'); import os; os._exit(0)", "exit"),
    ],
)
def test_a_program_that_ends_before_its_tests_passes_nothing(body, ended):
    outcome = check(f"    {body}\n")
    assert (outcome.ended, outcome.ok) == (ended, False)
    assert humaneval.UNREACHED in outcome.stderr or "exit(0)" not in body


HOSTILE = {
    "loops": ("    while True: pass\n", {"signal"}),
    "forks": ("    import os\n    while True: os.fork()\n", {"exit", "signal"}),
    "allocates": ("    return bytearray(100 << 30)\n", {"exit"}),
    "prints": ("    while True: print('x' * 99)\n", {"output"}),
    "connects": ("    import socket\n    socket.create_connection(('1.1.1.1', 80), 2)\n", {"exit"}),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "forks" else pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE],
)
def test_hostile_solutions_are_contained_and_fail(name):
    body, ends = HOSTILE[name]
    outcome = check(body)
    assert not outcome.ok and outcome.ended in ends


def test_an_entry_point_that_is_code_is_refused():
    with pytest.raises(ConfigError, match="entry_point"):
        humaneval.check(PROMPT, "    pass\n", TEST, "max([1]); print")
