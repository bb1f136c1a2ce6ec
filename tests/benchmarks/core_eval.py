"""CORE's harness against scoring one example at a time, as nanochat's core_eval.py does.

    python tests/benchmarks/core_eval.py [--bundle DIR] [--items N] [--quick]
    python tests/benchmarks/core_eval.py --count-only --bundle DIR [--tokenizer gpt2]

One model (depth 4, dim 256, 2,048 positions, random weights), one set of items: first the harness
(twice; the first pass compiles), then the reference, which forwards each item by itself, its
choices padded to the longest. `speedup` is the reference's time over the harness's for the same
items, `mismatches` the items on which their outcomes differ; `tokens_ratio` counts tokens that are
forwarded, padding included on both sides.

`share_of_peak` is the time that the scorer's program takes alone over the harness's; the aim is
0.7. Alone means: as many batches of each row length as the harness forwards, every row full, 4
targets a row, the best of several, one behind the other, nothing done on the host. So attention's
share, which grows with a row, counts on both sides; padding, the host's work, waiting, and the
head's work for more targets count against the harness. `share_of_best` is the same against the row
length with most tokens per second: prompts that need long rows make it small however good the
harness is.

The mixture of N items a task is not that of all items, of which most tokens are language
identification's: `--count-only` counts the tokens of all items on both sides, for rows of 2,048
and of 1,024 tokens, and needs no model. The aim is 2.5 times fewer tokens. No packing reaches 4:
most tasks of language modelling have one sequence an item, whose examples are drawn for it alone,
so it shares nothing. `ratio_without_padding` is what the rows of sharing alone would give.

Without --bundle (or with --quick) items are made up: the shapes of the tasks, without their texts.
"""

import argparse
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np

import harness

SEQ_LEN = 2048
COUNTED = (2048, 1024)
VOCAB = 32768  # of the tokenizer that is trained for counting: nanochat's


def main(args: argparse.Namespace) -> dict:
    from gchat.evals.core import bundle, evaluate
    from gchat.evals.core.tasks import TASKS

    if args.count_only:
        return _count_only(args)
    with tempfile.TemporaryDirectory(prefix="gaia-core-") as folder:
        place = args.bundle or _made_up(Path(folder))
        made = bundle.read(str(place), TASKS)
        items = args.items or (10 if args.quick else 30)
        todo = evaluate.plan(made, items)
        tokenizer, config, scorer, params, forward = _model(made)
    tokens, seconds, before, ours = 0, 1.0, scorer.forwarded, {}
    batches = _counted(scorer)
    for _ in range(2):  # the first compiles
        batches.clear()
        before, began = scorer.forwarded, time.perf_counter()
        kept: list[evaluate.Result] = []
        stream = partial(scorer.stream, params)
        evaluate.evaluate(todo, tokenizer, stream, record=kept.extend)
        seconds = time.perf_counter() - began
        ours = {(result.task, result.item): result.correct for result in kept}
        tokens = scorer.forwarded.tokens - before.tokens
    rate = tokens / seconds
    alone = {length: _alone(scorer, params, config, length) for length in sorted(batches)}
    alone_s = sum(alone[length] * count for length, count in batches.items())
    best = max(_tokens(scorer, length) / took for length, took in alone.items())
    for length, took in alone.items():
        speed = _tokens(scorer, length) / took
        print(f"rows of {length}: {batches[length]} batches, {speed:,.0f} tok/s alone")
    print(f"harness: {len(ours)} items, {tokens:,} tokens in {seconds:.1f} s, {rate:,.0f} tok/s")
    theirs, plain, plain_s = _reference(todo, tokenizer, forward)
    print(f"one at a time: {sum(plain.values()):,} tokens in {plain_s:.1f} s")
    mismatches = sum(ours[item] != correct for item, correct in theirs.items())
    result = {
        "speedup": round(plain_s / seconds, 2),
        "mismatches": mismatches,
        "items": len(ours),
        "tasks": len(made.tasks),
        "tokens_forwarded": tokens,
        "tokens_reference": sum(plain.values()),
        "tokens_ratio": round(sum(plain.values()) / tokens, 3),
        "fill": round((scorer.forwarded.used - before.used) / tokens, 4),
        "tokens_per_s": round(rate),
        "peak_tokens_per_s": round(tokens / alone_s),
        "share_of_peak": round(alone_s / seconds, 3),
        "share_of_best": round(rate / best, 3),
        "bundle": "published" if args.bundle else "made up",
    }
    for key in ("speedup", "mismatches", "tokens_ratio", "share_of_peak", "share_of_best"):
        print(f"{key:24} {result[key]}")
    return result


def _made_up(folder: Path) -> Path:
    import sys

    sys.path.insert(0, str(harness.ROOT / "tests"))
    import small_core

    return small_core.write(folder, items=40)


def _model(made):
    """(tokenizer, configuration, scorer, parameters, jitted logits of rows)."""
    import jax
    from flax import nnx

    from gaia import parallel
    from gchat import train_state
    from gchat.config import TrainConfig, TrainingConfig, derive
    from gchat.model import GPTConfig
    from gchat.score import Scorer
    from gchat.tokenizer import train_bpe

    texts = [str(item) for items in made.items.values() for item in items[:300]]
    tokenizer = train_bpe(texts, 4096)
    sizes = {
        "vocab_size": tokenizer.vocab_size,
        "padded_vocab_size": tokenizer.padded_vocab_size,
    }
    model = GPTConfig(
        depth=4, dim=256, head_dim=64, seq_len=SEQ_LEN, compute_dtype="float32", init="gpt2"
    )
    training = TrainingConfig(batch_size=4, steps=1000)
    config, _ = derive(TrainConfig(model=model, training=training), **sizes)
    mesh = parallel.make_mesh()
    graph = train_state.graphdef(config)
    params = train_state.init_state(config, mesh).params

    @jax.jit
    def forward(tokens_BT):
        gpt = nnx.merge(graph, params)
        return gpt.logits(gpt(tokens_BT)[0])

    return tokenizer, config, Scorer(graph, config, mesh), params, forward


