"""nanochat's side of `curve_vs_nanochat.py`: one training in an interpreter that has torch.

TORCH_PYTHON curve_worker.py JOB    with nanochat on PYTHONPATH; JOB is JSON
"""

import json
import statistics
import sys
import time
from typing import Any

from curve_vs_nanochat import DECAY, DEPTH, DIM, HEADS, RATES, VOCAB, T


def work(job: dict[str, Any]) -> None:
    """The worker: nanochat's model, optimizer and schedules on our rows, as its base_train does."""
    import math

    import numpy as np
    import torch
    from nanochat.gpt import GPT, GPTConfig

    cell, rows = job["cell"], np.load(job["rows"])
    torch.manual_seed(cell["seed"])
    config = GPTConfig(
        sequence_len=T, vocab_size=VOCAB, n_layer=DEPTH, n_head=HEADS, n_kv_head=HEADS,
        n_embd=DIM, window_pattern="L",
    )  # fmt: skip
    model = GPT(config)
    model.init_weights()
    rates = {name: rate * cell["scale"] for name, rate in RATES.items()}
    optimizer = model.setup_optimizer(weight_decay=DECAY, **rates)
    run = torch.compile(model, dynamic=False) if job["compile"] else model
    steps, micro = len(rows), min(rows.shape[1], 8)
    warm, down = 40, round(0.65 * steps)
    curve, times = [], []
    for step in range(steps):
        if step % max(1, steps // job["points"]) == 0:
            curve.append([step * cell["batch"], validation(run, job["validation"], micro)])
            _say(*curve[-1], left_s=statistics.median(times) * (steps - step) if times else None)
        began = time.perf_counter()
        for part in np.split(rows[step].astype(np.int64), rows.shape[1] // micro):
            tokens = torch.from_numpy(part)
            loss = run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
            (loss / (rows.shape[1] // micro)).backward()
        left = (steps - step) / down
        share = (step + 1) / warm if step < warm else 1.0 if left >= 1 else left + (1 - left) * 0.05
        momentum = 0.85 + 0.12 * min(1, step / 400)
        if step >= 400 and left < 1:
            momentum = 0.97 * left + 0.90 * (1 - left)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share
            if group["kind"] == "muon":
                group["momentum"] = momentum
                group["weight_decay"] = DECAY * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        model.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    curve.append([steps * cell["batch"], validation(run, job["validation"], micro)])
    seconds = statistics.median(times[3:]) * steps
    answer = {"bpb": curve[-1][1], "seconds": round(seconds, 1), "curve": curve}
    print("answer " + json.dumps(answer | {"matmul_params": model.num_matmul_params()}), flush=True)


def _say(tokens: int, bpb: float, left_s: float | None) -> None:
    """One line of progress; standard output holds the answer alone."""
    left = "" if left_s is None else f"  ETA {int(left_s) // 60}:{int(left_s) % 60:02}"
    print(f"  {tokens:,} tokens  val {bpb:.4f} bpb{left}", file=sys.stderr, flush=True)


def validation(model: Any, path: str, rows: int) -> float:
    """Bits per byte of the windows."""
    import math

    import numpy as np
    import torch

    kept, nats = np.load(path), 0.0
    inputs, targets = kept["inputs"], kept["targets"]
    with torch.no_grad():
        for at in range(0, len(inputs), rows):
            part, wanted = inputs[at : at + rows], targets[at : at + rows]
            fill = rows - len(part)  # one shape to compile
            part, wanted = (
                np.pad(a, ((0, fill), (0, 0)), constant_values=v)
                for a, v in ((part, 0), (wanted, -1))
            )
            loss = model(torch.from_numpy(part), torch.from_numpy(wanted), loss_reduction="sum")
            nats += float(loss)
    return nats / (math.log(2) * float(kept["bytes"]))


if __name__ == "__main__":
    work(json.loads(sys.argv[1]))
