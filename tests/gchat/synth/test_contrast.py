"""Binary choices in both orders: exact balance, the same answer, none that depends on the order."""

import json
from pathlib import Path

import pytest

from gchat.synth import contrasts, corpus
from gchat.synth.contrasts import Pair, Rejected
from gchat.synth.filters import corpus_wide
from gchat.synth.filters.reason import Reason
from gchat.synth.windows import windows

ARTICLES = Path(__file__).parents[2] / "fixtures/synth/articles.md"
SETTINGS = {"pairs": 8, "heldout_phrasings": ["quiz", "draft"]}
OTHERS = {"person": ["Ivan Konev"], "place": ["Minsk"], "date": ["3 May 1942", "1939"]}


@pytest.fixture(scope="module")
def made():
    return [w for a in corpus.articles([str(ARTICLES)]) for w in windows(a)]


def test_each_choice_is_there_in_both_orders_with_the_same_answer(made):
    rows = [row for w in made for pair in contrasts.write(w, OTHERS, SETTINGS)
            for row in pair.orders]  # fmt: skip
    counted = contrasts.balance(rows)
    assert counted["right-first"] == counted["wrong-first"] >= 60
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["pair"] == second["pair"] and first["answer"] == second["answer"]
        assert first["choices"] == second["choices"][::-1] and first["right"] == first["choices"][0]
        right, wrong = first["choices"]
        asked = first["question"]
        assert asked.index(right) < asked.index(wrong)
        swapped = second["question"]
        assert swapped.index(wrong) < swapped.index(right)
        assert right in first["answer"] and wrong not in first["answer"]


def test_held_out_phrasings_ask_for_trained_facts_beside_other_names(made):
    rows = [
        {"split": "train", **row, "kind": "contrast", "source": {"article": w.article}}
        for w in made
        for pair in contrasts.write(w, OTHERS, SETTINGS)
        for row in pair.orders
    ]
    # Overlapping windows train some of the choices that another one holds out.
    reasons = corpus_wide.asked_elsewhere(rows)
    assert any(reasons) and all(r["split"] != "train" for r, why in zip(rows, reasons, strict=True)
                                if why)  # fmt: skip
    rows = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    held = [row for row in rows if row["split"] == "heldout_phrasing"]
    trained = [row for row in rows if row["split"] == "train"]
    assert held and {row["phrasing"] for row in held} <= {"quiz", "draft"}
    assert not {row["phrasing"] for row in trained} & {"quiz", "draft"}

    def key(row, *more):
        return (row["source"]["article"], row["fact"], *more)

    pairs = {key(row, frozenset(row["choices"])) for row in trained}
    assert {key(row) for row in held} <= {key(row) for row in trained}
    assert not {key(row, frozenset(row["choices"])) for row in held} & pairs


@pytest.mark.parametrize(
    "text",
    ["It was the former.", "The latter commanded it.", "The first one is right.", "Option B",
     "The second option is correct.", "Neither of them was.", "It is the one on the left.",
     "The name mentioned first is right.", "the other one"],
)  # fmt: skip
def test_answers_that_depend_on_the_order_are_seen(text):
    assert contrasts.depends_on_order(text)


def test_ordinary_words_do_not_depend_on_the_order():
    for text in ("Army Group North cut the last road.", "The first landing was at Oran.",
                 "He was among the first to arrive.", "Both armies retreated."):  # fmt: skip
        assert contrasts.depends_on_order(text) is None


def answers(question, answer):
    """A model that writes this, with {right} and {wrong} filled in."""

    def ask(style):
        given = style.ask.split('"')[1]
        right, wrong = given.rstrip("?").split(" or ")
        filled = (text.replace("{r}", right).replace("{w}", wrong) for text in (question, answer))
        return dict(zip(("question", "answer"), filled, strict=True))

    return ask


def test_what_a_model_writes_is_swapped_or_dropped(made):
    good = list(contrasts.write(made[0], OTHERS, SETTINGS, answers("Was it {w} or {r}?", "{r}.")))
    assert good and all(isinstance(pair, Pair) for pair in good)
    for pair in good:
        first, second = pair.orders
        right, wrong = first["choices"]
        assert first["question"] == f"Was it {right} or {wrong}?"
        assert second["question"] == f"Was it {wrong} or {right}?"
    bad = {
        ("Was it {r}?", "{r}."): "does not offer",
        ("Was it {r} or {w}, and not {w}?", "{r}."): "does not offer",
        ("Was it {r} or {w}?", "It was {r}, not {w}."): "does not say",
        ("Was it {r} or {w}?", "{r}, the former."): "'the former' depends on the order",
    }
    for (question, answer), why in bad.items():
        for one in contrasts.write(made[0], OTHERS, SETTINGS, answers(question, answer)):
            assert isinstance(one, Rejected) and why in one.reason[1].why
    refused = contrasts.write(made[0], OTHERS, SETTINGS, lambda style: Reason("schema", "no"))
    assert all(one.reason == ("form", Reason("schema", "no")) for one in refused)
    assert json.dumps([pair.orders for pair in good])
