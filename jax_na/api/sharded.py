# SPDX-License-Identifier: Apache-2.0
"""Attention on a grid that is cut over devices, inside shard_map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.api import arguments as checks
from jax_na.api.attention import Flags, Ints, Precision
from jax_na.kernels import precision as precisions
from jax_na.kernels.table import check
from jax_na.kernels.target import align
from jax_na.mesh import halo, shards
from jax_na.mesh.halo import Names
from jax_na.neighborhood import Op, Shape
from jax_na.rules import compose

AxisNames = str | Sequence[str | Sequence[str] | None]


def sharded_neighborhood_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    *,
    axis_names: AxisNames,
    length: Ints | None = None,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
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
            less, the last blocks end in padding, which is never attended to; there out and lse are 0.
        rpb, additional_keys, additional_values: those of the heads and batch entries of this device.
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
    query, key, value = checks.arrays(query=query, key=key, value=value)
    n = checks.neighborhood(query.ndim, kernel_size, stride, dilation, is_causal)
    checks.same_axes(n, query=query, key=key, value=value)
    checks.head_dims(query, key)
    checks.kv_heads(key, value)
    checks.heads(query.shape[-2], key.shape[-2])
    bias = checks.rpb(rpb, n, query.shape[-2])
    tokens = checks.additional(additional_keys, additional_values, n, query, value)
    check(implementation, query, value)
    block = query.shape[-n.rank - 2 : -2]
    names = _names(axis_names, n.rank)
    sizes = _sizes([name for group in names for name in group])
    grid = _length(length, block, [shards.product(sizes, group) for group in names])
    n.axes(grid)
    factor = checks.scale(scale, query.shape[-1])
    op = Op(n, grid, factor, implementation, precisions.resolve(precision))
    axes = {f"x{a}": group for a, group in enumerate(names) if group}
    split = shards.Split(op, query.ndim - n.rank - 2, sizes, axes, block)
    out, lse = _attend(split, [query, key, value], [] if bias is None else [bias], tokens)
    return (out, lse) if return_lse else out


def _attend(
    split: shards.Split, arrays: Sequence[Array], tables: Sequence[Array], tokens: Sequence[Array]
) -> tuple[Array, Array]:
    """Attention of a block. Queries move behind the padding of their block, results back."""
    names = tuple(name for group in split.axes.values() for name in group)
    device = [jax.lax.axis_index(names)] if names else []
    query, key, value = align(*arrays, *device)[:3]  # what differs between devices
    spatial = [(split.batch + a, exchange) for a, exchange in split.spatial()]
    for dim, exchange in spatial:
        query = halo.align_queries(exchange, query, dim)
    n = 3 + len(tokens)

    def function(*operands: Array) -> tuple[Array, Array]:
        (q, k, v, *more), (offsets, *rpb) = operands[:n], operands[n:]
        bias = rpb[0] if rpb else None
        out, lse = compose.attention(split.op, q, k, v, offsets, bias, tuple(more))
        return out, lse

    inputs = ["BXH", "BKH", "BKH", *["B_H"] * len(tokens), "O", *["H"] * len(tables)]
    local = shards.on_shards(function, split, (inputs, ["BXH", "BXH"]), [query.shape[:-1]] * 2)
    out, lse = local(query, key, value, *tokens, compose.whole_grid(split.rank), *tables)
    for dim, exchange in spatial:
        out, lse = (_place(x, exchange, dim) for x in (out, lse))
    return out, lse


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


def _sizes(names: Sequence[str]) -> dict[str, int]:
    """Of these mesh axes, in the order of the mesh."""
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
