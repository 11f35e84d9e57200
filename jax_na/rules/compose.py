# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention put together from the primitives."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jax_na.kernels.table import row
from jax_na.mesh import partition
from jax_na.neighborhood import Axis, Op, Shape, windows
from jax_na.rules import fused as rules
from jax_na.rules import tokens, trilinear
from jax_na.rules.softmax import softmax
from jax_na.rules.tokens import Tokens
from jax_na.xla.attention import accumulator


def whole_grid(rank: int) -> Array:
    """Offsets of queries and keys that are the whole grid."""
    return jnp.zeros((rank, 2), jnp.int32)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def attention(
    op: Op, q: Array, k: Array, v: Array, offsets: Array, rpb: Array | None = None, more: Tokens = ()
) -> tuple[Array, Array]:
    """(O, LSE) with the implementation of `op`; `offsets` [rank, 2]: first query and first key per axis.

    `more` are additional keys and values, [*batch, tokens, kv_heads, features], if there are any.
    """
    n, tables = 3 + len(more), () if rpb is None else (rpb.astype(accumulator(q.dtype)),)

    def local(*operands: Array) -> tuple[Array, Array]:
        return _attention(op, operands[:n], *operands[n:])

    inputs = ["BXH", "BKH", "BKH", *["B_H"] * len(more), "O", *["H"] * len(tables)]
    out, lse = partition.explicit(local, op, (inputs, ["BXH", "BXH"]))(q, k, v, *more, offsets, *tables)
    return out, lse


def _attention(op: Op, x: tuple[Array, ...], offsets: Array, rpb: Array | None = None) -> tuple[Array, Array]:
    if op.implementation is None or not row(op.implementation).composed:
        return rules.attention(op, x, offsets, rpb)
    q, k, v, *more = x
    out, lse = _composed(op, q, k, v, offsets, rpb)
    return tokens.include(op, out, lse, q, *more)


def _composed(op: Op, q: Array, k: Array, v: Array, offsets: Array, rpb: Array | None) -> tuple[Array, Array]:
    if rpb is None and not any(op.neighborhood.is_causal):
        weights, lse = softmax(op, trilinear.qk(op, q, k, offsets))
    else:
        weights, lse = softmax(dataclasses.replace(op, scale=1.0), _scores(op, q, k, offsets, rpb))
    out = trilinear.av(op, weights, v, offsets)
    return checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse")


@functools.partial(jax.jit, static_argnums=0, inline=True)
def scores(op: Op, q: Array, k: Array, offsets: Array, rpb: Array | None = None) -> Array:
    """scale * <q, k> + rpb [*batch, *Sq, heads, pitch]; -inf in slots without a key and in padding."""
    tables = () if rpb is None else (rpb,)
    roles = ["BXH", "BKH", "O", *["H"] * len(tables)], ["BXH"]
    (s,) = partition.explicit(lambda *x: (_scores(op, *x),), op, roles)(q, k, offsets, *tables)
    return s


def _scores(op: Op, q: Array, k: Array, offsets: Array, rpb: Array | None = None) -> Array:
    s = op.scale * trilinear.qk(op, q, k, offsets)
    queries = q.shape[-op.neighborhood.rank - 2 : -2]
    if rpb is not None:
        s = s + bias(op, rpb, queries, offsets)
    return jnp.where(visible(op, queries, offsets), s, -jnp.inf)


def _slots(axis: Axis, queries: int, q0: Array) -> tuple[Array, Array, Array]:
    """Of n queries from q0 on: positions [n, 1], keys of the slots [n, w], stops of the windows [n, 1]."""
    x = q0 + jnp.arange(queries, dtype=jnp.int32)
    start, stop = jnp.asarray(windows(axis))[x].T
    keys = start[:, None] + jnp.arange(axis.kernel_size, dtype=jnp.int32)
    return (x // axis.dilation)[:, None], keys, stop[:, None]


def visible(op: Op, queries: Shape, offsets: Array) -> Array:
    """bool [*Sq, 1, pitch], or with ones for Sq where all queries agree: whether a slot holds a key."""
    rank = op.neighborhood.rank
    result = jnp.ones((1,) * (rank + 1) + op.neighborhood.kernel_size, bool)
    for a, axis in enumerate(op.axes):
        if axis.is_causal:
            _, keys, stop = _slots(axis, queries[a], offsets[a, 0])
            shape = [1] * (2 * rank + 1)
            shape[a], shape[rank + 1 + a] = queries[a], axis.kernel_size
            result = result & (keys < stop).reshape(shape)
    return _pad_slots(op, result.reshape(*result.shape[: rank + 1], op.neighborhood.size))


def bias(op: Op, rpb: Array, queries: Shape, offsets: Array) -> Array:
    """rpb [heads, 2 * w - 1, ...] -> [*Sq, heads, pitch]: entry (key - query) + w - 1 per axis."""
    rank = op.neighborhood.rank
    for a, axis in enumerate(op.axes):
        x, keys, _ = _slots(axis, queries[a], offsets[a, 0])
        entry = jnp.clip(keys - x + axis.kernel_size - 1, 0, 2 * axis.kernel_size - 2)
        rpb = jnp.take(rpb, entry, axis=1 + 2 * a)
    order = [*range(1, 2 * rank, 2), 0, *range(2, 2 * rank + 1, 2)]
    table = rpb.transpose(order)
    return _pad_slots(op, table.reshape(*table.shape[: rank + 1], op.neighborhood.size))


def _pad_slots(op: Op, x: Array) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, op.pitch - x.shape[-1])])


@functools.partial(jax.jit, static_argnums=0, inline=True)
def weighted_sum(op: Op, weights: Array, value: Array, offsets: Array) -> Array:
    """NN for weights [..., prod(kernel_size)]."""

    def local(weights: Array, value: Array, offsets: Array) -> tuple[Array]:
        rows = _pad_slots(op, weights.astype(accumulator(value.dtype)))
        return (trilinear.av(op, rows, value, offsets),)

    (x,) = partition.explicit(local, op, (["BXH", "BKH", "O"], ["BXH"]))(weights, value, offsets)
    return x
