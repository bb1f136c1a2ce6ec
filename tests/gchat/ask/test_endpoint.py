"""The client of an endpoint against a fake that answers as OpenAI, vLLM and llama.cpp do."""

import itertools
import json
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import openai_api
from fakes.openai_api import ERRORS, KEY, serve
from gaia.errors import ConfigError
from gchat import endpoint_wire as wire
from gchat.chat_format import Message
from gchat.client import Budget, Client, ClientError, Question, Token, Usage, joined
from gchat.endpoint_client import EndpointClient, read_key
from gchat.engine import grammar as grammars
from gchat.engine.requests import SamplingConfig

KINDS = ("openai", "vllm", "llama.cpp")
HELLO = Question(messages=(Message("system", "Be brief."), Message("user", "hello there")))
PROMPT = Question(prompt="Once upon")


CLIENTS = []


def client(fake, **options) -> Client:
    CLIENTS.append(EndpointClient(fake.url, **({"backoff_s": 0.001} | options)))
    return CLIENTS[-1]


@pytest.fixture(autouse=True)
def closed():
    yield
    while CLIENTS:
        CLIENTS.pop().close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_whole_and_streamed(kind):
    with serve(kind) as fake:
        asking = client(fake)
        assert (asking.model, asking.server) == ("small", kind)
        for question, text in ((HELLO, "You said: hello there"), (PROMPT, "You said: Once upon")):
            whole = asking.complete(question)
            assert (whole.text, whole.choices[0].finish) == (text, "stop")
            assert whole.usage.completion_tokens > 1 and whole.usage.cached_tokens == 1
            deltas = list(asking.stream(question))
            assert len(deltas) > 3
            assert joined(deltas, 1, whole.model) == whole
        assert {path for path, *_ in fake.seen} == {"/v1/completions", "/v1/chat/completions"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", [HELLO, PROMPT], ids=["chat", "completion"])
def test_samples_stops_limits_and_logprobs(kind, question):
    full = Question(
        question.prompt, question.messages, max_tokens=3, stop=("nowhere",), n=3, logprobs=2
    )
    with serve(kind) as fake:
        asking = client(fake)
        for answer in (asking.complete(full), joined(asking.stream(full), 3, "small")):
            assert len(answer.choices) == 3
            for choice in answer.choices:
                assert choice.finish == "length" and choice.text == "You said:"
                assert choice.tokens[1] == Token(" said", -0.5, ((" said", -0.5), ("1", -1.5)))
        halted = Question(question.prompt, question.messages, stop=(" said",))
        assert asking.complete(halted).text == "You"


def test_each_server_is_told_what_it_knows():
    sampling = SamplingConfig(0.5, 7, 0.9, 3, 0.1, 1.2)
    question = Question(messages=HELLO.messages, sampling=sampling, max_tokens=5)
    own = {kind: wire.request(question, kind, "m", stream=False).body for kind in KINDS[1:]}
    assert own["vllm"]["repetition_penalty"] == own["llama.cpp"]["repeat_penalty"] == 1.2
    assert own["vllm"]["top_k"] == own["llama.cpp"]["top_k"] == 7
    assert own["vllm"]["max_tokens"] == own["llama.cpp"]["max_tokens"] == 5
    with pytest.raises(ConfigError, match="top_k is 7, and OpenAI's protocol has no such field"):
        wire.request(question, "openai", "m", stream=False)
    # Defaults are said, or llama.cpp would take top-k 40, top-p 0.95 and min-p 0.05.
    plain = wire.request(HELLO, "llama.cpp", "m", stream=False).body
    assert (plain["top_k"], plain["top_p"], plain["min_p"]) == (0, 1.0, 0.0)
    body = wire.request(HELLO, "openai", "m", stream=False).body
    assert "max_tokens" not in body and "top_k" not in body
    assert body["max_completion_tokens"] == 128


def test_forms_of_an_answer_by_server():
    def asked(grammar, kind, question=HELLO):
        one = Question(question.prompt, question.messages, grammar=grammar)
        return wire.request(one, kind, "m", stream=False).body

    schema = {"type": "integer"}
    for kind in KINDS:
        form = asked(grammars.json_schema(schema), kind)["response_format"]
        assert form["json_schema"]["schema"] == schema and form["json_schema"]["strict"]
    assert asked(grammars.json_schema(schema), "llama.cpp", PROMPT)["json_schema"] == schema
    assert asked(grammars.regex("a+"), "vllm")["structured_outputs"] == {"regex": "a+"}
    choice = grammars.choice(['a"', "b"])
    assert asked(choice, "vllm")["structured_outputs"] == {"choice": ['a"', "b"]}
    assert asked(choice, "llama.cpp")["grammar"] == 'root ::= "a\\"" | "b"'
    for kind, grammar in (("openai", choice), ("llama.cpp", grammars.regex("a"))):
        with pytest.raises(ConfigError, match="takes no"):
            asked(grammar, kind)


# ── What goes wrong ─────────────────────────────────────────────────────────────────────────────

PASSING = ["rate", "overloaded", "loading", "page", "hang up", "server error"]


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault):
    with serve() as fake:
        asking = client(fake, model="small", server="openai")
        for ask in (asking.complete, lambda q: joined(asking.stream(q), 1, "small")):
            fake.seen.clear()
            fake.faults.extend([fault, fault])
            assert ask(HELLO).text == "You said: hello there"
            assert len(fake.seen) == 3
        fake.seen.clear()
        fake.faults.extend([fault] * 5)
        with pytest.raises(ClientError) as failed:
            asking.complete(HELLO)
        assert len(fake.seen) == 5 and "\n" not in str(failed.value)
        assert failed.value.fatal == (fault not in ("page", "server error"))


