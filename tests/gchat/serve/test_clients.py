"""Other people's clients against the server: openai, llm, lm_eval, schemathesis, over loopback.

GAIA_PARITY_PYTHON=…/bin/python (lm_eval[api])      GAIA_LLM=…/bin/llm (Simon Willison's)
"""

import json
import os
import subprocess
import threading

import numpy as np
import pytest

import serving
import tiny
from gchat.serve import keys
from gchat.serve.errors import ApiError
from serving import until

try:
    import openai
except ImportError:  # of the slow lock: the default suite must not even count these as skipped
    openai = None
MISSING = "openai is not installed (requirements/slow.txt)"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(openai is None, reason=MISSING)]

HELLO = [{"role": "user", "content": "Where is Oslo?"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Köln"]}, "n": {"type": "integer"}},
    "required": ["city", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}}
LONG = {"logit_bias": serving.endless(), "max_tokens": 900}


@pytest.fixture(scope="module")
def server():
    service = serving.make_service(keys=keys.Keys(dict([LINE.split(":sha256:")])))
    with serving.running(service) as made:
        made.http.headers["Authorization"] = f"Bearer {KEY}"
        yield made


KEY, LINE = keys.new("tester")


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


# ── OpenAI's own client ─────────────────────────────────────────────────────────────────────────


def test_models_chats_and_log_probabilities(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    answer = client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=9, seed=1, n=2, logprobs=True, top_logprobs=3
    )
    assert len(answer.choices) == 2 and answer.usage.completion_tokens == 18
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert len(tokens) == 9 and all(len(token.top_logprobs) == 3 for token in tokens)
        text = b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace")
        assert text == choice.message.content
    again = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=9, seed=1)
    assert again.choices[0].message.content == answer.choices[0].message.content
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_a_stream_with_usage(client):
    ask = {"model": "tiny", "messages": HELLO, "max_tokens": 30, "seed": 2}
    whole = client.chat.completions.create(**ask)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**ask, **options)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    assert last.choices == [] and last.usage == whole.usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details}
    )
    pieces = client.completions.create(model="tiny", prompt="Oslo", seed=2, stream=True)
    whole = client.completions.create(model="tiny", prompt="Oslo", seed=2)
    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_tools_and_schemas_parsed_by_the_client(client):
    import pydantic

    class Weather(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        cities: list[str] = pydantic.Field(max_length=1)
        warm: bool

    parsed = client.chat.completions.parse(
        model="tiny", messages=HELLO, response_format=Weather, seed=3, max_tokens=500
    )
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    with client.chat.completions.stream(
        model="tiny", messages=HELLO, tools=[TOOL], tool_choice="required", seed=4, max_tokens=300
    ) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Köln")
    # pydantic's own check of what came: no warning, no field of another type.
    answer = client.chat.completions.with_raw_response.create(
        model="tiny", messages=HELLO, tools=[TOOL], tool_choice="required", max_tokens=300
    )
    openai.types.chat.ChatCompletion.model_validate_json(answer.content, strict=True)


def test_what_the_client_dumps_of_an_answer_can_be_sent_back(client):
    """A turn with a call, as chats have it and as responses do; null fields and all."""
    ask = {"model": "tiny", "tools": [TOOL], "tool_choice": "required", "max_tokens": 300}
    message = client.chat.completions.create(messages=HELLO, **ask).choices[0].message
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "12"}
    again = client.chat.completions.create(
        model="tiny", messages=[*HELLO, message.model_dump(), told], max_tokens=1
    )
    plain = again.choices[0].message.model_dump()
    assert client.chat.completions.create(
        model="tiny", messages=[*HELLO, plain, *HELLO], max_tokens=1
    )
    tool = {"type": "function", "strict": False, **TOOL["function"]}
    output = client.responses.create(model="tiny", input="x", tools=[tool], tool_choice="required")
    items = [one.model_dump() for one in output.output]
    items.append({"type": "function_call_output", "call_id": items[0]["call_id"], "output": "12"})
    more = client.responses.create(model="tiny", input=items, max_output_tokens=2)
    items += [one.model_dump() for one in more.output]
    assert client.responses.create(model="tiny", input=items, max_output_tokens=1)


