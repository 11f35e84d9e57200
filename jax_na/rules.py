# SPDX-License-Identifier: Apache-2.0
"""The primitives and how to differentiate them.

Unfused: three bilinear maps, each with one operand or the result of the trilinear form

    T(a, x, y) = sum over queries q and slots j that see a key of  a[q, j] * <x[q], y[key(q, j)]>

    qk:      (x, y) -> a        inverse: (a, x) -> y        av: (a, y) -> x

The derivative of each is itself, the transposes are the other two: derivatives of every order are kernel calls.

Fused: attention and its derivative, as a linear map and as the transpose of that map

    attention  (q, k, v[, rpb])                        -> (O, LSE)
    tangent    (..., dq, dk, dv[, drpb])               -> (dO, dLSE)           linear in the d's
    backward   (..., dO, dLSE)                         -> (dq, dk, dv[, drpb])  linear in the d's; kernels

tangent and backward transpose into each other. Their derivatives by q, k, v, rpb (second order) are those of the
pure JAX implementation. They carry O and LSE, which are functions of q, k, v, rpb, to save computing them again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from jax_na import planner, reference, target
from jax_na.implementations import ATTENTION, UNFUSED, choose
from jax_na.neighborhood import Op, Shape
from jax_na.reference import accumulator
from jax_na.target import instantiate, is_linear, is_zero, like

DRPB_PARTS = 16  # partial sums of d_rpb: written in parallel, added in a fixed order

# Unfused operations.


def _qk_type(x: Any, y: Any, offsets: Any, *, op: Op) -> list:
    return [like(x, (*x.shape[:-1], op.pitch), accumulator(x.dtype))]


def _av_type(a: Any, y: Any, offsets: Any, *, op: Op) -> list:
    return [like(a, (*a.shape[:-1], y.shape[-1]), y.dtype)]


def _inverse_type(a: Any, x: Any, offsets: Any, *, op: Op, keys: Shape) -> list:
    batch = x.shape[: x.ndim - op.neighborhood.rank - 2]
    return [like(x, (*batch, *keys, x.shape[-1]))]


def _unfused_call(name: str, result: Any, operands: Sequence[Array], features: int, op: Op) -> list[Array]:
    tile = planner.key_tile(op) if name.endswith("inverse") else planner.query_tile(op)
    scratch = planner.scratch(name, features, features)
    return target.call(name, [(result.shape, result.dtype)], operands, op, tile, scratch)


def _lower_qk(platform: str, x: Array, y: Array, offsets: Array, *, op: Op) -> list[Array]:
    name = choose(op.implementation, UNFUSED, platform, x.dtype)
    if name == "xla":
        return [reference.qk(op, x, y, offsets)]
    shape = jax.ShapeDtypeStruct((*x.shape[:-1], op.pitch), accumulator(x.dtype))
    return _unfused_call(f"na_{name}_qk", shape, (x, y, offsets), x.shape[-1], op)


def _lower_av(platform: str, a: Array, y: Array, offsets: Array, *, op: Op) -> list[Array]:
    name = choose(op.implementation, UNFUSED, platform, y.dtype)
    if name == "xla":
        return [reference.av(op, a, y, offsets)]
    shape = jax.ShapeDtypeStruct((*a.shape[:-1], y.shape[-1]), y.dtype)
    return _unfused_call(f"na_{name}_av", shape, (a, y, offsets), y.shape[-1], op)


def _lower_inverse(platform: str, a: Array, x: Array, offsets: Array, *, op: Op, keys: Shape) -> list[Array]:
    name = choose(op.implementation, UNFUSED, platform, x.dtype)
    if name == "xla":
        return [reference.inverse(op, a, x, offsets, keys)]
    batch = x.shape[: x.ndim - op.neighborhood.rank - 2]
    shape = jax.ShapeDtypeStruct((*batch, *keys, x.shape[-1]), x.dtype)
    return _unfused_call(f"na_{name}_inverse", shape, (a, x, offsets), x.shape[-1], op)


qk_p = target.primitive("na_qk", _qk_type, _lower_qk, batched=2)
av_p = target.primitive("na_av", _av_type, _lower_av, batched=2)
inverse_p = target.primitive("na_inverse", _inverse_type, _lower_inverse, batched=2)


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: a[q, j] = <x[q], y[key(q, j)]>, in the accumulator's dtype; 0 in slots without a key and in padding."""
    return qk_p.bind(x, y, offsets, op=op)[0]