LASTING = {
    "wrong key": ("Incorrect API key", True), "quota": ("exceeded your current quota", True),
    "no model": ("`gpt-9` does not exist", True), "vllm key": ("Unauthorized", True),
    "vllm too long": ("maximum context length is 16", False),
    "vllm old": ("must be non-negative", False),
    "llama.cpp too long": ("9412 tokens", False), "fastapi": ("field required", False),
    "moved": ("308", True), "garbage": ("not JSON", False),
}  # fmt: skip


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_said_once_in_the_servers_words(fault):
    words, fatal = LASTING[fault]
    with serve() as fake:
        asking = client(fake, model="small", server="openai", key=KEY)
        fake.faults.append(fault)
        with pytest.raises(ClientError, match=words) as failed:
            asking.complete(HELLO)
        assert len(fake.seen) == 1
        assert failed.value.fatal == fatal
        assert KEY not in str(failed.value) and "\n" not in str(failed.value)
    assert set(LASTING) | set(PASSING) >= set(ERRORS)


@pytest.mark.parametrize("fault", ["cut", "early end", "stream error"])
def test_a_stream_that_breaks_off_is_an_error_and_not_an_answer(fault):
    with serve() as fake:
        fake.faults.append(fault)
        shown = []
        with pytest.raises(ClientError, match=r"broke off|cannot be reached") as failed:
            for delta in client(fake, key=KEY).stream(HELLO):
                shown.append(delta)
        assert KEY not in str(failed.value)
        assert shown and len(fake.seen) == 1  # shown pieces are not shown twice


def test_an_answer_that_is_closed_ends_at_the_server():
    with serve(delay_s=0.01) as fake:
        fake.reply = lambda body: "word " * 2000
        stream = client(fake).stream(Question(messages=HELLO.messages, max_tokens=4000))
        next(stream)
        stream.close()
        gone = threading.Event()
        while not fake.gone and not gone.wait(0.01):
            pass
        assert fake._open <= 1


def test_a_server_that_stalls_is_left_after_the_timeout():
    with serve() as fake:
        fake.faults.extend(["stall"] * 2)
        asking = client(fake, timeout_s=0.2, tries=2)
        with pytest.raises(ClientError, match="took too long"):
            asking.complete(HELLO)


def test_no_server():
    with serve() as fake:
        url = fake.url
    with pytest.raises(ClientError, match="cannot be reached") as failed:
        EndpointClient(url, tries=2, backoff_s=0.001)
    assert failed.value.fatal


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000", "is no address"), ("ftp://host/v1", "is no address"),
        ("http://", "is no address"), ("http://host:99999/v1", "is no address"),
        ("https://me:hunter2@host/v1", "holds a user"),
        ("https://host/v1?key=hunter2", "holds a user"),
    ],
)  # fmt: skip
def test_addresses_that_cannot_be_used(url, words):
    with pytest.raises(ConfigError, match=words) as refused:
        EndpointClient(url, model="m", server="openai")
    assert "hunter2" not in str(refused.value)


def test_models_are_chosen_by_name_where_there_are_several():
    with serve("vllm", models=("a", "b")) as fake:
        with pytest.raises(ConfigError, match=r"2 models \(a, b\); choose --model"):
            client(fake)
        assert client(fake, model="b").server == "vllm"


# ── Keys, budgets, batches ──────────────────────────────────────────────────────────────────────


