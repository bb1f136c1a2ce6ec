"""The metric names that dashboards, alerts and reports look for. Any other name works as well."""

LOSS = "train/loss"
BPB = "eval/val_bpb"
LR = "train/lr"
GRAD_NORM = "train/grad_norm"
TOKENS = "train/tokens"  # cumulative
FLOPS = "train/flops"  # cumulative
TOKENS_PER_S = "perf/tokens_per_s"
MFU = "perf/mfu"  # 0..1
STEP_MS = "perf/step_ms"  # a step's wall time
DATA_MS = "perf/data_wait_ms"  # of it, waiting for data; any other perf/*_ms is a part as well
COST = "run/cost_per_hour"  # US dollars
CORE = "eval/core_v1"
CHATCORE = "eval/chatcore"
SAMPLES = "samples"  # a text

X_AXES = {"step": None, "tokens": TOKENS, "flops": FLOPS, "time": None}
