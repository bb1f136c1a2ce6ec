"""XLA compiler options by chip, from those published for dense decoder training. Dated 2026-11-20.

They travel with the program as `compiler_options` of `jax.jit`, chosen by the device kind it is
compiled for: an AOT compilation sees what a real run sees, and no environment is written.
None of them has been timed on hardware by this project; tests check that the pinned compiler
takes each one (`tests/gchat/test_aot.py`).

Sources: MaxText `benchmarks/xla_flags_library.py` and `configs/tpu` (AI-Hypercomputer/maxtext
e591f30c, 2026-08-22), tpu-recipes `training/ironwood` (c8cfe2f6, 2026-08-07).
"""

_ASYNC_COLLECTIVES = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
}
"""Gathers of weights run behind the products before them (MaxText: every TPU from v5e on)."""

_DATA_PARALLEL = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
"""Sums over replicas are combined and overlapped (MaxText: the same)."""

_FUSION_MEMORY = "xla_tpu_scoped_vmem_limit_kib"

TPU: dict[str, dict[str, str]] = {
    "v5e": _ASYNC_COLLECTIVES | _DATA_PARALLEL,
    "v5p": _ASYNC_COLLECTIVES | _DATA_PARALLEL,
    # More of the on-chip memory for fusions. MaxText publishes 98304 for dense models on Trillium;
    # by the compiler's own cycle counts that gains our step nothing over 65536 and takes 1.6 times
    # as long to compile (gchat/EXPERIMENTS.md, "what the TPU compiler says of the step's time").
    "v6e": _ASYNC_COLLECTIVES | _DATA_PARALLEL | {_FUSION_MEMORY: "65536"},
    "tpu7x": _ASYNC_COLLECTIVES | {_FUSION_MEMORY: "65536"},
}
"""Chip names are those of `gaia/hardware.toml`."""


def compiler_options(chip: str | None) -> dict[str, str]:
    """Options for programs on this chip; none where nothing is published."""
    return dict(TPU.get(chip or "", {}))


def checking_options(chip: str | None) -> dict[str, str]:
    """Changes to `compiler_options` for a program that is compiled and never run.

    Less memory for fusions makes smaller fusions: half the code to generate. HBM's peak moves with
    it by up to 2% (the plan's programs, gchat/EXPERIMENTS.md), so it is not the one to report.
    """
    return {_FUSION_MEMORY: "24576"} if _FUSION_MEMORY in compiler_options(chip) else {}
