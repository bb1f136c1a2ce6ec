"""System metrics: the host for real, NVIDIA, TPU and JAX devices through stand-ins."""

import sys
import time
import types

import pytest

import gaia_metrics
from gaia_metrics.recording.system import GIVE_UP_AFTER, Sampler
from gaia_metrics.storage import segments


@pytest.fixture
def nvml(monkeypatch):
    module = types.ModuleType("pynvml")
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda i: i
    module.nvmlDeviceGetMemoryInfo = lambda h: types.SimpleNamespace(used=10 + h, total=100)
    module.nvmlDeviceGetUtilizationRates = lambda h: types.SimpleNamespace(gpu=50)
    module.nvmlDeviceGetPowerUsage = lambda h: 300_000
    module.nvmlDeviceGetTemperature = lambda h, sensor: 60
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


@pytest.fixture
def tpu(monkeypatch):
    data = {
        "duty_cycle_pct": ["90.0", "80.0"],
        "tensorcore_util": ["40.0"],
        "hbm_capacity_usage": ["1000"],
        "hbm_capacity_total": ["2000"],
    }
    monitoring = types.SimpleNamespace(
        list_supported_metrics=lambda: [*data, "hlo_queue_size"],
        get_metric=lambda name: types.SimpleNamespace(data=lambda: data[name]),
    )
    sdk = types.ModuleType("libtpu.sdk")
    sdk.tpumonitoring = monitoring
    monkeypatch.setitem(sys.modules, "libtpu", types.ModuleType("libtpu"))
    monkeypatch.setitem(sys.modules, "libtpu.sdk", sdk)
    monkeypatch.setattr("gaia_metrics.recording.system.tpu_is_here", lambda: True)


class Device:
    """A stand-in that looks as a jax.Device does."""

    id = 3

    def memory_stats(self):
        return {"bytes_in_use": 7, "peak_bytes_in_use": 9, "bytes_limit": 100, "other": 1}


def test_host():
    sampler = Sampler()
    sampler.sample()
    time.sleep(0.2)
    values = sampler.sample()
    assert 0 <= values["system.cpu.utilization"] <= 1
    assert values["process.memory.usage"] > 1e6
    assert values["system.network.receive"] >= 0


def test_nvidia_and_a_card_that_goes_away(nvml):
    sampler = Sampler()
    values = sampler.sample()
    assert values["hw.gpu.1.memory.usage"] == 11 and values["hw.gpu.0.utilization"] == 0.5
    assert values["hw.gpu.0.power"] == 300 and values["hw.gpu.0.temperature"] == 60

    def gone(handle):
        raise RuntimeError("GPU is lost")

    answers, nvml.nvmlDeviceGetMemoryInfo = nvml.nvmlDeviceGetMemoryInfo, gone
    values = sampler.sample()
    assert "system.cpu.utilization" in values and not any("gpu" in name for name in values)
    nvml.nvmlDeviceGetMemoryInfo = answers
    assert "hw.gpu.0.utilization" in sampler.sample()  # one failure means nothing
    nvml.nvmlDeviceGetMemoryInfo = gone
    for _ in range(GIVE_UP_AFTER):
        sampler.sample()
    nvml.nvmlDeviceGetMemoryInfo = answers
    assert not any("gpu" in name for name in sampler.sample())


def test_tpu(tpu):
    values = Sampler().sample()
    assert values["hw.tpu.1.duty_cycle"] == 0.8
    assert values["hw.tpu.0.tensorcore_utilization"] == 0.4
    assert values["hw.tpu.0.memory.limit"] == 2000


def test_a_tpu_that_comes_up_later(tpu, monkeypatch):
    monitoring = sys.modules["libtpu.sdk"].tpumonitoring
    get = monitoring.get_metric

    def not_yet(name):
        raise RuntimeError("no runtime")

    monitoring.get_metric = not_yet
    sampler = Sampler()
    assert not any("tpu" in name for name in sampler.sample())
    monitoring.get_metric = lambda name: not_yet(name) if name == "duty_cycle_pct" else get(name)
    values = sampler.sample()
    assert values["hw.tpu.0.memory.usage"] == 1000 and "hw.tpu.0.duty_cycle" not in values


def test_device_memory_is_the_fallback():
    class Elsewhere(Device):
        def memory_stats(self):
            raise RuntimeError("not addressable")

    values = Sampler(lambda: [Device(), Elsewhere()]).sample()
    assert values["hw.device.3.memory.usage"] == 7 and values["hw.device.3.memory.limit"] == 100


def test_instruments_of_the_sdk_record_into_the_run(tmp_path):
    run = gaia_metrics.init("p", "sdk", dir=tmp_path / "sdk", system_interval=0)
    meter = run.meter_provider.get_meter("mine")
    counter = meter.create_counter("documents")
    counter.add(5, {"route": "/a"})
    counter.add(7, {"route": "/b"})
    meter.create_gauge("queue").set(3)
    latency = meter.create_histogram("latency")
    for value in (0.5, 1.0, 2.0, 2.0):
        latency.record(value)
    run.finish()
    records = list(segments.read_all(tmp_path / "sdk/metrics"))
    values = {k: v for r in records if r.kind == "system" for k, v in r.data.items()}
    assert values == {"documents{route=/a}": 5.0, "documents{route=/b}": 7.0, "queue": 3.0}
    (histogram,) = (r.data for r in records if r.kind == "histogram")
    assert (histogram["count"], histogram["sum"], histogram["min"]) == (4, 5.5, 0.5)
    offset, counts = histogram["positive"]
    ends = [2 ** ((offset + i + 1) / 2 ** histogram["scale"]) for i, n in enumerate(counts) if n]
    assert [round(end, 1) for end in ends] == [0.5, 1.0, 2.0] and sum(counts) == 4
