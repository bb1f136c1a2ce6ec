"""The only place that sets JAX and XLA flags and the compile cache. (`gaia/processes/group.py`
starts JAX's processes before it, and sets what concerns them.)

Entry points call `start()` once, before any array exists; nothing else in gaia writes the
environment.
"""

import contextlib
import ctypes
import logging
import os
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from gaia.errors import ConfigError
from gaia.hardware import chip_of_device_kind
from gaia.storage import home

CPUINFO = Path("/proc/cpuinfo")
PCI = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
_TPUS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")
"""TPUs among Google's PCI devices, as JAX's hardware_utils lists them."""
# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Machine:
    """The hardware of this process, as JAX sees it."""

    platform: str
    """`cpu`, `gpu` or `tpu`."""
    device_kind: str
    devices: int
    """Devices of all processes."""
    process_index: int
    process_count: int


def accelerator_hardware() -> str | None:
    """Names accelerator hardware visible to the operating system, whatever JAX thinks of it."""
    if os.path.exists("/dev/nvidia0") or os.path.exists("/dev/nvidiactl"):
        return "an NVIDIA GPU"
    if os.path.exists("/dev/accel0") or os.environ.get("TPU_ACCELERATOR_TYPE") or _tpu_on_pci():
        return "a TPU"
    return None


def _tpu_on_pci() -> bool:
    """Tells whether the PCI bus has a TPU: those that vfio drives have no /dev/accel0."""

    def is_tpu(device: Path) -> bool:
        with contextlib.suppress(OSError):
            return (device / "vendor").read_text().strip() == _GOOGLE and (
                device / "device"
            ).read_text().strip() in _TPUS
        return False

    return any(is_tpu(device) for device in PCI.glob("*"))


def only_cpu() -> bool:
    """Tells whether no device file or variable speaks of an accelerator."""
    devices = ("accel*", "vfio/[0-9]*", "nvidia*", "dxg", "kfd")
    variables = ("TPU_ACCELERATOR_TYPE", "TPU_NAME", "JAX_FORCE_TPU_INIT")
    return not any(
        [name in os.environ for name in variables]
        + [any(Path("/dev").glob(pattern)) for pattern in devices]
    )


def start(
    *, matmul_precision: str = "default", compile_cache: bool = True, tell: bool = True
) -> Machine:
    """Configures JAX for this machine and returns it.

    Args:
        matmul_precision: `default`, `high` or `highest`, as `jax.default_matmul_precision`.
        compile_cache: keep compiled programs under `$GAIA_HOME/xla` between runs.
        tell: say on stderr where JAX has taken the CPU of a machine with an accelerator, though
            nobody asked for that. It does so in silence where another process holds the TPU.

    Raises:
        ConfigError: the precision is not one JAX knows.
    """
    # Orbax reports a failed save with tracebacks through absl; the caller gets the exception too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    # XLA's logger would print a banner for each compile; errors still come through.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    chosen = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if not chosen and find_spec("libtpu") and only_cpu():
        # libtpu (of the extra `aot`) writes five lines to stderr where it meets no TPU.
        jax.config.update("jax_platforms", "cpu")
    if matmul_precision not in ("default", "high", "highest"):
        raise ConfigError(
            f"model.matmul_precision is {matmul_precision!r}", "use default, high or highest"
        )
    jax.config.update("jax_default_matmul_precision", matmul_precision)
    # Keys must not depend on how arrays are sharded, or a resume on another mesh would differ.
    jax.config.update("jax_threefry_partitionable", True)
    if compile_cache:
        jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    device = jax.devices()[0]
    if device.platform == "cpu":
        _keep_heap()
        if tell and not chosen and (hardware := accelerator_hardware()):
            _tell_of_cpu(hardware)
    return Machine(
        device.platform,
        device.device_kind,
        jax.device_count(),
        jax.process_index(),
        jax.process_count(),
    )


@cache
def _tell_of_cpu(hardware: str) -> None:
    """Says once what becomes of the accelerator."""
    print(
        f"gaia: this machine has {hardware}, and JAX has come up on the CPU: another process may "
        "hold it, or its driver or plugin is missing (JAX_PLATFORMS=cpu asks for the CPU)",
        file=sys.stderr,
        flush=True,
    )


def stay_on_host() -> None:
    """Keeps JAX to the CPU in a process that only reckons, and takes no accelerator's memory.

    Without effect after JAX has started.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")


def _keep_heap() -> None:
    """Makes glibc keep the pages of freed buffers instead of returning them to the system.

    XLA on CPU allocates a step's buffers anew each time; by default glibc maps and unmaps each
    large one, and faulting its pages in costs as much as a matrix product that fills it (91
    against 156 GFLOP/s for 1024 x 256 x 8192). Elsewhere than on glibc this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 64 << 20)


def has_amx() -> bool:
    """Tells whether the CPU multiplies bf16 matrices in tiles (Intel's AMX), by Linux's flags."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return any("amx_bf16" in line.split() for line in text.splitlines() if line.startswith("flags"))


def peak_flops(machine: Machine, dtype: str) -> tuple[float, str]:
    """FLOP/s that a model-FLOPs utilisation is measured against, and where the figure is from.

    Known chips: the maker's dense bf16 peak, times devices. Elsewhere (CPUs): the best of five
    large matrix products of `dtype`, timed here and now.
    """
    chip = chip_of_device_kind(machine.device_kind)
    if chip is not None:
        peak = chip.flops_per_device * machine.devices
        return peak, f"{machine.devices} x {chip.name} bf16 peak"
    import jax
    import jax.numpy as jnp

    n = 1536
    product = jax.jit(jnp.matmul)
    a = jnp.ones((n, n), dtype)
    product(a, a).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        product(a, a).block_until_ready()
        times.append(time.perf_counter() - began)
    return 2 * n**3 / min(times), f"a {n}x{n} {dtype} matrix product on this machine"
