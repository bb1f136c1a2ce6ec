"""Identity: what is written to teach it, what is held out, and how it is counted."""

import collections
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaia.errors import ConfigError, DataError
from gchat.__main__ import main
from gchat.ask.identity import read_name
from gchat.client import Answer, Choice, ClientError
from gchat.evals.counts import Count
from gchat.evals.identity import Asked, Identity, evaluate, held_out, holds, shared
from gchat.synth import cli, identity
from gchat.synth.asked import Asking
from gchat.synth.persona import Persona, read_persona

KIBO = Persona("Kibo", "the gaia project", about="I know a little.")
ABOUT = "# Kibo\n\nI know a little.\n\n- maker: the gaia project\n- built on: docstrings\n"


@pytest.fixture
def about(tmp_path):
    path = tmp_path / "persona.md"
    path.write_text(ABOUT)
    return path


def texts(row, role):
    return [m.content for m in row.conversation.messages if m.role == role]


@pytest.mark.parametrize("persona", [KIBO, Persona("Max 2", "Ada & Sons", "a robot", "sing")])
def test_a_thousand_distinct_conversations_name_it_only_when_asked(persona):
    rows = identity.conversations(persona, 1000)
    assert rows == identity.conversations(persona, 1000)
    assert len({row.conversation for row in rows}) == 1000
    itself = [row for row in rows if row.about_itself]
    other = [row for row in rows if not row.about_itself]
    assert len(itself) == 550
    for row in rows:
        row.conversation.check()
    for row in itself:
        assert any(holds(text, persona.name) for text in texts(row, "assistant")), row
    for row in other:
        assert not any(holds(m.content, persona.name) for m in row.conversation.messages)
    said = [text for row in rows for text in texts(row, "user")]
    assert len(set(said)) > 900  # varied
    assert sum(len(row.conversation.messages) > 3 for row in rows) > 300
    assert len({row.category for row in rows}) > 15
    assert not any(re.search(r"[{}]", m.content) for row in rows for m in row.conversation.messages)
    openings = collections.Counter(text.split()[0] for row in itself for text in texts(row, "user"))
    assert openings.most_common(1)[0][1] < 200


def test_no_held_out_question_shares_a_frame_and_the_check_can_fail():
    rows = identity.conversations(KIBO, 1000, seed=3)
    asked, said = held_out("Kibo"), [text for row in rows for text in texts(row, "user")]
    assert len(asked.about_itself) >= 30 and len(asked.about_else) >= 20
    questions = [*asked.about_itself, *asked.about_else]
    names = identity.names_of(KIBO)
    assert shared(questions, said, names) == []
    for trained in (
        "what should i call YOU",  # the same
        "Excuse me: what should I call you?",  # a sentence of it
        "Tell me what should I call you today.",  # part of a longer one
        "Should I call you a taxi?",  # four words in a row
    ):
        assert shared(questions, [*said, trained], names)[0] == (questions[0], trained)
    assert shared(["Is Kibo here now?"], ["is ChatGPT here now"], names)
    assert not shared(["Is the cat here?"], ["Is the dog here?"], names)
    with pytest.raises(DataError, match="shares a sentence frame with the held-out"):
        bad = identity.Row(rows[0].conversation, True, "x")
        messages = (bad.conversation.messages[-2].__class__("user", "What should I call you?"),)
        changed = type(bad.conversation)((*messages, bad.conversation.messages[-1]))
        identity.check_held_out(KIBO, [identity.Row(changed, True, "x")])


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=6), st.text(max_size=10), st.text(max_size=10))
def test_a_name_is_a_word_of_its_own(name, before, after):
    if not re.search(r"\w", name) or not (name[0].isalnum() and name[-1].isalnum()):
        return
    assert holds(f"{before} {name}. {after}", name)
    assert holds(f"({name.upper()})", name) or name.upper().lower() != name.lower()
    assert not holds(f"x{name}y", name) or f"x{name}y".lower() == name.lower()


