# SPDX-License-Identifier: Apache-2.0
"""Calls of the fused kernels: one, or one for each chunk c of the value's features (kernels/chunks.py).

    O_c = P V_c, and the same LSE;   dV_c = P^T dO_c;   dQ, dK, d_rpb: sums over c of what V_c and dO_c give

delta_c = rowsum(dO_c * O_c): a chunk gives the gradients of O_c alone, and the first one those of LSE too.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from jax_na.kernels import call as kernels
from jax_na.kernels import chunks, contract, variants
from jax_na.op import Inputs, Op, Present, Results
from jax_na.xla.products import accumulator

FORWARD, BACKWARD = "na_fused_forward", "na_fused_backward"


def delta(results: Results, cotangents: Results) -> Array:
    """rowsum(dO * O) - dLSE: what a backward pass subtracts in every row."""
    acc = accumulator(results.out.dtype)
    products = cotangents.out.astype(acc) * results.out.astype(acc)
    found: Array = jnp.sum(products, -1) - cotangents.lse
    return found


def inside(platform: str, target: str, inputs: Inputs, present: Present) -> Inputs:
    """What the kernels take: without additional tokens if they leave these to be merged outside.

    No kernel knows a mask of them.
    """
    kernels_do = present.token_mask is None and variants.takes(platform, target, "token_key")
    if inputs.token_key is None or kernels_do:
        return inputs
    return inputs._replace(token_key=None, token_value=None)


def forward(platform: str, op: Op, inputs: Inputs, present: Present) -> Results:
    """O and LSE of the inputs, which the kernels take."""
    query, there = inputs.query, _there(present)
    parts = []
    for columns in _chunks(platform, FORWARD, op, inputs, there):
        part = _of_value(inputs, columns)
        types = {
            "out": ((*query.shape[:-1], part.value.shape[-1]), query.dtype),
            "lse": (query.shape[:-1], jnp.float32),
        }
        parts.append(kernels.call(platform, FORWARD, op, part._asdict() | there, types))
    return Results(_joined([part["out"] for part in parts]), parts[0]["lse"])


def backward(
    platform: str, op: Op, inputs: Inputs, results: Results, cotangents: Results, present: Present
) -> Inputs:
    """The gradients of the inputs, which the kernels take; they have none of additional tokens."""
    there = _there(present)
    saved = there | {"lse": results.lse}
    parts = []
    for number, columns in enumerate(_chunks(platform, BACKWARD, op, inputs, there)):
        out, dout = results.out[columns], cotangents.out[columns]
        dlse = cotangents.lse if number == 0 else jnp.zeros_like(cotangents.lse)
        saved |= {"delta": delta(Results(out, results.lse), Results(dout, dlse)), "dout": dout}
        parts.append(_gradients(platform, op, _of_value(inputs, columns), saved))
    return _added(parts)


def _added(parts: Sequence[Inputs]) -> Inputs:
    """Of chunks: those of the value side by side, sums of the others."""
    query, key, value, *_, rpb = zip(*parts, strict=True)
    return Inputs(_sum(query), _sum(key), _joined(value), rpb=None if rpb[0] is None else _sum(rpb))


def _gradients(platform: str, op: Op, inputs: Inputs, saved: dict[str, Array]) -> Inputs:
    named = {"dquery": inputs.query, "dkey": inputs.key, "dvalue": inputs.value, "drpb": inputs.rpb}
    types = {name: (x.shape, x.dtype) for name, x in named.items() if x is not None}
    found = kernels.call(platform, BACKWARD, op, {**inputs._asdict(), **saved}, types)
    return Inputs(found["dquery"], found["dkey"], found["dvalue"], rpb=found.get("drpb"))


def _there(present: Present) -> dict[str, Array]:
    """What the kernels are told of the grid."""
    return {name: x for name, x in present._asdict().items() if x is not None and name != "token_mask"}


def _chunks(
    platform: str, target: str, op: Op, inputs: Inputs, there: dict[str, Array]
) -> Sequence[tuple[Any, ...]]:
    """The chunks of value features as indices of arrays."""
    widths = chunks.widths(platform, target, contract.problem(op, inputs._asdict() | there))
    if len(widths) == 1:
        return ((...,),)
    stops = list(itertools.accumulate(widths))
    return [(..., slice(stop - width, stop)) for width, stop in zip(widths, stops, strict=True)]


def _of_value(inputs: Inputs, columns: tuple[Any, ...]) -> Inputs:
    """The inputs with some features of the value."""
    tokens = inputs.token_value
    return inputs._replace(
        value=inputs.value[columns], token_value=None if tokens is None else tokens[columns]
    )


def _joined(parts: Sequence[Array]) -> Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, -1)


def _sum(parts: Sequence[Array]) -> Array:
    """In the accumulator's dtype, in order."""
    if len(parts) == 1:
        return parts[0]
    wide = (x.astype(accumulator(x.dtype)) for x in parts)
    total: Array = functools.reduce(operator.add, wide)
    return total.astype(parts[0].dtype)
