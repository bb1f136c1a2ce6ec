"""A base run of the tiny model, trained once a session, and files of conversations."""

import json

import pytest

import runs
from gchat.__main__ import main


@pytest.fixture(scope="session")
def base(data_dir, tmp_path_factory):
    """A finished run of 60 steps without dropout."""
    folder = tmp_path_factory.mktemp("base") / "run"
    options = ("--model.dropout", "0", "--eval.every-steps", "0", "--model.seq-len", "48")
    assert main(["train", *runs.arguments(data_dir, folder, *options, steps=60)]) == 0
    return folder


@pytest.fixture(scope="session")
def chats(tmp_path_factory):
    """Sixty pairs of instruction and response that a tiny model can learn."""
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for a in range(12):
            for b in range(5):
                row = {"instruction": f"words {a} {b}", "response": f"the small model {a % 3}"}
                file.write(json.dumps(row) + "\n")
    return path
