"""The committed table of compiled programs, and the compiler itself where it is installed."""

import importlib.util

import jax
import pytest

from gaia.parallel import make_mesh
from gchat.__main__ import main
from gchat.config import load
from gchat.scaling.calibrate import config_of, estimate_of, fit
from gchat.scaling.calibration import factors, read_rows
from gchat.scaling.plan import derived, make_plan
from gchat.scaling.sku import parse_fleet
from gchat.scaling.verify import compile_run, compile_step
from gchat.train_state import abstract_state

ROWS = [row for row in read_rows()[0] if row.peak_bytes]
CHECKING = [row for row in ROWS if row.role == "check"]
LIBTPU = importlib.util.find_spec("libtpu")
needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed (extra aot)")


@pytest.mark.parametrize("row", CHECKING, ids=lambda row: row.name)
def test_estimates_are_within_a_tenth_of_the_compiler_on_rows_not_fitted(row):
    estimated = estimate_of(row, factors())
    assert estimated == pytest.approx(row.peak_bytes, rel=0.10)
    plan = make_plan(config_of(row), parse_fleet(row.sku))
    assert plan.memory.total == pytest.approx(estimated, rel=1e-6)


def test_the_checking_rows_hold_a_depth_a_width_and_a_chip_that_no_fitted_row_has():
    fitted = [row for row in ROWS if row.role == "fit"]

    def seen(key) -> set:
        return {key(row) for row in CHECKING} - {key(row) for row in fitted}

    assert seen(lambda row: row.shape["depth"])
    assert seen(lambda row: config_of(row).model.dim)
    assert seen(lambda row: parse_fleet(row.sku).chip.key)


def test_the_factors_are_those_that_the_fit_gives():
    rows, written = read_rows()
    found = fit(rows)
    for row in ROWS:
        assert estimate_of(row, found) == pytest.approx(estimate_of(row, written), rel=0.01)


@pytest.mark.slow
@needs_libtpu
def test_the_compiler_lays_out_what_the_table_says():
    row = min(ROWS, key=lambda row: row.compile_seconds)
    found = compile_step(config_of(row), parse_fleet(row.sku), memory_only=True)
    assert found.peak_bytes == pytest.approx(row.peak_bytes, rel=0.01)
    assert found.argument_bytes > 0


@pytest.mark.slow
@needs_libtpu
def test_an_evaluation_beside_the_state_of_training_counts_where_it_takes_more():
    """One row a step and eight rows to score: what decides is the evaluation."""
    words = ["--depth", "1", "--batch-size", "1", "--model.seq-len", "2048"]
    config, _ = derived(load(words, preset="cpu", prog="test"))
    fleet = parse_fleet("v6e-1")
    step = compile_step(config, fleet, memory_only=True)
    run = compile_run(config, fleet, memory_only=True)
    assert step.fits and run.fits
    assert run.peak_bytes == run.evaluation_bytes > step.peak_bytes
    arrays = jax.tree.leaves(abstract_state(config, make_mesh()))
    state = sum(x.size * x.dtype.itemsize for x in arrays)
    scored = 4 * 8 * 2048 * 4  # inputs, targets, positions and segments of 8 rows, 4 bytes each
    assert run.evaluation_bytes > state + scored
    assert run.argument_bytes == step.argument_bytes


@pytest.mark.slow
@needs_libtpu
def test_every_program_of_a_batch_ramp_is_compiled():
    """A quarter of the rows at once takes hardly more than all of them (the loop's own arrays)."""
    words = ["--depth", "1", "--batch-size", "64", "--model.seq-len", "2048"]
    ramp = ["--training.batch-ramp", "4@0", "1@9"]
    fleet, peaks = parse_fleet("v6e-1"), []
    for more in ([], ramp):
        config, _ = derived(load([*words, *more], preset="cpu", prog="test"))
        found = compile_run(config, fleet, memory_only=True)
        assert found.fits
        peaks.append(found.peak_bytes)
    assert peaks[0] != peaks[1] == pytest.approx(peaks[0], rel=1e-3)


@pytest.mark.slow
@needs_libtpu
def test_a_program_that_is_too_big_is_refused_with_the_compilers_number(capsys):
    args = ["--sku", "v5e-1", "--depth", "24", "--batch-size", "64", "--model.remat", "full"]
    assert main(["plan", *args, "--verify"]) == 0
    out = capsys.readouterr().out
    assert "does not fit" in out and "the compiler's number" in out
