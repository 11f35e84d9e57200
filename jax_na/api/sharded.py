# SPDX-License-Identifier: Apache-2.0
"""Attention on a grid that is cut over devices, inside shard_map."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.api import arguments
from jax_na.api.arguments import Precision
from jax_na.api.request import Arrays, Extras, Options, request
from jax_na.api.window import Flags, Ints, Window
from jax_na.avals import align
from jax_na.mesh import halo, roles, shards
from jax_na.mesh.halo import Names
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import Inputs, Op, Present, Results
from jax_na.rules import compose, fused

AxisNames = str | Sequence[str | Sequence[str] | None]


def sharded_neighborhood_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints | Neighborhood,
    *,
    axis_names: AxisNames,
    length: Ints | None = None,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    is_periodic: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    key_mask: Array | None = None,
    additional_mask: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    precision: Precision = None,
) -> Any:
    """`neighborhood_attention` inside `jax.shard_map`, where every device has a block of the grid.

    The devices exchange halos: the keys and values that the windows of a block reach in the others. Results
    and gradients are the blocks of what `neighborhood_attention` gives for the whole grid.

    Args:
        query, key, value: the blocks of this device, [batch..., *block, heads, ...] as in
            `neighborhood_attention`. Blocks have one size on all devices.
        axis_names: for every spatial axis the name of the mesh axis that it is cut over, a tuple of names
            (the first one outermost), or None where blocks are whole. A name alone is for one spatial axis.
        length: the length of every axis of the whole grid, by default the blocks' lengths together. If it is
            less, the last blocks end in padding, which is never attended to; there out and lse are 0. A
            periodic axis has none.
        rpb, additional_keys, additional_values, additional_mask: those of the heads and batch entries of this
            device; key_mask: of its block.
        The rest as in `neighborhood_attention`; kernel_size * dilation <= length, windows may be wider than a
        block.

    Returns:
        out [batch..., *block, heads, value_dim]; with return_lse (out, lse).

    Raises:
        TypeError, ValueError: as `neighborhood_attention`, and for names that are not manual mesh axes.

    Differentiable like `neighborhood_attention`. Every device sends what the others need and nothing else,
    except that all receive as much as the one that needs most; the gradients of halos travel back.

    Example:
        >>> mesh = jax.make_mesh((jax.device_count(),), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
        >>> def block(q, k, v):
        ...     names = ("x", None)
        ...     return jax_na.sharded_neighborhood_attention(q, k, v, kernel_size=(7, 7), axis_names=names)
        >>> rows = jax.P(None, "x")
        >>> attend = jax.jit(jax.shard_map(block, mesh=mesh, in_specs=(rows, rows, rows), out_specs=rows))
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 56, 56, 4, 32))
        >>> attend(q, k, v).shape
        (1, 56, 56, 4, 32)
    """
    arrays = arguments.arrays({"query": query, "key": key, "value": value})
    window = Window(kernel_size, stride, dilation, is_causal, is_periodic)
    extras = Extras(rpb, additional_keys, additional_values, key_mask, additional_mask)
    grid = functools.partial(_grid_of_blocks, axis_names, length)
    call = request(arrays, window, Options(scale, implementation, precision), extras, grid)
    op, inputs = call.op, call.inputs
    cut = _names(axis_names, op.rank)
    axes = {f"x{a}": names for a, names in enumerate(cut) if names}
    block = inputs.query.shape[-op.rank - 2 : -2]
    split = shards.Split(op, inputs.query.ndim - op.rank - 2, _sizes(cut), axes, block)
    results = _attend(split, inputs, call.at(compose.whole_grid(op.rank)))
    return tuple(results) if return_lse else results.out


def _attend(split: shards.Split, inputs: Inputs, present: Present) -> Results:
    """Attention of a block. Queries move behind the padding of their block, results back."""
    names = tuple(name for group in split.axes.values() for name in group)
    device = [jax.lax.axis_index(names)] if names else []
    query, key, value = align(*inputs[:3], *device)[:3]  # what differs between devices
    spatial = [(split.batch + a, exchange) for a, exchange in split.spatial()]
    for dim, exchange in spatial:
        query = halo.align_queries(exchange, query, dim)
    inputs = inputs._replace(query=query, key=key, value=value)
    leaves, tree = jax.tree.flatten(fused.Attention(inputs, present))

    def function(*operands: Array, op: Op) -> Sequence[Array]:
        results: Sequence[Array] = compose.attention(op, *jax.tree.unflatten(tree, operands))
        return results

    both = (roles.of(jax.tree.unflatten(tree, leaves)), [roles.QUERIES, roles.QUERIES])
    results = shards.on_shards(function, split, both, [query.shape[:-1]] * 2)(*leaves)
    for dim, exchange in spatial:
        results = [_place(x, exchange, dim) for x in results]
    return Results(*results)


def _place(x: Array, exchange: halo.Halo, dim: int) -> Array:
    """A result where its queries came from, 0 in padding."""
    if not exchange.query_shift.any():
        return x
    x = halo.align_queries(exchange, x, dim, sign=-1)
    real = halo.is_real(exchange, x.shape[dim])
    return jnp.where(real.reshape(-1, *[1] * (x.ndim - dim - 1)), x, 0)


def _names(given: AxisNames, rank: int) -> list[Names]:
    """One tuple of mesh axes per spatial axis."""
    entries = [given] if isinstance(given, str) else list(given)
    if len(entries) != rank:
        raise ValueError(f"axis_names {given!r} has {len(entries)} entries, one per spatial axis are {rank}")
    names = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in entries]
    flat = [name for group in names for name in group]
    if len(set(flat)) < len(flat):
        raise ValueError(f"axis_names {given!r} has a mesh axis twice; each can cut one spatial axis")
    return names


def _grid_of_blocks(axis_names: AxisNames, length: Ints | None, n: Neighborhood, arrays: Arrays) -> Shape:
    """The lengths of the whole grid, of which the arrays hold this device's block."""
    arguments.require_same_axes(n, arrays)
    cut = _names(axis_names, n.rank)
    sizes = _sizes(cut)
    blocks = [shards.product(sizes, names) for names in cut]
    block = arguments.spatial(n, arrays["query"])
    found = _length(length, block, blocks)
    for a, (x, b, count) in enumerate(zip(found, block, blocks, strict=True)):
        if n.is_periodic[a] and x < b * count:
            raise ValueError(
                f"length {x} of periodic axis {a} leaves padding in {count} blocks of {b}; legal is "
                f"{b * count}"
            )
    return found


