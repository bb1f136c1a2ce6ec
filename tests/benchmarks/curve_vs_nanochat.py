"""Learning curves against nanochat's own torch code: bits per byte by tokens and by time.

    python tests/benchmarks/curve_vs_nanochat.py --nanochat DIR [--python TORCH_PYTHON] [--quick]

DIR is a checkout of karpathy/nanochat; TORCH_PYTHON has torch and nanochat's requirements (this
interpreter by default). Without either the benchmark says why and reports `skipped`.

Both sides train on the same rows in the same order (the `docs` corpus, 8,192 ids), with the same
matmul parameters (within 2%, or it stops), and read the same validation windows with the same
context. nanochat trains over a grid, 4,096 and 16,384 tokens a step x rates x 0.5, 1, 2 (its
base_train's defaults, not scaled by the batch), with one seed; its best cell then with all seeds.
`fast` trains nine tenths of nanochat's tokens, with its rates x 0.5 and 1 and then the better of
the two with all seeds; `cpu` and `baseline` train all of them. Each run has a whole schedule.

`tokens_ratio` says where the mean curve of `fast` first lies as low as nanochat's mean end, as a
share of its tokens (null: nowhere), `time_ratio` the same in seconds: of the last budget, and
of each under `budgets`. Times are a median step times the steps: other jobs on the machine falsify
them, not the bits, so the least of the seeds is taken.

Every finished training is a line of results.jsonl in --out: killed, or run on another day, the
benchmark goes on where it was, and a first day may take a part of the grid (--tokens, --batches,
--rates, --our-rates, --seeds). Our own trainings are kept with the commit, and done again for
another one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import harness

DEPTH, DIM, HEADS, T, VOCAB = 4, 256, 4, 512, 8192
HIDDEN = 688  # of SwiGLU: as many parameters as nanochat's 4 x 256 of ReLU^2, within 1%
RATES = {"embedding_lr": 0.3, "unembedding_lr": 0.008, "matrix_lr": 0.02, "scalar_lr": 0.5}
DECAY = 0.28  # base_train's, falling to 0 by a cosine
SHARE = 0.9  # of nanochat's tokens, for `fast`
BUDGETS, BATCHES, SCALES = (1_310_720, 2_490_368), (4096, 16384), (0.5, 1.0, 2.0)
OUR_SCALES = (0.5, 1.0)
OUR_RATES = ("lr", "embed_lr", "head_lr", "matrix_lr")
SIDES = ("nanochat", "fast", "cpu", "baseline")
EVAL_TOKENS, QUICK_EVAL_TOKENS, POINTS = 32_768, 4_096, 5
COMMIT = harness.commit()


@dataclass(frozen=True)
class Cell:
    """One training of either side."""

    side: str
    tokens: int
    """Training tokens."""
    batch: int
    """Tokens of a step."""
    scale: float
    """Factor of the side's own learning rates."""
    seed: int

    @property
    def key(self) -> str:
        """Name of its line."""
        return json.dumps(asdict(self), sort_keys=True)


class Results:
    """Finished cells on disk, by key."""

    def __init__(self, path: Path) -> None:
        self._path, self._rows = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    self._rows[row["key"]] = row
                except (ValueError, KeyError):
                    continue  # torn by a kill

    def has(self, cell: Cell) -> bool:
        """Tells whether a cell was trained; ours, whether this commit trained it."""
        row = self._rows.get(cell.key)
        return row is not None and (cell.side == "nanochat" or row.get("commit") == COMMIT)

    def __getitem__(self, cell: Cell) -> dict[str, Any]:
        return self._rows[cell.key]

    def add(self, cell: Cell, row: dict[str, Any]) -> None:
        """Writes a line and keeps it."""
        row = {"key": cell.key, **asdict(cell), **row, "load": os.getloadavg()[0]}
        row["commit"] = COMMIT
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[cell.key] = row


def prepare(args: argparse.Namespace) -> Path:
    """The data set: named, or the docs corpus with its own tokenizer."""
    if args.data is not None:
        return args.data.resolve()
    place = args.out / "data"
    if not (place / "manifest.json").exists():
        words = ["data", "prepare", "--source", "docs", "--out", str(place)]
        words += ["--tokenizer", "bpe", "--vocab-size", str(VOCAB)]
        gchat(words, harness.ROOT)
    return place