def av(op: Op, a: Array, y: Array, offsets: Array) -> Array:
    """NN: x[q] = sum_j a[q, j] y[key(q, j)]"""
    return av_p.bind(a, y, offsets, op=op)[0]


def inverse(op: Op, a: Array, x: Array, offsets: Array, keys: Shape) -> Array:
    """IN: y[k] = sum of a[q, j] x[q] over the (q, j) whose key is k; `keys` is [*spatial, kv heads] of y."""
    return inverse_p.bind(a, x, offsets, op=op, keys=keys)[0]


def _bilinear_jvp(p: Any) -> Callable[..., tuple[list, list | None]]:
    def rule(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[list, list | None]:
        (x, y, offsets), (dx, dy, _) = primals, tangents
        terms = [] if is_zero(dx) else p.bind(dx, y, offsets, **params)
        terms = terms if is_zero(dy) else [*terms, *p.bind(x, dy, offsets, **params)]
        return p.bind(x, y, offsets, **params), [sum(terms[1:], terms[0])] if terms else None

    return rule


def _keys(op: Op, y: Any) -> Shape:
    return y.shape[-op.neighborhood.rank - 2 : -1]


def _qk_transpose(ct: list, x: Any, y: Any, offsets: Array, *, op: Op) -> list:
    if is_linear(x):
        return [av(op, ct[0], y, offsets), None, None]
    return [None, inverse(op, ct[0], x, offsets, _keys(op, y.aval)), None]


def _av_transpose(ct: list, a: Any, y: Any, offsets: Array, *, op: Op) -> list:
    if is_linear(a):
        return [qk(op, ct[0], y, offsets), None, None]
    return [None, inverse(op, a, ct[0], offsets, _keys(op, y.aval)), None]


def _inverse_transpose(ct: list, a: Any, x: Any, offsets: Array, *, op: Op, keys: Shape) -> list:
    if is_linear(a):
        return [qk(op, x, ct[0], offsets), None, None]
    return [None, av(op, a, ct[0], offsets), None]


for _p, _transpose in ((qk_p, _qk_transpose), (av_p, _av_transpose), (inverse_p, _inverse_transpose)):
    target.define_jvp(_p, _bilinear_jvp(_p))
    target.define_transpose(_p, _transpose)


# Attention. Operands: q, k, v, then what the derivative adds, then offsets[, rpb[, drpb]].


def _attention_type(q: Any, k: Any, v: Any, offsets: Any, *rpb: Any, op: Op) -> list:
    return [like(q, (*q.shape[:-1], v.shape[-1])), like(q, q.shape[:-1], accumulator(q.dtype))]


def _tangent_type(q: Any, k: Any, v: Any, out: Any, lse: Any, *_: Any, op: Op) -> list:
    return [like(out), like(lse)]


def _backward_type(
    q: Any, k: Any, v: Any, out: Any, lse: Any, dout: Any, dlse: Any, offsets: Any, *rpb: Any, op: Op
) -> list:
    return [like(q), like(k), like(v), *map(like, rpb)]


def _lower_attention(
    platform: str, q: Array, k: Array, v: Array, offsets: Array, *rpb: Array, op: Op
) -> Sequence[Array]:
    if choose(op.implementation, ATTENTION, platform, q.dtype) == "xla":
        return reference.attention_forward(op, q, k, v, offsets, *rpb)
    name = "na_fused_forward"
    results = [((*q.shape[:-1], v.shape[-1]), q.dtype), (q.shape[:-1], jnp.float32)]
    scratch = planner.scratch(name, q.shape[-1], v.shape[-1])
    return target.call(name, results, (q, k, v, offsets, *rpb), op, planner.query_tile(op), scratch)


def _lower_tangent(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    q, k, v, _, _, dq, dk, dv, offsets, *shared = operands
    rpb, drpb = shared[: len(shared) // 2], shared[len(shared) // 2 :]
    return reference.attention_tangent(op, (q, k, v, *rpb), (dq, dk, dv, *drpb), offsets)


def _lower_backward(platform: str, *operands: Array, op: Op) -> Sequence[Array]:
    q, k, v, out, lse, dout, dlse, offsets, *rpb = operands
    if choose(op.implementation, ATTENTION, platform, q.dtype) == "xla":
        return reference.attention_backward(op, *operands)
    name = "na_fused_backward"
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), -1) - dlse
    results = [(q.shape, q.dtype), (k.shape, jnp.float32), (v.shape, jnp.float32)]
    results += [((DRPB_PARTS, *table.shape), jnp.float32) for table in rpb]
    scratch = planner.scratch(name, q.shape[-1], v.shape[-1])
    inputs = (q, k, v, offsets, lse, delta, dout, *rpb)
    dq, dk, dv, *drpb = target.call(name, results, inputs, op, planner.query_tile(op), scratch)
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), *(parts.sum(0) for parts in drpb)


