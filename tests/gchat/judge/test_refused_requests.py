"""`gchat judge` where requests fail: that is no verdict, on known answers as on students'."""

import json

import pytest

from gaia.errors import GaiaError
from gchat.__main__ import main
from gchat.client import Answer, Choice, Usage
from gchat.judge.command import Judge

SHARE = 0.5


class PerfectJudge:
    """Knows right answers by a word, and refuses some requests as a content filter does."""

    model = "perfect"
    refuses = staticmethod(lambda index: False)

    def batch(self, questions):
        for index, asked in enumerate(questions):
            if self.refuses(index):
                yield index, GaiaError("HTTP 400: blocked", "ask otherwise")
                continue
            verdict = "PASS" if "swordfish" in asked.messages[-1].content else "FAIL"
            text = json.dumps({"explanation": "e", "verdict": verdict})
            yield index, Answer((Choice(text, "stop"),), Usage())

    def close(self):
        pass


@pytest.fixture
def client(monkeypatch):
    made = PerfectJudge()
    monkeypatch.setattr(Judge, "open_endpoint", lambda self, **options: made)
    return made


def write(path, count):
    """Answers of which every other one is right."""
    lines = [
        {"snippet": "s", "question": f"q{n}", "reference": "r", "right": n % 2 == 0,
         "answer": "swordfish" if n % 2 == 0 else "nonsense"}
        for n in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def judge(folder, known, *more):
    answers = write(folder / "answers.jsonl", 40)
    labelled = write(folder / "labelled.jsonl", known)
    out = folder / "verdicts.jsonl"
    words = ["judge", answers, str(out), "--labelled", labelled, "--endpoint", "http://127.0.0.1:9"]
    return main([*words, "--model", "perfect", *more]), out


def test_a_refused_request_is_no_verdict_on_a_known_answer(tmp_path, client, capsys):
    client.refuses = lambda index: index % 5 < 2
    status, out = judge(tmp_path, 80)
    said, summary = capsys.readouterr(), json.loads(out.with_suffix(".summary.json").read_text())
    known = summary["calibration"]
    assert (known["sensitivity"], known["specificity"]) == (1.0, 1.0)
    assert (known["right"], known["wrong"], known["unasked"]) == (24, 24, 32)
    assert known["errors"] == {"labelled": {"of": 48, "errors": 0}}
    assert summary["rate"] == pytest.approx(SHARE)  # 0.83 where each refusal counts as no pass
    assert status == 1 and "32 answers whose truth is known could not be asked about" in said.out
    assert "16 of 40 answers and 32 of 80 answers whose truth is known could not" in said.err
    client.refuses = lambda index: False
    status, out = judge(tmp_path, 80, "--retry-errors", "--json")
    summary = json.loads(capsys.readouterr().out)
    assert (status, summary["asked"], summary["calibration"]["unasked"]) == (0, 48, 0)


def test_known_answers_alone_that_were_refused_show_in_the_status(tmp_path, client, capsys):
    client.refuses = lambda index: index >= 70
    status, _ = judge(tmp_path, 80)
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1
    assert "gchat: 10 of 80 answers whose truth is known could not be asked about; run" in said


def test_too_few_replies_on_known_answers_are_no_calibration(tmp_path, client, capsys):
    client.refuses = lambda index: index == 3
    status, out = judge(tmp_path, 20)
    said = capsys.readouterr().err
    assert status == 1 and said.count("\n") == 1 and not out.exists()
    assert "about 1 of 20 answers whose truth is known; 10 right and 9 wrong ones are too" in said