def test_responses_by_their_types(client):
    from openai.types.responses import Response, ResponseStreamEvent
    from pydantic import TypeAdapter

    ask = {"model": "tiny", "input": "Oslo?", "max_output_tokens": 20, "temperature": 0}
    whole = client.responses.create(**ask)
    assert whole.output_text and whole.usage.output_tokens == 20 and whole.status == "incomplete"
    adapter = TypeAdapter(ResponseStreamEvent)
    events = list(client.responses.create(**ask, stream=True))
    for event in events:
        adapter.validate_python(event.model_dump(by_alias=True))
    assert events[-1].response.output_text == whole.output_text
    raw = client.responses.with_raw_response.create(
        **ask, tools=[{"type": "function", "strict": False, **TOOL["function"]}],
        tool_choice="required",
    )  # fmt: skip
    Response.model_validate_json(raw.content)
    form = {"type": "json_schema", "name": "x", "schema": {"enum": ["Oslo", "Köln"]}}
    ask |= {"text": {"format": form}, "max_output_tokens": 300}
    with client.responses.stream(**ask) as stream:  # one that ends by itself
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert json.loads(final.output_text) in ("Oslo", "Köln")
    assert final.output_text == client.responses.create(**ask).output_text
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    call = client.responses.create(
        model="tiny", input="x", tool_choice="required",
        tools=[{"type": "function", "strict": False, **TOOL["function"]}],
    ).output[0]  # fmt: skip
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Oslo", "Köln")


def test_cancelled_streams(client, server):
    """Closed, or left by its thread: the rows come back and the steps stop."""
    for _ in range(3):
        stream = client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, n=2, **LONG
        )
        next(iter(stream))
        stream.close()
    assert server.idle()
    impatient = client.with_options(timeout=0.3)
    with serving.engine()._lock, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(model="tiny", messages=HELLO, **LONG)
    assert server.idle()
    steps = server.service.driver.steps
    threading.Event().wait(0.1)
    assert server.service.driver.steps == steps


def test_errors_are_the_clients_own(client, server):
    with pytest.raises(openai.NotFoundError) as none:
        client.chat.completions.create(model="none", messages=HELLO)
    assert none.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="at most 1024"):
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=10**6)
    wrong = client.with_options(api_key="sk-wrong")
    with pytest.raises(openai.AuthenticationError):
        wrong.models.list()
    queue = server.service.models["tiny"].queue
    longest, queue._longest = queue._longest, 1
    try:
        with serving.engine()._lock:
            left = [threading.Thread(target=_swallow, args=(client,)) for _ in range(7)]
            for one in left:
                one.start()
            until(lambda: queue.waiting == 1)
            with pytest.raises(openai.RateLimitError) as busy:
                client.chat.completions.create(model="tiny", messages=HELLO)
            assert int(busy.value.response.headers["retry-after"]) >= 1
        for one in left:
            one.join()
    finally:
        queue._longest = longest


def _swallow(client):
    client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=1)


# ── Programs ────────────────────────────────────────────────────────────────────────────────────


def run(command, **environment):
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=280,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": KEY} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


TASKS = {
    "score": "output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: "
    "'{{choices}}'\ntarget_delimiter: ''\ndoc_to_target: '{{gold}}'\n"
    "metric_list: [{metric: acc}]\n",
    "write": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: ' x'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 12}\nmetric_list: [{metric: exact_match}]\n",
}


