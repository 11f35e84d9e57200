# SPDX-License-Identifier: Apache-2.0
"""Attention of some queries of a grid, given some of its keys: tiles of a large image, frames of a stream."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_na.api import arguments
from jax_na.api.arguments import Positions, Precision
from jax_na.api.request import Arrays, Extras, Options, request
from jax_na.api.window import Flags, Ints, Window
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.rules import compose


def region_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints | Neighborhood,
    *,
    length: Ints,
    query_start: Positions,
    key_start: Positions,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
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
    """`neighborhood_attention` of the queries of a region, given the keys of a region with all their windows.

    Windows are those of the whole grid. So regions that are cut from it, with the keys that
    `Neighborhood.keys_of` tells, and put together again are the attention of the whole grid.

    Args:
        query: [batch..., *queries, heads, head_dim], a box of the grid.
        key: [batch..., *keys, kv_heads, head_dim], another one; it may have more keys than are needed.
        value: [batch..., *keys, kv_heads, value_dim].
        length: shape of the whole grid, one integer or one per spatial axis.
        query_start: position of the first query in the grid, one for all axes or one per axis: integers, or
            arrays that may be traced, so that one compiled program serves all regions of one shape.
        key_start: position of the first key in the grid, likewise.
        key_mask: bool [batch..., *keys], which of the keys that are given exist.
        The rest as in `neighborhood_attention`.

    Returns:
        As `neighborhood_attention`, for the queries of the region.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`; also if a region is not inside the grid, if the
            keys do not hold all windows of the queries, or if an axis is periodic.

    Positions that are traced cannot be checked beforehand. If they are wrong, CPU kernels raise
    jax.errors.JaxRuntimeError when they run; with CUDA kernels and "xla" nan comes out for the queries that
    are not in the grid or miss keys of their windows. Nothing is read outside of the arrays.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1000, 4, 32))
        >>> jax_na.Neighborhood(33).keys_of((1000,), [(500, 600)])
        ((484, 616),)
        >>> jax_na.region_attention(
        ...     q[500:600], k[484:616], v[484:616], (33,), length=1000, query_start=500, key_start=484
        ... ).shape
        (100, 4, 32)
    """
    arrays = arguments.arrays({"query": query, "key": key, "value": value})
    window = Window(kernel_size, stride, dilation, is_causal)
    extras = Extras(rpb, additional_keys, additional_values, key_mask, additional_mask)
    grid = functools.partial(_grid_of_region, length, query_start, key_start)
    call = request(arrays, window, Options(scale, implementation, precision), extras, grid)
    starts = _starts(query_start, key_start, call.op.rank)
    offsets = jnp.array(list(zip(*starts, strict=True)), jnp.int32)
    results = compose.attention(call.op, call.inputs, call.at(offsets))
    return tuple(results) if return_lse else results.out


def _starts(query_start: Positions, key_start: Positions, rank: int) -> Sequence[tuple[Any, ...]]:
    """The first query and the first key, one position per axis each."""
    return (
        arguments.starts("query_start", query_start, rank),
        arguments.starts("key_start", key_start, rank),
    )


def _grid_of_region(
    length: Ints, query_start: Positions, key_start: Positions, n: Neighborhood, arrays: Arrays
) -> Shape:
    """The lengths of the whole grid, of which the arrays hold boxes."""
    if any(n.is_periodic):
        raise ValueError(
            f"region_attention takes no periodic axes, got {n}; give keys continued past both ends, in front "
            "by a multiple of stride * dilation, the length of all of them, and positions among them"
        )
    arguments.require_same_keys(n, arrays)
    grid = arguments.grid(n, length, query_start=query_start, key_start=key_start)
    n.axes(grid)
    queries, keys = (arguments.spatial(n, arrays[name]) for name in ("query", "key"))
    first_query, first_key = _starts(query_start, key_start, n.rank)
    arguments.require_inside("query", grid, first_query, queries)
    arguments.require_inside("key", grid, first_key, keys)
    arguments.require_windows(n, grid, (first_query, queries), (first_key, keys))
    return grid
