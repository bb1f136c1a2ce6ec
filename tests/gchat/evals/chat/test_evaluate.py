"""ChatCORE without a model: scorers and clients that answer by rule, and the arithmetic."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from gaia.errors import ConfigError
from gchat.chat_format import format_of
from gchat.client import Answer, Choice, ClientError, Token, Usage
from gchat.evals.chat import entries, evaluate, summary
from gchat.evals.chat.entries import CHATCORE
from gchat.evals.counts import Z
from gchat.score import LogLikelihood
from gchat.tasks.opening import open_task
from gchat.tokenizer import train_bpe

QUESTION = {"question": "Which?", "choices": ["w", "x", "y", "z"]}


@pytest.fixture(scope="module")
def form():
    tokenizer = train_bpe(["Which of them is it? ABCD w x y z"], 300)
    return format_of(tokenizer, wanted="chat")


@pytest.fixture
def choices(tmp_path):
    """400 questions of four choices, right ones in turn."""
    path = tmp_path / "c.jsonl"
    rows = [QUESTION | {"question": f"Which {i}?", "answer": i % 4} for i in range(400)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_task(f"json:{path}")


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


def scores(values):
    """A scorer that gives these values in turn, seven at a time and each seven backwards."""

    def stream(pairs):
        numbered = iter([(n, LogLikelihood(next(values), np.zeros(1), True))
                         for n, _ in enumerate(pairs)])  # fmt: skip
        while batch := list(itertools.islice(numbered, 7)):
            yield batch[::-1]

    return stream


def test_a_random_scorer_lands_on_chance(choices, form):
    rng = np.random.default_rng(0)
    made = entries.entries([choices])
    records = list(
        itertools.chain.from_iterable(
            evaluate.scored(made, scores(iter(rng.normal(size=1600))), form)
        )
    )
    figures = summary.summary([choices], records)["tasks"][choices.name]
    low, high = figures["accuracy_interval"]
    assert low <= 0.25 <= high and high - low < 0.1 and len(records) == 400
    assert figures["centred_interval"][0] <= 0 <= figures["centred_interval"][1]


def test_the_likeliest_letter_is_chosen_and_the_first_of_equals(choices, form):
    made = entries.entries([choices])[:2]
    values = iter([-3.0, -1.0, -2.0, -4.0, -1.0, -1.0, -1.0, -1.0])
    seen = []

    def stream(pairs):
        return scores(values)(seen.append(pair) or pair for pair in pairs)

    records = flat(evaluate.scored(made, stream, form))
    assert [record["chosen"] for record in records] == [1, 0]
    assert records[0]["nats"] == [-3.0, -1.0, -2.0, -4.0]
    assert [record["grade"] for record in records] == [
        float(made[i].item.gold == chosen) for i, chosen in enumerate((1, 0))
    ]
    prompt, letter = seen[2]
    assert prompt == form.prompt(made[0].item.question)
    assert form.tokenizer.decode(letter) == "C"


class Client:
    """Answers by rule; the last question fails."""

    model, converses = "by rule", True

    def __init__(self, tell=None, fails=()):
        self.tell, self.fails, self.seeds, self.asked = tell, fails, [], 0

    def answer(self, question):
        self.asked += 1
        text = question.messages[-1].content
        self.seeds.append(question.sampling.seed)
        tokens = (Token("B", -0.1, self.tell),) if self.tell and question.logprobs else ()
        made = [Choice(f"#### {len(text) + i}", "stop", tokens) for i in range(question.n)]
        return Answer(tuple(made), Usage(5, 3 * question.n))

    def complete(self, question):
        if question.logprobs and self.tell is None:
            raise ClientError("the endpoint answered 400: no logprobs", status=400)
        return self.answer(question)

    def batch(self, questions):
        for index, question in reversed(list(enumerate(questions))):
            error = self.fails[index] if index < len(self.fails) else None
            yield index, error or self.answer(question)


def test_an_endpoint_is_asked_for_alternatives_or_for_a_text(choices):
    made = entries.entries([choices])[:4]
    top = (("The", -0.2), (" C", -1.0), ("A", -1.5), ("C", -2.0))
    told = flat(evaluate.asked(made, Client(top)))
    assert {record["chosen"] for record in told} == {2}
    assert told[0]["nats"] == [-1.5, None, -1.0, None]
    plain = list(
        itertools.chain.from_iterable(evaluate.asked(made, Client()))
    )  # "#### 97" names no letter
    assert {(record["chosen"], record["grade"]) for record in plain} == {(None, 0.0)}


def test_written_answers_are_graded_kept_and_counted():
    task = open_task("sums", limit=4)
    made = entries.entries([task])
    fails = [ConfigError("too long"), ClientError("no answer")]
    kept, seen = [], []
    client = Client(fails=fails)
    writing = evaluate.Writing(temperature=1, samples=3)
    parts = [("answers", 4, evaluate.answered(made, client, writing))]
    unanswered = evaluate.evaluate(parts, record=kept.extend, progress=seen.append)
    assert unanswered == 1 and seen[-1].items == 4 and seen[-1].seconds_left == 0
    by = {record["item"]: record for record in kept}
    assert set(by) == {made[i].item.id for i in (0, 2, 3)}
    assert by["0"]["grade"] == 0.0 and by["0"]["error"] == "too long"
    for index in (2, 3):
        item, record = made[index].item, by[made[index].item.id]
        size = len(item.question[0].content)
        right = [str(size + i) == item.meta["number"] for i in range(3)]
        assert record["grades"] == [float(each) for each in right] and record["tokens"] == 9
    again = Client()
    list(evaluate.answered(made[3:], again, writing))
    assert again.seeds == client.seeds[:1]  # of the item, not of its place
    assert len(set(client.seeds)) == 2


@pytest.mark.parametrize("k", [1, 2, 5])
def test_pass_at_k_is_the_mean_over_all_draws(k):
    for samples in range(k, 9):
        for right in range(samples + 1):
            draws = itertools.combinations([i < right for i in range(samples)], k)
            exact = np.mean([any(draw) for draw in draws])
            assert math.isclose(summary.pass_at(k, samples, right), exact, abs_tol=1e-12)
    with pytest.raises(ValueError, match=r"pass@3 of 2"):
        summary.pass_at(3, 2, 1)


def test_chatcore_is_the_mean_of_its_tasks_alone(tmp_path):
    rows = [{"query": "q", "choices": list("wxyz"), "gold": 0} for _ in range(8)]
    path = tmp_path / "arc_easy.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    easy, other = open_task("arc_easy", source=str(path)), open_task("sums", limit=4)
    answers = [{"text": "", "finish": finish} for finish in ("length", "stop")]
    records = [{"task": "arc_easy", "item": str(i), "grade": float(i < 4)} for i in range(8)]
    records += [
        {"task": "sums", "item": str(i), "grade": i / 2, "grades": [i > 0, i > 1],
         "answers": answers} for i in range(3)
    ]  # fmt: skip
    figures = summary.summary([easy, other], records)
    assert figures["chatcore"] is None
    assert figures["partial_chatcore"] == pytest.approx((0.5 - 0.25) / 0.75)
    assert (figures["tasks_scored"], figures["tasks_of_chatcore"]) == (1, 5)
    low, high = figures["partial_chatcore_interval"]
    share = (4 + Z * Z / 2) / (8 + Z * Z)
    assert high - low == pytest.approx(2 * Z * math.sqrt(share * (1 - share) / (8 + Z * Z)) / 0.75)
    row = figures["tasks"]["sums"]
    assert row["accuracy"] == pytest.approx(0.5) and row["unfinished"] == 3
    assert row["pass_at"]["1"]["value"] == pytest.approx(0.5)
    assert row["pass_at"]["2"]["value"] == pytest.approx(2 / 3)
    assert summary.metrics(figures) == {
        "eval/partial_chatcore": figures["partial_chatcore"], "eval/chat/arc_easy": 0.5,
        "eval/chat/sums": pytest.approx(0.5),
    }  # fmt: skip
    assert "no ChatCORE score" in summary.table(figures) and "pass@2" in summary.table(figures)


def test_only_all_five_tasks_make_a_chatcore(tmp_path):
    rows = [{"query": "q", "choices": list("wxyz"), "gold": 0} for _ in range(4)]
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    easy = open_task("arc_easy", source=str(path))
    tasks = [SimpleNamespace(name=name, kind="choose", baseline=0.25, centred=easy.centred)
             for name in CHATCORE]  # fmt: skip
    records = [{"task": name, "item": "0", "grade": 1.0} for name in CHATCORE]
    whole = summary.summary(tasks, records)
    assert whole["chatcore"] == 1.0 and "partial_chatcore" not in whole
    assert summary.metrics(whole)["eval/chatcore"] == 1.0
    part = summary.summary(tasks[:4], records[:4])
    assert part["chatcore"] is None and part["partial_chatcore"] == 1.0
    assert "eval/chatcore" not in summary.metrics(part)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["smoltalk=t.jsonl"], "answers to smoltalk have no grade"),
        (["sums", "sums"], "the task sums is named twice"),
        ([], "no task is named"),
    ],
)
def test_tasks_that_cannot_be_evaluated_are_refused(tmp_path, monkeypatch, names, problem):
    monkeypatch.chdir(tmp_path)
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": pair}) + "\n")
    with pytest.raises(ConfigError, match=problem):
        entries.opened(names, 5)
    with pytest.raises(ConfigError, match="samples is 2 and temperature 0"):
        evaluate.Writing(samples=2).check()
