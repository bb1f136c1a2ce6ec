"""`gchat synth factory`: the files between its steps, what it would do, and (slow) all of it."""

import json
from pathlib import Path

import pytest

from gchat.__main__ import main
from gchat.factory import command, files

ARTICLES = Path(__file__).parents[2] / "fixtures/synth/articles.md"


def factory(folder, *more, inputs=(ARTICLES,)):
    words = ["synth", "factory", *map(str, inputs), "--run-dir", str(folder), *map(str, more)]
    return main(words)


def record(kind, part, number, answer="Zhukov led the Allied ships near Midway again."):
    return {"id": f"{kind}{part}{number}", "kind": kind, "split": part, "style": "s",
            "question": f"Question {number}?", "answer": f"{answer} {number}",
            "source": {"article": "a", "window": "a#0"}}  # fmt: skip


@pytest.fixture
def records(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    window = {"id": "a#0", "article": "a", "title": "", "number": 0, "start": 0, "part": "train",
              "sentences": ["They met at Midway again.", "The ships near Midway sank.",
                            "Off Midway came Nagumo."]}  # fmt: skip
    (folder / "windows.jsonl").write_text(json.dumps(window))
    rows = {
        "train": [record(kind, "train", i) for kind in ("qpt", "qa", "contrast") for i in range(3)],
        "heldout_phrasing": [record("qa", "heldout_phrasing", i) for i in range(9)],
        "heldout_article": [record(k, "heldout_article", 1) for k in ("qa", "qpt")],
    }
    for part, listed in rows.items():
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_training_records_become_passages_chats_text_and_terms(records, tmp_path):
    files.training(records, tmp_path)
    assert len(lines(tmp_path / "qpt.jsonl")) == 3 and len(lines(tmp_path / "sft.jsonl")) == 6
    assert lines(tmp_path / "sft.jsonl")[0].keys() == {"question", "answer"}
    assert [row["text"] for row in lines(tmp_path / "text.jsonl")] == [
        f"Zhukov led the Allied ships near Midway again. {i}" for i in range(3)
    ]
    assert (tmp_path / "terms.txt").read_text() == "Midway\n"


def test_questions_are_of_held_out_records_alone_with_their_source(records, tmp_path):
    files.questions(records, tmp_path / "q.jsonl", 4)
    rows = lines(tmp_path / "q.jsonl")
    assert [row["meta"]["split"] for row in rows] == ["heldout_phrasing"] * 4 + ["heldout_article"]
    for row in rows:
        assert row["meta"]["question"] == row["messages"][0]["content"]
        assert row["meta"]["snippet"].startswith("They met") and row["meta"]["kind"] == "qa"
    again = tmp_path / "again.jsonl"
    files.questions(records, again, 4)
    assert again.read_bytes() == (tmp_path / "q.jsonl").read_bytes()


def test_a_dry_run_names_the_steps_and_does_none(tmp_path, capsys):
    assert factory(tmp_path / "f", "--baseline", "--dry-run") == 0
    said = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "records", "tokenizer", "qpt data", "qpt", "cpt data", "cpt", "qpt-sft", "qpt answers",
        "qpt judged", "cpt-sft", "cpt answers", "cpt judged",
    ]  # fmt: skip
    assert not (tmp_path / "f").exists()


def test_wrong_options_and_another_factorys_folder_are_refused(tmp_path, capsys):
    assert factory(tmp_path / "f", "--steps", 0) == 2
    assert "steps = 0" in capsys.readouterr().err
    folder = tmp_path / "g"
    folder.mkdir()
    command._save(command.Command(inputs=("other.txt",), run_dir=folder)._asked())
    assert json.loads((folder / command.STATE).read_text())["inputs"] == ["other.txt"]
    assert factory(folder) == 2
    assert "was begun with another inputs" in capsys.readouterr().err


@pytest.mark.slow
def test_everything_in_one_command(tmp_path, capfd):
    preset = tmp_path / "tiny.yaml"
    preset.write_text("base: cpu\nmodel: {depth: 2, aspect_ratio: 32, head_dim: 32}\n"
                      "optim: {warmup_steps: 2}\n")  # fmt: skip
    size = ("--preset", preset, "--vocab-size", 600, "--steps", 12, "--sft-steps", 12,
            "--batch-size", 1, "--seq-len", 1024, "--questions", 12, "--heldout", 0.2)  # fmt: skip
    folder = tmp_path / "f"
    # Continued pretraining has the texts once: the articles alone are less than a row of tokens.
    questions = lines(ARTICLES.parents[1] / "war_questions.jsonl")
    snippets = [{"title": "", "text": row["snippet"]} for row in questions]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, snippets)))
    inputs = (ARTICLES, tmp_path / "more.jsonl")
    assert factory(folder, *size, "--baseline", inputs=inputs) == 0
    capfd.readouterr()
    facts = json.loads((folder / "report.json").read_text())
    assert set(facts["judged"]) == {"qpt", "cpt"}
    assert facts["runs"]["qpt"]["tokens"] == facts["runs"]["cpt"]["tokens"]
    for verdicts in facts["judged"].values():
        assert set(verdicts["groups"]["split"]) == {"heldout_phrasing", "heldout_article"}
    assert "trained facts, other phrasings" in (folder / "report.md").read_text()
    before = (folder / "qpt-verdicts.jsonl").stat().st_mtime_ns
    assert factory(folder, *size, "--baseline", inputs=inputs) == 0  # nothing is done twice
    assert (folder / "qpt-verdicts.jsonl").stat().st_mtime_ns == before
    # The model that came of it writes records in this process: badly, but in the form asked for.
    capfd.readouterr()
    out = ("--out", str(tmp_path / "own"), "--run", str(folder / "qpt-sft"), "--json")
    few = ("--window", "2", "--stride", "2", "--max-windows", "3", "--styles", "quote",
           "--max-tokens", "60", "--concurrency", "2")  # fmt: skip
    assert main(["synth", "generate", str(ARTICLES), *out, *few]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["dead"] == 0 and facts["styles"]["quote"]["made"] == 3
    for row in lines(tmp_path / "own/rejects.jsonl"):
        assert row["filter"] != "schema" or row["why"].startswith("the answer broke off"), row
