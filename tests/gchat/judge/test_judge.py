"""`gchat judge`: what a student writes stays data, and the judge's own errors are taken out."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gaia_metrics
from fakes.openai_api import serve
from gchat.__main__ import main
from gchat.evals.counts import Count
from gchat.judge import lexical, planted, question
from gchat.judge.items import Item
from gchat.judge.rates import Calibration, corrected
from gchat.run import judged
from judge_attacks import ATTACKS, WON

# Written for these tests from common knowledge; each snippet holds its answer and other names.
QUESTIONS = Path(__file__).parents[2] / "fixtures/war_questions.jsonl"
BLOCK = re.compile(r"BEGIN (.+) ([0-9a-f]{24})\n(.*)\nEND \1 \2")


def rows():
    """Lines of a file of answers, without the answers."""
    return read(QUESTIONS)


def lines(answer):
    """A file of answers; `answer` gives that of a row."""
    return [{**row, "answer": answer(row), "split": f"s{place % 2}"}
            for place, row in enumerate(rows())]  # fmt: skip


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(body):
    """The four texts of a question, by a reader that takes the blocks and nothing else."""
    content = body["messages"][-1]["content"]
    first = content.split("\n", 1)[0]
    mark = first.rsplit(" ", 1)[1]
    blocks, ask = content.rsplit("\n\n", 1)
    whole = BLOCK.findall(blocks)
    assert len(whole) == 4 and {m for _, m, _ in whole} == {mark}
    assert "\n".join(f"BEGIN {n} {m}\n{t}\nEND {n} {m}" for n, m, t in whole) == blocks
    assert ask.startswith("Compare the student's answer")
    return {name: json.loads(text.split('" (cut:')[0] + '"' * ('" (cut:' in text))
            for name, _, text in whole}  # fmt: skip


def reading(body):
    """A judge that reads the blocks, and errs as `lexical` does."""
    given = texts(body)
    item = Item(1, given["source text"], given["question"], given["reference answer"],
                given["student's answer"])  # fmt: skip
    made = lexical.judge(item)
    return json.dumps(
        {"explanation": made.explanation, "verdict": "PASS" if made.passed else "FAIL"}
    )


@pytest.fixture
def fake():
    with serve(models=("judge",)) as endpoint:
        endpoint.reply = reading
        yield endpoint


def judge(tmp_path, fake, answer, *more, count=40):
    given = write(tmp_path / "answers.jsonl", lines(answer)[:count])
    out = tmp_path / "verdicts.jsonl"
    status = main(["judge", str(given), str(out), "--endpoint", fake.url, "--json", *more])
    return status, out


def test_no_attack_passes_and_every_right_answer_does(tmp_path, fake, capsys):
    given = rows()
    records = [{**given[place % len(given)], "id": f"a{place}", "answer": attack}
               for place, attack in enumerate(ATTACKS)]  # fmt: skip
    records += [{**row, "answer": row["reference"]} for row in given]
    answers = write(tmp_path / "answers.jsonl", records)
    out = tmp_path / "verdicts.jsonl"
    assert main(["judge", str(answers), str(out), "--endpoint", fake.url, "--json"]) == 0
    verdicts = read(out)
    assert [v["passed"] for v in verdicts[: len(ATTACKS)]] == [False] * len(ATTACKS)
    assert all(v["passed"] for v in verdicts[len(ATTACKS) :])
    tags = re.compile(r"<|\|>|\[/?INST\]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800]")
    for _, body, _ in fake.seen:
        if body:
            assert not tags.search(body["messages"][-1]["content"])
    seen = {texts(body)["student's answer"] for _, body, _ in fake.seen if body}
    assert {attack[: question.MAX_TEXT] for attack in ATTACKS} <= seen  # nothing is lost of them
    summary = json.loads(capsys.readouterr().out)
    assert summary["calibration"]["youden_interval"][0] > 0.7


@given(st.text(st.characters()))
@settings(max_examples=60, deadline=None)
def test_any_text_is_one_line_that_reads_back(text):
    line = question.quoted(text)
    assert json.loads(line) == text and line.isprintable() and "<" not in line


def test_marks_cannot_be_known_in_advance():
    one = Item(1, "s", "q", "r", "x")
    items = one, Item(1, "s", "q", "r", "y"), Item(1, "s", "q", "r2", "x")
    asked = [question.question(item, max_tokens=9).messages[1].content for item in items]
    marks = {content.split("\n")[0].rsplit(" ", 1)[1] for content in asked}
    assert len(marks) == 3


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        (WON, True),
        (f"```json\n{WON}\n```", True),
        (WON.replace("PASS", "FAIL"), False),
        (f"The student wrote {WON}", None),
        (f"{WON}\n{WON}", None),
        ("PASS", None),
        ('{"verdict": "PASS"}', None),
        ('{"explanation": "", "verdict": "FAIL", "verdict": "PASS"}', None),
        ('{"explanation": "", "verdict": "pass"}', None),
        ('{"explanation": 1, "verdict": "PASS"}', None),
        ('{"explanation": "", "verdict": ["PASS"]}', None),
        (f"[{WON}]", None),
        (WON[:-1], None),
    ],
)
def test_only_a_whole_reply_is_a_verdict(reply, passed):
    made = question.verdict(reply)
    assert (made and made.passed) == passed


def test_planted_answers_are_what_they_are_said_to_be():
    items = [Item(n, r["snippet"], r["question"], r["reference"], "") for n, r in enumerate(rows())]
    known = planted.plant(items, 100, seed=3)
    assert known == planted.plant(items, 100, seed=3) != planted.plant(items, 100, seed=4)
    kinds = Counter(one.how for one in known)
    assert kinds["paraphrase"] == len(items) and len(known) == 2 * len(items)
    assert kinds["name"] >= 8 and kinds["number"] >= 5 and kinds["opposite"] >= 2
    numbers = re.compile(r"\d[\d,]*")
    for one in known:
        same = Counter(numbers.findall(one.item.answer)) == Counter(
            numbers.findall(one.item.reference)
        )
        assert same or one.how == "number"
        if not one.right:
            assert one.item.reference not in one.item.answer
    # No word of the frames tells right from wrong.
    framed = [one for one in known if "passage" in one.item.answer or "text" in one.item.answer]
    assert 0.25 < np.mean([one.right for one in framed]) < 0.75


def reworded(reference):
    """Right answers that are planted for a reference, over many seeds."""
    items = [Item(1, "", "What is said of it?", reference, ""), Item(2, "", "Who?", "Nobody", "")]
    known = [one for seed in range(40) for one in planted.plant(items, 2, seed=seed)]
    return {one.item.answer for one in known if one.right and one.item.reference == reference}


@pytest.mark.parametrize(
    "reference",
    [
        "Nothing is said about Omaha there.", "They flew over Berlin.", "He served since 1941.",
        "It led to a truce, as well as to peace.", "It was started at the start of May.",
        "He was killed in action.", "He wrote to Rome.", "She was named commander.",
        "He left because of the rain.", "They ended the siege.", "He was at large.",
    ],
)  # fmt: skip
def test_words_that_mean_something_else_there_stay_in_a_right_answer(reference):
    assert all(reference[1:] in answer for answer in reworded(reference))


def test_right_answers_come_in_other_words():
    answers = " ".join(reworded("It took about 900 days, because the large army was defeated."))
    for word in ("about 900", "roughly 900", "because", "since", "large", "big", "vanquished"):
        assert word in answers


def simulated(draw, count=1000):
    """(truth, passed, calibration) of judges between a poor and an excellent one."""
    for _ in range(count):
        truth, se, sp = draw.uniform(0, 1), draw.uniform(0.6, 0.99), draw.uniform(0.6, 0.99)
        n, m = int(draw.integers(50, 501)), int(draw.integers(30, 201))
        passed = draw.binomial(n, truth * se + (1 - truth) * (1 - sp))
        yield (
            truth,
            Count(passed, n),
            Calibration(Count(draw.binomial(m, se), m), Count(draw.binomial(m, sp), m)),
        )


def delta_width(passed, known):
    """Width of the delta method's interval within 0 and 1 (Rogan and Gladen 1978)."""
    p, se, sp, j = passed.accuracy, known.sensitivity, known.specificity, known.youden
    t = (p + sp - 1) / j
    variance = p * (1 - p) / passed.of
    variance += (
        t**2 * se * (1 - se) / known.right.of + (1 - t) ** 2 * sp * (1 - sp) / known.wrong.of
    )
    ends = np.clip([t - 1.96 * variance**0.5 / j, t + 1.96 * variance**0.5 / j], 0, 1)
    return ends[1] - ends[0]


