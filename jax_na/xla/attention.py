# SPDX-License-Identifier: Apache-2.0
"""The implementation "xla": neighborhood attention in pure JAX, for every platform.

Queries are visited tile by tile with `lax.scan`. A step is a batched matrix product of a tile with the slice
of keys that its windows touch, masked outside them (see blocks.py). Nothing of size queries x keys exists.

All functions take `offsets`, int32 [rank, 2]: the first query and the first key of the region on each axis.
All are differentiable.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_na.neighborhood import Shape
from jax_na.op import Inputs, Op, Results
from jax_na.xla.blocks import Blocks, scan
from jax_na.xla.lines import Span


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, statistics and weights: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(op: Op, expression: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """einsum of operands rounded to `dtype`, summed in the accumulator's dtype."""
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(expression, x, y, precision=op.precision, preferred_element_type=accumulator(dtype))


def _scores(
    op: Op, blocks: Blocks, spans: tuple[Span, ...], queries: Array, keys: Array, rpb: Array | None
) -> Array:
    """S = scale * q k + rpb for the queries and keys of a step, hugely negative outside the windows."""
    s = op.scale * dot(op, "...grtd,...gud->...grtu", queries, keys, queries.dtype)
    if rpb is not None:
        s = s + blocks.bias(rpb, spans)
    return jnp.where(blocks.mask(spans), s, np.finfo(s.dtype).min)  # -inf: nan in rows that only fill a tile


def attention_forward(op: Op, inputs: Inputs, offsets: Array) -> Results:
    """O = softmax(S) V and LSE = logsumexp(S); additional tokens are left out."""
    query, key, value = inputs.query, inputs.key, inputs.value
    blocks = Blocks.of(op, query.shape, key.shape, offsets)
    keys, values = blocks.split_keys(key), blocks.split_keys(value)

    def step(_: None, x: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        tile, q_t = x
        spans = blocks.spans(tile)
        k_t, v_t = blocks.take_keys(keys, spans), blocks.take_keys(values, spans)
        s = _scores(op, blocks, spans, q_t, k_t, inputs.rpb)
        m = lax.stop_gradient(s.max(-1))
        p = jnp.exp(s - m[..., None])
        z = p.sum(-1)
        out = dot(op, "...grtu,...gue->...grte", p, v_t, query.dtype) / z[..., None]
        return None, (out.astype(query.dtype), m + jnp.log(z))

    queries = blocks.split_queries(query)
    _, (out, lse) = scan(step, None, len(queries), (queries,))
    there = blocks.covered()[..., None]  # traced offsets cannot raise an error: what they leave out is nan
    out = jnp.where(there[..., None], blocks.join_queries(out), jnp.nan)
    return Results(out, jnp.where(there, blocks.join_queries(lse), jnp.nan))


def attention_backward(
    op: Op, inputs: Inputs, results: Results, cotangents: Results, offsets: Array
) -> Inputs:
    """The gradients of query, key, value and, if there is one, rpb; additional tokens are left out.

    delta = rowsum(dO * O) - dLSE;  P = exp(S - LSE);  dS = P * (dO V^T - delta)
    dQ = scale dS K;  dK = scale dS^T Q;  dV = P^T dO;  d_rpb = sum of dS
    """
    acc = accumulator(inputs.query.dtype)
    blocks = Blocks.of(op, inputs.query.shape, inputs.key.shape, offsets)
    keys, values = blocks.split_keys(inputs.key), blocks.split_keys(inputs.value)
    delta = (cotangents.out.astype(acc) * results.out.astype(acc)).sum(-1) - cotangents.lse
    # P = 0 in rows that only fill a tile
    fills = ((inputs.query, 0), (cotangents.out, 0), (results.lse, jnp.inf), (delta, 0))
    rows = tuple(blocks.split_queries(x, fill) for x, fill in fills)
    split = Inputs(None, keys, values, rpb=inputs.rpb)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, acc), split)
    step = functools.partial(_backward_step, op, blocks, split)
    sums, dq = scan(step, zeros, len(rows[0]), rows)
    dk, dv = (blocks.join_keys(x).astype(inputs.query.dtype) for x in (sums.key, sums.value))
    return Inputs(blocks.join_queries(dq), dk, dv, rpb=sums.rpb)


