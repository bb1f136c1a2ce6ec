"""Tasks: their items out of every layout of files, their grades, what is wrong with a file."""

import gzip
import io
import json
from collections import Counter

import hub as fake
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gaia.errors import ConfigError, DataError
from gchat.conversation import Message
from gchat.data.sources import hub
from gchat.engine.calculator import calculate
from gchat.tasks import choices, made
from gchat.tasks.mixture import Mixture
from gchat.tasks.opening import TASKS, named, open_task, origin

ARC_HUB = {
    "id": "x", "question": "Which is a gas?", "answerKey": "2",
    "choices": {"text": ["ice", "steam", "rock"], "label": ["1", "2", "3"]},
}  # fmt: skip
ARC_AI2 = {
    "question": {
        "stem": "Which is a gas?",
        "choices": [{"text": "ice", "label": "A"}, {"text": "steam", "label": "B"}],
    },
    "answerKey": "B",
}
ARC_CORE = {"query": "Question: Which is a gas?", "choices": ["ice", "steam"], "gold": 1}
# The layout of GSM8K's file (openai/grade-school-math, data/test.jsonl), the sum our own.
SUM = {
    "question": "Six boxes of 24 pens, half sold?",
    "answer": "6*24=<<6*24=144>>144 pens.\n144/2 = <<144/2=72>>72 pens.\n#### 72",
}
PROBLEM = {
    "task_id": "Own/0",
    "prompt": "import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef twice(x):\n"
    '    """Twice x."""\n',
    "entry_point": "twice",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(3) == 6\n",
}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]}


def lines(folder, name, rows):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ── Items ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("row", "gold"), [(ARC_HUB, "2"), (ARC_AI2, "B"), (ARC_CORE, "B")])
def test_arc_reads_every_layout(tmp_path, row, gold):
    task = open_task("arc_easy", source=str(lines(tmp_path, "arc.jsonl", [row])))
    item = task[0]
    assert item.answer.content == item.choices[item.gold] == gold
    pairs = zip(item.meta["texts"], item.choices, strict=True)
    letters = "\n".join(f"- {text}={letter}" for text, letter in pairs)
    assert item.question[0].content == (
        f"Multiple Choice question: Which is a gas?\n{letters}\n\n"
        "Respond only with the letter of the correct answer."
    )
    assert (task.kind, task.baseline, task.centred(0.25), task.centred(1)) == ("choice", 0.25, 0, 1)


def test_mmlu_reads_folders_of_subjects_with_and_without_a_header(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "anatomy_dev.csv").write_text("not,read\n")
    header = "question,choice0,choice1,choice2,choice3,answer\n"
    first = '"Two\nlines, one ""question""",w,x,y,z,3\n'
    (tmp_path / "test" / "anatomy_test.csv").write_text(header + first)
    (tmp_path / "test" / "high_school_law_test.csv").write_text("Old?,w,x,y,z,B\n")
    task = open_task("mmlu", source=str(tmp_path))
    items = {item.meta["subject"]: item for item in task}
    assert items["anatomy"].answer.content == "D"
    assert 'Two\nlines, one "question"' in items["anatomy"].question[0].content
    assert items["high school law"].answer.content == "B" and len(task) == 2
    row = {"question": "Q", "choices": ["a", "b", "c", "d"], "answer": 2, "subject": "law"}
    assert open_task("mmlu", source=str(lines(tmp_path, "m.jsonl", [row])))[0].gold == 2


