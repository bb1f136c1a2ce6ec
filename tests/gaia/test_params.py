"""Statements of parameters: what they refuse, and what follows from them."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from gaia import params
from gaia.errors import ConfigError
from gaia.layers import Linear, RMSNorm, normal, products
from gaia.parallel import AXES, WEIGHTS
from gaia.params import UnplacedParameter, parameter

MESH = jax.sharding.AbstractMesh((2, 2, 2, 2), AXES)


class Layer(nnx.Module):
    """Every way that a matrix is split, under names that nothing knows."""

    def __init__(self, *, rngs: nnx.Rngs, fc: int = 16) -> None:
        self.fc = Linear(8, fc, normal(1.0), rngs=rngs)
        self.proj = Linear(fc, 8, normal(1.0), split="in", rngs=rngs)
        self.router = Linear(8, 3, normal(1.0), split="neither", rngs=rngs)
        self.norm = RMSNorm(8, eps=1e-6)


class Stack(nnx.Module):
    """Three layers stacked, and one that stands alone."""

    def __init__(self, *, rngs: nnx.Rngs, fc: int = 16) -> None:
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=0, out_axes=0)
        def make_blocks(rngs: nnx.Rngs) -> Layer:
            return Layer(rngs=rngs, fc=fc)

        self.blocks = make_blocks(rngs)
        self.last = Linear(8, 16, normal(1.0), role="head", rngs=rngs)


def stack(**sizes):
    return nnx.eval_shape(lambda: Stack(rngs=nnx.Rngs(0), **sizes))


def arrays(model):
    return nnx.to_pure_dict(nnx.state(model))


def test_specs_follow_the_statement_and_the_stacked_dim_is_whole():
    model = stack()
    specs = params.specs(params.placements(model), arrays(model), MESH)
    assert specs == {
        "blocks": {
            "fc": {"kernel": P(None, WEIGHTS, "tensor")},
            "proj": {"kernel": P(None, ("tensor", *WEIGHTS), None)},
            "router": {"kernel": P(None, WEIGHTS, None)},
            "norm": {"scale": P(None, None)},
        },
        "last": {"kernel": P(WEIGHTS, "tensor")},
    }
    roles = params.roles(params.placements(model))
    assert roles["blocks"]["fc"]["kernel"] == "matrix" and roles["last"]["kernel"] == "head"
    assert roles["blocks"]["norm"]["scale"] == "gain"
    described = {p.name: p for p in params.describe(model)}
    assert described["blocks.fc.kernel"].layers == 3 and described["last.kernel"].layers is None
    assert described["blocks.fc.kernel"].layer_shape == (8, 16)


def test_products_read_the_statement():
    layer = Layer(rngs=nnx.Rngs(0))
    assert (layer.fc.split, layer.proj.split, layer.router.split) == ("out", "in", "neither")
    with pytest.raises(UnplacedParameter, match="in, out"):
        products(jnp.ones((2, 8)), layer.fc, layer.proj)


@pytest.mark.parametrize(
    ("shape", "dims", "options", "message"),
    [
        ((4, 8), (WEIGHTS,), {}, r"a parameter \[4, 8\] states mesh axes of 1 dims"),
        ((4, 8), ("tensor", "tensor"), {}, r"claims mesh axis tensor twice"),
        ((4, 8), (WEIGHTS, ("tensor", "fsdp")), {}, r"claims mesh axis fsdp twice"),
        ((4,), ("heads",), {}, r"lies on mesh axis 'heads'; use fsdp, sequence, tensor"),
        ((4,), ("replica",), {}, r"lies on mesh axis 'replica'"),
        ((4,), ("tensor",), {"within_split": True}, r"split over tensor and whole within"),
    ],
)
def test_statements_that_cannot_be_are_refused(shape, dims, options, message):
    with pytest.raises(UnplacedParameter, match=message):
        parameter(jnp.zeros(shape), dims, role="gain", **options)


def test_a_parameter_without_a_statement_is_named():
    model = stack()
    model.blocks.fc.bias = nnx.Param(jax.ShapeDtypeStruct((3, 16), jnp.float32))
    with pytest.raises(UnplacedParameter) as caught:
        params.describe(model)
    assert "parameter blocks.fc.bias [3, 16] does not say how it lies" in str(caught.value)
    assert "gaia.params.parameter" in str(caught.value)


def test_every_split_dim_must_divide_and_the_parameter_is_named():
    params.check_parameters(params.describe(stack()), MESH)
    with pytest.raises(ConfigError) as caught:
        params.check_parameters(params.describe(stack(fc=9)), MESH)
    assert str(caught.value) == (
        "a dim of blocks.fc.kernel [8, 9] is 9, which does not divide over mesh.tensor 2; "
        "choose a multiple, or another mesh"
    )


def test_the_optimizers_arrays_lie_as_their_parameters():
    """Adam for some, one moment for others, counters beside them; no name decides."""
    model = stack()
    placements, shapes = params.placements(model), arrays(model)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"matrix": optax.scale_by_lion(), "head": optax.adam(1e-3), "gain": optax.adam(1e-3)},
            params.roles(placements),
        ),
    )
    state = jax.eval_shape(optimizer.init, shapes)
    where = params.optimizer_placements(optimizer, placements, shapes)
    assert jax.tree.structure(where) == jax.tree.structure(state)
    inner = params.specs(where, state, MESH)[1].inner_states
    lion, adam = inner["matrix"].inner_state, inner["head"].inner_state[0]
    assert lion.mu["blocks"]["proj"]["kernel"] == P(None, ("tensor", *WEIGHTS), None)
    assert lion.count == adam.count == P()
    assert adam.mu["last"]["kernel"] == adam.nu["last"]["kernel"] == P(WEIGHTS, "tensor")


def test_a_moment_of_another_shape_is_whole():
    model = stack()
    placements, shapes = params.placements(model), arrays(model)
    optimizer = optax.scale_by_factored_rms(min_dim_size_to_factor=4)
    state = jax.eval_shape(optimizer.init, shapes)
    specs = params.specs(params.optimizer_placements(optimizer, placements, shapes), state, MESH)
    assert specs.v_row["last"]["kernel"] == P(None) and specs.count == P()
