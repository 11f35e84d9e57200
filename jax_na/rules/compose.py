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
from jax_na.neighborhood import Axis, Shape, windows
from jax_na.op import Inputs, Op, Results
from jax_na.rules import fused, tokens, trilinear
from jax_na.rules.softmax import softmax
from jax_na.rules.trilinear import AtQueries, AvOperands, Weights
from jax_na.xla.products import accumulator


def whole_grid(rank: int) -> Array:
    """Offsets of queries and keys that are the whole grid."""
    return jnp.zeros((rank, 2), jnp.int32)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def attention(op: Op, inputs: Inputs, offsets: Array) -> Results:
    """(O, LSE) with the implementation of `op`; `offsets` [rank, 2]: first query and first key per axis."""
    if inputs.rpb is not None:
        inputs = inputs._replace(rpb=inputs.rpb.astype(accumulator(inputs.query.dtype)))

    def local(operands: fused.Attention) -> Results:
        return _attention(op, *operands)

    results: Results = partition.explicit(local, op, fused.Attention(inputs, offsets), Results)
    return results


def _attention(op: Op, inputs: Inputs, offsets: Array) -> Results:
    if op.implementation is None or not row(op.implementation).composed:
        return fused.attention(op, inputs, offsets)
    return tokens.include(op, _composed(op, inputs, offsets), inputs)


def _composed(op: Op, inputs: Inputs, offsets: Array) -> Results:
    if inputs.rpb is None and not any(op.neighborhood.is_causal):
        weights, lse = softmax(op, trilinear.qk(op, inputs.query, inputs.key, offsets))
    else:
        weights, lse = softmax(dataclasses.replace(op, scale=1.0), _scores(op, inputs, offsets))
    out = trilinear.av(op, weights, inputs.value, offsets)
    return Results(checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse"))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def scores(op: Op, inputs: Inputs, offsets: Array) -> Array:
    """scale * <q, k> + rpb [*batch, *queries, heads, prod(kernel_size)]; -inf in slots without a key."""

    def local(operands: fused.Attention) -> Weights:
        return Weights(_scores(op, *operands)[..., : op.neighborhood.size])

    found: Array = partition.explicit(local, op, fused.Attention(inputs, offsets), Weights).weights
    return found


def _scores(op: Op, inputs: Inputs, offsets: Array) -> Array:
    products = op.scale * trilinear.qk(op, inputs.query, inputs.key, offsets)
    queries = inputs.query.shape[-op.rank - 2 : -2]
    if inputs.rpb is not None:
        products = products + _batched(bias(op, inputs.rpb, queries, offsets), products)
    return jnp.where(_batched(visible(op, queries, offsets), products), products, -jnp.inf)


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
    return _pad_slots(op, result.reshape(*result.shape[: rank + 1], op.neighborhood.size))


def bias(op: Op, rpb: Array, queries: Shape, offsets: Array) -> Array:
    """rpb [heads, 2 * w - 1, ...] -> [*Sq, heads, pitch]: entry (key - query) + w - 1 per axis."""
    rank = op.rank
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
    """sum_j weights[q, j] value[key(q, j)] for weights [..., prod(kernel_size)]."""

    def local(operands: AvOperands) -> AtQueries:
        weights, value, offsets = operands
        rows = _pad_slots(op, weights.astype(accumulator(value.dtype)))
        return AtQueries(trilinear.av(op, rows, value, offsets))

    found: Array = partition.explicit(local, op, AvOperands(weights, value, offsets), AtQueries).x
    return found
