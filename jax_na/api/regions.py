# SPDX-License-Identifier: Apache-2.0
"""Attention of some queries of a grid, given some of its keys: tiles of a large image, frames of a stream."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_na.api import arguments as checks
from jax_na.api.attention import Flags, Ints, Precision
from jax_na.kernels import precision as precisions
from jax_na.kernels.table import check
from jax_na.neighborhood import Op
from jax_na.rules import compose

Positions = int | tuple[int | Array, ...] | Array


def region_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
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
        The rest as in `neighborhood_attention`.

    Returns:
        As `neighborhood_attention`, for the queries of the region.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`; also if a region is not inside the grid, or if the
            keys do not hold all windows of the queries.

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
    query, key, value = checks.arrays(query=query, key=key, value=value)
    n = checks.neighborhood(query.ndim, kernel_size, stride, dilation, is_causal)
    checks.region(n, query, key, value)
    checks.head_dims(query, key)
    checks.kv_heads(key, value)
    checks.heads(query.shape[-2], key.shape[-2])
    grid = checks.grid(n, length, query_start=query_start, key_start=key_start)
    queries, keys = (x.shape[-n.rank - 2 : -2] for x in (query, key))
    first_query = checks.starts("query_start", query_start, n.rank)
    first_key = checks.starts("key_start", key_start, n.rank)
    checks.inside("query", grid, first_query, queries)
    checks.inside("key", grid, first_key, keys)
    checks.windows_present(n, grid, (first_query, queries), (first_key, keys))
    rpb = checks.rpb(rpb, n, query.shape[-2])
    tokens = checks.additional(additional_keys, additional_values, n, query, value)
    check(implementation, query, value)
    factor = checks.scale(scale, query.shape[-1])
    op = Op(n, grid, factor, implementation, precisions.resolve(precision))
    offsets = jnp.array(list(zip(first_query, first_key, strict=True)), jnp.int32)
    out, lse = compose.attention(op, query, key, value, offsets, rpb, tokens)
    return (out, lse) if return_lse else out