def _sizes(cut: Sequence[Names]) -> dict[str, int]:
    """Sizes of the mesh axes that a grid is cut over, in the order of the mesh."""
    names = [name for group in cut for name in group]
    mesh = jax.sharding.get_abstract_mesh().axis_names
    ordered = sorted(names, key=lambda name: mesh.index(name) if name in mesh else len(mesh))
    try:
        return {name: int(jax.lax.axis_size(name)) for name in ordered}
    except NameError as error:
        raise ValueError(
            f"axis_names has {', '.join(map(repr, names))}, not all of which are manual axes here: call this "
            "inside jax.shard_map over a mesh with these axes"
        ) from error


def _length(given: Ints | None, block: Shape, blocks: Sequence[int]) -> Shape:
    """The lengths of the whole grid."""
    most = tuple(b * n for b, n in zip(block, blocks, strict=True))
    length = most if given is None else (given,) * len(block) if isinstance(given, int) else tuple(given)
    if len(length) != len(block):
        raise ValueError(f"length {given} has {len(length)} values, one per spatial axis are {len(block)}")
    for a, (x, b, m) in enumerate(zip(length, block, most, strict=True)):
        if not b <= x <= m:
            raise ValueError(
                f"length {x} of spatial axis {a} does not fit {blocks[a]} blocks of {b}; legal are {b} to {m}"
            )
    return length