def test_intervals_of_1000_simulated_judges_cover_what_the_raw_rate_misses():
    covered, raw, widths, deltas = [], [], [], []
    for truth, passed, known in simulated(np.random.default_rng(20)):
        if not known.discriminates:
            continue
        made = corrected(passed, known)
        assert 0 <= made.interval.low <= made.rate <= made.interval.high <= 1 or made.outside
        covered.append(made.interval.low <= truth <= made.interval.high)
        raw.append(passed.interval.low <= truth <= passed.interval.high)
        widths.append(made.interval.high - made.interval.low)
        deltas.append(delta_width(passed, known))
    assert len(covered) > 950
    assert np.mean(covered) >= 0.93 > 0.5 > np.mean(raw)
    assert np.median(widths) <= 1.5 * np.median(deltas)


def test_a_perfect_judge_needs_no_correction():
    known = Calibration(Count(5000, 5000), Count(5000, 5000))
    made = corrected(Count(30, 100), known)
    assert made.rate == pytest.approx(0.3)
    assert made.interval == pytest.approx(Count(30, 100).interval, abs=2e-3)


def test_a_share_beyond_the_calibration_is_said():
    made = corrected(Count(999, 1000), Calibration(Count(60, 100), Count(90, 100)))
    assert made.outside and made.rate == 1.0


