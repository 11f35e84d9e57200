# SPDX-License-Identifier: Apache-2.0
"""Rows of scores, a slot for each key of a window: from products to scores, what a slot holds, its bias."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from jax_na.neighborhood import Axis, Shape, windows
from jax_na.op import Op, Present


def scores(op: Op, products: Array, rpb: Array | None, offsets: Array) -> Array:
    """scale * <q, k> + rpb [*batch, *queries, heads, pitch] of the products; -inf in slots without a key."""
    queries = products.shape[-op.rank - 2 : -2]
    found = op.scale * products
    if rpb is not None:
        found = found + _batched(bias(op, rpb, queries, offsets), found)
    return jnp.where(_batched(visible(op, queries, offsets), found), found, -jnp.inf)


def masked(op: Op, scores: Array, present: Present, qk: Callable[[Array, Array, Array], Array]) -> Array:
    """The scores, with -inf in the slots of keys that are masked.

    `qk` are the products of queries and keys. Those of ones with the mask have in every slot whether its key
    exists: wherever keys come from, other devices or the far end of an axis, the mask comes with them.
    """
    mask = present.key_mask
    if mask is None:
        return scores
    exists = mask.astype(jnp.float32)[..., None, None]
    queries = jnp.ones((*scores.shape[:-2], 1, 1), jnp.float32)
    return jnp.where(qk(queries, exists, present.offsets) > 0, scores, -jnp.inf)


def _batched(x: Array, like: Array) -> Array:
    """x with ones for the batch axes that `like` has besides."""
    return jnp.expand_dims(x, range(like.ndim - x.ndim))


def _slots(axis: Axis, queries: int, q0: Array) -> tuple[Array, Array, Array]:
    """For n queries from q0 on: positions [n, 1], keys of the slots [n, w], stops of the windows [n, 1]."""
    x = q0 + jnp.arange(queries, dtype=jnp.int32)
    start, stop = jnp.asarray(windows(axis))[x].T
    keys = start[:, None] + jnp.arange(axis.kernel_size, dtype=jnp.int32)[None]
    return (x // axis.dilation)[:, None], keys, stop[:, None]


def visible(op: Op, queries: Shape, offsets: Array) -> Array:
    """bool [*Sq, 1, pitch], or with ones for Sq where all queries agree: whether a slot holds a key."""
    rank = op.rank
    result = jnp.ones((1,) * (rank + 1) + op.neighborhood.kernel_size, bool)
    for a, axis in enumerate(op.axes):
        if axis.is_causal:
            _, keys, stop = _slots(axis, queries[a], offsets[a, 0])
            shape = [1] * (2 * rank + 1)
            shape[a], shape[rank + 1 + a] = queries[a], axis.kernel_size
            result = result & (keys < stop).reshape(shape)
    return pad(op, result.reshape(*result.shape[: rank + 1], op.neighborhood.size))


def bias(op: Op, rpb: Array, queries: Shape, offsets: Array) -> Array:
    """rpb [heads, 2 * w - 1, ...] -> [*Sq, heads, pitch]: entry (key - query) + w - 1 per axis."""
    rank = op.rank
    for a, axis in enumerate(op.axes):
        x, keys, _ = _slots(axis, queries[a], offsets[a, 0])
        entry = jnp.clip(keys - x + axis.kernel_size - 1, 0, 2 * axis.kernel_size - 2)
        rpb = jnp.take(rpb, entry, axis=1 + 2 * a)
    order = [*range(1, 2 * rank, 2), 0, *range(2, 2 * rank + 1, 2)]
    table = rpb.transpose(order)
    return pad(op, table.reshape(*table.shape[: rank + 1], op.neighborhood.size))


def pad(op: Op, x: Array) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, op.pitch - x.shape[-1])])