def test_the_key_is_sent_and_never_shown(monkeypatch, tmp_path):
    monkeypatch.setenv("GAIA_API_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    assert read_key() == read_key("NOT_SET", tmp_path / "key") == KEY
    with serve(key=KEY) as fake:
        assert client(fake, key=KEY).complete(HELLO).text
        assert fake.seen[-1][2] == f"Bearer {KEY}"
        with pytest.raises(ClientError, match="check the key in GAIA_API_KEY") as failed:
            client(fake, key=KEY + "x").complete(HELLO)
        assert failed.value.status == 401
    for text, words in (("", "is empty"), ("a b", "space"), ("schlüssel", "no ASCII")):
        (tmp_path / "key").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_key(file=tmp_path / "key")
    with pytest.raises(ConfigError, match="No such file"):
        read_key(file=tmp_path / "none")


def test_a_batch_keeps_many_open_and_tells_answers_apart():
    questions = [Question(prompt=f"number {i}") for i in range(40)]
    with serve() as fake:
        fake.faults.extend([None, "vllm too long", "rate"])
        plain, four = fake.reply, threading.Event()

        def reply(body):
            if fake.most_open >= 4:
                four.set()
            assert four.wait(30)  # nobody is answered before four are open
            return plain(body)

        fake.reply = reply
        asking = client(fake, concurrency=4)
        results = dict(asking.batch(iter(questions)))
        assert fake.most_open == 4
        failed = [i for i, result in results.items() if isinstance(result, ClientError)]
        assert len(failed) == 1 and sorted(results) == list(range(40))
        for i, result in results.items():
            assert i in failed or result.text == f"You said: number {i}"


def test_a_fatal_error_ends_a_batch_after_what_was_open():
    questions = [Question(prompt=f"number {i}") for i in range(40)]
    with serve() as fake:
        fake.faults.extend([None] * 5 + ["wrong key"])
        results = []
        with pytest.raises(ClientError, match="Incorrect API key"):
            results.extend(client(fake, concurrency=2).batch(questions))
        assert 5 <= len(results) < 40


def test_budgets_end_before_they_are_passed():
    asked = Question(prompt="x", max_tokens=10)
    with serve() as fake:
        asking = client(fake, budget=Budget(max_requests=3))
        fake.faults.append("rate")  # its repetition counts: it may cost
        asking.complete(asked)
        asking.complete(asked)
        with pytest.raises(ClientError, match="budget of 3 requests is spent"):
            asking.complete(asked)
        assert len(fake.seen) == 3
        spent = client(fake, budget=Budget(max_tokens=40))
        total = Usage()
        with pytest.raises(ClientError, match="may pass the budget of 40 tokens"):
            while True:
                total += spent.complete(asked).usage
        assert 20 < total.prompt_tokens + total.completion_tokens <= 40


# ── The wire ────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(), min_size=1, max_size=5),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    crlf=st.booleans(),
)
def test_events_survive_any_cut_of_their_bytes(texts, cuts, crlf):
    """Letters that `str.splitlines` takes for line ends (U+2028, U+0085) are text here."""
    end = "\r\n" if crlf else "\n"
    sent = [json.dumps({"t": text}, ensure_ascii=False) for text in texts]
    raw = "".join(f": hold{end}{end}data: {one}{end}{end}" for one in sent)
    data = raw.encode("utf-8", "surrogatepass")
    places = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    chunks = [data[a:b] for a, b in itertools.pairwise(places)]
    assert [json.loads(one)["t"] for one in wire.events(chunks)] == texts


@pytest.mark.parametrize("data", [[], {}, {"choices": [{}]}, {"choices": [{"message": 3}]}, "x"])
def test_answers_that_are_none(data):
    with pytest.raises(ClientError, match="not OpenAI's"):
        wire.answer(data, HELLO, "m")


def test_fewer_answers_than_asked_for_are_an_error():
    with pytest.raises(ClientError, match="2 answers were asked for, and the endpoint gave 1"):
        wire.answer({"choices": [{"text": "a"}]}, Question(prompt="x", n=2), "m")


def test_a_refusal_is_a_finish_of_its_own():
    with serve() as fake:
        answer = client(fake).complete(Question(messages=(Message("user", "please refuse"),)))
        assert (answer.text, answer.choices[0].finish) == ("I can't help with that.", "refusal")


def test_the_fakes_answers_fit_openais_schemas():
    """The fake itself refuses to send what does not fit; here the schemas must be at hand."""
    if not openai_api.SCHEMAS.exists():
        pytest.skip(openai_api.NO_SCHEMAS)
    assert openai_api.problems("CreateCompletionResponse", {"id": 3})
    for name in ("wrong key", "quota", "rate", "overloaded", "no model"):
        assert not openai_api.problems("ErrorResponse", ERRORS[name][2])
