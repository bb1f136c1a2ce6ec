"""The harness against a plain reference, guessing, resuming, and damaged bundles."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import plain_core
import runs
import small_core
import tiny
from gaia import parallel
from gaia.errors import ConfigError, DataError
from gchat import train_state
from gchat.config import TrainConfig, TrainingConfig, derive
from gchat.evals.core import bundle, evaluate, summary
from gchat.evals.core.tasks import TASKS, chosen
from gchat.evals.results import Results
from gchat.model import GPTConfig
from gchat.score import LogLikelihood, Scorer
from gchat.tokenizer import train_bpe

SHARED = Path(__file__).parents[5] / "shared/data/core"
SEQ_LEN = 128
# Each kind, with and without examples; the prompts of the third are too long, and cropped.
KINDS = ("copa", "winograd", "arc_easy", "agi_eval_lsat_ar", "lambada_openai", "jeopardy")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Folder of a bundle of all 22 tasks."""
    return small_core.write(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model():
    """(tokenizer, stream of scores, log-probabilities of one sequence)."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(runs.TEXT.split(), size=60)) for _ in range(20)]
    tokenizer = train_bpe(texts, 400)
    config = TrainConfig(
        model=GPTConfig(
            depth=2, dim=32, head_dim=16, hidden=64, seq_len=SEQ_LEN, compute_dtype="float32"
        ),
        training=TrainingConfig(batch_size=4, steps=200),
    )
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": tokenizer.padded_vocab_size,
    }
    config = derive(config, **sizes)[0]
    mesh = parallel.make_mesh(parallel.MeshConfig(), jax.devices()[:1])
    graph = train_state.graphdef(config)
    _, params = tiny.make(config.model)

    def log_probs(tokens):
        row = np.zeros((1, SEQ_LEN), np.int32)
        row[0, : len(tokens)] = tokens
        log_p = np.asarray(tiny.logits(graph, params, row), np.float64)[0, : len(tokens)]
        return log_p - np.log(np.exp(log_p).sum(axis=-1, keepdims=True))

    scorer = Scorer(graph, config, mesh, batch_tokens=2048)
    return tokenizer, partial(scorer.stream, params), log_probs


def outcomes(todo, model, **options):
    """{task: {item: (right or wrong, choice)}}, and the counts."""
    found = {}

    def record(results):
        for r in results:
            assert r.item not in found.setdefault(r.task, {})
            found[r.task][r.item] = (r.correct, r.chosen)

    tokenizer, stream, _ = model
    return found, evaluate.evaluate(todo, tokenizer, stream, record=record, **options)


def expected(made, model, limit):
    tokenizer, _, log_probs = model
    return {
        task.name: plain_core.outcomes(
            task, made.items[task.name], tokenizer.encode, tokenizer.bos_id, log_probs, SEQ_LEN,
            limit,
        )
        for task in made.tasks
    }  # fmt: skip


@pytest.mark.parametrize(
    ("names", "limit"), [(KINDS, 11), pytest.param((), None, marks=pytest.mark.slow)]
)
def test_choices_equal_those_of_one_example_at_a_time(small, model, names, limit):
    made = bundle.read(str(small), chosen(names))
    found, counts = outcomes(evaluate.plan(made, limit), model)
    right = expected(made, model, limit)
    for name, answers in right.items():
        assert [found[name][i] for i in range(len(answers))] == answers, name
        assert counts[name] == (sum(correct for correct, _ in answers), len(answers))
    assert {choice for correct, choice in found["arc_easy"].values()} > {0}


def test_a_limit_below_the_examples_takes_them_from_the_items_behind_it(small, model):
    made = bundle.read(str(small), chosen(["jeopardy", "copa"]))
    todo = evaluate.plan(made, 2)
    assert len(todo.pools["jeopardy"]) == 11 and len(todo.pools["copa"]) == 2
    found, _ = outcomes(todo, model)
    assert {name: sorted(items) for name, items in found.items()} == {
        "copa": [0, 1],
        "jeopardy": [0, 1],
    }


class Guesser:
    """Scores at random, and never greedily."""

    def __init__(self, seed):
        self._rng = np.random.default_rng(seed)

    def __call__(self, pairs):
        batch = []
        for number, _ in enumerate(pairs):
            nats = self._rng.standard_normal(1).astype(np.float32)
            batch.append((number, LogLikelihood(float(nats[0]), nats, False)))
            if len(batch) == 1000:
                yield batch
                batch = []
        yield batch


class Letters:  # stands for a Tokenizer
    """Encodes the last letters of a text: for scorers that do not read."""

    bos_id = 0

    def encode_array(self, text):
        return np.frombuffer(text[-40:].encode(), np.uint8)


def guessed(made):
    letters: Any = Letters()
    return evaluate.evaluate(evaluate.plan(made, None), letters, Guesser(1))


def test_guessing_lands_on_chance(tmp_path):
    made = bundle.read(str(small_core.write(tmp_path, items=150)), TASKS)
    counts = guessed(made)
    for version, chance in (("core_v1", -0.0007), ("core_v2", -0.026)):
        low, high = summary.core_interval(counts, version)
        assert low <= chance <= high and high - low < 0.06


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="needs the task files in ../shared/data/core")
def test_guessing_on_the_published_tasks():
    made = bundle.read(str(SHARED), TASKS)
    assert len(made.tasks) == 18 and not made.changed
    counts = guessed(made)
    assert sum(count.of for count in counts.values()) == 52_400
    for version, chance in (("core_v1", -0.0009), ("core_v2", -0.032)):
        low, high = summary.core_interval(counts, version)
        assert low <= chance <= high and high - low < 0.035


# ── Results that survive ────────────────────────────────────────────────────────────────────────


def test_a_stopped_evaluation_goes_on_where_it_was(small, model, tmp_path):
    made = bundle.read(str(small), chosen(KINDS[:4]))
    todo = evaluate.plan(made, None)
    whole, whole_counts = outcomes(todo, model)
    facts, path = {"step": 3, "bundle": made.digest}, tmp_path / "evals" / "core.jsonl"
    tokenizer, stream, _ = model

    class Stopped(Exception):
        pass

    def until_third(pairs):
        for number, batch in enumerate(stream(pairs)):
            if number == 3:
                raise Stopped
            yield batch

    def keep(results):
        return lambda made: results.add([one.record() for one in made])

    with pytest.raises(Stopped), Results(path, facts, pytest.fail) as results:
        evaluate.evaluate(todo, tokenizer, until_third, record=keep(results))
    kept = len(path.read_bytes().splitlines()) - 1
    assert 0 < kept < len(todo.order)
    with open(path, "ab") as file:
        file.write(b'{"task": "copa", "item": 1, "cor')  # what a kill leaves
    done = {}
    with Results(path, facts, partial(evaluate.take, done)) as results:
        found, counts = outcomes(todo, model, done=done)
        assert sum(len(items) for items in done.values()) == kept
        assert sum(len(items) for items in found.values()) == len(todo.order) - kept
        evaluate.evaluate(todo, tokenizer, stream, done=done, record=keep(results))
    assert counts == whole_counts
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    again = {(r["task"], r["item"]): (r["correct"], r["chosen"]) for r in lines}
    assert len(lines) == len(again) == len(todo.order)
    assert again == {(t, i): answer for t, items in whole.items() for i, answer in items.items()}


def test_results_of_something_else_are_refused(tmp_path):
    path, take = tmp_path / "core.jsonl", partial(evaluate.take, {})
    with Results(path, {"step": 3, "weights": "aa"}, take):
        pass
    with pytest.raises(DataError, match=r"made with another weights \(aa, now bb\); remove the"):
        Results(path, {"step": 3, "weights": "bb"}, take).__enter__()
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match=r"core\.jsonl, line 2: it is no outcome"):
        Results(path, {"step": 3, "weights": "aa"}, take).__enter__()
    assert not list(tmp_path.glob(".*lock"))


# ── Bundles ─────────────────────────────────────────────────────────────────────────────────────

COPA, JEOPARDY = (f"eval_data/{task.file}.jsonl" for task in chosen(["jeopardy", "copa"])[::-1])
DAMAGE = {
    COPA: {
        b'{"query": "a", "cho': "line 3: it is not JSON",
        b"[1]": "line 3: it is no JSON object",
        b"\xff": "line 3: it is not JSON",
        b'{"query": 5, "choices": ["a", "b"], "gold": 0}': "line 3: 'query' is 5, not a text",
        b'{"query": "q", "choices": ["a"], "gold": 0}': "not a list of two texts or more",
        b'{"query": "q", "choices": ["a", "b"], "gold": 2}': "'gold' is 2, not the index of one",
        b'{"query": "q", "choices": ["a", "b"]}': "'gold' is None, not the index of one of 2",
    },
    JEOPARDY: {
        b'{"context": "q", "continuation": " "}': "line 3: 'continuation' is empty",
        b'{"context": "q"}': "line 3: 'continuation' is None, not a text",
    },
}


def test_damage_is_named_with_its_line(tmp_path):
    small_core.write(tmp_path, names=("copa", "jeopardy"))
    for name, lines in DAMAGE.items():
        path = tmp_path / name
        whole = path.read_bytes().splitlines(keepends=True)
        for line, said in lines.items():
            path.write_bytes(b"".join([*whole[:2], line + b"\n", *whole[2:]]))
            with pytest.raises(DataError) as error:
                bundle.read(str(tmp_path), TASKS)
            assert str(path) in str(error.value) and said in str(error.value)
        path.write_bytes(b"\n")
        with pytest.raises(DataError, match="holds no items"):
            bundle.read(str(tmp_path), TASKS)
        path.write_bytes(b"".join(whole[:5]))
    made = bundle.read(str(tmp_path), TASKS)
    with pytest.raises(ConfigError, match="jeopardy has 5 items and needs 10 examples"):
        evaluate.plan(made, None)
    with pytest.raises(ConfigError, match="0 items a task"):
        evaluate.plan(made, 0)


def test_a_part_of_the_bundle_says_what_it_lacks(tmp_path):
    small_core.write(tmp_path, names=("copa", "jeopardy"))
    made = bundle.read(str(tmp_path), TASKS)
    assert [task.name for task in made.tasks] == ["jeopardy", "copa"]
    assert len(made.missing) == 20 and made.changed == ("jeopardy", "copa")
    one = bundle.read(str(tmp_path / "eval_data"), chosen(["copa"]))
    assert one.digest == made.digest  # of the folder, whatever is evaluated
    with pytest.raises(ConfigError, match=r"no file for piqa; add eval_data/commonsense_.*piqa"):
        bundle.read(str(tmp_path), chosen(["copa", "piqa"]), must=True)
    with pytest.raises(ConfigError, match="holds no task file of CORE"):
        bundle.read(str(tmp_path / "nothing"), TASKS)


@pytest.mark.skipif(not SHARED.exists(), reason="needs the task files in ../shared/data/core")
def test_the_published_files_are_known():
    made = bundle.read(str(SHARED), chosen(["copa", "winograd", "bigbench_operators"]))
    assert not made.changed and [len(i) for i in made.items.values()] == [100, 273, 210]
