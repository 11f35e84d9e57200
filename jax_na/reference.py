# SPDX-License-Identifier: Apache-2.0
"""The implementation "xla": neighborhood attention in pure JAX, for every platform.

Queries are visited tile by tile with `lax.scan`; a step is a batched matrix product of a tile with the slice of keys
that its windows touch, masked outside the windows (see blocks.py). Nothing of size queries x keys ever exists.

All functions take region `offsets` (int32 [rank, 2]: first query and first key on each axis) and are differentiable.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_na.blocks import Blocks, Span, scan
from jax_na.neighborhood import Op, Shape


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, statistics and weights: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def _dot(expression: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """einsum of operands rounded to `dtype`, summed in the accumulator's dtype."""
    acc = accumulator(dtype)
    precision = lax.Precision.HIGHEST if acc == dtype else None
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(expression, x, y, precision=precision, preferred_element_type=acc)


def _scores(op: Op, blocks: Blocks, spans: tuple[Span, ...], q: Array, k: Array, rpb: Array | None) -> Array:
    """S = scale * q k + rpb, hugely negative outside the windows."""
    s = op.scale * _dot("...grtd,...gud->...grtu", q, blocks.take_keys(k, spans), q.dtype)
    if rpb is not None:
        s = s + blocks.bias(rpb, spans)
    return jnp.where(blocks.mask(spans), s, jnp.finfo(s.dtype).min)  # -inf: nan in rows that only fill a tile