def test_gsm8k_makes_calls_of_the_notes(tmp_path):
    task = open_task("gsm8k", "train", str(lines(tmp_path, "gsm8k/train.jsonl", [SUM]).parent))
    item = task[0]
    kinds = [(part.kind, part.text) for part in item.answer.parts]
    assert kinds == [
        ("text", "6*24="), ("call", "6*24"), ("output", "144"), ("text", "144 pens.\n144/2 = "),
        ("call", "144/2"), ("output", "72"), ("text", "72 pens.\n#### 72"),
    ]  # fmt: skip
    assert item.answer.content == "6*24=144 pens.\n144/2 = 72 pens.\n#### 72"
    task.conversation(item).check()
    assert task.grade(item, item.answer) == 1.0


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("#### 72", 1, 1), ("#### 72.0", 1, 1), ("####72.", 1, 1), ("#### $72", 1, 1),
        ("#### 1\n#### 72", 1, 1), ("#### 72\n#### 1", 0, 0), ("It is 72", 0, 1),
        ("72 pens, or 6", 0, 0), ("#### 7,2", 1, 1), ("#### -72", 0, 0), ("none", 0, 0),
        ("####", 0, 0), ("#### 72 of 144", 1, 1),
    ],
)  # fmt: skip
def test_the_final_number_counts(tmp_path, text, strict, flexible):
    path = str(lines(tmp_path, "g.jsonl", [SUM]))
    for name, right in (("gsm8k", strict), ("gsm8k_flexible", flexible)):
        task = open_task(name, source=path)
        assert task.grade(task[0], text) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (PROBLEM["prompt"] + PROBLEM["canonical_solution"], 1),
        ("    return 2 * x\n\nprint('so')\nassert False", 1),
        ("return x + x", 1),
        ("Sure:\n```python\ndef twice(x):\n    return helper(x) + x - 1\n```\nIt adds.", 1),
        ("```\n    return math.floor(2 * x)\n```", 1),
        ("```python\ndef twice(x):\n    return 3 * x\n```", 0),
        ("", 0),
        ("I cannot.", 0),
    ],
)
def test_programs_are_run_against_their_tests(tmp_path, text, right):
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(PROBLEM).encode()))
    task = open_task("humaneval", source=str(tmp_path))
    assert task[0].id == "Own/0"
    assert task.grade(task[0], text) == right


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1), (" b", None), ("B.", 1), ("(B)", 1), ("**B**", 1), ("B. Because A is not", 1),
        ("The answer is B", 1), ("Answer: C, since", 2), ("A good question", None),
        ("D\nis it", 3), ("", None), ("E", None), ("I think so", None), ("B - the second", 1),
    ],
)  # fmt: skip
def test_a_written_answer_names_its_letter(text, chosen):
    assert choices.chosen(text, "ABCD") == chosen


@pytest.mark.parametrize("name", ["spelling", "letters", "sums"])
def test_made_tasks_are_functions_of_their_seed(name):
    first, again = open_task(name, "train", limit=200), open_task(name, "train", limit=300)
    assert [first[i] for i in range(200)] == [again[i] for i in range(200)]
    other = open_task(name, "train", limit=200, seed=7)
    assert [first[i] for i in range(200)] != [other[i] for i in range(200)]
    for item in first:
        assert first.grade(item, item.answer) == 1.0
        first.conversation(item).check()
        for call, output in zip(item.answer.parts, item.answer.parts[1:], strict=False):
            if call.kind == "call":
                assert calculate(call.text) == output.text
    if name == "spelling":
        assert all(first[i].meta["word"].count(first[i].meta["letter"])
                   == int(first[i].meta["number"]) for i in range(200))  # fmt: skip
        assert first.grade(first[0], "#### 99") == 0.0


def test_what_is_tested_is_not_trained():
    assert not set(made.words("test")) & set(made.words("train"))
    assert len(made.words("test")) > 200 and len(made.words("train")) > 2000

    def asked(split):
        task = open_task("sums", split, limit=2000)
        return {next(p.text for p in item.answer.parts if p.kind == "call") for item in task}

    assert not asked("train") & asked("test")


def test_conversations_keep_their_system_message_and_weights(tmp_path):
    system = {"role": "system", "content": "Be brief."}
    read = {"role": "assistant", "content": "b", "weight": 0}
    row = {"messages": [system, {"role": "user", "content": "a"}, read, *CHAT["messages"]]}
    path = lines(tmp_path, "identity.jsonl", [row])
    task = open_task("identity", source=str(path))
    assert [m.role for m in task[0].question] == ["system", "user", "assistant", "user"]
    assert task.conversation(task[0]).unlearned == (2,)
    path.write_text(json.dumps(CHAT["messages"]) + "\n")  # a bare list, as nanochat writes it
    assert open_task("identity", source=str(tmp_path))[0].answer == Message("assistant", "Yes?")
    with pytest.raises(ConfigError, match="answers to identity have no grade"):
        task.grade(task[0], "no")


def test_files_of_ones_own_are_of_one_kind(tmp_path):
    asked = {"question": "2 + 2?", "choices": ["3", "4"]}
    rows = [asked | {"answer": answer} for answer in (1, "B", "4")]
    choice = open_task(f"json:{lines(tmp_path, 'c.jsonl', rows)}")
    assert choice.kind == "choice" and choice.baseline == 0.5
    assert {item.answer.content for item in choice} == {"B"}
    rows = [
        {"question": "Capital?", "answer": ["Paris", "City of Light"]},
        {"question": "n", "answer": 42},
    ]
    own = open_task(f"json:{lines(tmp_path, 'q.jsonl', rows)}")
    by = {item.id: item for item in own}
    assert own.grade(by["0"], "paris.") == own.grade(by["0"], "City of light") == 1.0
    assert own.grade(by["0"], "Rome") == 0.0
    assert own.grade(by["1"], "It is 42.0.") == 1.0 and own.grade(by["1"], "41") == 0.0
    for given in (None, {"a": 1}, ["Paris", None]):
        wrong = lines(tmp_path, "w.jsonl", [rows[0], {"question": "n", "answer": given}])
        with pytest.raises(DataError, match=r"w\.jsonl, line 2: 'answer' is no text, no number"):
            open_task(f"json:{wrong}")
    mixed = lines(tmp_path, "m.jsonl", [rows[0], CHAT])
    with pytest.raises(DataError, match=r"m\.jsonl, line 2: it is of kind 'text', the first"):
        open_task(f"json:{mixed}")


