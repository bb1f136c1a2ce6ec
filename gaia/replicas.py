"""Finds results that differ between devices although they are said to be whole on each of them.

Inside of `gaia.parallel.per_device` nothing keeps a program from returning a different "whole"
array on every device: the gradient of a gain that each device of `tensor` uses on its own heads
is a part of the sum, and copies that are updated by their own parts drift apart without a word.
So the program is read before it is compiled: for each value, the mesh axes along which devices
may hold different ones. It starts from the arguments that are split and from `axis_index`; sums
and gathers over an axis end it. JAX's `check_vma` does the same, but Pallas kernels and custom
gradients carry no such types.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import PartitionSpec as P

from gaia.errors import GaiaError

Axes = frozenset[str]
_NONE: Axes = frozenset()
_SUMS = ("psum", "pmax", "pmin", "psum_invariant", "all_gather", "all_gather_invariant")
_PARTS = ("reduce_scatter", "all_to_all")


class ReplicasDiffer(GaiaError):
    """A result that every device is said to hold whole differs between devices."""


def checked(function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`function`, whose results are checked when it is traced inside of `jax.shard_map`.

    Args:
        function: of arrays; runs on one device's parts.
        in_specs: PartitionSpecs of its arguments, as `jax.shard_map` takes them.
        out_specs: the same of its results.

    Raises:
        ReplicasDiffer: when it is traced; a result differs along an axis that its spec leaves out.
    """

    def traced(*args: Any) -> Any:
        program, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        flat, given = jax.tree.leaves(args), _axes_of(in_specs, args)
        differing = _differing(program.jaxpr, given)
        stated = _axes_of(out_specs, shapes)
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
        for path, axes, said in zip(paths, differing, stated, strict=True):
            if axes - said:
                raise ReplicasDiffer(
                    f"{_name(path)} is whole on all devices of mesh axis "
                    f"{', '.join(sorted(axes - said))} but differs between them",
                    "sum it over them; the gradient of a parameter that is used on heads or hidden "
                    "units is summed if it is made with within_split=True",
                )
        results = core.jaxpr_as_fun(program)(*flat)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return traced


def _axes_of(specs: Any, arrays: Any) -> list[Axes]:
    whole = jax.tree.broadcast(specs, arrays, is_leaf=lambda x: isinstance(x, P))
    leaves = jax.tree.leaves(whole, is_leaf=lambda x: isinstance(x, P))
    return [frozenset(axis for part in spec for axis in _names(part)) for spec in leaves]


def _names(axes: Any) -> tuple[str, ...]:
    """One axis, several, or none, as a tuple of names."""
    several = axes if isinstance(axes, (tuple, list)) else (axes,)
    return tuple(axis for axis in several if isinstance(axis, str))


def _name(path: Sequence[Any]) -> str:
    keys = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
    return ".".join(keys) or f"result {jax.tree_util.keystr(tuple(path))}"


def _differing(program: core.Jaxpr, given: Sequence[Axes]) -> list[Axes]:
    """Mesh axes along which each result may differ, from those of the arguments."""
    known: dict[Any, Axes] = dict(zip(program.invars, given, strict=True))

    def read(atom: Any) -> Axes:
        return _NONE if isinstance(atom, core.Literal) else known.get(atom, _NONE)

    for equation in program.eqns:
        results = _results(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def _results(equation: Any, given: list[Axes]) -> list[Axes]:
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(params, given)
    if name == "while":
        return _while(params, given)
    if name == "cond":
        branches = [_differing(branch.jaxpr, given[1:]) for branch in params["branches"]]
        return [given[0].union(*each) for each in zip(*branches, strict=True)]
    inner = params.get("jaxpr") or params.get("call_jaxpr")
    if inner is not None and name != "pallas_call":
        return _differing(getattr(inner, "jaxpr", inner), given)
    union = _NONE.union(*given)
    axes = frozenset(_names(params.get("axes", params.get("axis_name"))))
    if name in _SUMS:
        union -= axes
    elif name in _PARTS or name == "axis_index":
        union |= axes
    return [union] * len(equation.outvars)


def _scan(params: dict[str, Any], given: list[Axes]) -> list[Axes]:
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, carry, each = given[:consts], given[consts : consts + carries], given[consts + carries :]
    while True:
        results = _differing(params["jaxpr"].jaxpr, [*fixed, *carry, *each])
        grown = [a | b for a, b in zip(carry, results[:carries], strict=True)]
        if grown == carry:
            return results
        carry = grown


def _while(params: dict[str, Any], given: list[Axes]) -> list[Axes]:
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    test, body = given[:of_test], given[of_test : of_test + of_body]
    carry = given[of_test + of_body :]
    while True:
        (again,) = _differing(params["cond_jaxpr"].jaxpr, [*test, *carry])
        results = _differing(params["body_jaxpr"].jaxpr, [*body, *carry])
        grown = [a | b | again for a, b in zip(carry, results, strict=True)]
        if grown == carry:
            return carry
        carry = grown