def test_shares_have_intervals():
    """They are those of every other evaluation."""
    asked = [Asked(True, "?", "!", i < 36) for i in range(40)]
    asked += [Asked(False, "?", "!", False)] * 30
    figures = Identity("Kibo", "m", tuple(asked)).figures()
    assert figures["named_interval"] == Count(36, 40).interval
    # Wilson's interval as R's binom::binom.wilson(36, 40) gives it.
    assert [round(end, 4) for end in figures["named_interval"]] == [0.7695, 0.9604]
    assert figures["leaked_interval"][0] == 0.0
    assert json.loads(json.dumps(figures))["leaked_interval"][0] == 0.0


class Scripted:
    """A client that answers from a function of the question."""

    model = "scripted"

    def __init__(self, answer):
        self._answer, self.asked = answer, []

    def batch(self, questions):
        for i, question in enumerate(questions):
            self.asked.append(question)
            answer = self._answer(i, question)
            if isinstance(answer, str):
                answer = Answer((Choice(answer, "stop"),), self.model)
            yield i, answer

    def close(self):
        pass


def test_the_share_counts_both_kinds():
    asked = held_out("Kibo")

    def answer(i, question):
        text = question.messages[-1].content
        assert question.sampling.temperature == 0
        if text in asked.about_itself:
            return "I am kibo!" if i % 2 else "I am Kibokan."
        return "Kibo says four." if text == asked.about_else[0] else "four"

    figures = evaluate(Scripted(answer), "Kibo").figures()
    assert figures["named"] == 0.5 and figures["leaked"] == 1 / len(asked.about_else)
    assert len(figures["answers"]) == figures["questions"] + figures["other_questions"]
    with pytest.raises(ClientError):
        evaluate(Scripted(lambda i, q: ClientError("no answer")), "Kibo")


# ── The command ─────────────────────────────────────────────────────────────────────────────────


def test_the_file_is_the_same_for_the_same_seed_and_trains(about, tmp_path, capsys):
    args = ["synth", "identity", "--name", "Kibo", "--about", str(about), "--count", "200", "--out"]
    for name in ("a", "b"):
        assert main([*args, str(tmp_path / name), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out.splitlines()[0])
    assert (facts["rows"], facts["about_itself"]) == (200, 110)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert main([*args, str(tmp_path / "a")]) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*args, str(tmp_path / "a"), "--seed", "1", "--overwrite"]) == 0
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "persona.md"]


@pytest.mark.parametrize(
    ("content", "changes", "problem"),
    [
        ("- kind: a model\n", [], "names no maker"),
        ("- maker: x\n- colour: red\n", [], r"line 2: 'colour' is no fact; use maker, kind"),
        ("- maker: {x}\n", [], "holds a brace"),
        (b"\xff\xfe", [], "not UTF-8"),
        (ABOUT, ["--name", "!"], "name = '!' is no name"),
        (ABOUT, ["--count", "0"], "count = 0"),
        (ABOUT, ["--count", "900000"], "count = 900000 is out of range; use 1 to"),
        (ABOUT, ["--about", "nowhere.md"], "persona 'nowhere.md'"),
        (ABOUT, ["--out", "nowhere/x"], "the folder 'nowhere' does not exist"),
        (ABOUT, ["--model", "x"], "--model has no effect without --endpoint"),
    ],
)
def test_what_cannot_work_is_one_line(about, tmp_path, capsys, content, changes, problem):
    about.write_bytes(content if isinstance(content, bytes) else content.encode())
    options = {"--name": "Kibo", "--about": str(about), "--out": str(tmp_path / "x")}
    options |= dict([changes]) if changes else {}
    assert main(["synth", "identity", *(word for pair in options.items() for word in pair)]) == 2
    err = capsys.readouterr().err.strip()
    assert re.search(problem, err) and "\n" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["persona.md"]


def test_a_persona_is_read_with_defaults(about):
    made = read_persona("Kibo", about)
    assert (made.maker, made.built_on) == ("the gaia project", "docstrings")
    assert made.about == "I know a little."
    about.write_text("maker: Ada. and Bob.\n")
    assert read_persona("Kibo", about).about == "I was made by Ada. and Bob to answer questions."


# ── An endpoint ─────────────────────────────────────────────────────────────────────────────────