def test_tasks_that_read_the_same_items_have_an_origin_in_common(tmp_path):
    for split in ("train", "test"):
        lines(tmp_path, f"g/{split}.jsonl", [SUM])
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "g" / "test.jsonl")
    lines(tmp_path, "arc/arc_easy.jsonl", [ARC_CORE])

    def shared(one, split, other):
        return bool(origin(one, split) & origin(other))

    folder, file = f"gsm8k={tmp_path}/g", f"{tmp_path}/g/test.jsonl"
    assert not shared(folder, "train", folder) and shared(folder, "test", folder)
    assert shared(f"gsm8k={file}", "train", f"gsm8k_flexible={tmp_path}/link.jsonl")
    assert shared(f"gsm8k={file}", "train", f"json:{file}")
    assert shared(f"json:{tmp_path}/g", "train", f"json:{file}")
    # A file that stands for the whole task in a folder is of no split either.
    assert shared(f"arc_easy={tmp_path}/arc", "train", f"arc_easy={tmp_path}/arc")
    assert shared("sums", "test", "sums") and not shared("sums", "train", "sums")
    assert not shared("sums", "test", "letters")


# ── Order, mixtures ─────────────────────────────────────────────────────────────────────────────


def test_a_limit_takes_the_first_of_one_shuffle(tmp_path):
    rows = [SUM | {"question": f"q{i}"} for i in range(50)]
    path = str(lines(tmp_path, "g.jsonl", rows))
    ids = [item.id for item in open_task("gsm8k", source=path)]
    assert sorted(map(int, ids)) == list(range(50)) and ids != sorted(ids, key=int)
    assert [item.id for item in open_task("gsm8k", source=path, limit=9)] == ids[:9]
    assert [item.id for item in open_task("gsm8k", source=path).first(9)] == ids[:9]
    assert [item.id for item in open_task("gsm8k", source=path, seed=1)] != ids


def test_a_mixture_has_each_item_as_often_as_asked_in_one_shuffle(tmp_path):
    rows = [SUM | {"question": f"q{i}"} for i in range(20)]
    sums = open_task("gsm8k", source=str(lines(tmp_path, "g.jsonl", rows)))
    words = open_task("letters", limit=30)
    mixture = Mixture([(sums, 2.5), (words, 1 / 3)], seed=3)
    said = [conversation.messages[0].content for conversation in mixture]
    counts = Counter(text for text in said if text.startswith("q"))
    assert len(said) == 60 and Counter(counts.values()) == {2: 10, 3: 10}
    again = Mixture([(sums, 2.5), (words, 1 / 3)], seed=3)
    assert said == [c.messages[0].content for c in again]
    assert said != [c.messages[0].content for c in Mixture([(sums, 2.5), (words, 1 / 3)], seed=4)]
    place = [i for i, text in enumerate(said) if not text.startswith("q")]
    assert min(place) < 20 and max(place) > 40
    for tasks in ([], [(sums, 0)], [(sums, float("nan"))]):
        with pytest.raises(ConfigError, match="the mixture"):
            Mixture(tasks)


# ── The hub ─────────────────────────────────────────────────────────────────────────────────────


def test_the_hub_is_pinned_verified_and_asked_once(tmp_path, monkeypatch):
    def parquet(rows):
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file.getvalue()

    files = {
        "main/test-00000-of-00002.parquet": parquet([SUM]),
        "main/test-00001-of-00002.parquet": parquet([SUM | {"question": "Again?"}]),
        "main/train-00000-of-00001.parquet": parquet([SUM | {"question": "Trained?"}]),
        "socratic/test-00000-of-00001.parquet": parquet([SUM | {"question": "No?"}]),
    }
    monkeypatch.setenv("GAIA_HOME", str(tmp_path))
    monkeypatch.setattr(hub, "WAIT_S", 0.0)
    with fake.serve(files) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        server.flips["main/test-00001-of-00002.parquet"] = 1
        task = open_task("gsm8k", source="hf://org/set/main@main")
        assert {item.question[0].content for item in task} == {SUM["question"], "Again?"}
        assert all(fake.COMMIT in path for _, path, _ in server.log if "/resolve/" in path)
        server.log.clear()
        assert len(open_task("gsm8k", source=f"hf://org/set@{fake.COMMIT}")) == 2
        assert server.log == []
        with pytest.raises(DataError, match="has no file of 'validation'"):
            open_task("gsm8k", "validation", f"hf://org/set@{fake.COMMIT}")


