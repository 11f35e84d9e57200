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
from jax_na.op import Inputs, Op, Present, Results
from jax_na.rules import fused, slots, tokens, trilinear
from jax_na.rules.softmax import softmax
from jax_na.rules.trilinear import AtQueries, AvOperands, Weights
from jax_na.xla.products import accumulator


def whole_grid(rank: int) -> Array:
    """Offsets of queries and keys that are the whole grid."""
    return jnp.zeros((rank, 2), jnp.int32)


@functools.partial(jax.jit, static_argnums=0, inline=True)
def attention(op: Op, inputs: Inputs, present: Present) -> Results:
    """(O, LSE) with the implementation of `op`."""
    if inputs.rpb is not None:
        inputs = inputs._replace(rpb=inputs.rpb.astype(accumulator(inputs.query.dtype)))

    def local(op: Op, operands: fused.Attention) -> Results:
        return _attention(op, *operands)

    results: Results = partition.explicit(local, op, fused.Attention(inputs, present), Results)
    return results


def _attention(op: Op, inputs: Inputs, present: Present) -> Results:
    if op.implementation is None or not row(op.implementation).composed:
        return fused.attention(op, inputs, present)
    return tokens.include(op, _composed(op, inputs, present), inputs, present)


def _composed(op: Op, inputs: Inputs, present: Present) -> Results:
    if inputs.rpb is None and present.key_mask is None and not any(op.neighborhood.is_causal):
        weights, lse = softmax(op, trilinear.qk(op, inputs.query, inputs.key, present.offsets))
    else:
        weights, lse = softmax(dataclasses.replace(op, scale=1.0), _scores(op, inputs, present))
    out = trilinear.av(op, weights, inputs.value, present.offsets)
    return Results(checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse"))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def scores(op: Op, inputs: Inputs, present: Present) -> Array:
    """scale * <q, k> + rpb [*batch, *queries, heads, prod(kernel_size)]; -inf in slots without a key."""

    def local(op: Op, operands: fused.Attention) -> Weights:
        return Weights(_scores(op, *operands)[..., : op.neighborhood.size])

    found: Array = partition.explicit(local, op, fused.Attention(inputs, present), Weights).weights
    return found


def _scores(op: Op, inputs: Inputs, present: Present) -> Array:
    offsets = present.offsets
    products = trilinear.qk(op, inputs.query, inputs.key, offsets)
    found = slots.scores(op.continued, products, inputs.rpb, op.first_queries(offsets))
    return slots.masked(op, found, present, functools.partial(trilinear.qk, op))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def weighted_sum(op: Op, weights: Array, value: Array, offsets: Array) -> Array:
    """sum_j weights[q, j] value[key(q, j)] for weights [..., prod(kernel_size)]."""

    def local(op: Op, operands: AvOperands) -> AtQueries:
        weights, value, offsets = operands
        rows = slots.pad(op, weights.astype(accumulator(value.dtype)))
        return AtQueries(trilinear.av(op, rows, value, offsets))

    found: Array = partition.explicit(local, op, AvOperands(weights, value, offsets), AtQueries).x
    return found
