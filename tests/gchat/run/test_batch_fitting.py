"""`--batch auto`: the compiler's own figures decide, and nothing is tried by running it."""

from dataclasses import replace

import pytest

import tiny
from gaia import device_memory, parallel
from gaia.errors import ConfigError
from gchat.run.fitting import fitted, take_batch, update_bytes


def test_the_largest_micro_batch_that_fits_is_taken():
    """Compiled for real: what is chosen fits, and the next larger one does not."""
    config = tiny.train_config(training={"batch_size": 12}, model={"seq_len": 32})
    mesh = parallel.make_mesh()
    bytes_of = {
        accum: update_bytes(
            replace(config, training=replace(config.training, grad_accum=accum)), mesh
        )
        for accum in (1, 4, 12)
    }
    assert bytes_of[1] > bytes_of[4] > bytes_of[12]
    fit = fitted(config, limit=bytes_of[4])
    assert fit.rows * fit.config.training.grad_accum == 12
    assert fit.bytes <= bytes_of[4] < bytes_of[1]
    assert fit.rows >= 3 and "as compiled" in fit.describe()


def test_three_rows_forty_times():
    """The batch of 120 that a card with room for three rows was given by hand."""
    config = tiny.train_config(training={"batch_size": 120})
    asked = []

    def compiled(tried, mesh):
        rows = 120 // tried.training.grad_accum
        asked.append(rows)
        return None if rows > 20 else rows * 10  # the compiler refuses what is far too large

    fit = fitted(config, limit=39, compiled_bytes=compiled)
    assert (fit.rows, fit.config.training.grad_accum) == (3, 40)
    assert len(asked) <= 5  # of 16 divisors


def test_a_batch_ramp_takes_only_what_divides_in_each_of_its_stages():
    """Twelve rows as four updates: six micro-batches would be two of each update, of 1.5 rows."""
    config = tiny.train_config(training={"batch_size": 12, "batch_ramp": ("4@0", "1@9")})
    asked = []
    for limit in (12, 6, 4, 3, 2, 1):  # the bisection comes to every candidate
        fitted(
            config,
            limit=limit,
            compiled_bytes=lambda tried, mesh: (
                asked.append(tried.training.grad_accum) or 12 // tried.training.grad_accum
            ),
        )
    assert set(asked) == {1, 2, 3, 4, 12}


@pytest.mark.slow
def test_the_largest_program_of_a_batch_ramp_counts():
    config = tiny.train_config(training={"batch_size": 8})
    ramped = replace(config, training=replace(config.training, batch_ramp=("2@0", "1@9")))
    mesh = parallel.make_mesh()
    assert update_bytes(ramped, mesh) >= update_bytes(config, mesh)


def test_a_row_that_does_not_fit_is_refused():
    config = tiny.train_config()
    with pytest.raises(ConfigError, match=r"one row on each device takes 1\.00 GiB"):
        fitted(config, limit=1000, compiled_bytes=lambda tried, mesh: 1 << 30)


def test_free_memory_is_the_least_of_system_and_container(tmp_path, monkeypatch):
    """/proc/meminfo and cgroup v2 as Linux writes them."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemAvailable:    8000000 kB\n")
    monkeypatch.setattr(device_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(device_memory, "CGROUP", tmp_path)
    assert device_memory._host_memory() == 8_000_000 * 1024
    (tmp_path / "memory.max").write_text("4294967296\n")
    (tmp_path / "memory.current").write_text("1073741824\n")
    assert device_memory._host_memory() == 3 << 30
    (tmp_path / "memory.max").write_text("max\n")
    assert device_memory._host_memory() == 8_000_000 * 1024


def test_the_option():
    assert take_batch(["--batch", "auto", "--lr", "1"]) == (True, ["--lr", "1"])
    assert take_batch(["--batch=12"]) == (False, ["--training.batch-size=12"])
    for args, said in (
        (["--batch"], "--batch is ''"),
        (["--batch", "many"], "use auto, or a number"),
        (["--batch", "auto", "--training.grad_accum", "2"], "both given"),
    ):
        with pytest.raises(ConfigError, match=said):
            take_batch(args)