attention_p = target.primitive("na_attention", _attention_type, _lower_attention, batched=3)
tangent_p = target.primitive("na_attention_tangent", _tangent_type, _lower_tangent, batched=8)
backward_p = target.primitive("na_attention_backward", _backward_type, _lower_backward, batched=7, sums=True)


def attention(
    op: Op, q: Array, k: Array, v: Array, offsets: Array, rpb: Array | None = None
) -> tuple[Array, Array]:
    """(O, LSE) by the implementation "fused" or "xla"; None takes the one for the platform it is lowered for."""
    out, lse = attention_p.bind(q, k, v, offsets, *(() if rpb is None else (rpb,)), op=op)
    return out, lse


def _attention_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> tuple[list, list]:
    q, k, v, offsets, *rpb = primals
    dq, dk, dv, _, *drpb = tangents
    outputs = attention_p.bind(*primals, op=op)
    # names for checkpoint policies: with both saved, no forward kernel runs twice
    outputs = [
        checkpoint_name(x, name) for x, name in zip(outputs, ("jax_na_out", "jax_na_lse"), strict=True)
    ]
    d = map(instantiate, (dq, dk, dv))
    return outputs, tangent_p.bind(q, k, v, *outputs, *d, offsets, *rpb, *map(instantiate, drpb), op=op)


def _tangent_transpose(ct: list, *operands: Any, op: Op) -> list:
    q, k, v, out, lse, _, _, _, offsets, *shared = operands
    rpb = shared[: len(shared) // 2]
    dq, dk, dv, *drpb = backward_p.bind(q, k, v, out, lse, *ct, offsets, *rpb, op=op)
    cts = [None] * 5 + [dq, dk, dv] + [None] * (1 + len(rpb)) + drpb
    return [c if is_linear(x) else None for c, x in zip(cts, operands, strict=True)]


def _backward_transpose(ct: list, *operands: Any, op: Op) -> list:
    q, k, v, out, lse, _, _, offsets, *rpb = operands
    dq, dk, dv, *drpb = ct
    dout, dlse = tangent_p.bind(q, k, v, out, lse, dq, dk, dv, offsets, *rpb, *drpb, op=op)
    cts = [None] * 5 + [dout, dlse] + [None] * (1 + len(rpb))
    return [c if is_linear(x) else None for c, x in zip(cts, operands, strict=True)]


def _tangent_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> tuple[list, list | None]:
    rpbs = (len(primals) - 9) // 2
    at = [0, 1, 2, *range(9, 9 + rpbs)]
    linear = [5, 6, 7, *range(9 + rpbs, 9 + 2 * rpbs)]
    offsets = primals[8]
    direction = tuple(primals[i] for i in linear)

    def by_point(*point: Array) -> tuple[Array, Array]:
        return reference.attention_tangent(op, point, direction, offsets)

    return _linear_jvp(tangent_p, by_point, (at, linear), primals, tangents, op)


def _backward_jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> tuple[list, list | None]:
    *_, dout, dlse, offsets = primals[:8]
    at = [0, 1, 2, *range(8, len(primals))]

    def by_point(q: Array, k: Array, v: Array, *rpb: Array) -> tuple[Array, ...]:
        out, lse = reference.attention_forward(op, q, k, v, offsets, *rpb)
        return reference.attention_backward(op, q, k, v, out, lse, dout, dlse, offsets, *rpb)

    return _linear_jvp(backward_p, by_point, (at, [5, 6]), primals, tangents, op)


def _linear_jvp(
    p: Any,
    by_point: Callable[..., tuple[Array, ...]],
    places: tuple[list[int], list[int]],
    primals: Sequence[Any],
    tangents: Sequence[Any],
    op: Op,
) -> tuple[list, list | None]:
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
        point, direction = (tuple(primals[i] for i in at), tuple(instantiate(tangents[i]) for i in at))
        terms.append(jax.jvp(by_point, point, direction)[1])
    dots = [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)] if terms else None
    return p.bind(*primals, op=op), dots


target.define_jvp(attention_p, _attention_jvp)
target.define_jvp(tangent_p, _tangent_jvp)
target.define_jvp(backward_p, _backward_jvp)
target.define_transpose(tangent_p, _tangent_transpose)
target.define_transpose(backward_p, _backward_transpose)