def written(question):
    """A conversation that keeps the rules of a question of `Asking`."""
    text = question.messages[-1].content
    answer = "They call me Kibo." if "its answer says" in text else "It is four."
    marker = abs(hash(text))
    rows = [{"role": "user", "content": f"So {marker}?"}, {"role": "assistant", "content": answer}]
    return "Here it is:\n" + json.dumps({"messages": rows})


def test_an_endpoint_writes_each_and_what_breaks_a_rule_is_asked_again(tmp_path):
    rows = identity.conversations(KIBO, 40)
    bad = [
        "no JSON at all", '{"messages": [}', '{"messages": [{"role": "user", "content": "x"}]}',
        json.dumps({"messages": [{"role": "user", "content": "What should I call you?"},
                                 {"role": "assistant", "content": "Kibo"}]}),
    ]  # fmt: skip
    calls = collections.Counter()

    def answer(i, question):
        first = calls["all"] < 40
        calls["all"] += 1
        if first and i < len(bad):
            return bad[i]
        if first and i == 5:
            return ClientError("overloaded")
        return written(question)

    asking = Asking(KIBO, rows, tmp_path / "out", Scripted(answer))
    made, rejected = asking.run()
    assert rejected == len(bad) + 1 and calls["all"] == 40 + rejected
    for row, template in zip(made, rows, strict=True):
        assert row.about_itself == template.about_itself
        assert row.conversation != template.conversation
        named = any(holds(text, "Kibo") for text in texts(row, "assistant"))
        assert named == row.about_itself
    asking.forget()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_endpoint_is_asked_for_the_rest_alone(tmp_path):
    rows = identity.conversations(KIBO, 30)

    def stops(i, question):
        if i == 12:
            raise KeyboardInterrupt
        return written(question)

    with pytest.raises(KeyboardInterrupt):
        Asking(KIBO, rows, tmp_path / "out", Scripted(stops)).run()
    [partial] = tmp_path.iterdir()
    partial.write_bytes(partial.read_bytes() + b'{"torn')
    client = Scripted(lambda i, q: written(q))
    asking = Asking(KIBO, rows, tmp_path / "out", client)
    made, rejected = asking.run()
    assert len(client.asked) == 18 and not rejected and len(made) == 30
    asking.forget()
    assert list(tmp_path.iterdir()) == []
    # A model that never keeps the rules: the templates stand in.
    made, rejected = Asking(KIBO, rows, tmp_path / "out", Scripted(lambda i, q: "no")).run()
    assert made == rows and rejected == 90
    with pytest.raises(ConfigError):
        fatal = Scripted(lambda i, q: ConfigError("x"))
        Asking(KIBO, rows, tmp_path / "out", fatal).run()


def test_answers_are_kept_until_the_file_is_written(about, tmp_path, monkeypatch, capsys):
    client, write_rows = Scripted(lambda i, q: written(q)), cli.write_rows

    def full(out, rows):
        raise DataError(f"{out} cannot be written (No space left on device)", "make room")

    monkeypatch.setattr(cli.Identity, "_client", lambda self: client)
    words = ["synth", "identity", "--name", "Kibo", "--about", str(about), "--count", "20",
             "--endpoint", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "out")]  # fmt: skip
    monkeypatch.setattr(cli, "write_rows", full)
    assert main(words) == 2 and len(client.asked) == 20
    monkeypatch.setattr(cli, "write_rows", write_rows)
    assert main(words) == 0 and len(client.asked) == 20  # none is paid for twice
    assert len((tmp_path / "out").read_text().splitlines()) == 20
    assert not list(tmp_path.glob("*.asked")) + list(tmp_path.glob(".*.asked"))


def test_a_name_is_read_of_conversations_with_any_character(tmp_path):
    """U+2028 ends a line for Python, and none of a file of JSON."""
    turns = [{"role": "user", "content": "Sing\u2028it"}, {"role": "assistant", "content": "La"}]
    row = json.dumps({"identity": "Kibo", "messages": turns}, ensure_ascii=False)
    (tmp_path / "kibo.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    assert read_name(tmp_path / "kibo.jsonl") == "Kibo"