def check_same(out: Path, data: Path, nanochat: Path) -> None:
    """Stops where the folder's results are of other data, or of another nanochat or its rates."""
    from gchat.research.cells import data_hash
    from gchat.research.source_tree import code_at

    now = {"data": data_hash(str(data)), "nanochat": code_at(nanochat).said}
    now |= {"rates": RATES | {"decay": DECAY}}
    path = out / "of.json"
    if not path.exists():
        path.write_text(json.dumps(now) + "\n")
    for name, value in json.loads(path.read_text()).items():
        if now[name] != value:
            sys.exit(
                f"{name} is {now[name]}, and {out} holds results of {value}: name another --out"
            )


def gchat(words: list[str], tree: Path) -> None:
    """Runs a verb of the code in `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    if status := harness.finish([sys.executable, "-m", "gchat", *words], environment):
        sys.exit(f"gchat {words[0]} ended with status {status}")


def options(cell: Cell, data: Path, eval_tokens: int = EVAL_TOKENS) -> list[str]:
    """Words of `gchat train` for one of our cells."""
    from gchat.research import ideas

    preset = "baseline" if cell.side == "baseline" else "cpu"
    words = [preset, *(ideas.read("fast").options if cell.side == "fast" else ())]
    words += ["--data-dir", str(data), f"--training.tokens={cell.tokens}"]
    words += [f"--model.depth={DEPTH}", f"--model.dim={DIM}", f"--model.head-dim={DIM // HEADS}"]
    words += [f"--model.hidden={HIDDEN}", f"--model.seq-len={T}", "--model.compute-dtype=float32"]
    words += [f"--training.batch-size={cell.batch // T}", f"--training.seed={cell.seed}"]
    words += [
        f"--eval.tokens={eval_tokens}",
        "--eval.sample-tokens=1",
        "--training.loss-chunk=1024",
    ]
    if preset == "baseline":  # whose rates are meant for depth 12 and 524,288 tokens a step
        words += ["--optim.lr=0.004", "--optim.embed-lr=0.5", "--optim.head-lr=0.016"]
        words.append("--optim.warmup-steps=20")
    if cell.tokens < BUDGETS[0] // 2:  # --quick
        words.append("--optim.warmup-steps=2")
    if cell.scale != 1.0:
        from gchat.config import load

        optim = load(words, prog="curve").optim
        rates = {name: getattr(optim, name) for name in OUR_RATES}
        words += [
            f"--optim.{name.replace('_', '-')}={cell.scale * rate}"
            for name, rate in rates.items()
            if rate is not None
        ]
    return words


def train_ours(
    cell: Cell, data: Path, trees: dict[str, Path], folder: Path, eval_tokens: int
) -> dict[str, Any]:
    """Trains one of our cells; a run that was killed is resumed."""
    from gchat.run.series import read_series

    words = options(cell, data, eval_tokens)
    every = max(1, cell.tokens // cell.batch // POINTS)
    name = f"{cell.side}-{cell.tokens}-{cell.batch}-x{cell.scale:g}-s{cell.seed}-{COMMIT}"
    run = folder / name
    resume = ["--resume", "--allow-restart"] if (run / "config.yaml").exists() else []
    words += [f"--eval.every-steps={every}", "--run-dir", str(run), *resume]
    gchat(["train", *words], trees[cell.side])
    series = read_series(run / "metrics.jsonl")
    tokens = dict(series["train/tokens"])
    steps_ms = [value for _, value in series["perf/step_ms"]]
    curve = [[tokens.get(step, 0), value] for step, value in series["eval/val_bpb"]]
    seconds = statistics.median(steps_ms[3:]) * len(steps_ms) / 1000
    return {"bpb": curve[-1][1], "seconds": round(seconds, 1), "curve": curve}


def train_theirs(cell: Cell, args: argparse.Namespace, data: Path) -> dict[str, Any]:
    """Trains one of nanochat's cells in a process of its own."""
    rows = written_rows(cell, data, args.out)
    job = {"cell": asdict(cell), "rows": str(rows), "validation": str(args.out / "val.npz")}
    job |= {"compile": not args.quick, "points": 1 if args.quick else POINTS}
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(args.nanochat), str(harness.ROOT)]),
        "NANOCHAT_DTYPE": "float32",
        "OMP_WAIT_POLICY": "PASSIVE",  # where cores are shared, spinning threads wait for others
    }
    if args.quick:  # the optimizer compiles itself otherwise
        environment["TORCHDYNAMO_DISABLE"] = "1"
    worker = Path(__file__).with_name("curve_worker.py")
    command = [args.python, str(worker), json.dumps(job)]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, check=True)
    answers = [line for line in done.stdout.splitlines() if line.startswith("answer ")]
    return json.loads(answers[-1].removeprefix("answer "))


