"""lm_eval on local task files over a run's weights, in a Python with lm_eval.

    PYTHON lm_eval_core.py RUN FOLDER OUR_SITE_PACKAGES

FOLDER holds copa.jsonl and lambada.jsonl (items as the bundle has them). The LM is a plain one:
each request forwarded by itself, whole. Prints {"copa": [right …], "lambada": [right …]}.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[4]


def task(name, folder, **fields):
    files = {"test": str(Path(folder) / f"{name}.jsonl")}
    return {
        "task": f"gaia_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **fields,
    }


def main():
    run_dir, folder, packages = sys.argv[1:]
    import lm_eval  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

    sys.path += [packages]
    sys.path[:0] = [str(ROOT)]
    import jax
    import numpy as np
    from flax import nnx

    from gchat.run.loading import load_run

    run = load_run(run_dir)
    seq_len = run.config.model.seq_len

    @jax.jit
    def log_probs(params, tokens_BT):
        model = nnx.merge(run.graph, params)
        return jax.nn.log_softmax(model.logits(model(tokens_BT)[0]), axis=-1)

    class Plain(LM):
        def loglikelihood(self, requests):
            return [self._one(*request.args) for request in requests]

        def _one(self, context, continuation):
            alone = [run.tokenizer.bos_id, *run.tokenizer.encode(context)]
            whole = [run.tokenizer.bos_id, *run.tokenizer.encode(context + continuation)]
            tokens, begin = whole[-seq_len:], len(alone) - max(0, len(whole) - seq_len)
            row = np.zeros((1, seq_len), np.int32)
            row[0, : len(tokens)] = tokens
            log_p = np.asarray(log_probs(run.params, row))[0]
            at = range(begin, len(tokens))
            total = sum(float(log_p[t - 1, tokens[t]]) for t in at)
            return total, all(int(log_p[t - 1].argmax()) == tokens[t] for t in at)

        def loglikelihood_rolling(self, requests):
            raise NotImplementedError

        def generate_until(self, requests):
            raise NotImplementedError

    copa = task(
        "copa", folder, output_type="multiple_choice", doc_to_text="{{query}}",
        doc_to_choice="{{choices}}", doc_to_target="{{gold}}",
    )  # fmt: skip
    lambada = task(
        "lambada", folder, output_type="loglikelihood", doc_to_text="{{context.strip()}}",
        doc_to_target="{{' ' + continuation}}",
    )  # fmt: skip
    done = lm_eval.simple_evaluate(
        Plain(), tasks=[copa, lambada], num_fewshot=0, log_samples=True, bootstrap_iters=0
    )
    right = {}
    for name in ("copa", "lambada"):
        samples = sorted(done["samples"][f"gaia_{name}"], key=lambda sample: sample["doc_id"])
        right[name] = [bool(sample["acc"]) for sample in samples]
    print(json.dumps(right))


if __name__ == "__main__":
    main()
