# SPDX-License-Identifier: Apache-2.0
"""The implementation "xla": neighborhood attention in pure JAX, for every platform.

Queries are visited tile by tile with `lax.scan`. A step is a batched matrix product of a tile with the slice
of keys that its windows touch, masked outside them (see blocks.py). Nothing of size queries x keys exists.

All functions take `offsets`, int32 [rank, 2]: the first query and the first key of the region on each axis,
or those and which keys exist.
All are differentiable.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jax_na.neighborhood import Shape
from jax_na.op import Inputs, Op, Present, Results
from jax_na.xla import softmax
from jax_na.xla.blocks import Blocks, scan
from jax_na.xla.lines import Span
from jax_na.xla.products import Products, accumulator


class Step(NamedTuple):
    """What the scores of a step depend on besides its queries and keys."""

    products: Products
    blocks: Blocks
    spans: tuple[Span, ...]
    rpb: Array | None
    exists: Array | None  # the mask of all keys, split

    def scores(self, query: Array, key: Array) -> Array:
        """S = scale * q k + rpb, -inf outside the windows and for keys that are masked."""
        s = self.products.op.scale * self.products.qk(query, key)
        if self.rpb is not None:
            s = s + self.blocks.bias(self.rpb, self.spans)
        seen = self.blocks.mask(self.spans)
        if self.exists is not None:
            seen = seen & self.blocks.take_keys(self.exists, self.spans)[..., None, None, :, 0]
        return jnp.where(seen, s, -jnp.inf)


def _split_mask(blocks: Blocks, present: Present) -> Array | None:
    """The mask of the keys in the layout of keys, for one head and one feature."""
    mask = present.key_mask
    return None if mask is None else blocks.split_keys(mask[..., None, None])


def attention_forward(op: Op, inputs: Inputs, present: Present, ordinary: bool | None = None) -> Results:
    """O = softmax(S) V and LSE = logsumexp(S), 0 and -inf for a query that sees no key.

    Additional tokens are left out. `ordinary`, see products.either: asks about the values.
    """
    query, key, value = inputs.query, inputs.key, inputs.value
    blocks = Blocks.of(op, query.shape, key.shape, present.offsets)
    keys, values, exists = blocks.split_keys(key), blocks.split_keys(value), _split_mask(blocks, present)
    products = Products(op, query.dtype, ordinary)

    def step(_: None, x: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
        tile, q_t = x
        spans = blocks.spans(tile)
        k_t, v_t = blocks.take_keys(keys, spans), blocks.take_keys(values, spans)
        s = Step(products, blocks, spans, inputs.rpb, exists).scores(q_t, k_t)
        p, total, lse = softmax.sums(s)
        return None, ((products.av(p, v_t) / total[..., None]).astype(query.dtype), lse)

    queries = blocks.split_queries(query)
    _, (out, lse) = scan(step, None, len(queries), (queries,))
    there = blocks.covered()[..., None]  # traced offsets cannot raise an error: what they leave out is nan
    out = jnp.where(there[..., None], blocks.join_queries(out), jnp.nan)
    return Results(out, jnp.where(there, blocks.join_queries(lse), jnp.nan))


def attention_backward(
    op: Op, operands: tuple[Inputs, Results, Results, Present], ordinary: bool | None = None
) -> Inputs:
    """The gradients of query, key, value and, if there is one, rpb; additional tokens are left out.

    delta = rowsum(dO * O) - dLSE;  P = exp(S - LSE);  dS = P * (dO V^T - delta)
    dQ = scale dS K;  dK = scale dS^T Q;  dV = P^T dO;  d_rpb = sum of dS

    `operands` are inputs, results, cotangents of the results, and what is present. `ordinary`, see
    products.either, asks about query, key, the cotangent of out, and LSE.
    """
    inputs, results, cotangents, present = operands
    acc = accumulator(inputs.query.dtype)
    blocks = Blocks.of(op, inputs.query.shape, inputs.key.shape, present.offsets)
    keys, values = blocks.split_keys(inputs.key), blocks.split_keys(inputs.value)
    delta = (cotangents.out.astype(acc) * results.out.astype(acc)).sum(-1) - cotangents.lse
    rows = tuple(map(blocks.split_queries, (inputs.query, cotangents.out, results.lse, delta)))
    split = Inputs(None, keys, values, rpb=inputs.rpb)
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, acc), split)
    products = Products(op, inputs.query.dtype, ordinary)
    step = functools.partial(_backward_step, products, blocks, split, _split_mask(blocks, present))
    sums, dq = scan(step, zeros, len(rows[0]), rows)
    dk, dv = (blocks.join_keys(x).astype(inputs.query.dtype) for x in (sums.key, sums.value))
    return Inputs(blocks.join_queries(dq), dk, dv, rpb=sums.rpb)


def _backward_step(
    products: Products,
    blocks: Blocks,
    split: Inputs,
    exists: Array | None,
    sums: Inputs,
    rows: tuple[Array, ...],
) -> tuple[Inputs, Array]:
    """The formulas of `attention_backward` for a tile: adds to dK, dV and d_rpb, gives dQ."""
    tile, q, do, lse, delta = rows
    spans = blocks.spans(tile)
    k, v = blocks.take_keys(split.key, spans), blocks.take_keys(split.value, spans)
    here = Step(products, blocks, spans, split.rpb, exists)
    s = here.scores(q, k)
    p = softmax.exp(s, lse, *_rounding(here, q, k, lse))
    ds = jnp.where(softmax.is_seen(s), p * (products.qk(do, v) - delta[..., None]), 0)
    scale = products.op.scale
    sums = sums._replace(
        key=blocks.add_keys(sums.key, scale * products.inverse(ds, q), spans),
        value=blocks.add_keys(sums.value, products.inverse(p, do), spans),
        rpb=None if split.rpb is None else sums.rpb + _bias_gradient(blocks, spans, split.rpb, ds),
    )
    return sums, (scale * products.av(ds, k)).astype(q.dtype)


def _rounding(step: Step, query: Array, key: Array, lse: Array) -> list[Array]:
    """What log-sum-exps lack, if any may be large.

    Scores are computed again: those of the step, if they were needed here, would have to be stored.
    """
    if step.products.ordinary:
        return []
    query, key, lse = map(lax.stop_gradient, (query, key, lse))
    still = step._replace(rpb=lax.stop_gradient(step.rpb))
    return [softmax.rounding(lambda: still.scores(query, key), lse)]


def _bias_gradient(blocks: Blocks, spans: tuple[Span, ...], rpb: Array, dscores: Array) -> Array:
    """What the scores of a step add to the gradient of rpb."""
    scatter = jax.linear_transpose(lambda table: blocks.bias(table, spans), rpb)
    gradient: Array = scatter(dscores.sum(range(blocks.batch), keepdims=True))[0]
    return gradient


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: a[q, j] = x[q] . y[key(q, j)]; slots that see nothing, and padding, are 0."""
    blocks = Blocks.of(op, x.shape, y.shape, offsets)
    keys, products = blocks.split_keys(y), Products(op, x.dtype)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, query = xs
        spans = blocks.spans(tile)
        dense = products.qk(query, blocks.take_keys(keys, spans))
        return None, blocks.to_slots(dense, spans)

    queries = blocks.split_queries(x)
    _, a = scan(step, None, len(queries), (queries,))
    return _pad_slots(op, blocks.join_queries(a))


