"""The metric names that dashboards, alerts and reports look for. Any other name works as well."""

LOSS = "train/loss"
BPB = "val/bpb"
LR = "train/lr"
GRAD_NORM = "train/grad_norm"
TOKENS = "train/tokens"  # cumulative
FLOPS = "train/flops"  # cumulative
TOKENS_PER_S = "train/tokens_per_s"
MFU = "train/mfu"  # 0..1
STEP_S = "time/step_s"  # a step's wall time
DATA_S = "time/data_s"  # of it, waiting for data; any other time/*_s is drawn beside it
COST = "run/cost_per_hour"  # US dollars
CORE = "eval/core"
CHATCORE = "eval/chatcore"
SAMPLES = "samples"  # a text

X_AXES = {"step": None, "tokens": TOKENS, "flops": FLOPS, "time": None}
