"""Grades of written answers to files of one's own: numbers, texts, symbols."""

import json

import pytest

from gchat.tasks import numbers
from gchat.tasks.opening import open_task


@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        ("3/4", ["3/4", "3/4."], ["It is 4", "3-4", "3 4"]),
        ("12:30", ["12:30."], ["30", "12.30", "1:30"]),
        ("2024-05-01", ["2024-05-01", "2024\u201305\u201301"], ["1999-12-01", "1"]),
        ("+", ["+", " + "], ["", "-", "plus"]),
        ("<", ["<"], [">", ""]),
        ("...", ["..."], ["", "?"]),
        ("C++", ["C++", "**c++**."], ["C#", "C"]),
        ("10 - 3", ["10-3"], ["7-3", "10+3", "3"]),
        ("-5", ["It is -5", "\u22125"], ["5", "10-5"]),
        ("1,2", ["1, 2"], ["12", "1.2"]),
        ("1,000", ["It is 1000.", "$1,000"], ["1", "100"]),
        ("$5", ["5 dollars", "$5.00"], ["$6"]),
        ("50%", ["so 50 %", "50"], ["5"]),
        ("(12)", ["12"], ["-12"]),
        ("Paris", ["paris!", "**Paris**", "- Paris", "Paris \U0001f60a"], ["Rome", "Paris + Rome"]),
        ("well-known", ["Well known"], ["known"]),
        ("20 \u00b0C", ["20\u00b0C", "20 C"], ["20 F"]),
        ("\u0915\u093f", ["\u0915\u093f"], ["\u0915\u0940", "\u0915"]),
    ],
)  # fmt: skip
def test_a_written_answer_is_the_reference_or_its_number(tmp_path, reference, right, wrong):
    row = {"question": "q", "answer": reference}
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps(row))
    own = open_task(f"json:{path}")
    assert [text for text in right if own.grade(own[0], text) == 0] == []
    assert [text for text in wrong if own.grade(own[0], text) == 1] == []


@pytest.mark.parametrize(
    ("text", "number"),
    [("10-3", 3), ("2023-24", 24), ("covid-19", 19), ("so -3", -3), ("(-3)", -3), ("5 - -3", -3),
     ("-$5", -5), ("#### -18", -18), ("####-18", -18), ("10-13=-3", -3)],
)  # fmt: skip
def test_a_hyphen_behind_a_digit_or_a_letter_is_no_sign(text, number):
    assert numbers.last(text) == number
