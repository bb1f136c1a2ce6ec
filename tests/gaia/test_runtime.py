"""A process says what it makes of the machine it is on."""

import jax
import pytest

from gaia import runtime


@pytest.fixture
def started(monkeypatch, capsys):
    """Starts JAX on a machine with this hardware; returns what stands on stderr."""

    def start(hardware, platforms=None, **options):
        monkeypatch.setattr(runtime, "accelerator_hardware", lambda: hardware)
        monkeypatch.setattr(runtime, "only_cpu", lambda: False)
        runtime._tell_of_cpu.cache_clear()
        before = jax.config.jax_platforms
        jax.config.update("jax_platforms", platforms)
        try:
            for _ in range(2):
                runtime.start(compile_cache=False, **options)
        finally:
            jax.config.update("jax_platforms", before)
        return capsys.readouterr().err

    return start


def test_the_cpu_of_a_machine_with_an_accelerator_is_named_once(started):
    """JAX says nothing where another process holds the TPU."""
    said = started("a TPU")
    assert said.startswith("gaia: this machine has a TPU, and JAX has come up on the CPU")
    assert said.count("\n") == 1


def test_a_cpu_that_was_asked_for_is_no_news(started):
    assert started("a TPU", "cpu") == started("a TPU", tell=False) == started(None) == ""


@pytest.mark.parametrize(("device", "found"), [("0x006f", "a TPU"), ("0x0042", None)])
def test_a_tpu_without_a_device_file_is_found_on_the_bus(monkeypatch, tmp_path, device, found):
    """A v6e is driven through vfio; Google's network cards have its vendor, too."""
    place = tmp_path / "0000:00:04.0"
    place.mkdir()
    (place / "vendor").write_text("0x1ae0\n")
    (place / "device").write_text(f"{device}\n")
    (tmp_path / "0000:00:05.0").mkdir()  # gone meanwhile
    monkeypatch.setattr(runtime, "PCI", tmp_path)
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE", raising=False)
    assert runtime.accelerator_hardware() == found