def test_a_judge_that_cannot_tell_is_refused_before_any_answer(tmp_path, fake, capsys):
    fake.reply = lambda body: WON
    status, out = judge(tmp_path, fake, lambda row: row["reference"])
    error = capsys.readouterr().err
    assert status == 1 and error.count("\n") == 1
    assert "judge is no judge of these answers: it passes 100% of right ones and 100%" in error
    assert not out.exists()
    assert sum(bool(body) for _, body, _ in fake.seen) == 80


def test_a_stopped_job_goes_on_and_asks_nothing_twice(tmp_path, fake, capsys):
    status, out = judge(tmp_path, fake, lambda row: "I don't know.", "--calibrate", "10",
                        "--max-requests", "30", "--concurrency", "2")  # fmt: skip
    assert status == 1 and "budget of 30 requests is spent" in capsys.readouterr().err
    assert len(read(out)) == 10
    before = len(fake.seen)
    with open(out, "a") as file:
        file.write('{"line": 39, "pas')  # torn by a kill
    status, out = judge(tmp_path, fake, lambda row: "I don't know.", "--calibrate", "10")
    assert status == 0 and len(fake.seen) - before == 30
    assert [v["line"] for v in read(out)] == list(range(1, 41))
    summary = json.loads(capsys.readouterr().out)
    assert (summary["passed"], summary["rate"]) == (0, 0.0) and summary["high"] < 0.4
    assert summary == json.loads(out.with_suffix(".summary.json").read_text())
    status, _ = judge(tmp_path, fake, lambda row: "another answer", "--calibrate", "10")
    assert status == 2 and "holds a verdict on line 1 of another answer" in capsys.readouterr().err


def test_silence_counts_as_no_pass_and_failures_count_nowhere(tmp_path, fake, capsys):
    def moody(body):
        given = texts(body)
        if given["student's answer"] == "mumble" or "El Alamein begin" in given["question"]:
            return "I'd rather not say"
        return reading(body)

    fake.reply = moody

    def answer(row):
        place = int(row["id"][1:])
        return "" if place <= 4 else "mumble" if place <= 8 else row["reference"]

    status, out = judge(tmp_path, fake, answer, "--by", "split")
    summary = json.loads(capsys.readouterr().out)
    assert status == 0
    # The question on El Alamein is among those that are mumbled, and planted twice.
    assert (summary["empty"], summary["no_verdict"], summary["passed"]) == (4, 4, 32)
    assert summary["calibration"]["sensitivity"] == 39 / 40
    assert [v["line"] for v in read(out.with_suffix(".calibration.jsonl"))] == [*range(1, 81)]
    assert summary["raw"] == 0.8 and summary["low"] <= summary["rate"] <= summary["high"] <= 0.9
    known = summary["calibration"]
    seen = corrected(Count(32, 36), Calibration(
        Count(known["sensitivity"] * 40, 40), Count(known["specificity"] * 40, 40)))  # fmt: skip
    assert summary["rate"] == pytest.approx(0.9 * seen.rate)  # the empty ones are wrong for certain
    groups = summary["groups"]["split"]
    assert {name: one["answers"] for name, one in groups.items()} == {"s0": 20, "s1": 20}
    twice = Counter(texts(body)["student's answer"] for _, body, _ in fake.seen if body)
    assert twice["mumble"] == 8 and "" not in twice
    assert read(out)[5]["reply"] == "I'd rather not say"


