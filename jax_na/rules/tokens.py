# SPDX-License-Identifier: Apache-2.0
"""Additional tokens, which every query sees: attention to them, and the merge of disjoint sets of keys."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.neighborhood import Shape, known_size
from jax_na.op import Inputs, Op, Present, Results, Saved
from jax_na.xla import softmax
from jax_na.xla.products import accumulator, dot

MAX_SCORES = 1 << 20  # scores with additional tokens that exist at a time


def include(op: Op, results: Results, inputs: Inputs, present: Present) -> Results:
    """The attention of neighborhoods, joined with that of the additional tokens if there are any."""
    if inputs.token_key is None:
        return results
    mask = present.token_mask
    everywhere = attend_everywhere(
        op, inputs.query, *_existing(mask, inputs.token_key, inputs.token_value), mask
    )
    return Results(*merge((results.out, everywhere.out), (results.lse, everywhere.lse)))


def include_gradients(op: Op, gradients: Inputs, inputs: Inputs, present: Present, saved: Saved) -> Inputs:
    """The gradients of neighborhoods, with what the additional tokens add if there are any.

    What is saved is of the whole attention.
    """
    if inputs.token_key is None:
        return gradients
    query, mask = inputs.query, present.token_mask
    dquery, *sums = backward(
        op, *_existing(mask, inputs.token_key, inputs.token_value), mask, (query, *saved)
    )
    dkey, dvalue = _existing(mask, *sums)
    return gradients._replace(
        query=gradients.query + dquery,
        token_key=dkey.astype(query.dtype),
        token_value=dvalue.astype(query.dtype),
    )


def _rows_at_a_time(k: Shape, heads: int) -> int:
    *batch, tokens, _, _ = k
    return max(1, MAX_SCORES // (known_size((*batch, tokens)) * heads))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def attend_everywhere(op: Op, q: Array, k: Array, v: Array, mask: Array | None) -> Results:
    """Attention of all queries [*batch, *Sq, H, D] to tokens: k [*batch, T, G, D], v [*batch, T, G, E].

    `mask` [*batch, T] says which of them exist, None if all do.
    """
    batch, groups, heads = k.ndim - 3, k.shape[-2], q.shape[-2]
    leading = k.shape[:batch]

    @jax.checkpoint
    def one(query: Array) -> tuple[Array, Array]:  # [*batch, H, D]
        query = query.reshape(*leading, groups, heads // groups, q.shape[-1])
        s = _masked(op.scale * dot(op, "...grd,...tgd->...grt", query, k, q.dtype), mask)
        p, total, lse = softmax.sums(s)
        out = dot(op, "...grt,...tge->...gre", p / total[..., None], v, q.dtype)
        return out.reshape(*leading, heads, v.shape[-1]).astype(q.dtype), lse.reshape(*leading, heads)

    rows = jnp.moveaxis(_one_axis(q, batch, op.rank), batch, 0)
    size = min(_rows_at_a_time(k.shape, heads), len(rows))
    out, lse = (jnp.moveaxis(x, 0, batch) for x in jax.lax.map(one, rows, batch_size=size))
    return Results(out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1]))


def _existing(mask: Array | None, *arrays: Array) -> Sequence[Array]:
    """Of tokens [*batch, T, ...] those that exist, 0 for the others: they may hold anything."""
    if mask is None:
        return arrays
    return [jnp.where(mask[..., None, None], x, 0) for x in arrays]


def _masked(scores: Array, mask: Array | None) -> Array:
    """Scores [..., *batch, G, R, T], -inf for tokens that are masked."""
    return scores if mask is None else jnp.where(mask[..., None, None, :], scores, -jnp.inf)


def _one_axis(x: Array, batch: int, rank: int) -> Array:
    """[*batch, *Sq, ...] with one axis for all queries."""
    queries = math.prod(x.shape[batch : batch + rank])
    return x.reshape(*x.shape[:batch], queries, *x.shape[batch + rank :])


@functools.partial(jax.jit, static_argnums=0, inline=True)
def backward(
    op: Op, k: Array, v: Array, mask: Array | None, of_queries: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array, Array]:
    """(dQ, dK, dV) of the additional tokens' part in an attention; dK and dV in the accumulator's dtype.

    `of_queries` are Q, LSE, delta and dO.

    S = scale Q K^T;  P = exp(S - LSE);  dS = P * (dO V^T - delta)
    dQ = scale dS K;  dK = scale dS^T Q;  dV = P^T dO

    LSE and delta = rowsum(dO * O) - dLSE are those of the whole attention.
    """
    q, lse, delta, dout = of_queries
    batch, groups = k.ndim - 3, k.shape[-2]
    queries = math.prod(q.shape[batch : batch + op.rank])
    size = min(_rows_at_a_time(k.shape, q.shape[-2]), queries)

    def blocks(x: Array, fill: float = 0.0) -> Array:
        return _blocks(_one_axis(x, batch, op.rank), batch, groups, size, fill)

    rows = (blocks(q), blocks(lse, jnp.inf), blocks(delta), blocks(dout))  # P = 0 in rows that fill a block
    acc = accumulator(q.dtype)
    zeros = (jnp.zeros_like(k, acc), jnp.zeros_like(v, acc))
    (dk, dv), dq = jax.lax.scan(functools.partial(_backward_step, op, k, v, mask), zeros, rows)
    dq = jnp.moveaxis(dq.reshape(-1, *dq.shape[2:])[:queries], 0, batch)
    return dq.reshape(q.shape), dk, dv


def _blocks(x: Array, batch: int, groups: int, size: int, fill: float) -> Array:
    """[*batch, queries, H, *rest] -> [blocks, size, *batch, G, H / G, *rest]; `fill` completes the last."""
    head = batch + 1
    x = x.reshape(*x.shape[:head], groups, x.shape[head] // groups, *x.shape[head + 1 :])
    x = jnp.moveaxis(x, batch, 0)
    x = jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
    return x.reshape(-1, size, *x.shape[1:])


def _backward_step(
    op: Op,
    k: Array,
    v: Array,
    mask: Array | None,
    sums: tuple[Array, Array],
    rows: tuple[Array, ...],
) -> tuple[tuple[Array, Array], Array]:
    """The formulas of `backward` for some queries n: adds to dK and dV, gives dQ."""
    (dk, dv), (query, lse, delta, dout) = sums, rows
    product = functools.partial(dot, op, dtype=query.dtype)
    s = _masked(op.scale * product("n...grd,...tgd->n...grt", query, k), mask)
    p = softmax.exp(s, lse)
    ds = p * (product("n...gre,...tge->n...grt", dout, v) - delta[..., None])
    dk += op.scale * product("n...grt,n...grd->...tgd", ds, query)
    dv += product("n...grt,n...gre->...tge", p, dout)
    dq = op.scale * product("n...grt,...tgd->n...grd", ds, k)
    return (dk, dv), dq.astype(query.dtype)


def merge(outputs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """O = sum_i exp(LSE_i - LSE) O_i and LSE = log sum_i exp LSE_i, over the union of disjoint key sets."""
    dtype = jnp.result_type(*outputs)
    acc = accumulator(dtype)
    stacked = jnp.stack([x.astype(acc) for x in lses])
    top = jax.lax.stop_gradient(stacked.max(0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    some = stacked != -jnp.inf  # selected before and after exp and log, so that no gradient is 0 * inf
    weights = jnp.where(some, jnp.exp(jnp.where(some, stacked - top[None], 0)), 0)
    total = weights.sum(0)
    safe = jnp.where(total == 0, 1, total)
    shares = weights / safe[None]
    parts = (
        w[..., None] * jnp.where(w[..., None] == 0, 0, o.astype(acc))
        for w, o in zip(shares, outputs, strict=True)
    )
    out = functools.reduce(operator.add, parts)
    return out.astype(dtype), jnp.where(total == 0, -jnp.inf, top + jnp.log(safe))