def _backward_step(
    op: Op, blocks: Blocks, split: Inputs, sums: Inputs, rows: tuple[Array, ...]
) -> tuple[Inputs, Array]:
    """The formulas of `attention_backward` for a tile: adds to dK, dV and d_rpb, gives dQ."""
    tile, q, do, lse, delta = rows
    spans = blocks.spans(tile)
    product = functools.partial(dot, op, dtype=q.dtype)
    k, v = blocks.take_keys(split.key, spans), blocks.take_keys(split.value, spans)
    p = jnp.exp(_scores(op, blocks, spans, q, k, split.rpb) - lse[..., None])
    ds = p * (product("...grte,...gue->...grtu", do, v) - delta[..., None])
    dq = op.scale * product("...grtu,...gud->...grtd", ds, k)
    dk = op.scale * product("...grtu,...grtd->...gud", ds, q)
    dv = product("...grtu,...grte->...gue", p, do)
    sums = sums._replace(
        key=blocks.add_keys(sums.key, dk, spans),
        value=blocks.add_keys(sums.value, dv, spans),
        rpb=None if split.rpb is None else sums.rpb + _bias_gradient(blocks, spans, split.rpb, ds),
    )
    return sums, dq.astype(q.dtype)


def _bias_gradient(blocks: Blocks, spans: tuple[Span, ...], rpb: Array, dscores: Array) -> Array:
    """What the scores of a step add to the gradient of rpb."""
    scatter = jax.linear_transpose(lambda table: blocks.bias(table, spans), rpb)
    gradient: Array = scatter(dscores.sum(range(blocks.batch), keepdims=True))[0]
    return gradient


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: a[q, j] = x[q] . y[key(q, j)]; slots that see nothing, and padding, are 0."""
    blocks = Blocks.of(op, x.shape, y.shape, offsets)
    keys = blocks.split_keys(y)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, query = xs
        spans = blocks.spans(tile)
        dense = dot(op, "...grtd,...gud->...grtu", query, blocks.take_keys(keys, spans), x.dtype)
        return None, blocks.to_slots(dense, spans)

    queries = blocks.split_queries(x)
    _, a = scan(step, None, len(queries), (queries,))
    return _pad_slots(op, blocks.join_queries(a))


def _pad_slots(op: Op, a: Array) -> Array:
    """Rows of weights with zeros up to op.pitch."""
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, op.pitch - a.shape[-1])])


def av(op: Op, a: Array, y: Array, offsets: Array) -> Array:
    """NN: x[q] = sum_j a[q, j] y[key(q, j)]"""
    blocks = Blocks.of(op, a.shape, y.shape, offsets)
    keys = blocks.split_keys(y)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, weights = xs
        spans = blocks.spans(tile)
        dense = blocks.from_slots(weights, spans)
        x = dot(op, "...grtu,...gue->...grte", dense, blocks.take_keys(keys, spans), y.dtype)
        return None, x.astype(y.dtype)

    weights = blocks.split_queries(a[..., : op.neighborhood.size])
    return blocks.join_queries(scan(step, None, len(weights), (weights,))[1])


def inverse(op: Op, a: Array, x: Array, offsets: Array, keys: Shape) -> Array:
    """IN: y[k] = sum of a[q, j] x[q] over the (q, j) whose key is k; `keys` is [*Sk, kv heads] of y."""
    batch = x.ndim - op.neighborhood.rank - 2
    shape = (*x.shape[:batch], *keys, x.shape[-1])
    blocks = Blocks.of(op, x.shape, shape, offsets)

    def step(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
        tile, weights, query = xs
        spans = blocks.spans(tile)
        dense = blocks.from_slots(weights, spans)
        part = dot(op, "...grtu,...grte->...gue", dense, query, x.dtype)
        return blocks.add_keys(total, part, spans), None

    rows = blocks.split_queries(a[..., : op.neighborhood.size]), blocks.split_queries(x)
    total = blocks.split_keys(jnp.zeros(shape, accumulator(x.dtype)))
    total, _ = scan(step, total, len(rows[0]), rows)
    return blocks.join_keys(total).astype(x.dtype)
