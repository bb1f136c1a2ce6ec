"""nanochat's own core_eval.py over a run's weights, one example at a time, in a Python with torch.

    PYTHON nanochat_core.py NANOCHAT RUN BUNDLE ITEMS OUR_SITE_PACKAGES TASK…

prints a line of JSON for each task: right or wrong by item. The model is a callable that hands
nanochat the logits of ours; jax comes from our own packages, torch and jinja2 from this Python's.
"""

import importlib.util
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]


def main():
    nanochat, run_dir, bundle, items, packages, *names = sys.argv[1:]
    import torch  # pyright: ignore[reportMissingImports]

    sys.path += [packages]
    sys.path[:0] = [str(ROOT)]
    import jax
    import numpy as np
    from flax import nnx

    from gchat.evals.core.tasks import TASKS
    from gchat.run.loading import load_run

    spec = importlib.util.spec_from_file_location("core_eval", f"{nanochat}/core_eval.py")
    assert spec is not None and spec.loader is not None
    core_eval = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core_eval)
    run = load_run(run_dir)

    @jax.jit
    def logits(params, tokens_BT):
        model = nnx.merge(run.graph, params)
        return model.logits(model(tokens_BT)[0])

    class Model:
        max_seq_len = run.config.model.seq_len

        def __call__(self, input_ids):
            ids = input_ids.numpy().astype(np.int32)
            B, T = ids.shape
            padded = np.zeros((B, -(-T // 128) * 128), np.int32)
            padded[:, :T] = ids
            result = np.asarray(logits(run.params, padded))[:, :T]
            return torch.from_numpy(result[:, :, : run.tokenizer.vocab_size].copy())

    class Encoder:
        def get_bos_token_id(self):
            return run.tokenizer.bos_id

        def __call__(self, texts, prepend):
            return [[prepend, *run.tokenizer.encode(text)] for text in texts]

    for task in (task for task in TASKS if task.name in names):
        text = Path(bundle, "eval_data", f"{task.file}.jsonl").read_text(encoding="utf-8")
        # Only "\n" ends a line; splitlines would cut texts at other separators.
        data = [json.loads(line) for line in text.split("\n") if line.strip()]
        random.Random(1337).shuffle(data)  # as scripts/base_eval.py does
        data = data[: int(items)]
        meta = {
            "task_type": task.kind,
            "num_fewshot": task.shots,
            "continuation_delimiter": task.delimiter,
        }
        right = [
            bool(core_eval.evaluate_example(i, Model(), Encoder(), data, "cpu", meta))
            for i in range(len(data))
        ]
        print(json.dumps({"task": task.name, "right": right}), flush=True)


if __name__ == "__main__":
    main()
