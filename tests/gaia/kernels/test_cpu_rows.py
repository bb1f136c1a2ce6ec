"""The product of a few rows on CPU, against float64, and against itself in other company."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaia.kernels import cpu_rows
from gaia.kernels.packed import pack

FORMS = ("float32", "bfloat16", "int8")
product = jax.jit(cpu_rows.rows_product)


def draw(N: int, D: int, F: int, form: str) -> tuple[np.ndarray, jax.Array, np.ndarray]:
    rng = np.random.default_rng(N * D + F)
    x_ND = rng.standard_normal((N, D)).astype(np.float32)
    w_FD = jnp.asarray(rng.integers(-127, 128, (F, D)), form)
    if form == "bfloat16":
        w_FD = jax.lax.bitcast_convert_type(w_FD, jnp.uint16)
    return x_ND, w_FD, rng.random(F).astype(np.float32)


def numbers(w_FD: jax.Array) -> np.ndarray:
    if w_FD.dtype == jnp.uint16:
        w_FD = jax.lax.bitcast_convert_type(w_FD, jnp.bfloat16)
    return np.asarray(w_FD, np.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("N", "D", "F"), [(1, 1, 1), (3, 5, 63), (1, 64, 700), (16, 131, 257), (7, 48, 24)]
)
def test_it_is_the_product(form, N, D, F):
    x_ND, w_FD, scale_F = draw(N, D, F, form)
    exact = x_ND.astype(np.float64) @ numbers(w_FD).T
    limit = 1e-6 * np.abs(x_ND).sum(1, keepdims=True) * 127
    assert (np.abs(product(x_ND, w_FD) - exact) <= limit).all()
    assert (np.abs(product(x_ND, w_FD, scale_F) - exact * scale_F) <= limit).all()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_does_not_depend_on_the_others(form):
    x_ND, w_FD, scale_F = draw(8, 96, 300, form)
    together = np.asarray(product(x_ND, w_FD, scale_F))
    others = np.concatenate([x_ND[:1], 100 * x_ND[1:]])
    assert (np.asarray(product(others, w_FD, scale_F))[0] == together[0]).all()
    assert (np.asarray(product(x_ND[2:3], w_FD, scale_F))[0] == together[2]).all()


def test_calls_of_many_threads_do_not_mix():
    cases = [draw(1 + i % 5, 64 + i, 512, FORMS[i % 3]) for i in range(12)]
    alone = [np.asarray(product(*case)) for case in cases]

    def again(i: int) -> bool:
        return bool((np.asarray(product(*cases[i % 12])) == alone[i % 12]).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(again, range(600)))


@pytest.mark.parametrize("form", FORMS)
def test_without_numba_xla_multiplies(form, monkeypatch):
    x_ND, w_FD, _ = draw(4, 64, 128, "float32")
    matrix = pack(w_FD.T / 127, form)
    assert matrix.values.shape == (128, 64)
    here = np.asarray(jnp.asarray(x_ND) @ matrix)
    monkeypatch.setattr(cpu_rows, "available", lambda: False)
    there = np.asarray(jnp.asarray(x_ND) @ matrix)
    assert np.abs(here - there).max() <= {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.3}[form]
    assert not np.array_equal(here, there) or form == "float32"
