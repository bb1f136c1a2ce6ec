"""Filters on planted texts, and the reason of each; that of the language is in test_generate.py."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

import synth_texts as texts
from gaia.errors import DataError
from gchat.factory import recipe
from gchat.synth import showing
from gchat.synth.filters import corpus_wide, speech
from gchat.synth.filters.support import support
from gchat.synth.finishing import filters, through

SOURCE = (
    "Siege of Leningrad\nGeorgy Zhukov took over the defence in September 1941. In November 1941 "
    "the daily ration of bread fell to 125 grams. Karl Eliasberg's orchestra played there."
)


def test_refusals_and_talk_about_the_task():
    assert all(speech.refusal(text) for text in texts.REFUSED)
    assert all(speech.meta(text) for text in texts.META)
    good = [*texts.ENGLISH, *texts.SHAKESPEARE, *texts.NAMES, "A passage of ships was ordered."]
    assert [t for t in good if speech.refusal(t) or speech.meta(t)] == []


@pytest.mark.parametrize(
    ("text", "field", "why"),
    [
        ("…", "answer", "is empty"),
        ("x" * 3000, "answer", "3,000 characters"),
        ("Who?", "question", "one word"),
        ("and the city fell, " * 9, "answer", "over and over"),
    ],
)
def test_lengths(text, field, why):
    assert why in speech.length(text, field).why


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Zhukov took over the defence in 1942.", "1942"),
        ("Rommel took over the defence. It was Rommel's order.", "'Rommel'"),
        ("The bread was baked by volunteers from neighbouring villages daily.", "%"),
    ],
)
def test_answers_that_the_source_does_not_support(answer, why):
    reason = support(SOURCE, "Who took over the defence?", answer)
    assert reason.filter == "support" and why in reason.why


def test_answers_that_the_source_supports():
    for answer in ("Georgy Zhukov.", "In September 1941.", "It fell to 125 grams a day.", "Yes.",
                   "Eliasberg", "True. Georgy Zhukov took over the defence."):  # fmt: skip
        assert support(SOURCE, "Who took over the defence?", answer) is None
    wrong = "False. It is Zhukov, not Model."
    asked = "True or false: Walter Model took over the defence."
    assert support(SOURCE, asked, wrong, wrong=True) is None
    assert support(SOURCE, asked, wrong) is not None  # other styles may not ask so


# ── All records together ────────────────────────────────────────────────────────────────────────


def record(question, answer="x", split="train", kind="qa", **more):
    source = {"article": "a", "window": "a#0"}
    return {"id": question, "kind": kind, "question": question, "answer": answer, "split": split,
            "source": source, "style": "s", **more}  # fmt: skip


def test_near_duplicates_go_and_the_first_stays():
    rows = [
        record("Which general took over the defence of the city in September 1941?"),
        record("Who wrote the symphony?"),
        record("which general took over the defence of the city, in September 1941"),
        record("Describe it.", "one", kind="qpt"),
        record("Describe it.", "two", kind="qpt"),
    ]
    reasons = corpus_wide.near_duplicates(rows)
    assert [r is None for r in reasons] == [True, True, False, True, True]


def test_evaluation_sets_and_held_out_texts_are_kept_out(tmp_path):
    asked = "In which month of the year 1941 did the bread ration of the city fall so low at last?"
    (tmp_path / "eval.jsonl").write_text(json.dumps({"question": asked}))
    held = "The orchestra of the radio played the whole symphony on that evening in August 1942."
    rows = [
        record("A", asked),
        record("B", f"It is said: {held}"),
        record("C", "Zhukov."),
        record("D", f"It is said: {held}", split="heldout_article"),
    ]
    kept, rejects = through(rows, filters([held], [str(tmp_path)]))
    assert [r["id"] for r in kept] == ["C", "D"]
    assert {(r["id"], r["why"]) for r in rejects} == {
        ("A", "an evaluation set has words of it"),
        ("B", "a held-out article has words of it"),
    }


def test_held_out_phrasings_ask_for_trained_facts_in_words_that_training_lacks():
    fact = {"fact": "3:person:Georgy Zhukov"}
    rows = [
        record("Who took over?", "Georgy Zhukov.", **fact),
        record("Which general was it?", "Zhukov.", split="heldout_phrasing", **fact),
        record("Name the composer.", "Shostakovich.", split="heldout_phrasing", fact="7:person:S"),
        record("which general was it", "Zhukov.", **fact),
    ]
    rows[3]["id"] = "leak"
    leaks, untrained = corpus_wide.asked_elsewhere(rows), corpus_wide.untrained(rows)
    assert [r is None for r in leaks] == [True, True, True, False]
    assert [r is None for r in untrained] == [True, True, False, True]


def test_one_order_of_a_pair_never_stays_alone():
    def half(order, pair):
        both = ["Model", "Zhukov"][:: 1 if order == "right-first" else -1]
        return record(f"{both[0]} or {both[1]}? {pair}", kind="contrast", pair=pair, order=order,
                      choices=both)  # fmt: skip

    rows = [half("right-first", "p"), half("wrong-first", "p"), half("wrong-first", "q")]
    kept, rejects = through(rows, [])
    assert [r["pair"] for r in kept] == ["p", "p"] and rejects[0]["filter"] == "unpaired"


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("True or false?", "True", "no word of the question"),
        ("What is it that they all want to hear?", "Zhukov took over.", "no word of the question"),
        ("Zhukov took over the defence.", "Zhukov took over the defence.", "the question again"),
        ("Was Zhukov fond of music and of songs?", "He was fond of music and songs of love and war",
         "of the answer's words"),
    ],
)  # fmt: skip
def test_records_that_a_small_model_writes_about_nothing(question, answer, why):
    """Each kind was written by SmolLM2-135M, asked for records with a grammar."""
    assert why in support(SOURCE, question, answer).why


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"source": "wiki"}, "row 3: source is 'wiki'; rename the field"),
        ({"source": {"article": "a"}}, "row 3: source is"),
        ({"choices": 5}, "row 3: choices is 5; write a list of texts"),
    ],
)
def test_rows_of_any_origin_are_records_or_one_line(more, said):
    row = {"question": "q", "answer": "a"}
    assert showing._as_record(row, Path("rows.jsonl"), 3)["source"]["window"] == "3"
    with pytest.raises(DataError, match=said):
        showing._as_record(row | more, Path("rows.jsonl"), 3)


def test_verdicts_that_failed_are_asked_for_again():
    """Else a judge that was away once would hold up the factory for ever."""
    asked = SimpleNamespace(file=Path, judge=("--run", "r"))
    assert "--retry-errors" in recipe._judged(asked, "base").words()
