"""Memory that a device has free, as its driver or the operating system says."""

from pathlib import Path
from typing import Any

import jax

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def free_memory(device: Any) -> int:
    """Bytes of a device that a program may still take; of a CPU device, its share of the host's.

    Args:
        device: of JAX.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    return _host_memory() // max(1, jax.local_device_count())


def _host_memory() -> int:
    """Bytes that a process may still take: what Linux has available, within a container's limit."""
    free = [int(line.split()[1]) * 1024 for line in _lines(MEMINFO) if line[:13] == "MemAvailable:"]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _lines(CGROUP / limit), _lines(CGROUP / used)
        if most and now and most[0].isdigit():
            free.append(max(0, int(most[0]) - int(now[0])))
    return min(free, default=1 << 33)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
