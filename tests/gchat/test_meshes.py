"""Every style of sharding against one device: gradients, training, scoring and decoding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("eight_devices.py")
MESHES = {
    "fsdp_tensor_sequence": {"fsdp": 2, "tensor": 2, "sequence": 2, "grad_accum": 2},
    "data": {"replica": 8, "fsdp": 1},
    "fsdp": {},
    "tensor": {"fsdp": 1, "tensor": 2, "replica": 4},
    "fsdp_tensor": {"fsdp": 4, "tensor": 2},
    "sequence": {"fsdp": 1, "sequence": 4, "replica": 2},
    "two_slices": {"replica": 2, "fsdp": 4},
}
# Relative differences from one device, in the 2-norm. Sums run in another order, so fp32 differs
# in its last bits; a small leaf (a gain) cancels more of its sum than the whole gradient does.
# AdamW and Muon divide by quantities that may be tiny, so theirs may grow more.
BOUNDS = {
    "gradients": 1e-6,
    "each_gradient": 1e-5,
    "losses": 1e-5,
    "params": 1e-5,
    "packed_losses": 1e-5,
    "packed_params": 1e-5,
    "packed_gradients": 1e-6,
    "adapted_losses": 1e-5,
    "adapted_params": 1e-5,
    "adapted_gradients": 1e-4,  # adapters as large as their matrices: most of a sum cancels
    "ramp_losses": 1e-5,
    "ramp_params": 1e-5,
    "ramp_gradients": 1e-6,
    "adamw_losses": 1e-5,
    "adamw_params": 1e-4,
    "muon_losses": 1e-5,
    "muon_params": 1e-4,
    "nats": 1e-5,
    "scores": 1e-5,
}


NOT_IN_FEW = ("adapted_", "ramp_", "adamw_")


def differences(*names: str, options: tuple[str, ...] = ()) -> dict[str, dict]:
    """The output of `eight_devices.py`, by mesh."""
    command = [sys.executable, str(SCRIPT), *options, *(json.dumps(MESHES[n]) for n in names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(names, lines, strict=True))


def check(found: dict[str, dict], bounds: dict[str, float] = BOUNDS) -> None:
    wrong = {
        (mesh, what): line[what]
        for mesh, line in found.items()
        for what, bound in bounds.items()
        if not line[what] <= bound
    }
    assert not wrong
    assert all(line["same_tokens"] for line in found.values())


def test_all_axes_at_once():
    few = {what: bound for what, bound in BOUNDS.items() if not what.startswith(NOT_IN_FEW)}
    check(differences("fsdp_tensor_sequence", options=("--few",)), few)


@pytest.mark.slow
def test_every_style():
    check(differences(*MESHES))