def attention_forward(
    op: Op, q: Array, k: Array, v: Array, offsets: Array, rpb: Array | None = None
) -> tuple[Array, Array]:
    """O = softmax(S) V and LSE = logsumexp(S)."""
    blocks = Blocks.of(op, q.shape, k.shape, offsets)
    keys, values = blocks.split_keys(k), blocks.split_keys(v)

    def step(_: None, x: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        tile, query = x
        spans = blocks.spans(tile)
        s = _scores(op, blocks, spans, query, keys, rpb)
        m = lax.stop_gradient(s.max(-1))
        p = jnp.exp(s - m[..., None])
        z = p.sum(-1)
        out = _dot("...grtu,...gue->...grte", p, blocks.take_keys(values, spans), q.dtype) / z[..., None]
        return None, (out.astype(q.dtype), m + jnp.log(z))

    queries = blocks.split_queries(q)
    _, (out, lse) = scan(step, None, len(queries), (queries,))
    return blocks.join_queries(out), blocks.join_queries(lse)


def attention_backward(
    op: Op,
    q: Array,
    k: Array,
    v: Array,
    out: Array,
    lse: Array,
    dout: Array,
    dlse: Array,
    offsets: Array,
    rpb: Array | None = None,
) -> tuple[Array, ...]:
    """(dQ, dK, dV[, d_rpb]):

    delta = rowsum(dO * O) - dLSE;  P = exp(S - LSE);  dS = P * (dO V^T - delta)
    dQ = scale dS K;  dK = scale dS^T Q;  dV = P^T dO;  d_rpb = sum of dS
    """
    acc = accumulator(q.dtype)
    blocks = Blocks.of(op, q.shape, k.shape, offsets)
    keys, values = blocks.split_keys(k), blocks.split_keys(v)
    delta = (dout.astype(acc) * out.astype(acc)).sum(-1) - dlse

    def step(sums: tuple, x: tuple[Array, ...]) -> tuple[tuple, Array]:
        tile, q_t, do_t, lse_t, delta_t = x
        dk, dv, drpb = sums
        spans = blocks.spans(tile)
        k_t, v_t = blocks.take_keys(keys, spans), blocks.take_keys(values, spans)
        p = jnp.exp(_scores(op, blocks, spans, q_t, keys, rpb) - lse_t[..., None])
        ds = p * (_dot("...grte,...gue->...grtu", do_t, v_t, q.dtype) - delta_t[..., None])
        dv = blocks.add_keys(dv, _dot("...grtu,...grte->...gue", p, do_t, q.dtype), spans)
        dk = blocks.add_keys(dk, op.scale * _dot("...grtu,...grtd->...gud", ds, q_t, q.dtype), spans)
        if rpb is not None:
            over_batch = ds.sum(tuple(range(blocks.batch)))
            (part,) = jax.linear_transpose(lambda table: blocks.bias(table, spans), rpb)(over_batch)
            drpb = drpb + part
        dq_t = op.scale * _dot("...grtu,...gud->...grtd", ds, k_t, q.dtype)
        return (dk, dv, drpb), dq_t.astype(q.dtype)

    rows = [blocks.split_queries(x) for x in (q, dout)]
    rows.append(blocks.split_queries(lse, fill=jnp.inf))  # P = 0 in rows that only fill a tile
    rows.append(blocks.split_queries(delta))
    sums = (_zeros(keys, acc), _zeros(values, acc), None if rpb is None else _zeros(rpb, acc))
    (dk, dv, drpb), dq = scan(step, sums, len(rows[0]), tuple(rows))
    result = blocks.join_queries(dq), *(blocks.join_keys(x).astype(q.dtype) for x in (dk, dv))
    return result if rpb is None else (*result, drpb)


def attention_tangent(
    op: Op, primals: tuple[Array, ...], tangents: tuple[Array, ...], offsets: Array
) -> tuple[Array, Array]:
    """The derivative of (O, LSE) along `tangents` of (q, k, v[, rpb])."""

    def forward(q: Array, k: Array, v: Array, *rpb: Array) -> tuple[Array, Array]:
        return attention_forward(op, q, k, v, offsets, *rpb)

    return jax.jvp(forward, primals, tangents)[1]


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: a[q, j] = x[q] . y[key(q, j)]; slots that see nothing, and padding, are 0."""
    blocks = Blocks.of(op, x.shape, y.shape, offsets)
    keys = blocks.split_keys(y)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, query = xs
        spans = blocks.spans(tile)
        dense = _dot("...grtd,...gud->...grtu", query, blocks.take_keys(keys, spans), x.dtype)
        return None, blocks.to_slots(dense, spans)

    queries = blocks.split_queries(x)
    _, a = scan(step, None, len(queries), (queries,))
    a = blocks.join_queries(a)
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, op.pitch - a.shape[-1])])


def av(op: Op, a: Array, y: Array, offsets: Array) -> Array:
    """NN: x[q] = sum_j a[q, j] y[key(q, j)]"""
    blocks = Blocks.of(op, a.shape, y.shape, offsets)
    keys = blocks.split_keys(y)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, weights = xs
        spans = blocks.spans(tile)
        dense = blocks.from_slots(weights, spans)
        x = _dot("...grtu,...gue->...grte", dense, blocks.take_keys(keys, spans), y.dtype)
        return None, x.astype(y.dtype)

    weights = blocks.split_queries(a[..., : op.neighborhood.size])
    return blocks.join_queries(scan(step, None, len(weights), (weights,))[1])


def inverse(op: Op, a: Array, x: Array, offsets: Array, keys: Shape) -> Array:
    """IN: y[k] = sum of a[q, j] x[q] over the (q, j) whose key is k. `keys` is [*Sk, kv heads] of the result."""
    batch = x.ndim - op.neighborhood.rank - 2
    shape = (*x.shape[:batch], *keys, x.shape[-1])
    blocks = Blocks.of(op, x.shape, shape, offsets)

    def step(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
        tile, weights, query = xs
        spans = blocks.spans(tile)
        dense = blocks.from_slots(weights, spans)
        part = _dot("...grtu,...grte->...gue", dense, query, x.dtype)
        return blocks.add_keys(total, part, spans), None

    rows = blocks.split_queries(a[..., : op.neighborhood.size]), blocks.split_queries(x)
    total = _zeros(blocks.split_keys(jnp.zeros(shape, x.dtype)), accumulator(x.dtype))
    total, _ = scan(step, total, len(rows[0]), rows)
    return blocks.join_keys(total).astype(x.dtype)


def _zeros(x: Array, dtype: jnp.dtype) -> Array:
    return jnp.zeros_like(x, dtype)