def written_rows(cell: Cell, data: Path, out: Path) -> Path:
    """The rows that our loader hands to this seed and batch, [steps, rows, T + 1], as a file."""
    import numpy as np

    from gaia.parallel import MeshConfig, make_mesh
    from gchat.config import load
    from gchat.run.training_data import TrainingData

    path = out / f"rows-{cell.tokens}-{cell.batch}-s{cell.seed}.npy"
    if path.exists():
        return path
    config = load(options(Cell("cpu", cell.tokens, cell.batch, 1.0, cell.seed), data))
    source = TrainingData(config.data)
    config, _ = source.derive(config)
    batches = iter(source.loader(config, 0, make_mesh(MeshConfig())))
    rows = []
    for _ in range(config.training.amounts.steps):
        batch = next(batches)
        rows.append(
            np.concatenate([batch.inputs_BT, batch.targets_BT[:, -1:]], 1).astype(np.uint16)
        )
    partial = path.with_suffix(".partial.npy")
    np.save(partial, np.stack(rows))
    partial.rename(path)
    return path


def write_validation(data: Path, out: Path, eval_tokens: int) -> None:
    """The windows that our validation scores, each in a row of its own, with bytes per target."""
    import numpy as np

    from gchat.config import load
    from gchat.evals import bpb
    from gchat.evals.periodic import validation_documents
    from gchat.run.training_data import TrainingData

    config = load(options(Cell("cpu", BUDGETS[0], BATCHES[0], 1.0, 1), data, eval_tokens))
    source = TrainingData(config.data)
    config, _ = source.derive(config)
    token_bytes = source.tokenizer.token_bytes()
    stride = max(1, round(T * config.eval.stride_fraction))
    rows = [w for d in validation_documents(config) for w in bpb.windows(np.asarray(d), T, stride)]
    inputs, targets = np.zeros((len(rows), T), np.int64), np.full((len(rows), T), -1, np.int64)
    for row, (tokens, skip) in enumerate(rows):
        n = len(tokens) - 1
        inputs[row, :n] = tokens[:-1]
        targets[row, skip:n] = tokens[1 + skip :]
    scored = np.where(targets >= 0, token_bytes[np.maximum(targets, 0)], 0)
    targets[scored == 0] = -1  # specials
    np.savez(out / "val.npz", inputs=inputs, targets=targets, bytes=scored.sum())


def our_params(data: Path) -> int:
    """Matmul parameters of our plain model."""
    from gchat.config import load
    from gchat.model_shape import matmul_params
    from gchat.run.training_data import TrainingData

    config = load(options(Cell("cpu", BUDGETS[0], BATCHES[0], 1.0, 1), data))
    return matmul_params(TrainingData(config.data).derive(config)[0].model)


def fast_tree(out: Path) -> Path:
    """This commit's code with the ideas of `fast`."""
    from gchat.research import worktrees

    return Path(worktrees.make_tree(harness.ROOT, "+fast", out / "code", None).code.path)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """`--quick`: ten steps of one cell of each side; nothing is concluded from it."""
    from gaia.runtime import stay_on_host
    from vs_nanochat import reason_to_skip

    stay_on_host()  # the trainings are processes of their own, and need the accelerator's memory
    args.out = args.out.resolve()
    if (reason := reason_to_skip(args)) is not None:
        print(f"skipped: {reason}")
        return {"rows": [], "tokens_ratio": None, "time_ratio": None, "skipped": reason}
    args.nanochat = args.nanochat.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if COMMIT.endswith("+") and not args.quick:
        sys.exit("this clone has uncommitted changes: commit them, so that results have a name")
    data, results = prepare(args), Results(args.out / "results.jsonl")
    check_same(args.out, data, args.nanochat)
    eval_tokens = QUICK_EVAL_TOKENS if args.quick else EVAL_TOKENS
    write_validation(data, args.out, eval_tokens)
    trees = {"fast": fast_tree(args.out), "cpu": harness.ROOT, "baseline": harness.ROOT}
    if args.quick:
        args.tokens, args.seeds, args.batches = (40_960,), args.seeds[:1], (4096,)
        args.rates = args.our_rates = (1.0,)

    def result(cell: Cell) -> dict[str, Any]:
        if not results.has(cell):
            print(f"{cell.side} {cell.tokens:,} tokens, {cell.batch:,} a step, x {cell.scale}, "
                  f"seed {cell.seed} …", flush=True)  # fmt: skip
            theirs = cell.side == "nanochat"
            row = (
                train_theirs(cell, args, data) if theirs
                else train_ours(cell, data, trees, args.out / "runs", eval_tokens)
            )  # fmt: skip
            results.add(cell, row)
            print(f"  {row['bpb']:.4f} bits per byte in {row['seconds']:.0f} s", flush=True)
        return results[cell]

    rows, budgets = [], []
    for tokens in args.tokens:
        trained = {side: train_side(side, tokens, args, result) for side in SIDES}
        params = trained["nanochat"][0]["matmul_params"]
        if abs(our_params(data) / params - 1) > 0.02:
            sys.exit(f"matmul parameters differ: ours {our_params(data):,}, nanochat's {params:,}")
        budgets.append(judged(tokens, trained["nanochat"], trained["fast"]))
        rows += [run for side in SIDES for run in trained[side]]
        print("\n".join(shown(tokens, trained)), flush=True)
    ratios = {name: budgets[-1][name] for name in ("tokens_ratio", "time_ratio")}
    return {"rows": rows, "budgets": budgets, **ratios, "params": {"ours": our_params(data)}}


