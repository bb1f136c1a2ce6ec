"""System metrics of one process: CPU, memory, disk, network, NVIDIA, TPU, device memory.

Each source is optional and asked only while it answers; names follow OpenTelemetry's semantic
conventions where there is one. Rates are per second since the sample before. Utilizations are 0..1.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

Values = dict[str, float]

# libtpu's monitoring SDK (libtpu.sdk.tpumonitoring): metric -> (our name, factor).
_TPU = {
    "duty_cycle_pct": ("hw.tpu.{}.duty_cycle", 0.01),
    "tensorcore_util": ("hw.tpu.{}.tensorcore_utilization", 0.01),
    "hbm_capacity_usage": ("hw.tpu.{}.memory.usage", 1.0),
    "hbm_capacity_total": ("hw.tpu.{}.memory.limit", 1.0),
}


GIVE_UP_AFTER = 30


class Sampler:
    """Takes samples; a source that fails GIVE_UP_AFTER times in a row is left out from then on.

    A single failure means nothing: libtpu answers only once the TPU's runtime is up.

    Args:
        devices: gives objects with jax.Device's `id` and `memory_stats()`; asked at each sample,
            as devices become known only once training runs.
    """

    def __init__(self, devices: Callable[[], Iterable[Any]] = tuple) -> None:
        self._devices = devices
        self._before: dict[str, tuple[float, float]] = {}
        self._sources: dict[Callable[[], Values], int] = {}  # with its failures in a row
        for build in (self._host, self._nvidia, self._tpu):
            source = None
            with contextlib.suppress(Exception):  # not installed, no such device, no driver
                source = build()
            if source is not None:
                self._sources[source] = 0
        self._sources[self._device_memory] = 0

    def sample(self) -> Values:
        """Take one sample of everything that answers."""
        values: Values = {}
        for source, failures in list(self._sources.items()):
            try:
                values |= source()
                self._sources[source] = 0
            except Exception:
                self._sources[source] = failures + 1
                if failures + 1 == GIVE_UP_AFTER:
                    del self._sources[source]
        return values

    def _rate(self, name: str, total: float) -> Values:
        now = time.monotonic()
        then, before = self._before.get(name, (0.0, 0.0))
        self._before[name] = (now, total)
        if not then or now <= then:
            return {}
        return {name: max(0.0, total - before) / (now - then)}

    def _host(self) -> Callable[[], Values]:
        psutil: Any = importlib.import_module("psutil")
        process = psutil.Process()
        psutil.cpu_percent()
        process.cpu_percent()

        def read() -> Values:
            memory = psutil.virtual_memory()
            values = {
                "system.cpu.utilization": psutil.cpu_percent() / 100,
                "system.memory.utilization": memory.percent / 100,
                "system.memory.usage": float(memory.used),
                "system.filesystem.utilization": psutil.disk_usage(os.getcwd()).percent / 100,
                "process.cpu.utilization": process.cpu_percent() / 100,
                "process.memory.usage": float(process.memory_info().rss),
                "process.thread.count": float(process.num_threads()),
            }
            disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
            if disk is not None:
                values |= self._rate("system.disk.read", disk.read_bytes)
                values |= self._rate("system.disk.write", disk.write_bytes)
            if net is not None:
                values |= self._rate("system.network.receive", net.bytes_recv)
                values |= self._rate("system.network.transmit", net.bytes_sent)
            return values

        return read

    def _nvidia(self) -> Callable[[], Values] | None:
        """NVML through nvidia-ml-py (imported as pynvml)."""
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]

        def read() -> Values:
            values: Values = {}
            for i, handle in enumerate(handles):
                memory = nvml.nvmlDeviceGetMemoryInfo(handle)
                values |= {
                    f"hw.gpu.{i}.utilization": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                    f"hw.gpu.{i}.memory.usage": float(memory.used),
                    f"hw.gpu.{i}.memory.limit": float(memory.total),
                }
                with contextlib.suppress(Exception):  # a partition (MIG) may refuse these two
                    values[f"hw.gpu.{i}.power"] = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
                    temperature = nvml.nvmlDeviceGetTemperature(handle, 0)
                    values[f"hw.gpu.{i}.temperature"] = float(temperature)
            return values

        return read if handles else None

    def _tpu(self) -> Callable[[], Values] | None:
        if not tpu_is_here():
            return None
        monitoring: Any = importlib.import_module("libtpu.sdk").tpumonitoring
        supported = set(monitoring.list_supported_metrics())
        wanted = {key: value for key, value in _TPU.items() if key in supported}

        def read() -> Values:
            values: Values = {}
            for key, (name, factor) in wanted.items():
                with contextlib.suppress(Exception):  # each metric answers, or not, by itself
                    for i, item in enumerate(monitoring.get_metric(key).data()):
                        with contextlib.suppress(ValueError):
                            values[name.format(i)] = float(item) * factor
            return values

        return read if wanted else None

    def _device_memory(self) -> Values:
        """Ask JAX's allocator: the fallback where no vendor library answers."""
        values: Values = {}
        for device in self._devices():
            stats: dict = {}
            with contextlib.suppress(Exception):  # another process's device
                stats = device.memory_stats() or {}
            for key, name in (
                ("bytes_in_use", "usage"),
                ("peak_bytes_in_use", "peak"),
                ("bytes_limit", "limit"),
            ):
                if key in stats:
                    values[f"hw.device.{device.id}.memory.{name}"] = float(stats[key])
        return values


def tpu_is_here() -> bool:
    """Return True where the system shows a TPU; without one an installed libtpu complains aloud."""
    return bool(glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"))
