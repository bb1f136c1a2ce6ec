"""`gchat chat` at a real terminal, from a pipe, and with one question."""

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from fakes.openai_api import serve
from gaia.errors import DataError
from gchat.__main__ import main
from gchat.ask.conversation import Conversation
from gchat.client import Delta, Question

# The terminal is this session's own, so that Ctrl-C reaches the process as SIGINT.
AT_TERMINAL = """import os, sys
os.login_tty(os.dup(0))
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"""


class Terminal:
    """A process at a terminal of its own, which is typed to and read."""

    def __init__(self, words, environment, folder):
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, "-m", "gchat", *words],
            env=environment | {"TERM": "dumb", "HOME": str(folder)},
            cwd=folder,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        self.seen = ""

    def type(self, text):
        os.write(self._ours, text.encode())

    def interrupt(self):
        """Ctrl-C at the prompt, and Enter: CPython hears a signal that comes between the prompt
        and its select() only when the line is complete."""
        self.type("\x03")
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            self.type("\n")

    def until(self, text, seconds=60):
        """Reads until a text has come; returns all since the last one."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert select.select([self._ours], [], [], max(0, end - time.monotonic()))[0], self.seen
            try:
                raw = os.read(self._ours, 4096)
            except OSError:  # EIO: the process has closed its side
                raw = b""
            assert raw, f"it ended before {text!r}: {self.seen}"
            self.seen += raw.decode(errors="replace").replace("\r\n", "\n")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def ask(self, line, answer):
        """Types a line; returns what stands between it and the next prompt."""
        self.type(f"{line}\n")
        shown = self.until(answer)
        return shown + self.until("> ")

    def close(self):
        if self._ours is not None:
            os.close(self._ours)
            self._ours = None

    def end(self, seconds=60):
        """Reads what is left; returns the exit status."""
        with contextlib.suppress(OSError):
            while os.read(self._ours, 4096):
                pass
        return self.process.wait(seconds)


@pytest.fixture
def fake():
    with serve("vllm") as fake:
        yield fake


@pytest.fixture
def terminal(fake, user_environment, tmp_path):
    words = ["chat", "--endpoint", fake.url, "--system", "Be kind.", "--seed", "5"]
    terminal = Terminal(words, user_environment, tmp_path)
    try:
        terminal.until("> ")
        yield terminal
    finally:
        terminal.process.kill()
        terminal.process.wait()
        terminal.close()


def last(fake):
    """The body of the newest request."""
    return fake.seen[-1][1]


def said(fake):
    return [f"{m['role'][0]}:{m['content']}" for m in last(fake)["messages"]]


def test_a_conversation_with_commands(terminal, fake, tmp_path):
    terminal.ask("hello", "You said: hello")
    assert said(fake) == ["s:Be kind.", "u:hello"] and last(fake)["stream"]
    terminal.ask("hello", "You said: hello")  # the same words: /retry asks the newest only
    assert said(fake) == ["s:Be kind.", "u:hello", "a:You said: hello", "u:hello"]
    assert last(fake)["seed"] == 5
    terminal.ask("/retry", "You said: hello")
    assert len(said(fake)) == 4 and last(fake)["seed"] == 6
    terminal.ask("/temperature 0.25", "(temperature 0.25)")
    terminal.ask("/temperature hot", "temperature is 'hot'; use a number")
    terminal.ask("/system Rhyme.", "(instruction set)")
    terminal.ask("//etc is a folder", "You said: /etc is a folder")
    assert last(fake)["temperature"] == 0.25 and said(fake)[0] == "s:Rhyme."
    assert "/retry" in terminal.ask("/help", "/exit")
    terminal.ask("/tmeperature 1", "did you mean /temperature?")
    terminal.ask("/save talk.jsonl", "6 messages in talk.jsonl")
    saved = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [m["role"] for m in saved] == ["system"] + ["user", "assistant"] * 3
    (tmp_path / "mine.txt").write_text("mine")
    terminal.ask("/save mine.txt", "'mine.txt' exists")
    terminal.ask("/clear", "(forgotten)")
    terminal.ask("again", "You said: again")
    assert said(fake) == ["s:Rhyme.", "u:again"]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    fake.faults.append("vllm too long")
    terminal.ask("too long", "maximum context length")
    terminal.ask("short", "You said: short")  # the question without an answer is forgotten
    assert said(fake) == ["s:Rhyme.", "u:again", "a:You said: again", "u:short"]
    terminal.type("/exit\n")
    assert terminal.end() == 0


def test_ctrl_c_stops_the_answer_and_the_second_one_ends(terminal, fake):
    fake.reply = lambda body: "word " * 500
    fake.delay_s = 0.02
    terminal.type("talk\n")
    terminal.until("word word")
    terminal.type("\x03")
    shown = terminal.until("(stopped; Ctrl-C once more ends)")
    assert shown.count("word") < 400
    terminal.until("> ")
    fake.reply, fake.delay_s = (lambda body: "short"), 0.0
    terminal.ask("go on", "short")
    assert said(fake)[2].startswith("a:word word")  # what was said stays said
    terminal.type("half a line")
    terminal.until("half a line")
    terminal.interrupt()
    terminal.until("(Ctrl-C once more, or /exit, ends)")
    terminal.until("> ")
    terminal.interrupt()
    assert terminal.end() == 0


@pytest.mark.parametrize("how", ["ctrl-d", "closed"])
def test_the_end_of_the_input_ends(terminal, fake, how):
    terminal.ask("hello", "You said: hello")
    if how == "ctrl-d":
        terminal.type("\x04")
        assert terminal.end() == 0
    else:
        terminal.close()  # the kernel sends SIGHUP, as when a window is closed
        assert terminal.process.wait(60) in (0, -signal.SIGHUP)


def test_a_model_cannot_command_the_terminal(terminal, fake):
    fake.reply = lambda body: "a\x1b]0;owned\x07\x9b2Jb\tc\n"
    shown = terminal.ask("hello", "c\n")
    answer = shown[shown.index("hello") + 5 :]
    assert not re.search(r"[\x07\x1b\x9b]", answer) and "]0;owned" in answer


# ── Without a terminal ──────────────────────────────────────────────────────────────────────────


def piped(words, environment, text, **options):
    return subprocess.run(
        [sys.executable, "-m", "gchat", "chat", *words],
        env=environment, input=text, capture_output=True, timeout=120, **options,
    )  # fmt: skip


def test_a_pipe_is_the_question_and_gets_the_answer_only(fake, user_environment):
    done = piped(["--endpoint", fake.url], user_environment, "what is\nthis? é".encode())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (
        0, "You said: what is\nthis? é\n", b""
    )  # fmt: skip
    assert said(fake) == ["u:what is\nthis? é"]


def test_a_reader_that_goes_away_is_no_error(fake, user_environment):
    fake.reply = lambda body: "word " * 5000
    words = ["chat", "--endpoint", fake.url, "-p", "talk", "--max-tokens", "9999"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gchat", *words], env=user_environment,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.read(5)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), stderr) == (0, b"")


def test_one_question(fake, capsys):
    where = ["chat", "--endpoint", fake.url]
    assert main([*where, "-p", "hello", "--system", "Rhyme.", "--stop", "lo"]) == 0
    assert capsys.readouterr().out == "You said: hel\n"
    assert said(fake) == ["s:Rhyme.", "u:hello"]
    assert main([*where, "-p", "one two", "--json", "--max-tokens", "4", "--choice", "a", "b"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["finish"], answer["model"]) == (
        "You said: one",
        "length",
        "small",
    )
    assert last(fake)["structured_outputs"] == {"choice": ["a", "b"]}
    assert main([*where, "-p", "one two", "--max-tokens", "4"]) == 0
    assert capsys.readouterr() == ("You said: one\n", "(cut at 4 tokens: --max-tokens)\n")
    fake.faults.append("cut")
    assert main([*where, "-p", "hello there you"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["-p", " "], "the question from -p is empty"),
        (["-p", "x", "--temperature", "-1"], "temperature is -1"),
        (["-p", "x", "--regex", "a", "--schema", "b"], "--schema and --regex are given"),
        (["-p", "x", "--max-tokens", "0"], "max_tokens is 0"),
        (["-p", "x", "--run", "r"], "both --run and --endpoint"),
        (["-p", "x", "--kv", "int8"], "--kv has no effect with --endpoint"),
    ],
)
def test_mistakes_are_one_line(fake, words, problem, capsys):
    assert main(["chat", "--endpoint", fake.url, *words]) == 2
    printed = capsys.readouterr()
    assert problem in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert not fake.seen


def test_an_answer_stays_where_another_one_does_not_come():
    """The server is gone, or Ctrl-C comes before the first token."""

    class Fails:
        model, error = "m", None

        def fit(self, question):
            if self.error:
                raise self.error
            return question, 0, False

        def stream(self, question):
            yield Delta(text=f"answer to {question.messages[-1].content}")
            yield Delta(finish="stop")

    client = Fails()
    talk = Conversation(client, Question(prompt=None), None, lambda text: None, lambda line: None)
    for text in ("first", "second"):
        talk.ask(text)
    before = [message.content for message in talk.messages]
    for client.error in (DataError("the server is gone", "start it"), KeyboardInterrupt()):
        with pytest.raises(type(client.error)):
            talk.command("/retry")
        assert [message.content for message in talk.messages] == before
    client.error = None
    assert talk.command("/retry") == "answered" and len(talk.messages) == 4