def train_side(
    side: str, tokens: int, args: argparse.Namespace, result: Callable[[Cell], dict[str, Any]]
) -> list[dict[str, Any]]:
    """The runs of a side with all seeds, at the best batch and rates of its grid."""
    batches = args.batches if side == "nanochat" else (4096,)
    scales = {"nanochat": args.rates, "fast": args.our_rates}.get(side, (1.0,))
    share = SHARE if side == "fast" else 1.0
    first, *others = args.seeds
    grid = [
        Cell(side, round(tokens * share / batch) * batch, batch, scale, first)
        for batch in batches
        for scale in scales
    ]
    best = min(grid, key=lambda cell: result(cell)["bpb"]) if len(grid) > 1 else grid[0]
    return [result(replace(best, seed=seed)) for seed in (first, *others)]


def judged(tokens: int, theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Tells how early the mean curve of `fast` lies as low as nanochat's mean end."""
    bits = statistics.fmean(run["bpb"] for run in theirs)
    at = [point for point, _ in ours[0]["curve"]]
    means = [statistics.fmean(values) for values in zip(
        *([bpb for _, bpb in run["curve"]] for run in ours), strict=True)]  # fmt: skip
    reached = first_at_most(at, means, bits)
    ratios = {"tokens_ratio": None, "time_ratio": None}
    if reached is not None:
        faster = min(run["seconds"] for run in ours) / min(run["seconds"] for run in theirs)
        ratios["tokens_ratio"] = round(reached / theirs[0]["tokens"], 3)
        ratios["time_ratio"] = round(reached / ours[0]["tokens"] * faster, 3)
    return {"tokens": tokens, "nanochat_bpb": bits, "fast_bpb": means[-1], **ratios}


def first_at_most(at: list[float], values: list[float], limit: float) -> float | None:
    """Finds where a curve of straight lines first lies at `limit` or below; None: nowhere."""
    before: tuple[float, float] | None = None
    for place, value in zip(at, values, strict=True):
        if value <= limit:
            if before is None:
                return place
            slope = (value - before[1]) / (place - before[0])
            return before[0] + (limit - before[1]) / slope
        before = place, value
    return None


def shown(tokens: int, trained: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """One budget in lines."""
    yield f"{tokens:,} tokens"
    for side, runs in trained.items():
        bits = [run["bpb"] for run in runs]
        spread = f" ± {statistics.stdev(bits):.4f}" if len(bits) > 1 else ""
        yield (
            f"  {side:9} {statistics.fmean(bits):.4f}{spread} bits per byte after "
            f"{runs[0]['tokens']:,} tokens in {min(run['seconds'] for run in runs):.0f} s "
            f"({runs[0]['batch']:,} a step, rates x {runs[0]['scale']:g})"
        )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nanochat", type=Path, help="checkout of karpathy/nanochat")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has torch")
    parser.add_argument("--data", type=Path, help="prepared data set with 8,192 ids")
    parser.add_argument("--out", type=Path, default=Path("runs/curve_vs_nanochat"))
    parser.add_argument("--tokens", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument(
        "--batches", type=int, nargs="+", default=list(BATCHES), help="nanochat's tokens a step"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=list(SCALES), help="factors of nanochat's rates"
    )
    parser.add_argument(
        "--our-rates", type=float, nargs="+", default=list(OUR_SCALES),
        help="factors of the rates of `fast`",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])


if __name__ == "__main__":
    harness.run(main, __doc__, _arguments)
