# SPDX-License-Identifier: Apache-2.0
"""Operations over the devices of a mesh: where JAX says how operands are split, each device runs its shards.

Mesh axes are of two kinds outside of shard_map. Where the types of arrays name them (AxisType.Explicit), a
call becomes a shard_map. The others belong to XLA's partitioner, which asks when it has decided.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType, NamedSharding

from jax_na.mesh.roles import KEYS, QUERIES, Role, factors
from jax_na.mesh.roles import of as roles_of
from jax_na.mesh.shards import Function, Roles, Split, on_shards, placement, split
from jax_na.neighborhood import Shape
from jax_na.op import Op


@functools.cache
def marker() -> Any:
    """A jaxpr with a custom_partitioning in it, which our primitives carry as a parameter.

    The lowering of a custom_partitioning asks JAX for the devices of the program. JAX has them at hand only
    if a search of the program, parameters of its operations included, found an operation that will ask; and
    it searches before it lowers. Ours come into being while our primitives are lowered, when it is too late:
    without the marker they would find no devices, and every device would compute the whole.
    """
    same = custom_partitioning(lambda x: x)
    same.def_partition(None, sharding_rule="->")
    return jax.make_jaxpr(same)(jax.ShapeDtypeStruct((), "float32"))


def automatic(function: Function, op: Op, roles: Roles, operands: Sequence[Array], params: Any) -> Any:
    """The results of function(*operands, **params), computed on shards where operands are split."""
    shapes = [x.shape for x in operands]
    alone = functools.partial(on_shards(function, Split(op, len(shapes[0]) - op.rank - 2), roles), **params)
    whole = jax.make_jaxpr(alone)(*operands)
    results = [x.shape for x in whole.out_avals]
    run = jaxpr_as_fun(whole)
    if whole.consts:
        run = jax.jit(run)  # holds them: custom_partitioning takes none

    def partition(mesh: Any, arguments: Sequence[Any], outcome: Sequence[Any]) -> Any:
        if not all(isinstance(x.sharding, NamedSharding) for x in arguments):
            _check_unnamed(op, roles, [arguments, outcome])
            as_given = (tuple(x.sharding for x in side) for side in (outcome, arguments))
            return mesh, alone, *as_given
        chosen = _chosen(op, roles[0], mesh, shapes, [x.sharding for x in arguments])
        local = functools.partial(on_shards(function, chosen, roles, results), **params)
        placed = _shardings(chosen, mesh, roles[0], shapes)
        return mesh, local, _shardings(chosen, mesh, roles[1], results), placed

    call = custom_partitioning(lambda *operands: tuple(run(*operands)))
    call.def_partition(partition, **_rule(op, roles, shapes, results))
    return call(*operands)


def _chosen(
    op: Op, roles: Sequence[Role], mesh: Any, shapes: Sequence[Shape], shardings: Sequence[Any]
) -> Split:
    """The split of a call over a mesh, by the shardings of its operands."""
    given = [placement(x.spec, len(shape)) for x, shape in zip(shardings, shapes, strict=True)]
    return split(op, dict(mesh.shape), roles, shapes, given)


def _shardings(
    chosen: Split, mesh: Any, roles: Sequence[Role], shapes: Sequence[Shape]
) -> tuple[NamedSharding, ...]:
    return tuple(NamedSharding(mesh, chosen.spec(*x)) for x in zip(roles, shapes, strict=True))


NO_NAMES = (
    "neighborhood attention inside a shard_map that leaves some mesh axes to the compiler can be split over "
    "those along batch and heads only: make all axes of the mesh manual (the default of jax.shard_map) and "
    "use sharded_neighborhood_attention"
)


def _check_unnamed(op: Op, roles: Roles, sides: Sequence[Sequence[Any]]) -> None:
    """Where only the sizes of shards are known, all arrays must be split alike and no device need another."""
    batch, cut = len(sides[0][0].shape) - op.rank - 2, dict[str | None, int]()
    for names, arrays in zip(roles, sides, strict=True):
        for role, x in zip(names, arrays, strict=True):
            meaning = factors(role, len(x.shape), batch, op.rank)
            parts = [n // m for n, m in zip(x.shape, x.sharding.shard_shape(x.shape), strict=True)]
            whole = any(n > 1 for f, n in zip(meaning, parts, strict=True) if f is None or f[0] == "x")
            alike = all(cut.setdefault(f, n) == n for f, n in zip(meaning, parts, strict=True))
            sums = arrays is sides[1] and any(n > 1 for f, n in cut.items() if f not in meaning)
            if whole or sums or not alike:
                raise NotImplementedError(NO_NAMES)


def _rule(op: Op, roles: Roles, shapes: Sequence[Shape], results: Sequence[Shape]) -> dict[str, Any]:
    """The axes of operands and results that are split alike, as XLA's propagation takes it."""
    batch = len(shapes[0]) - op.rank - 2
    whole: list[str] = []
    arrays = zip([*roles[0], *roles[1]], [*shapes, *results], strict=True)
    heads = {shape[-2] for role, shape in arrays if role == KEYS}

    def one(role: Role, shape: Shape) -> str:
        names = []
        for factor, size in zip(factors(role, len(shape), batch, op.rank), shape, strict=True):
            shared = factor == "h" and heads == {1} and role == KEYS
            if factor is None or shared:
                whole.append(factor := f"u{len(whole)}")
            elif factor == "h" and role != KEYS and heads - {1, size}:
                factor = "(h r)"
            names.append(factor)
        return " ".join(names)

    sides = [", ".join(map(one, *side)) for side in zip(roles, (shapes, results), strict=True)]
    rule = {"sharding_rule": " -> ".join(sides), "need_replication_factors": tuple(whole)}
    return rule | ({"r": shapes[0][-2] // min(heads)} if "(h r)" in rule["sharding_rule"] else {})


# Axes that the types of the operands name.


def explicit(function: Callable[[Op, Any], Any], op: Op, operands: Any, outcome: Any) -> Any:
    """function(op, operands), under a shard_map over the mesh axes that the types of operands name, if any.

    `operands` is a record, and `outcome` the type of the record that the function returns: arrays that all
    have the axes of queries.
    """
    leaves, tree = jax.tree.flatten(operands)
    types = [jax.typeof(x) for x in leaves]
    mesh = next((t.sharding.mesh for t in types if AxisType.Explicit in t.sharding.mesh.axis_types), None)
    if mesh is None:
        return function(op, operands)
    shapes, roles = [t.shape for t in types], roles_of(operands)
    chosen = _chosen(op, roles, mesh, shapes, [t.sharding for t in types])
    placed = _shardings(chosen, mesh, roles, shapes)

    def flat(*shards: Array, op: Op) -> Sequence[Array]:
        return jax.tree.leaves(function(op, jax.tree.unflatten(tree, shards)))

    fields = outcome._fields
    rows = shapes[0][:-1]  # features, if any, are whole
    run = jax.shard_map(
        on_shards(flat, chosen, (roles, [QUERIES for _ in fields]), [rows for _ in fields]),
        mesh=mesh,
        in_specs=tuple(sharding.spec for sharding in placed),
        out_specs=tuple(chosen.spec(QUERIES, rows) for _ in fields),
        axis_names=_explicit_axes(mesh),
    )
    return outcome(*run(*map(jax.reshard, leaves, placed)))


def _explicit_axes(mesh: Any) -> set[str]:
    types = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in types if kind == AxisType.Explicit}
