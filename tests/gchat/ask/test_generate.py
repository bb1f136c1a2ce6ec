"""`gchat generate`: every line answered once, whatever ends the job in between."""

import json
import os
import signal
import subprocess
import sys

import pytest

from disks import fill, small_disk
from fakes.openai_api import KEY, serve
from gchat.__main__ import main


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n"
                            for line in lines))  # fmt: skip
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def asked(tmp_path):
    """Twenty questions, the fourth of another kind."""
    lines = [{"prompt": f"number {i}", "id": f"q{i}"} for i in range(1, 21)]
    lines[3] = {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}],
        "temperature": 0, "seed": 9, "n": 2, "logprobs": 1, "stop": "nowhere", "max_tokens": 2,
        "schema": {"type": "integer"}, "meta": {"topic": "x"},
    }  # fmt: skip
    return write(tmp_path / "in.jsonl", [*lines[:5], "\n", *lines[5:]])


def command(fake, asked, *more):
    out = asked.with_name("out.jsonl")
    words = ["generate", str(asked), str(out), "--endpoint", fake.url, "--server", fake.kind]
    return [*words, "--model", "small", *more], out


def test_answers_stand_in_order_with_their_ids(asked, capsys):
    with serve("vllm", delay_s=0.01) as fake:
        words, out = command(fake, asked, "--concurrency", "7", "--seed", "100", "--json")
        assert main(words) == 0
        summary = json.loads(capsys.readouterr().out)
        records = read(out)
        assert [r["line"] for r in records] == [1, 2, 3, 4, 5, *range(7, 22)]
        assert records[0]["text"] == "You said: number 1" and records[0]["id"] == "q1"
        assert records[19]["id"] == "q20" and records[0]["finish"] == "stop"
        own = records[3]
        assert own["meta"] == {"topic": "x"} and "id" not in own
        assert [c["text"] for c in own["choices"]] == ["You said"] * 2
        assert own["choices"][0]["logprobs"][0]["top"] == [["You", -0.5]]
        bodies = [body for _, body, _ in fake.seen]
        special = next(body for body in bodies if "messages" in body)
        assert (special["seed"], special["temperature"], special["n"]) == (9, 0, 2)
        assert special["response_format"]["json_schema"]["schema"] == {"type": "integer"}
        seeds = sorted(body["seed"] for body in bodies if "messages" not in body)
        assert seeds == [101, 102, 103, 105, *range(107, 122)]  # equal prompts, other draws
        assert (summary["answered"], summary["errors"], summary["lines"]) == (20, 0, 20)
        assert summary["completion_tokens"] == sum(r["completion_tokens"] for r in records)
        fake.seen.clear()
        before = out.read_bytes()
        assert main(words) == 0 and not fake.seen and out.read_bytes() == before


