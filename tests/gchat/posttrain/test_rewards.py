"""Reward functions in a process of their own: whatever they do, the trainer goes on and says so."""

import math

import pytest

from gaia.errors import ConfigError
from gchat.chat_format import Message
from gchat.posttrain.rewards import FunctionRewards
from gchat.tasks.task import Item

FILE = """
import sys, time

calls = 0


def good(text, item):
    print("this goes to the log")
    return len(text) / 10 + (item["answer"] == "4") + (item["question"] == "2 + 2?")


def bad(text, item):
    global calls
    calls += 1
    if text == "raise":
        raise ValueError("no digit\\nin it")
    if text == "nan":
        return float("nan")
    if text == "none":
        return None
    if text == "exit":
        sys.exit(3)
    if text == "hang":
        time.sleep(60)
    if text == "die":
        import os
        os._exit(1)
    return calls


not_a_function = 5
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    return path


def graded(rewards, *texts):
    item = Item("7", (Message("user", "2 + 2?"),), Message("assistant", "4"))
    answers = [Message("assistant", text) for text in texts]
    try:
        return rewards.grade([item] * len(texts), answers)
    finally:
        rewards.close()


def test_a_function_gets_text_and_item(file):
    rewards = FunctionRewards(f"{file}:good", 10)
    assert graded(rewards, "abc", "") == [2.3, 2.0]
    assert rewards.failures == 0


def test_failures_are_counted_said_once_and_give_no_reward(file, capfd):
    rewards = FunctionRewards(f"{file}:bad", 0.5)
    asked = ("raise", "nan", "none", "exit", "raise", "one", "hang", "die", "two")
    got = graded(rewards, *asked)
    # After "hang" and "die" a new process has forgotten its calls.
    assert [math.isnan(x) for x in got] == [*[True] * 5, False, True, True, False]
    assert got[5] == 6 and got[8] == 1
    assert rewards.failures == 7
    said = capfd.readouterr().out.splitlines()
    assert [line for line in said if "ValueError: no digit in it" in line] == [said[0]]
    assert said[0] == "reward bad: ValueError: no digit in it; the answer takes no part"
    assert any("it returned nan" in line for line in said)
    assert any("took more than 0.5 s (rl.reward_seconds)" in line for line in said)
    assert any("its process ended" in line for line in said)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{file}", "write FILE.py:function"),
        ("{file}:not_there", "has no attribute 'not_there'"),
        ("{file}:not_a_function", "is no function"),
        ("missing.py:good", "does not exist"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_begins(file, spec, says):
    with pytest.raises(ConfigError) as caught:
        FunctionRewards(spec.format(file=file), 10)
    assert says in f"{caught.value.problem} {caught.value.remedy}"
    assert "rl.reward" in caught.value.problem


def test_a_file_that_cannot_be_imported_is_refused(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="nothing_of_this_name"):
        FunctionRewards(f"{path}:good", 10)