@pytest.mark.skipif(
    "GAIA_PARITY_PYTHON" not in os.environ, reason="needs GAIA_PARITY_PYTHON, with lm_eval[api]"
)
def test_lm_eval_over_http(server, tmp_path):
    """Its sums and greedy flags are the model's own, item for item; so are its generated texts."""
    rng, words = np.random.default_rng(0), serving.TEXT.split()
    items = [
        {"question": " ".join(rng.choice(words, 6)), "gold": int(rng.integers(3)),
         "choices": [" ".join(rng.choice(words, 3)) for _ in range(3)]}
        for _ in range(40)
    ]  # fmt: skip
    prompts = [serving.tokenizer().encode(item["question"]) for item in items]
    ask = {"model": "tiny", "temperature": 0}
    greedy = server.post("/v1/completions", **ask, max_tokens=1, prompt=prompts)
    for item, choice in zip(items, greedy.json()["choices"], strict=True):
        item["choices"][0] = choice["text"]  # greedy, unless its text is cut in another way
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    for name, text in TASKS.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"task: {name}\ndataset_path: json\ntest_split: test\n"
            f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n{text}"
        )
    model = f"model=tiny,base_url={server.url}/v1/completions,max_length={serving.SEQ_LEN}"
    model += f",auth_token={KEY}"  # for the tokenizer, which it asks of the server
    run([os.environ["GAIA_PARITY_PYTHON"], "-m", "lm_eval", "--model", "local-completions",
         "--model_args", model, "--tasks", "score,write", "--include_path", tmp_path,
         "--output_path", tmp_path / "out", "--log_samples", "--batch_size", "4"],
        HF_HOME=str(tmp_path / "home"))  # fmt: skip
    scored = _samples(tmp_path, "score")
    flags = []
    for sample in scored:
        for (_, choice), (value, is_greedy) in zip(
            [a.values() for a in sample["arguments"].values()],
            [r[0] for r in sample["resps"]], strict=True,
        ):  # fmt: skip
            context, more = _ids(sample["doc"]["question"], choice)
            logprob_TV = _reference(context + more)[len(context) - 1 : -1]
            expected = sum(logprob_TV[i, token] for i, token in enumerate(more))
            assert float(value) == pytest.approx(expected, abs=1e-3)
            flags.append((is_greedy in (True, "True"), bool((logprob_TV.argmax(1) == more).all())))
    assert all(said == true for said, true in flags)
    assert {true for _, true in flags} == {True, False}
    for sample in _samples(tmp_path, "write"):
        ids = serving.tokenizer().encode(sample["doc"]["question"])
        text = server.post("/v1/completions", **ask, max_tokens=12, stop=["."], prompt=ids)
        assert sample["resps"][0][0] == text.json()["choices"][0]["text"]


def _ids(context, continuation):
    """Ids as lm_eval cuts them: spaces at the context's end go to the continuation."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    encode = serving.tokenizer().encode
    whole, first = encode(context + continuation), encode(context)
    return first, whole[len(first) :]


def _reference(ids):
    import jax

    graph, params = serving.model()
    logits = tiny.logits(graph, params, np.array([ids], np.int32))[0]
    return np.asarray(jax.nn.log_softmax(logits, axis=-1))


def _samples(folder, task):
    (file,) = folder.glob(f"out/**/samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif("GAIA_LLM" not in os.environ, reason="needs GAIA_LLM, the program llm")
def test_llm(server, tmp_path):
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: tiny\n  api_base: {server.url}/v1\n"
        "  api_key_name: ours\n  supports_schema: true\n"
    )
    llm = os.environ["GAIA_LLM"]
    options = ["-m", "ours", "--key", KEY, "-o", "max_tokens", "20", "-o", "temperature", "0"]
    streamed = run([llm, *options, "Where is Oslo?"], LLM_USER_PATH=str(tmp_path))
    whole = run([llm, *options, "--no-stream", "Where is Oslo?"], LLM_USER_PATH=str(tmp_path))
    assert streamed == whole and whole.strip()
    schema = run([llm, "-m", "ours", "--key", KEY, "--schema", json.dumps(SCHEMA), "x"],
                 LLM_USER_PATH=str(tmp_path))  # fmt: skip
    assert json.loads(schema)["city"] in ("Oslo", "Köln")


def test_schemathesis_sees_no_500(server, tmp_path):
    """Requests made from the description, right ones and wrong ones."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed (slow.txt)")
    import sys

    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
               "--header", f"Authorization: Bearer {KEY}", "--checks", "not_a_server_error",
               "--max-examples", os.environ.get("GAIA_EXAMPLES", "60"), "--seed", "1",
               "--generation-database", "none", "--request-timeout", "60"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert server.idle() and server.http.get("/health").status_code == 200


def test_our_own_client(server):
    from gchat.client import Question
    from gchat.endpoint_client import EndpointClient
    from gchat.engine import grammar as grammars
    from gchat.engine.requests import SamplingConfig

    ours = EndpointClient(f"{server.url}/v1", key=KEY)
    sampling = SamplingConfig(0.9, top_k=20, min_p=0.01, seed=3, repetition_penalty=1.1)
    question = Question(prompt="Oslo", sampling=sampling, max_tokens=20, logprobs=1)
    answer = ours.complete(question)
    assert len(answer.choices[0].tokens) == 20
    assert "".join(delta.text for delta in ours.stream(question)) == answer.text
    chosen = ours.complete(Question(prompt="x", grammar=grammars.choice(["yes", "no"])))
    assert chosen.text in ("yes", "no")
    ours.close()


def test_errors_have_types():
    assert ApiError(418, "x").body()["error"]["type"] == "invalid_request_error"