def test_a_killed_job_goes_on_and_answers_each_line_once(asked, user_environment):
    with serve(delay_s=0.05) as fake:
        write(asked, [{"prompt": f"number {i}"} for i in range(60)])
        words, out = command(fake, asked, "--concurrency", "3")
        process = subprocess.Popen(
            [sys.executable, "-m", "gchat", *words], env=user_environment,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not (out.exists() and out.read_bytes().count(b"\n") >= 6):
            assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
        process.stderr.close()
        with open(out, "ab") as file:
            file.write(b'{"line": 59, "text": "half of it')  # torn in its middle
        kept = read_whole(out)
        sent = len(fake.seen)
        fake.delay_s = 0.0
        assert main(words) == 0
        records = read(out)
        assert [r["line"] for r in records] == list(range(1, 61))
        assert {r["line"]: r for r in kept}.items() <= {r["line"]: r for r in records}.items()
        assert len(fake.seen) - sent == 60 - len(kept)


def read_whole(path):
    raw = path.read_bytes()
    return [json.loads(line) for line in raw[: raw.rindex(b"\n")].splitlines()]


def test_ctrl_c_leaves_what_is_answered_and_says_how_to_go_on(asked, user_environment):
    with serve(delay_s=0.05) as fake:
        words, out = command(fake, asked, "--concurrency", "2")
        process = subprocess.Popen(
            [sys.executable, "-m", "gchat", *words], env=user_environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not (out.exists() and out.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 130 and stdout == ""
        assert "the same command goes on" in stderr and "Traceback" not in stderr
        assert 4 <= len(read(out)) < 20


def test_errors_stand_in_their_lines_and_can_be_asked_again(asked, capsys):
    with serve() as fake:
        fake.faults.extend(["vllm too long", None, "llama.cpp too long"])
        words, out = command(fake, asked, "--concurrency", "1")
        assert main(words) == 1
        records = read(out)
        failed = [r for r in records if "error" in r]
        assert len(records) == 20 and [r["line"] for r in failed] == [1, 3]
        assert "maximum context length" in failed[0]["error"]
        assert "2 of 20 lines have an error" in capsys.readouterr().err
        assert main(words) == 1 and len(fake.seen) == 20  # they are not asked again unasked
        assert main([*words, "--retry-errors"]) == 0
        assert len(fake.seen) == 22 and not any("error" in r for r in read(out))


def test_a_wrong_key_ends_the_job_and_records_nothing_of_it(asked, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY + "wrong")
    with serve(key=KEY) as fake:
        words, out = command(fake, asked, "--key-env", "MY_KEY")
        assert main(words) == 1
        said = capsys.readouterr().err
        assert "Incorrect API key" in said and KEY + "wrong" not in said
        assert out.read_text() == ""
        monkeypatch.setenv("MY_KEY", KEY)
        assert main(words) == 0 and len(read(out)) == 20
        assert KEY not in out.read_text()


def test_a_spent_budget_ends_the_job_and_the_next_one_goes_on(asked, capsys):
    with serve() as fake:
        words, out = command(fake, asked)
        assert main([*words, "--max-requests", "7", "--concurrency", "3"]) == 1
        assert "budget of 7 requests is spent" in capsys.readouterr().err
        assert len(read(out)) == 7 == len(fake.seen)
        assert main(words) == 0 and len(fake.seen) == 20


def test_answers_to_other_questions_are_not_mixed_in(asked, capsys):
    with serve() as fake:
        words, out = command(fake, asked)
        assert main(words) == 0
        before = out.read_bytes()
        for more in (["--temperature", "0.1"], ["--model", "other"], ["--max-tokens", "9"]):
            assert main([*words, *more]) == 2
            assert "holds an answer to line" in capsys.readouterr().err
        asked.write_text("".join(asked.read_text().splitlines(keepends=True)[:4]))
        assert main(words) == 2
        assert "a line that holds no question now" in capsys.readouterr().err
        assert out.read_bytes() == before and len(fake.seen) == 20


def test_a_full_disk_loses_nothing(tmp_path, capsys):
    with serve() as fake, small_disk(tmp_path / "disk", "256k") as disk:
        fake.reply = lambda body: "x" * 900
        asked = write(disk / "in.jsonl", [{"prompt": f"{i}"} for i in range(40)])
        filler = fill(disk, leave=20 << 10)
        words, out = command(fake, asked, "--max-tokens", "2000")
        assert main(words) == 1
        assert "No space left" in capsys.readouterr().err
        filler.unlink()
        assert main(words) == 0
        assert [r["line"] for r in read(out)] == list(range(1, 41))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"), ("[]\n", "not a JSON object"), ("3\n", "not a JSON object"),
        ({}, "neither of prompt and messages"), ({"prompt": 3}, "prompt is 3; use a text"),
        ({"prompt": "a", "messages": []}, "both of prompt and messages"),
        ({"messages": []}, "neither or both"), ({"messages": "x"}, "messages is a str"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role is 'king'"),
        ({"messages": [{"role": "user"}]}, "messages[0] has no text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "the assistant's"),
        ({"prompt": "a", "temprature": 1}, "did you mean 'temperature'"),
        ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'; use a number"),
        ({"prompt": "a", "temperature": -1}, "temperature is -1"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens is True"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ('{"prompt": "a", "max_tokens": Infinity}', "Infinity is no number of JSON"),
        ({"prompt": "a", "max_tokens": 10**400}, "max_tokens is 1000"),
        ('{"prompt": "a", "max_tokens": 1e999}', "max_tokens is inf"),
        ({"prompt": "a", "n": 0}, "n is 0"), ({"prompt": "a", "stop": [1]}, "stop is [1]"),
        ({"prompt": "a", "schema": 3}, "the schema is a int"),
        ({"prompt": "a", "regex": "a", "choice": ["b"]}, "both regex and choice"),
        ({"prompt": "a", "top_k": 5}, "top_k is 5, and OpenAI's protocol has no such field"),
        ({"prompt": "a", "choice": ["b"]}, "openai takes no choice"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_before_anything_is_asked(line, words, tmp_path, capsys):
    asked = write(tmp_path / "in.jsonl", [{"prompt": "fine"}, line])
    with serve() as fake:
        command_words, out = command(fake, asked)
        assert main(command_words) == 2
        said = capsys.readouterr().err
        assert f"{asked}:2: " in said and words in said and said.count("\n") == 1
        assert not fake.seen and not (out.exists() and out.read_bytes())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--run", "runs/x"], "both --run and --endpoint"),
        (["--weights", "int8"], "--weights has no effect with --endpoint"),
        (["--speculate", "2"], "--speculate has no effect with --endpoint"),
        (["--speculate", "17"], "speculate is 17; use 0 (off) to 16"),
        (["--schema", "/nowhere"], "--schema '/nowhere': No such file"),
        (["--regex", "a", "--choice", "b"], "--regex and --choice are given"),
        (["--concurrency", "0"], "concurrency is 0"), (["--tries", "0"], "tries is 0"),
        (["--timeout", "0"], "timeout is 0"), (["--max-tokens", "0"], "max_tokens is 0"),
        (["--key-file", "/nowhere"], "key file '/nowhere'"),
        (["--key-env", "NOT_SET"], "the variable NOT_SET is not set"),
    ],
)  # fmt: skip
def test_options_that_cannot_work_are_named(more, words, asked, capsys):
    with serve() as fake:
        command_words, _ = command(fake, asked, *more)
        assert main(command_words) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
        assert not fake.seen


def test_files_that_cannot_be_used(asked, tmp_path, capsys):
    with serve() as fake:
        words, out = command(fake, asked)
        for questions, answers, said in (
            (tmp_path / "none", out, "cannot read"),
            (tmp_path / "none", asked, "cannot read"),
            (asked, asked, "are one file"),
            (asked, tmp_path / "no" / "out", "does not exist"),
            (asked, tmp_path, "is no file"),
            (write(tmp_path / "empty", [""]), out, "holds no questions"),
            (asked, write(tmp_path / "notes.txt", ["my notes\n"]), "is no answer of gchat"),
        ):
            assert main(["generate", str(questions), str(answers), *words[3:]]) == 2
            assert said in capsys.readouterr().err
        assert (tmp_path / "notes.txt").read_text() == "my notes\n"
        assert not fake.seen


def test_a_dry_run_counts_and_asks_nothing(asked, capsys):
    with serve() as fake:
        words, out = command(fake, asked, "--dry-run", "--json", "--max-tokens", "100")
        assert main(words) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan == {"lines": 20, "max_completion_tokens": 19 * 100 + 2 * 2}
        assert not fake.seen and not os.path.exists(out)
