# SPDX-License-Identifier: Apache-2.0
"""Attention as a primitive, its derivative as a linear map, and the transpose of that map, each a primitive:

    attention  (q, k, v; offsets[, rpb])                            -> (O, LSE)
    tangent    (q, k, v, O, LSE, dq, dk, dv; offsets[, rpb, drpb])  -> (dO, dLSE)
    backward   (q, k, v, O, LSE, dO, dLSE; offsets[, rpb])          -> (dq, dk, dv[, drpb])

tangent and backward are linear in the d's and transpose into each other, so first derivatives in reverse mode
are kernel calls. Their derivatives by q, k, v, rpb, which second order needs, are those of the pure JAX
implementation. O and LSE, functions of q, k, v, rpb, are passed on only to save computing them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jax_na import plan, reference, target
from jax_na.implementations import ATTENTION, choose
from jax_na.neighborhood import Op
from jax_na.reference import accumulator
from jax_na.target import align, instantiate, is_linear, is_zero, like

Results = tuple[list[Any], list[Any] | None]  # of a jvp rule: outputs, and their tangents unless all are zero


def _attention_type(q: Any, k: Any, v: Any, offsets: Any, *rpb: Any, op: Op) -> list[Any]:
    return [like(q, (*q.shape[:-1], v.shape[-1])), like(q, q.shape[:-1], accumulator(q.dtype))]


def _tangent_type(q: Any, k: Any, v: Any, out: Any, lse: Any, *_: Any, op: Op) -> list[Any]:
    return [like(out), like(lse)]


def _backward_type(
    q: Any, k: Any, v: Any, out: Any, lse: Any, dout: Any, dlse: Any, offsets: Any, *rpb: Any, op: Op
) -> list[Any]:
    return [like(q), like(k), like(v), *map(like, rpb)]


def _plan(platform: str, name: str, op: Op, q: Array, v: Array) -> plan.Plan:
    sizes = plan.Sizes(math.prod(q.shape[:-1]), q.shape[-1], v.shape[-1], q.dtype)
    return plan.plan(platform, name, op, sizes)


def _lower_attention(
    platform: str, q: Array, k: Array, v: Array, offsets: Array, *rpb: Array, op: Op
) -> Sequence[Array]:
    if choose(op, ATTENTION, platform, q, v) == "xla":
        return reference.attention_forward(op, q, k, v, offsets, *rpb)
    name = "na_fused_forward"
    results = [((*q.shape[:-1], v.shape[-1]), q.dtype), (q.shape[:-1], jnp.float32)]
    return target.call(name, results, (q, k, v, offsets, *rpb), op, _plan(platform, name, op, q, v))


def _lower_tangent(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    q, k, v, _, _, dq, dk, dv, offsets, *tables = operands
    rpb, drpb = tables[: len(tables) // 2], tables[len(tables) // 2 :]
    return reference.attention_tangent(op, (q, k, v, *rpb), (dq, dk, dv, *drpb), offsets)


def _lower_backward(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    q, k, v, out, lse, dout, dlse, offsets, *rpb = operands
    if choose(op, ATTENTION, platform, q, v) == "xla":
        return reference.attention_backward(op, *operands)
    name, sums = "na_fused_backward", plan.sums_dtype(platform, q.dtype)
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1) - dlse
    results = [(q.shape, q.dtype), (k.shape, sums), (v.shape, sums)]
    results += [((plan.bias_parts(platform, table.shape), *table.shape), jnp.float32) for table in rpb]
    inputs = (q, k, v, offsets, lse, delta, dout, *rpb)
    dq, dk, dv, *drpb = target.call(name, results, inputs, op, _plan(platform, name, op, q, v))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), *(parts.sum(0) for parts in drpb)


attention_p = target.primitive("na_attention", _attention_type, _lower_attention, batched=3)
tangent_p = target.primitive("na_attention_tangent", _tangent_type, _lower_tangent, batched=8)
backward_p = target.primitive("na_attention_backward", _backward_type, _lower_backward, batched=7, sums=True)


def attention(
    op: Op, q: Array, k: Array, v: Array, offsets: Array, rpb: Array | None = None
) -> tuple[Array, Array]:
    """(O, LSE) by "fused" or "xla"; None takes the faster one that the platform has."""
    out, lse = attention_p.bind(*align(q, k, v, offsets, *(() if rpb is None else (rpb,))), op=op)
    return out, lse


def _attention_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Results:
    q, k, v, offsets, *rpb = primals
    dq, dk, dv, _, *drpb = tangents
    out, lse = attention_p.bind(*primals, op=op)
    # names for checkpoint policies: with both saved, no forward kernel runs twice
    outputs = [checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse")]
    d = map(instantiate, (dq, dk, dv))
    return outputs, tangent_p.bind(q, k, v, *outputs, *d, offsets, *rpb, *map(instantiate, drpb), op=op)


def _tangent_transpose(ct: list[Any], *operands: Any, op: Op) -> list[Any]:
    q, k, v, out, lse, _, _, _, offsets, *tables = operands
    rpb = tables[: len(tables) // 2]
    dq, dk, dv, *drpb = backward_p.bind(q, k, v, out, lse, *ct, offsets, *rpb, op=op)
    cts = [None] * 5 + [dq, dk, dv] + [None] * (1 + len(rpb)) + drpb
    return [c if is_linear(x) else None for c, x in zip(cts, operands, strict=True)]


def _backward_transpose(ct: list[Any], *operands: Any, op: Op) -> list[Any]:
    q, k, v, out, lse, _, _, offsets, *rpb = operands
    dq, dk, dv, *drpb = ct
    dout, dlse = tangent_p.bind(q, k, v, out, lse, dq, dk, dv, offsets, *rpb, *drpb, op=op)
    cts = [None] * 5 + [dout, dlse] + [None] * (1 + len(rpb))
    return [c if is_linear(x) else None for c, x in zip(cts, operands, strict=True)]


def _linear_jvp(
    p: Any,
    by_point: Callable[..., tuple[Array, ...]],
    places: tuple[list[int], list[int]],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    op: Op,
) -> Results:
    """The jvp of a map that is linear in some operands and depends on the others as `by_point` does.

    `places` are the indices of the operands of `by_point` and of the linear ones.
    """
    at, linear = places
    terms = []
    if not all(is_zero(tangents[i]) for i in linear):
        moved = list(primals)
        for i in linear:
            moved[i] = instantiate(tangents[i])
        terms.append(p.bind(*moved, op=op))
    if not all(is_zero(tangents[i]) for i in at):
        point, velocity = [primals[i] for i in at], [instantiate(tangents[i]) for i in at]
        terms.append(jax.jvp(by_point, point, velocity)[1])
    dots = [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)] if terms else None
    return p.bind(*primals, op=op), dots


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Results:
    middle = (len(primals) + 9) // 2  # shared operands: offsets, rpb, then drpb
    at, linear = [0, 1, 2, *range(9, middle)], [5, 6, 7, *range(middle, len(primals))]
    offsets, direction = primals[8], tuple(primals[i] for i in linear)

    def by_point(*point: Array) -> tuple[Array, Array]:
        return reference.attention_tangent(op, point, direction, offsets)

    return _linear_jvp(tangent_p, by_point, (at, linear), primals, tangents, op)


def _backward_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Results:
    dout, dlse, offsets = primals[5:8]

    def by_point(q: Array, k: Array, v: Array, *rpb: Array) -> tuple[Array, ...]:
        out, lse = reference.attention_forward(op, q, k, v, offsets, *rpb)
        return reference.attention_backward(op, q, k, v, out, lse, dout, dlse, offsets, *rpb)

    places = ([0, 1, 2, *range(8, len(primals))], [5, 6])
    return _linear_jvp(backward_p, by_point, places, primals, tangents, op)


target.define_jvp(attention_p, _attention_jvp)
target.define_jvp(tangent_p, _tangent_jvp)
target.define_jvp(backward_p, _backward_jvp)
target.define_transpose(tangent_p, _tangent_transpose)
target.define_transpose(backward_p, _backward_transpose)