def _pad_slots(op: Op, a: Array) -> Array:
    """Rows of weights with zeros up to op.pitch."""
    return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, op.pitch - a.shape[-1])])


def av(op: Op, a: Array, y: Array, offsets: Array, ordinary: bool | None = None) -> Array:
    """NN: x[q] = sum_j a[q, j] y[key(q, j)]; a weight of zero contributes nothing.

    `ordinary`, see products.either, asks about y.
    """
    blocks = Blocks.of(op, a.shape, y.shape, offsets)
    keys, products = blocks.split_keys(y), Products(op, y.dtype, ordinary)

    def step(_: None, xs: tuple[Array, Array]) -> tuple[None, Array]:
        tile, weights = xs
        spans = blocks.spans(tile)
        x = products.av(blocks.from_slots(weights, spans), blocks.take_keys(keys, spans))
        return None, x.astype(y.dtype)

    weights = blocks.split_queries(a[..., : op.neighborhood.size])
    return blocks.join_queries(scan(step, None, len(weights), (weights,))[1])


def inverse(op: Op, a: Array, x: Array, offsets: Array, keys: Shape, ordinary: bool | None = None) -> Array:
    """IN: y[k] = sum of a[q, j] x[q] over the (q, j) whose key is k; `keys` is [*Sk, kv heads] of y.

    A weight of zero contributes nothing. `ordinary`, see products.either, asks about x.
    """
    batch = x.ndim - op.neighborhood.rank - 2
    shape = (*x.shape[:batch], *keys, x.shape[-1])
    blocks, products = Blocks.of(op, x.shape, shape, offsets), Products(op, x.dtype, ordinary)

    def step(total: Array, xs: tuple[Array, ...]) -> tuple[Array, None]:
        tile, weights, query = xs
        spans = blocks.spans(tile)
        part = products.inverse(blocks.from_slots(weights, spans), query)
        return blocks.add_keys(total, part, spans), None

    rows = blocks.split_queries(a[..., : op.neighborhood.size]), blocks.split_queries(x)
    total = blocks.split_keys(jnp.zeros(shape, accumulator(x.dtype)))
    total, _ = scan(step, total, len(rows[0]), rows)
    return blocks.join_keys(total).astype(x.dtype)
