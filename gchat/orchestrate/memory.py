"""Memory of the accelerator, read back between two turns; nothing where there is no NVIDIA GPU."""

import time
from collections.abc import Callable
from typing import Any

TOLERANCE_MIB, PATIENCE_S = 256, 60.0


def reader() -> Callable[[], list[int]] | None:
    """A function that gives the used MiB of each GPU; None where NVML or a GPU is missing."""
    try:
        import pynvml  # nvidia-ml-py

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception:  # no package, no library, no driver, no GPU: each has an error of its own
        return None
    if not count:
        return None
    nvml: Any = pynvml
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
    return lambda: [int(nvml.nvmlDeviceGetMemoryInfo(one).used) >> 20 for one in handles]


def wait_until_back(
    read: Callable[[], list[int]], before: list[int], patience_s: float = PATIENCE_S
) -> tuple[bool, list[int]]:
    """Waits until no GPU holds much more than before a turn.

    Returns:
        Whether that came to be, and the used MiB of each GPU.
    """
    until = time.monotonic() + patience_s
    while True:
        now = read()
        back = all(a <= b + TOLERANCE_MIB for a, b in zip(now, before, strict=True))
        if back or time.monotonic() >= until:
            return back, now
        time.sleep(0.2)
