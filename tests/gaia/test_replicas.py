"""Results that differ between devices that should hold the same: found before anything runs."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from gaia import parallel
from gaia.parallel import AXES
from gaia.replicas import ReplicasDiffer

MESH = jax.sharding.AbstractMesh((1, 2, 1, 2), AXES)
X = jax.ShapeDtypeStruct((8, 4), jnp.float32)


def traced(function, out_spec):
    """`function` of X traced as it would run on a mesh of four devices."""
    with jax.sharding.use_abstract_mesh(MESH):
        return jax.eval_shape(
            parallel.per_device(function, MESH, (P("fsdp", "tensor"),), out_spec), X
        )


def total(x, *axes):
    return parallel.psum(jnp.sum(x), axes)


def looped(x, body):
    return jax.lax.fori_loop(0, 3, lambda _, y: body(y), x)


def scanned(x, body):
    return jax.lax.scan(lambda y, _: (body(y), None), x, jnp.arange(3))[0]


def parts_put_together(x):
    part = parallel.psum_scatter(x, ("fsdp",), 0)
    return parallel.psum(parallel.all_gather(part, ("fsdp",), 0), ("tensor",))


@pytest.mark.parametrize(
    ("function", "out_spec"),
    [
        (lambda x: total(x, "fsdp", "tensor"), P()),
        (lambda x: x * 2, P("fsdp", "tensor")),
        (lambda x: parallel.psum(x, ("tensor",)), P("fsdp", None)),
        (parts_put_together, P()),
        (lambda x: jax.jit(lambda y: total(y, "fsdp", "tensor"))(x), P()),
        (lambda x: jax.checkpoint(lambda y: total(y, "fsdp", "tensor"))(x), P()),
        (lambda x: looped(total(x, "fsdp", "tensor"), lambda y: y * 2), P()),
        (lambda x: jnp.ones(()), P()),
    ],
)
def test_what_is_the_same_everywhere_passes(function, out_spec):
    result = traced(function, out_spec)
    assert result.dtype == jnp.float32  # traced to its end: nothing was refused on the way


@pytest.mark.parametrize(
    ("function", "axes"),
    [
        (jnp.sum, "fsdp, tensor"),
        (lambda x: total(x, "fsdp"), "tensor"),
        (lambda x: total(x, "tensor") + parallel.index("fsdp"), "fsdp"),
        (lambda x: looped(jnp.zeros(()), lambda y: y + total(x, "tensor")), "fsdp"),
        (lambda x: scanned(jnp.zeros(()), lambda y: y + total(x, "fsdp")), "tensor"),
        (lambda x: jax.lax.cond(total(x, "tensor") > 0, jnp.ones, jnp.zeros, ()), "fsdp"),
        (lambda x: jax.jit(jnp.sum)(total(x, "fsdp")), "tensor"),
        (lambda x: jax.grad(lambda w: total(w * x, "fsdp"))(1.0), "fsdp, tensor"),
    ],
)
def test_what_differs_is_refused_with_the_axes(function, axes):
    with pytest.raises(ReplicasDiffer) as caught:
        traced(function, P())
    assert f"whole on all devices of mesh axis {axes} but differs" in str(caught.value)


def test_the_result_is_named_by_its_path():
    def gradients(x):
        return {"blocks": {"q_norm": jnp.sum(x), "k_norm": total(x, "fsdp", "tensor")}}

    with pytest.raises(ReplicasDiffer, match=r"^blocks\.q_norm is whole on all devices"):
        traced(gradients, P())


def test_loops_that_pass_a_difference_on_are_followed_to_the_end():
    """`b` differs only after two rounds, through `a`."""

    def swap(x):
        def body(carry, _):
            a, b, _ = carry
            return (total(x, "fsdp"), a, b), None

        return jax.lax.scan(body, (jnp.zeros(()),) * 3, jnp.arange(3))[0][2]

    with pytest.raises(ReplicasDiffer, match="mesh axis tensor"):
        traced(swap, P())


def test_values_are_those_of_the_function():
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    function = partial(parallel.per_device, mesh=mesh, in_specs=P(), out_specs=P())
    assert function(jnp.sum) is jnp.sum  # on one device nothing is wrapped
