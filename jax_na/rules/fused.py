# SPDX-License-Identifier: Apache-2.0
"""Attention as a primitive, its derivative as a linear map, and the transpose of that map, each a primitive:

    attention  (x; offsets[, rpb])                        -> (O, LSE)
    tangent    (x, O, LSE, dx; offsets[, rpb, drpb])      -> (dO, dLSE)
    backward   (x, O, LSE, dO, dLSE; offsets[, rpb])      -> (dx[, drpb])

where x is (q, k, v), with additional tokens (q, k, v, their keys, their values), and dx one d for each.

tangent and backward are linear in the d's and transpose into each other, so first derivatives in reverse mode
are kernel calls. Their derivatives by x and rpb, which second order needs, are those of the pure JAX
implementation. O and LSE, functions of x and rpb, are passed on only to save computing them again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jax_na.kernels import plan, target
from jax_na.kernels.table import ATTENTION, choose
from jax_na.kernels.target import align, instantiate, is_linear, is_zero, like
from jax_na.mesh.shards import Roles
from jax_na.neighborhood import Op
from jax_na.rules import tokens
from jax_na.xla import attention as reference
from jax_na.xla.attention import accumulator

Results = tuple[list[Any], list[Any] | None]  # of a jvp rule: outputs, and their tangents unless all are zero


def _inputs(op: Op) -> int:
    """How many x there are."""
    return 5 if op.has_tokens else 3


def _attention_type(q: Any, k: Any, v: Any, *_: Any, op: Op) -> list[Any]:
    return [like(q, (*q.shape[:-1], v.shape[-1])), like(q, q.shape[:-1], accumulator(q.dtype))]


def _tangent_type(*operands: Any, op: Op) -> list[Any]:
    n = _inputs(op)
    return [like(x) for x in operands[n : n + 2]]


def _backward_type(*operands: Any, op: Op) -> list[Any]:
    n = _inputs(op)
    return [like(x) for x in (*operands[:n], *operands[n + 5 :])]


# In pure JAX: of the neighborhoods, then of the additional tokens if there are any.


def _forward(op: Op, *operands: Array) -> tuple[Array, Array]:
    n = _inputs(op)
    q, k, v, *more = operands[:n]
    return tokens.include(op, *reference.attention_forward(op, q, k, v, *operands[n:]), q, *more)


def _tangent(op: Op, at: Sequence[Array], along: Sequence[Array], offsets: Array) -> tuple[Array, Array]:
    """The derivative of (O, LSE) at (x[, rpb]) along (dx[, drpb])."""
    n = _inputs(op)

    def forward(*point: Array) -> tuple[Array, Array]:
        return _forward(op, *point[:n], offsets, *point[n:])

    _, (dout, dlse) = jax.jvp(forward, tuple(at), tuple(along))
    return dout, dlse


def _backward(op: Op, *operands: Array) -> tuple[Array, ...]:
    n = _inputs(op)
    q, k, v, *more = operands[:n]
    dq, dk, dv, *drpb = reference.attention_backward(op, q, k, v, *operands[n:])
    dq_more, *dmore = _backward_of_tokens(op, q, more, operands[n : n + 4])
    return (dq + dq_more, dk, dv, *dmore, *drpb)


def _backward_of_tokens(op: Op, q: Array, more: Sequence[Array], saved: Sequence[Array]) -> tuple[Any, ...]:
    """Their share of dq, and their gradients; `saved` are O, LSE, dO, dLSE."""
    if not more:
        return (0,)
    out, lse, dout, dlse = saved
    dq, *dmore = tokens.backward(op, q, *more, lse, _delta(out, dout, dlse), dout)
    return (dq, *(d.astype(q.dtype) for d in dmore))


def _delta(out: Array, dout: Array, dlse: Array) -> Array:
    acc = accumulator(out.dtype)
    return jnp.sum(dout.astype(acc) * out.astype(acc), -1) - dlse


# By kernels.


def _plan(platform: str, name: str, op: Op, q: Array, v: Array) -> plan.Plan:
    sizes = plan.Sizes(math.prod(q.shape[:-1]), q.shape[-1], v.shape[-1], q.dtype)
    return plan.plan(platform, name, op, sizes)


def _lower_attention(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    n = _inputs(op)
    (q, k, v, *more), shared = operands[:n], operands[n:]
    if choose(op, ATTENTION, platform, q, v) == "xla":
        return _forward(op, *operands)
    name, inside = "na_fused_forward", plan.takes_tokens(platform)
    results = [((*q.shape[:-1], v.shape[-1]), q.dtype), (q.shape[:-1], jnp.float32)]
    inputs = (q, k, v, *shared, *(more if inside else ()))
    out, lse = target.call(name, results, inputs, op, _plan(platform, name, op, q, v))
    return tokens.include(op, out, lse, q, *(() if inside else more))


def _lower_tangent(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    n = _inputs(op)
    x, dx, (offsets, *tables) = operands[:n], operands[n + 2 : 2 * n + 2], operands[2 * n + 2 :]
    half = len(tables) // 2  # rpb, then drpb
    return _tangent(op, (*x, *tables[:half]), (*dx, *tables[half:]), offsets)


def _lower_backward(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    n = _inputs(op)
    (q, k, v, *more), saved, (offsets, *rpb) = operands[:n], operands[n : n + 4], operands[n + 4 :]
    if choose(op, ATTENTION, platform, q, v) == "xla":
        return _backward(op, *operands)
    out, lse, dout, dlse = saved
    name, sums, inside = "na_fused_backward", plan.sums_dtype(platform, q.dtype), plan.takes_tokens(platform)
    results = [(q.shape, q.dtype), (k.shape, sums), (v.shape, sums)]
    results += [((plan.bias_parts(platform, table.shape), *table.shape), jnp.float32) for table in rpb]
    inputs = (q, k, v, offsets, lse, _delta(out, dout, dlse), dout, *rpb, *(more if inside else ()))
    dq, dk, dv, *drpb = target.call(name, results, inputs, op, _plan(platform, name, op, q, v))
    dq_more, *dmore = _backward_of_tokens(op, q, more, saved)
    dq = dq if inside else dq + dq_more
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), *dmore, *(parts.sum(0) for parts in drpb)


def _x_roles(op: Op) -> list[str]:
    return ["BXH", "BKH", "BKH"] + ["B_H"] * (_inputs(op) - 3)


def _tables(inputs: list[str], count: int) -> list[str]:
    """Of the bias and what follows it, where `count` operands are inputs, `offsets` and tables."""
    return ["H"] * (count - len(inputs) - 1)


def _attention_roles(op: Op, count: int) -> Roles:
    x = _x_roles(op)
    return [*x, "O", *_tables(x, count)], ["BXH", "BXH"]


def _tangent_roles(op: Op, count: int) -> Roles:
    inputs = [*_x_roles(op), "BXH", "BXH", *_x_roles(op)]
    return [*inputs, "O", *_tables(inputs, count)], ["BXH", "BXH"]


def _backward_roles(op: Op, count: int) -> Roles:
    x = _x_roles(op)
    inputs = [*x, *["BXH"] * 4]
    tables = _tables(inputs, count)
    return [*inputs, "O", *tables], [*x, *tables]


attention_p = target.primitive("na_attention", _attention_type, _lower_attention, _attention_roles)
tangent_p = target.primitive("na_attention_tangent", _tangent_type, _lower_tangent, _tangent_roles)
backward_p = target.primitive(
    "na_attention_backward", _backward_type, _lower_backward, _backward_roles, sums=True
)


def attention(op: Op, x: tuple[Array, ...], offsets: Array, rpb: Array | None = None) -> tuple[Array, Array]:
    """(O, LSE) by "fused" or "xla"; None takes the faster one that the platform has."""
    op = dataclasses.replace(op, has_tokens=len(x) > 3)
    out, lse = attention_p.bind(*align(*x, offsets, *(() if rpb is None else (rpb,))), op=op)
    return out, lse


def _attention_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Results:
    n = _inputs(op)
    out, lse = attention_p.bind(*primals, op=op)
    # names for checkpoint policies: with both saved, no forward kernel runs twice
    outputs = [checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse")]
    dx, drpb = map(instantiate, tangents[:n]), map(instantiate, tangents[n + 1 :])
    return outputs, tangent_p.bind(*primals[:n], *outputs, *dx, *primals[n:], *drpb, op=op)


def _tangent_transpose(ct: list[Any], *operands: Any, op: Op) -> list[Any]:
    n = _inputs(op)
    offsets, *tables = operands[2 * n + 2 :]
    rpb = tables[: len(tables) // 2]
    d = backward_p.bind(*operands[: n + 2], *ct, offsets, *rpb, op=op)
    cts = [None] * (n + 2) + d[:n] + [None] * (1 + len(rpb)) + d[n:]
    return [c if is_linear(x) else None for c, x in zip(cts, operands, strict=True)]


def _backward_transpose(ct: list[Any], *operands: Any, op: Op) -> list[Any]:
    n = _inputs(op)
    shared = operands[n + 4 :]  # offsets, rpb
    dout, dlse = tangent_p.bind(*operands[: n + 2], *ct[:n], *shared, *ct[n:], op=op)
    cts = [None] * (n + 2) + [dout, dlse] + [None] * len(shared)
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
    n = _inputs(op)
    tables = 2 * n + 3
    middle = (len(primals) + tables) // 2  # rpb, then drpb
    at = [*range(n), *range(tables, middle)]
    linear = [*range(n + 2, 2 * n + 2), *range(middle, len(primals))]
    along, offsets = [primals[i] for i in linear], primals[tables - 1]

    def by_point(*point: Array) -> tuple[Array, Array]:
        return _tangent(op, point, along, offsets)

    return _linear_jvp(tangent_p, by_point, (at, linear), primals, tangents, op)


def _backward_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> Results:
    n = _inputs(op)
    dout, dlse, offsets = primals[n + 2 : n + 5]

    def by_point(*point: Array) -> tuple[Array, ...]:
        x, rpb = point[:n], point[n:]
        return _backward(op, *x, *_forward(op, *x, offsets, *rpb), dout, dlse, offsets, *rpb)

    places = ([*range(n), *range(n + 5, len(primals))], [n + 2, n + 3])
    return _linear_jvp(backward_p, by_point, places, primals, tangents, op)


target.define_jvp(attention_p, _attention_jvp)
target.define_jvp(tangent_p, _tangent_jvp)
target.define_jvp(backward_p, _backward_jvp)
target.define_transpose(tangent_p, _tangent_transpose)
target.define_transpose(backward_p, _backward_transpose)
