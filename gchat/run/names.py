"""Names of metrics and of summary keys, in one list: a name that is not here is not logged."""

VAL_BPB = "eval/val_bpb"
CORE = "eval/core_v1"
CORE_TASK = "eval/core/"

METRICS = {
    "train/loss": "Loss of the step's batch, nats per target",
    "train/grad_norm": "Norm of the gradient before clipping",
    "train/lr_share": "Learning rates as a share of their peaks",
    "train/skipped": "1 where the update was left out (guards.policy skip)",
    "train/tokens": "Tokens seen so far",
    "train/flops": "Model FLOPs spent so far",
    "train/seconds": "Seconds of the run so far, evaluation and saving included",
    "perf/step_ms": "Milliseconds from the step before to this one",
    "perf/tokens_per_s": "Tokens per second",
    "perf/mfu": "Model FLOPs per second as a share of the peak",
    "perf/data_wait_ms": "Milliseconds that the loop waited for its batch",
    "perf/data_wait_share": "The same as a share of the step",
    "data/fill": "Share of positions with a target, of packed rows",
    "data/examples": "Documents, or pieces of them, in a packed batch",
    "data/tokens/*": "Tokens seen of a source of the mixture",
    "data/epochs/*": "Times a source of the mixture was seen",
    "data/fetch_bytes_per_s": "Bytes per second that came from the bucket",
    "data/cache_hits": "Shards found in the cache so far",
    "data/cache_misses": "Shards fetched so far",
    "run/cost_per_hour": "US dollars per hour of the machine",
    "eval/*_bpb": "Bits per byte of a text",
    "eval/*_loss": "Nats per token of a text",
    "eval/*_perplexity": "Perplexity of a text",
    "eval/core_v1": "CORE with nanochat's baselines, on eval.core_max_per_task items a task",
    "eval/core_v2": "The same with DCLM's corrected baselines",
    "eval/core/*": "Accuracy of a task of CORE",
}
"""Metrics by name, with their meaning; `*` stands for a name that the user or the data gives."""

SUMMARY = {
    "preset": "Name of the run (run.name)",
    "run_dir": "Folder of the run",
    "finished": "True if the last step was reached and saved",
    "device": "Number and kind of devices",
    "params": "All parameters",
    "matmul_params": "Parameters that multiply activations",
    "steps": "Steps in the log",
    "tokens": "Tokens of those steps",
    "epochs": "Times that the whole run sees its training tokens",
    "seconds": "Seconds of the run over all attempts",
    "tokens_per_s": "Median tokens per second",
    "mfu": "Median share of the peak",
    "mfu_peak": "Peak that the share is taken of, and its source",
    "data_wait_share": "Share of step time spent waiting for batches",
    "packing": "Packing of documents into rows (data.packing)",
    "fill": "Mean share of positions with a target, of packed rows",
    "examples_per_step": "Mean number of documents in a packed batch",
    "train_loss": "Loss of the last step, nats per target",
    "val_bpb": "Last validation, bits per byte",
    "val_loss": "Last validation, nats per token",
    "unigram_bpb": "Bits per byte of a unigram model of the same tokens",
    "bigram_bpb": "Bits per byte of a bigram model of the same tokens",
    "seconds_to_target_bpb": "Seconds until validation first reached run.target_bpb",
    "core_v1": "Last CORE while training, nanochat's baselines",
    "core_v2": "The same with DCLM's corrected baselines",
    "seconds_to_target_core": "Seconds until CORE first reached run.target_core",
    "cost_usd": "US dollars at run.price_per_hour",
    "commit": "Commit of the code, with + where the tree had changes",
    "checkpoint": "Newest checkpoint",
    "dashboard": "Address of the run's dashboard",
}
"""Keys of summary.json, with their meaning."""