def test_labels_of_people_take_the_place_of_planted_answers(tmp_path, fake, capsys):
    labelled = [{**row, "answer": row["reference"], "right": True} for row in rows()[:10]]
    labelled += [{**row, "answer": "nobody knows", "right": False} for row in rows()[:10]]
    path, shared = write(tmp_path / "labelled.jsonl", labelled), str(tmp_path / "shared.jsonl")
    words = ("--labelled", str(path), "--calibration", shared)
    status, out = judge(tmp_path, fake, lambda row: row["reference"], *words, count=5)
    known = json.loads(capsys.readouterr().out)["calibration"]
    assert status == 0 and known["errors"] == {"labelled": {"of": 20, "errors": 0}}
    out.unlink()
    assert judge(tmp_path, fake, lambda row: "no idea", *words, count=5)[0] == 0
    assert sum(bool(body) for _, body, _ in fake.seen) == 20 + 2 * 5  # one calibration for both


@pytest.mark.slow  # matplotlib's first picture
def test_history_picture_and_metrics_of_the_student(tmp_path, fake, capsys, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    log = [{"step": s, "time": s, "train/loss": 9 - s / 10} for s in range(1, 31)]
    write(run / "metrics.jsonl", log)
    monkeypatch.setattr("gchat.run.checkpoints.read_run", lambda path: None)
    later = {"time": 1, "step": 40, "judge": "judge", "verdicts": "v", "rate": 0.9, "low": 0.8,
             "high": 1.0, "raw": 0.9}  # fmt: skip
    judged.add(run, later)
    status, _ = judge(
        tmp_path, fake, lambda row: row["reference"] if int(row["id"][1:]) <= 20 else "no idea",
        "--student", str(run), "--student-step", "30",
    )  # fmt: skip
    assert status == 0
    history = read(run / "judge.jsonl")
    assert [one["step"] for one in history] == [40, 30]
    assert (run / "judge.png").read_bytes().startswith(b"\x89PNG")
    points = read(run / "evals/judge.metrics/metrics.jsonl")
    rates = {p["step"]: p["eval/judge"] for p in points if "eval/judge" in p}
    assert rates == {one["step"]: one["rate"] for one in history} and 0.4 < rates[30] < 0.6
    assert gaia_metrics.run_info(run / "evals/judge.metrics")["status"] == "finished"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"question": "q", "reference": "r", "answer": "a"}', "it has no snippet"),
        ('{"snippet": "", "question": " ", "reference": "r", "answer": "a"}', "question is empty"),
        ('{"snippet": "", "question": "q", "reference": "r", "answer": 3}', "answer is a int"),
        ('{"snippet": "", "question": "q", "reference": "r", "answer": "", "right": 2}', "right "),
    ],
)  # fmt: skip
def test_a_line_that_is_no_answer_is_named(tmp_path, line, problem, capsys):
    path = tmp_path / "in.jsonl"
    path.write_text(line + "\n")
    assert main(["judge", str(path), str(tmp_path / "out.jsonl"), "--lexical"]) == 2
    error = capsys.readouterr().err
    assert f"{path}:1: {problem}" in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lexical", "--run", "x"], "--run has no effect with --lexical"),
        ([], "neither --run nor --endpoint"),
        (["--lexical", "--calibrate", "5"], "--calibrate is 5"),
        (["--lexical", "--by", "nothing"], "names a field that no line has"),
        (["--lexical", "--student-step", "3"], "no effect without --student"),
        (["--lexical", "--calibration", "answers.jsonl"], "two of the files are one"),
    ],
)
def test_options_that_cannot_work(tmp_path, words, problem, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = write(tmp_path / "answers.jsonl", lines(lambda row: "x"))
    assert main(["judge", str(given), "v.jsonl", *words]) == 2
    assert problem in capsys.readouterr().err


def test_lines_of_generate_are_taken_as_they_are(tmp_path, capsys):
    records = []
    for place, row in enumerate(rows(), 1):
        meta = {name: row[name] for name in ("snippet", "question", "reference")} | {"style": "who"}
        own = {"error": "no answer"} if place == 1 else {"text": row["reference"]}
        records.append({"line": place, "id": row["id"], "meta": meta, "key": "k", **own})
    given = write(tmp_path / "answers.jsonl", records)
    words = ["judge", str(given), str(tmp_path / "v.jsonl"), "--lexical", "--by", "style"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "style who" in said and "1 answers are empty, which fails" in said
    assert main([*words, "--dry-run"]) == 0
    assert "40 answers, and 80 whose truth is known" in capsys.readouterr().out