def _counted(scorer) -> Counter:
    """Batches of each row length that the scorer forwards from now on."""
    batches: Counter = Counter()
    dispatch = scorer._dispatch

    def counting(params, rows):
        batches[rows[0].length] += 1
        return dispatch(params, rows)

    scorer._dispatch = counting
    return batches


def _tokens(scorer, length: int) -> int:
    """Tokens of a batch of rows of one length."""
    return scorer._packing.rows(length) * length


def _alone(scorer, params, config, length: int) -> float:
    """Seconds of a full batch of one row length: the best of several, one behind the other."""
    import jax

    from gaia.data import tries

    rng, count = np.random.default_rng(0), scorer._packing.rows(length)
    rows = []
    for number in range(count):
        ids = rng.integers(0, config.model.sizes.vocab, length + 1).astype(np.int32)
        request = tries.Request(number, ids, 4)
        rows.append(tries.Row(length, [tries.Unit((request,), (0,), length)]))
    laid = tries.lay_out(rows, count, length)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(scorer._program(params, laid))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _count_only(args: argparse.Namespace) -> dict:
    """Tokens of all items: those of the reference, and those of the harness's rows."""
    from gchat.evals.core import bundle, evaluate, questions
    from gchat.evals.core.tasks import TASKS
    from gchat.score_rows import Packing

    with tempfile.TemporaryDirectory(prefix="gaia-core-") as folder:
        made = bundle.read(str(args.bundle or _made_up(Path(folder))), TASKS)
    todo = evaluate.plan(made, args.items)
    tokenizer = _tokenizer(args.tokenizer, made)
    items, began = [], time.perf_counter()
    for number, (task, index) in enumerate(todo.order, start=1):
        pool = todo.pools[task.name]
        texts = questions.prompts(task, pool[index], questions.examples(task, pool, index))
        pairs = questions.pairs(task, texts, tokenizer)
        items.append([[part.astype(np.uint16) for part in pair] for pair in pairs])
        if number % 5000 == 0:
            left = (time.perf_counter() - began) / number * (len(todo.order) - number)
            print(f"{number:,} of {len(todo.order):,} items, {left:.0f} s left", flush=True)
    result: dict = {"items": len(items), "tasks": len(made.tasks), "vocab": tokenizer.vocab_size}
    for length in COUNTED:
        packing = Packing(length, tokenizer.vocab_size)
        rows_of = (rows for w in packing.windows(p for i in items for p in i) for rows in w.batches)
        forwarded = used = 0
        for rows in rows_of:
            forwarded += packing.rows(rows[0].length) * rows[0].length
            used += sum(unit.size for row in rows for unit in row.units)
        plain = sum(
            len(pairs) * min(length, max(len(a) + len(b) for a, b in pairs))
            for pairs in items
            if pairs
        )
        result[f"t{length}"] = {
            "tokens_reference": plain,
            "tokens_forwarded": forwarded,
            "ratio": round(plain / forwarded, 3),
            "ratio_without_padding": round(plain / used, 3),
            "fill": round(used / forwarded, 4),
        }
        print(f"T {length}: {plain:,} tokens one at a time, {forwarded:,} in rows (full to "
              f"{used / forwarded:.1%}): {plain / forwarded:.2f} times fewer")  # fmt: skip
    return result | {"bundle": "published" if args.bundle else "made up"}


def _tokenizer(name: str | None, made):
    from gchat.evals.core import questions
    from gchat.tokenizer import Tokenizer, gpt2, train_bpe

    if name is not None:
        return gpt2() if name == "gpt2" else Tokenizer.load(name)
    texts = [
        text
        for task in made.tasks
        for item in made.items[task.name][:300]
        for text in questions.prompts(task, item, ())
    ]
    return train_bpe(texts, VOCAB if len(texts) > 2000 else 4096)


def _reference(todo, tokenizer, forward):
    """(outcomes, tokens by task, seconds) of one item at a time, its choices padded alike."""
    import sys

    sys.path.insert(0, str(harness.ROOT / "tests"))
    import plain_core

    tokens: dict[str, int] = {}
    outcomes: dict[tuple[str, int], bool] = {}
    seconds = 0.0
    for passed in range(2):  # lengths are padded to few, all compiled in the first pass
        tokens.clear()
        began = time.perf_counter()
        for task, index in todo.order:
            made = plain_core.sequences(
                task, todo.pools[task.name], index, tokenizer.encode, tokenizer.bos_id, SEQ_LEN
            )
            longest = max(len(row) for row, _ in made)
            rows = np.zeros((len(made), -(-longest // 128) * 128), np.int32)
            for row, (ids, _) in zip(rows, made, strict=True):
                row[: len(ids)] = ids
            logits = np.asarray(forward(rows))
            tokens[task.name] = tokens.get(task.name, 0) + longest * len(made)
            if passed:
                log_p = [_log_softmax(row) for row in logits]
                outcomes[task.name, index] = plain_core.judge(
                    task, todo.pools[task.name][index], made, log_p
                )[0]
        seconds = time.perf_counter() - began
    return outcomes, tokens, seconds


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", help="folder of the published task files")
    parser.add_argument("--items", type=int, help="items of each task")
    parser.add_argument("--count-only", action="store_true", help="count tokens; no model")
    parser.add_argument("--tokenizer", help="gpt2 or a tokenizer.json, to count with")


if __name__ == "__main__":
    harness.run(main, __doc__, _options)