def test_what_the_hub_names_is_pinned_to_commits():
    for name, recipe in TASKS.items():
        place = getattr(recipe, "place", None)
        if place is not None and name != "identity":
            assert len(place.commit) == 40 and "/" in place.repository


# ── Bad input ───────────────────────────────────────────────────────────────────────────────────

BAD = [
    ("gsm8k", {"question": "q"}, r"t\.jsonl, line 2: 'answer' is missing \(there is 'question'\)"),
    ("gsm8k", {"question": 3, "answer": "#### 1"}, r"line 2: 'question' is 3, not a text"),
    ("gsm8k", {"question": "q", "answer": "one"}, r"line 2: 'answer' has no number behind"),
    ("gsm8k", "[", r"line 2: it is not JSON"),
    ("gsm8k", 3, r"line 2: it is no JSON object"),
    ("arc_easy", ARC_HUB | {"answerKey": "D"}, r"line 2: 'answerKey' is 'D', none of the labels"),
    ("arc_easy", ARC_CORE | {"gold": 2}, r"line 2: 'gold' is 2, not the index of one of 2"),
    ("arc_easy", ARC_CORE | {"choices": ["a"]}, r"line 2: 'choices' is \['a'\], not a list of two"),
    ("arc_easy", ARC_HUB | {"choices": 1}, r"line 2: 'choices' is no object with 'text'"),
    (
        "arc_easy",
        {"question": {"stem": "q", "choices": [{"label": "A"}]}, "answerKey": "A"},
        r"t\.jsonl, line 2, choice 1: 'text' is missing \(there is 'label'\)",
    ),
    (
        "arc_easy",
        {"question": {"stem": "q", "choices": [{"text": "a", "label": 1}]}},
        r"line 2, choice 1: 'label' is 1, not a text",
    ),
    ("arc_easy", {"question": {"stem": "q", "choices": None}}, r"'choices' is no list of objects"),
    ("arc_easy", {"question": {"stem": "q", "choices": ["a", "b"]}}, r"is no list of objects"),
    (
        "arc_easy",
        ARC_HUB | {"choices": {"text": ["a", "b"], "label": ["1", "2", "3"]}},
        r"line 2: 'choices' has 2 texts and 3 labels",
    ),
    (
        "mmlu",
        {"question": "q", "choices": [str(i) for i in range(27)], "answer": 0},
        r"line 2: 'choices' has 27 choices, and there are 26 letters",
    ),
    ("mmlu", {"question": "q", "choices": ["a", "b"], "answer": "C"}, r"'answer' is 'C', not the"),
    ("humaneval", PROBLEM | {"entry_point": "f(x)"}, r"'entry_point' is 'f\(x\)', no name"),
    ("humaneval", PROBLEM | {"test": " "}, r"line 2: 'test' is empty"),
    ("smoltalk", {"messages": CHAT["messages"][:1]}, r"line 2: messages\[0\]\.role is 'user' and"),
    ("smoltalk", {"text": "a"}, r"line 2: the row has text"),
]
GOOD = {"gsm8k": SUM, "arc_easy": ARC_CORE, "humaneval": PROBLEM, "smoltalk": CHAT,
        "mmlu": {"question": "q", "choices": ["a", "b"], "answer": 1}}  # fmt: skip


@pytest.mark.parametrize(("name", "row", "problem"), BAD)
def test_a_wrong_row_is_one_line_with_file_line_and_field(tmp_path, name, row, problem):
    path = lines(tmp_path, "t.jsonl", [GOOD[name], row])
    if row == "[":
        path.write_text(json.dumps(SUM) + "\n[\n")
    with pytest.raises(DataError, match=problem) as error:
        open_task(name, source=str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("gsm9k", "there is no task 'gsm9k'; did you mean gsm8k"),
        ("gsm8k=", "has no source behind ="),
        ("gsm8k=/nowhere/at/all", "does not exist"),
        ("spelling=x.jsonl", "reads no source"),
        ("identity", "the task identity has no source; give a file: identity=FILE"),
        ("json:", "has two sources or none"),
        ("gsm8k=hf://nothing", "is no data set of the hub"),
        ("gsm8k=t.txt", "'t.txt' is no task file"),
        ("gsm8k=empty.jsonl", "holds no rows"),
        ("gsm8k=folder", "holds no file of the split 'test' of gsm8k (there is other.jsonl)"),
        ("mmlu=bad.csv", "bad.csv, line 2: it is not UTF-8"),
    ],
)
def test_a_wrong_name_or_source_is_one_line(tmp_path, monkeypatch, text, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("x")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "bad.csv").write_bytes(b"question,choice0\n\xff,a\n")
    lines(tmp_path, "folder/other.jsonl", [SUM])
    with pytest.raises((ConfigError, DataError)) as error:
        named(text)
    assert problem in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="limit = 0"):
        open_task("spelling", limit=0)
