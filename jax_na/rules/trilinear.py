# SPDX-License-Identifier: Apache-2.0
"""The unfused operations: primitives for the three bilinear maps, each a part of one trilinear form

    T(weights, x, y) = sum over queries q and slots j that see a key of  weights[q, j] * <x[q], y[key(q, j)]>

    qk       PN   (x, y) -> weights     the derivative of T by the weights
    av       NN   (weights, y) -> x     by x
    inverse  IN   (weights, x) -> y     by y

The derivative of a bilinear map is the map itself, and the transposes of each are the other two: derivatives
of every order are calls of the same kernels. Weights have the accumulator's dtype, x and y that of the
inputs; kernels may take narrower weights (jax_na/kernels/contract.py).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jax_na.avals import like
from jax_na.kernels import call as kernels
from jax_na.kernels.table import UNFUSED, choose
from jax_na.neighborhood import Shape
from jax_na.op import Op
from jax_na.rules.primitive import Primitive, is_linear, is_zero
from jax_na.xla import attention as xla
from jax_na.xla.products import accumulator, either


class QkOperands(NamedTuple):
    """What qk is bilinear in, and the position of the region."""

    x: Any  # [*batch, *queries, heads, features]
    y: Any  # [*batch, *keys, kv_heads, features]
    offsets: Any


class AvOperands(NamedTuple):
    """What av is bilinear in, and the position of the region."""

    weights: Any  # [*batch, *queries, heads, op.pitch]
    y: Any
    offsets: Any


class InverseOperands(NamedTuple):
    """What inverse is bilinear in, and the position of the region."""

    weights: Any
    x: Any
    offsets: Any


class Weights(NamedTuple):
    """The result of qk."""

    weights: Any


class AtQueries(NamedTuple):
    """The result of av."""

    x: Any


class AtKeys(NamedTuple):
    """The result of inverse."""

    y: Any


def _qk_types(operands: QkOperands, *, op: Op) -> Weights:
    x = operands.x
    return Weights(like(x, (*x.shape[:-1], op.pitch), accumulator(x.dtype)))


def _av_types(operands: AvOperands, *, op: Op) -> AtQueries:
    weights, y, _ = operands
    return AtQueries(like(weights, (*weights.shape[:-1], y.shape[-1]), y.dtype))


def _inverse_types(operands: InverseOperands, *, op: Op, keys: Shape) -> AtKeys:
    x = operands.x
    batch = x.shape[: x.ndim - op.rank - 2]
    return AtKeys(like(operands.weights, (*batch, *keys, x.shape[-1]), x.dtype))


def _lower_qk(platform: str, operands: QkOperands, *, op: Op) -> Weights:
    x, y, offsets = operands
    implementation = choose(op, UNFUSED, platform, {"x": x, "y": y})
    if implementation == "xla":
        return Weights(xla.qk(op, x, y, offsets))
    types = {"weights": ((*x.shape[:-1], op.pitch), accumulator(x.dtype))}
    return Weights(**kernels.call(platform, f"na_{implementation}_qk", op, operands._asdict(), types))


def _lower_av(platform: str, operands: AvOperands, *, op: Op) -> AtQueries:
    weights, y, offsets = operands
    implementation = choose(op, UNFUSED, platform, {"weights": weights, "y": y})
    if implementation == "xla":
        return AtQueries(either(platform, functools.partial(xla.av, op, weights, y, offsets), [y]))
    types = {"x": ((*weights.shape[:-1], y.shape[-1]), y.dtype)}
    return AtQueries(**kernels.call(platform, f"na_{implementation}_av", op, operands._asdict(), types))


def _lower_inverse(platform: str, operands: InverseOperands, *, op: Op, keys: Shape) -> AtKeys:
    weights, x, offsets = operands
    implementation = choose(op, UNFUSED, platform, {"x": x})
    if implementation == "xla":
        return AtKeys(either(platform, functools.partial(xla.inverse, op, weights, x, offsets, keys), [x]))
    types = {"y": ((*x.shape[: x.ndim - op.rank - 2], *keys, x.shape[-1]), x.dtype)}
    return AtKeys(**kernels.call(platform, f"na_{implementation}_inverse", op, operands._asdict(), types))


qk_p = Primitive("na_qk", _qk_types, _lower_qk)
av_p = Primitive("na_av", _av_types, _lower_av)
inverse_p = Primitive("na_inverse", _inverse_types, _lower_inverse)


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: weights[q, j] = <x[q], y[key(q, j)]>, 0 in slots without a key and in padding (to op.pitch)."""
    weights: Array = qk_p(QkOperands(x, y, offsets), op=op).weights
    return weights


def av(op: Op, weights: Array, y: Array, offsets: Array) -> Array:
    """NN: x[q] = sum_j weights[q, j] y[key(q, j)]"""
    x: Array = av_p(AvOperands(weights, y, offsets), op=op).x
    return x


def inverse(op: Op, weights: Array, x: Array, offsets: Array, keys: Shape) -> Array:
    """IN: y[k] = sum of weights[q, j] x[q] over the (q, j) whose key is k; `keys`: [*keys, kv_heads] of y."""
    y: Array = inverse_p(InverseOperands(weights, x, offsets), op=op, keys=keys).y
    return y


# Derivatives.


def _bilinear_jvp(
    primitive: Primitive, linear: tuple[str, str], primals: Any, tangents: Any, **params: Any
) -> tuple[Any, Any]:
    """The jvp of a map that is linear in each of two operands: one call for each that moves."""
    moved = {name: getattr(tangents, name) for name in linear}
    terms = [
        primitive(primals._replace(**{name: tangent}), **params)
        for name, tangent in moved.items()
        if not is_zero(tangent)
    ]
    sums = [functools.reduce(operator.add, parts) for parts in zip(*terms, strict=True)]
    return primitive(primals, **params), type(terms[0])(*sums) if terms else None


# Of the transposes: the cotangent takes the place of the result in the trilinear form.


def _key_grid(op: Op, y: Any) -> Shape:
    return tuple(y.aval.shape[-op.rank - 2 : -1])


def _qk_transpose(ct: Weights, operands: QkOperands, *, op: Op) -> QkOperands:
    x, y, offsets = operands
    if is_linear(x):
        return operands._replace(x=av(op, ct.weights, y, offsets))
    return operands._replace(y=inverse(op, ct.weights, x, offsets, _key_grid(op, y)))


def _av_transpose(ct: AtQueries, operands: AvOperands, *, op: Op) -> AvOperands:
    weights, y, offsets = operands
    if is_linear(weights):
        return operands._replace(weights=qk(op, ct.x, y, offsets))
    return operands._replace(y=inverse(op, weights, ct.x, offsets, _key_grid(op, y)))


def _inverse_transpose(ct: AtKeys, operands: InverseOperands, *, op: Op, keys: Shape) -> InverseOperands:
    weights, x, offsets = operands
    if is_linear(weights):
        return operands._replace(weights=qk(op, x, ct.y, offsets))
    return operands._replace(x=av(op, weights, ct.y, offsets))


def _define(primitive: Primitive, linear: tuple[str, str], transpose: Callable[..., Any]) -> None:
    primitive.define_jvp(functools.partial(_bilinear_jvp, primitive, linear))
    primitive.define_transpose(transpose)


_define(qk_p, ("x", "y"), _qk_transpose)
_define(av_p, ("weights", "y"), _av_transpose)
_define(inverse_p, ("weights", "x"), _inverse_transpose)
