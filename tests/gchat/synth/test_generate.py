"""`gchat synth generate`: from a corpus to records, by templates and by an endpoint that fails."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fakes import openai_api
from gchat.__main__ import main
from gchat.queue import Item, QueueError, open_queue
from gchat.synth import styles
from gchat.synth.facts import Facts
from gchat.synth.windows import Window

ARTICLES = Path(__file__).parents[2] / "fixtures/synth/articles.md"
KINDS = ("--kinds", "qa", "contrast", "qpt", "--heldout", "0.2", "--per-window", "40")
PARTS = ("train", "heldout_article", "heldout_phrasing")


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def generate(out, *more):
    return main(["synth", "generate", str(ARTICLES), "--out", str(out), *map(str, more)])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "records"
    assert generate(out, *KINDS) == 0
    return out


def test_records_of_three_kinds_in_three_parts(made):
    parts = {part: rows(made / f"{part}.jsonl") for part in PARTS}
    assert all(parts.values())
    every = [r for part in parts.values() for r in part]
    assert {r["kind"] for r in every} == {"qa", "contrast", "qpt"}
    assert len({r["id"] for r in every}) == len(every)
    articles = {part: {r["source"]["article"] for r in listed} for part, listed in parts.items()}
    assert len(articles["heldout_article"]) == 1
    assert not articles["heldout_article"] & (articles["train"] | articles["heldout_phrasing"])
    asked = {part: {(r["kind"], r["style"], r.get("phrasing")) for r in listed}
             for part, listed in parts.items()}  # fmt: skip
    assert not asked["heldout_phrasing"] & asked["train"]
    report = json.loads((made / "report.json").read_text())
    assert report["parts"] == {part: len(listed) for part, listed in parts.items()}
    right, wrong = report["balance"].values()
    assert right == wrong > 50 and report["same_question"]["share"] <= 0.05


def test_nothing_of_a_held_out_article_reaches_training(made):
    held = rows(made / "heldout_article.jsonl")
    trained = rows(made / "train.jsonl") + rows(made / "heldout_phrasing.jsonl")
    text = "\n".join(f"{r['question']} {r['answer']}" for r in trained)
    sentences = {r["answer"] for r in held if r["kind"] == "contrast"}
    assert sentences and not [s for s in sentences if s in text]
    # Nor a name or date that it alone holds, not even as a wrong answer.
    windows = {part: [w for row in rows(made / "windows.jsonl") if row["part"] == part
                      for w in [Window.from_json(row)]] for part in PARTS[:2]}  # fmt: skip
    known = "\n".join(f"{w.title} {w.text}" for w in windows["train"])
    alone = {f.value for w in windows["heldout_article"] for f in Facts(w).features
             if f.kind != "number" and f.value not in known}  # fmt: skip
    said = "\n".join(json.dumps(r, ensure_ascii=False) for r in trained)
    assert len(alone) > 5 and not [value for value in alone if value in said]


def test_training_records_are_conversations_for_the_trainer(made, tmp_path):
    from gchat.conversation import Conversation

    for row in rows(made / "train.jsonl"):
        conversation = Conversation.from_json(row)
        assert conversation.messages[0].content == row["question"]


def test_the_same_command_does_nothing_twice_and_other_options_are_refused(made, capsys):
    before = {path.name: path.read_bytes() for path in made.glob("*.jsonl")}
    assert generate(made, *KINDS, "--json") == 0
    json.loads(capsys.readouterr().out)
    assert {path.name: path.read_bytes() for path in made.glob("*.jsonl")} == before
    assert generate(made, *KINDS, "--seed", 1) == 2
    assert "was begun with another seed" in capsys.readouterr().err


def test_a_record_is_shown_with_its_window_and_a_reject_with_its_reason(made, capsys):
    record, reject = rows(made / "train.jsonl")[0], rows(made / "rejects.jsonl")[0]
    assert main(["synth", "show", record["id"][:12], "--out", str(made)]) == 0
    said = capsys.readouterr().out
    assert record["question"] in said and f"window {record['source']['window']}" in said
    assert main(["synth", "show", reject["id"], "--out", str(made), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["record"]["why"] == reject["why"] and facts["window"]["sentences"]
    assert main(["synth", "show", "nothing", "--out", str(made)]) == 2
    assert "is no record of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--language", "de"], "not in language 'de'"),
        (["--style-files", "missing.yaml"], "missing.yaml"),
        (["--styles", "wen"], "did you mean 'when'?"),
        (["--stride", "9"], "stride = 9"),
        (["--kinds", "qpt", "--phrasings", "29"], "phrasings = 29"),
        (["--pairs", "3"], "--pairs has no effect without contrast in --kinds"),
        (["--chain"], "--chain has no effect without --endpoint or --run"),
        (["--tries", "2"], "--tries has no effect without --endpoint or --run"),
        (["--plan-only", "--concurrency", "4"], "--concurrency has no effect with --plan-only"),
        (["--profile", "seed", "--language", "de"], "English only"),
        (["--decontaminate", "nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, capsys, more, said):
    assert generate(tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_articles_that_have_changed_and_a_kill_before_the_first_item(tmp_path, capsys, monkeypatch):
    """Items of other articles have another split: what was trained may be held out now."""
    texts, out = tmp_path / "articles.md", tmp_path / "o"
    texts.write_text(ARTICLES.read_text())
    words = ["synth", "generate", str(texts), "--out", str(out), "--max-windows", "2"]

    def dies(queue, items):
        raise QueueError("the power", "is gone")

    with monkeypatch.context() as patch:
        patch.setattr("gchat.queue.sqlite_queue.SqliteQueue.add", dies)
        assert main(words) == 1
    assert main([*words, "--seed", "1"]) == 2  # what a kill leaves is known by its job
    assert "was begun with another seed" in capsys.readouterr().err
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in out.glob("*.json*")}
    texts.write_text(ARTICLES.read_text() + "\n# More\n\nNobody had written this before now.\n")
    assert main(words) == 2
    assert "was begun with another corpus" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.glob("*.json*")} == before


def test_an_empty_corpus_and_a_queue_of_another_version(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("\n\n")
    assert main(["synth", "generate", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "holds no article" in capsys.readouterr().err
    (tmp_path / "made").mkdir()
    (tmp_path / "made/job.json").write_text('{"version": 99}')
    assert generate(tmp_path / "made") == 2
    assert "is of version 99" in capsys.readouterr().err


# ── A model behind an endpoint ──────────────────────────────────────────────────────────────────


def writes(text=None):
    """A model that copies the first sentence of its text as the answer."""

    def reply(body):
        if text is not None:
            return text
        asked = body["messages"][-1]["content"]
        first = asked.partition("Text: ")[2].partition(". ")[0] + "."
        words = " ".join(first.split()[:5])
        question = f"Who took over where it is told how {words}?"
        if "very words" in asked:  # of the style quote
            question = f"Give the sentence with {words}, please, as it stands."
        return json.dumps({"question": question, "answer": first})

    return reply


ASKED = ("--styles", "what-said", "quote", "--heldout-styles", "0", "--max-windows", "5",
         "--heldout", "0", "--concurrency", "2")  # fmt: skip


def test_an_endpoint_writes_question_and_answer_in_one_call(tmp_path, capsys):
    with openai_api.serve(key=openai_api.KEY) as fake:
        fake.reply = writes()
        os.environ["GAIA_API_KEY"] = openai_api.KEY
        try:
            priced = ("--prompt-price", 2, "--completion-price", 4, "--json")
            assert generate(tmp_path / "o", *ASKED, "--endpoint", fake.url, *priced) == 0
        finally:
            del os.environ["GAIA_API_KEY"]
    facts = json.loads(capsys.readouterr().out)
    assert len(fake.seen) == 10 and facts["dead"] == 0
    body = fake.seen[0][1]
    form = body["response_format"]["json_schema"]["schema"]
    assert form["required"] == ["question", "answer"] and not form["additionalProperties"]
    tokens = facts["tokens"]
    assert facts["cost"] == pytest.approx((tokens["prompt"] * 2 + tokens["completion"] * 4) / 1e6)
    both = [facts["styles"][name] for name in ("what-said", "quote")]
    for row in both:
        assert row["made"] == 5
        if row["accepted"]:
            assert row["cost_per_accepted"] == pytest.approx(row["cost"] / row["accepted"])
    assert sum(row["cost"] for row in both) == pytest.approx(facts["cost"])
    record = rows(tmp_path / "o/train.jsonl")[0]
    assert main(["synth", "show", record["id"], "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    sent = {m["content"] for _, body, _ in fake.seen for m in body["messages"]}
    prompt = next(text for text in sent if styles.load()[record["style"]].ask in text)
    assert prompt.splitlines()[-1] in said and openai_api.KEY not in said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("no JSON", "form: schema"),
        pytest.param('{"question": "Who was it, then?"}', "form: schema", marks=pytest.mark.slow),
        pytest.param(
            '{"question": "Who was it, then?", "answer": "It was 第六 Army."}',
            "answer: language",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            '{"question": "I cannot answer that, sorry?", "answer": "x"}',
            "question: refusal",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            '{"question": "According to the text, who?", "answer": "Leeb"}',
            "question: meta",
            marks=pytest.mark.slow,
        ),
        ('{"question": "Who was it, then?", "answer": "It was Hannibal."}', "answer: support"),
    ],
)
def test_what_a_model_writes_wrong_is_kept_apart_with_its_phase(tmp_path, capsys, text, name):
    with openai_api.serve() as fake:
        fake.reply = writes(text)
        assert generate(tmp_path / "o", *ASKED[3:-4], "--heldout", "0", "--styles", "quote",
                        "--endpoint", fake.url, "--json") == 0  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    assert facts["rejects"] == {name: 5} and facts["records"] == 0
    assert all(row["why"] for row in rows(tmp_path / "o/rejects.jsonl"))


def test_a_chained_question_is_checked_before_its_answer_is_paid_for(tmp_path, capsys):
    with openai_api.serve() as fake:
        fake.reply = writes()
        chained = (*ASKED[:3], "--heldout-styles", 0, "--max-windows", 3, "--heldout", 0, "--chain")
        assert generate(tmp_path / "o", *chained, "--endpoint", fake.url, "--json") == 0
        capsys.readouterr()
        assert len(fake.seen) == 12
        asked = [b["messages"][-1]["content"] for _, b, _ in fake.seen]
        assert sum("Question: " in text for text in asked) == 6
        record = rows(tmp_path / "o/train.jsonl")[0]
        assert main(["synth", "show", record["id"], "--out", str(tmp_path / "o"), "--json"]) == 0
        shown = [m["content"] for m in json.loads(capsys.readouterr().out)["prompt"]]
        assert shown[1] in asked and f"Question: {record['question']}" in shown[3] in asked
        fake.seen.clear()
        fake.reply = writes('{"question": "As an AI, may I ask?"}')
        assert generate(tmp_path / "p", *chained, "--endpoint", fake.url, "--json") == 0
        assert len(fake.seen) == 6  # no answer was asked for
        facts = json.loads(capsys.readouterr().out)
        paid = sum(style["tokens"] for style in facts["styles"].values())
        assert paid == sum(facts["tokens"].values()) > 0  # nor is a question forgotten


def test_a_spent_budget_stops_and_the_same_command_goes_on(tmp_path, capsys):
    with openai_api.serve() as fake:
        fake.reply = writes()
        args = (*ASKED, "--endpoint", fake.url)
        assert generate(tmp_path / "o", *args, "--max-requests", 4) != 0
        error = capsys.readouterr().err
        assert "the budget of 4 requests is spent" in error and error.count("\n") == 1
        with open_queue(tmp_path / "o/queue.db") as queue:
            assert queue.counts().done == 4 and queue.counts().waiting == 6
        assert generate(tmp_path / "o", *args) == 0
        assert len(fake.seen) == 10  # nothing is asked twice


def test_a_wrong_key_is_one_line_without_the_key(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GAIA_API_KEY", "sk-wrong-0123456789abcdefghij")
    with openai_api.serve(key=openai_api.KEY) as fake:
        more = ("--endpoint", fake.url, "--model", "small", "--server", "openai")
        assert generate(tmp_path / "o", *ASKED, *more) != 0
    error = capsys.readouterr().err
    assert "401" in error and "sk-" not in error and error.count("\n") == 1


def test_an_endpoint_that_is_down_is_one_line(tmp_path, capsys):
    more = ("--endpoint", "http://127.0.0.1:9/v1", "--tries", 1)
    assert generate(tmp_path / "o", *ASKED, *more) != 0
    error = capsys.readouterr().err
    assert "cannot be reached" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_generation_that_is_killed_goes_on_and_makes_the_same_records(tmp_path):
    command = [sys.executable, "-m", "gchat", "synth", "generate", str(ARTICLES)]
    with openai_api.serve() as fake:
        fake.reply, fake.delay_s = writes(), 0.1
        whole = tmp_path / "whole"
        assert generate(whole, *ASKED, "--endpoint", fake.url) == 0
        out = tmp_path / "killed"
        args = [*command, "--out", str(out), *ASKED, "--endpoint", fake.url]
        for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(args, stderr=subprocess.DEVNULL)
            begun = len(fake.seen)
            while len(fake.seen) < begun + 2 and process.poll() is None:
                pass
            process.send_signal(number)
            process.wait(240)
        with open_queue(out / "queue.db") as queue:
            for lease in queue.lease(100, 0.0, "test"):  # the dead worker's leases run out
                queue.release(lease)
        subprocess.run(args, check=True, timeout=400)
    for name in ("train", "rejects"):
        assert (out / f"{name}.jsonl").read_bytes() == (whole / f"{name}.jsonl").read_bytes()


def test_workers_elsewhere_do_what_was_planned(tmp_path, capsys):
    out = tmp_path / "o"
    assert generate(out, *ASKED[:-2], "--plan-only", "--json") == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["open"] == 10 and not (out / "train.jsonl").exists()
    with openai_api.serve() as fake:
        fake.reply = writes()
        words = ["synth", "worker", planned["queue"], "--endpoint", fake.url, "--concurrency", "2"]
        assert main(words) == 0
    capsys.readouterr()
    assert generate(out, *ASKED[:-2], "--plan-only", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["records"] > 0 and sum(s["made"] for s in facts["styles"].values()) == 10


def test_generations_that_share_a_queue_keep_their_records_apart(tmp_path, capsys):
    queue, few = tmp_path / "shared.db", ("--max-windows", 2, "--heldout", 0, "--per-window", 2)
    with open_queue(queue, create=True) as shared:  # and questions of another kind
        shared.add([Item("mine", {"messages": []}), Item("dead", {"messages": []})])
        assert generate(tmp_path / "no", *few, "--queue", queue) == 2  # it would do those too
        assert "2 open items in" in capsys.readouterr().err and shared.counts().total == 2
        for lease in shared.lease(2, 60, "w"):
            if lease.item.id == "mine":
                shared.complete(lease, {"text": "yes"})
            else:
                shared.fail(lease, "refused 400: no", final=True)
    facts = {}
    for name, model in (("one", "small"), ("two", "large")):
        with openai_api.serve() as fake:
            fake.reply = writes()
            asked = ("--endpoint", fake.url, "--model", model, "--queue", queue, "--json")
            assert generate(tmp_path / name, *few, *asked) == 0
            facts[name] = json.loads(capsys.readouterr().out)
            assert len(fake.seen) == 4
        assert {row["model"] for row in rows(tmp_path / name / "train.jsonl")} <= {model}
    assert facts["one"]["tokens"] == facts["two"]["tokens"] and not facts["two"]["dead"]
    alike = [sum(style["made"] for style in one["styles"].values()) for one in facts.values()]
    assert alike == [4, 4]


def test_rows_of_any_origin_can_be_filtered(tmp_path, capsys):
    asked = "When did the last ship leave the harbour of the town?"
    given = [
        {"question": "Who led them?", "answer": "Leeb.", "snippet": "Leeb led them.", "mine": 1},
        {"question": "Who led them all?", "answer": "Model.", "snippet": "Leeb led them."},
        {"question": "Who led them here?", "answer": "Das war der General."},
        {"question": asked, "answer": "In May."},
        {"question": asked.lower(), "answer": "In May."},
    ]
    path, good, bad = tmp_path / "rows.jsonl", tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    path.write_text("\n".join(map(json.dumps, given)))
    words = ["synth", "filter", str(path), "--out", str(good), "--rejects", str(bad), "--json"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"kept": 2, "rejects": {
        "answer: support": 1, "answer: language": 1, "corpus: duplicate": 1}}  # fmt: skip
    assert [row["question"] for row in rows(good)] == ["Who led them?", asked]
    assert rows(good)[0]["mine"] == 1
    assert main(words) == 2  # they lie there already
    assert "exists" in capsys.readouterr().err


def test_binary_choices_by_a_model_carry_their_cost_and_prompt(tmp_path, capsys):
    def reply(body):
        asked = body["messages"][-1]["content"]
        right, wrong = asked.split('the choice "')[1].partition('?"')[0].split(" or ")
        fact = asked.partition("about this fact: ")[2].partition(" The question ends")[0]
        begin = " ".join(fact.split()[:3])
        return json.dumps({"question": f"{begin}: {wrong} or {right}?", "answer": fact})

    out = tmp_path / "o"
    with openai_api.serve() as fake:
        fake.reply = reply
        few = ("--max-windows", 3, "--pairs", 2, "--heldout", 0)
        assert generate(out, "--kinds", "contrast", *few,
                        "--endpoint", fake.url, "--prompt-price", 1, "--json") == 0  # fmt: skip
    facts = json.loads(capsys.readouterr().out)
    assert len(fake.seen) == 6
    row = facts["styles"]["contrast"]
    assert row["cost"] == pytest.approx(facts["cost"]) and facts["cost"] > 0
    assert row["tokens"] == sum(facts["tokens"].values())
    kept = rows(out / "train.jsonl") + rows(out / "rejects.jsonl")
    assert main(["synth", "show", kept[1]["id"], "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["prompt"][1]["content"] in {b["messages"][1]["content"] for _, b, _ in fake.seen}


def test_a_corpus_without_texts_leaves_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert main(["synth", "generate", str(tmp_path / "empty"), "--out", str(tmp_path / "r")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]
