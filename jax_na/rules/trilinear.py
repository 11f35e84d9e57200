# SPDX-License-Identifier: Apache-2.0
"""The unfused operations: primitives for the three bilinear maps, each a part of one trilinear form

    T(a, x, y) = sum over queries q and slots j that see a key of  a[q, j] * <x[q], y[key(q, j)]>

    qk       PN   (x, y) -> a     the derivative of T by a
    av       NN   (a, y) -> x     by x
    inverse  IN   (a, x) -> y     by y

The derivative of a bilinear map is the map itself, and the transposes of each are the other two: derivatives
of every order are calls of the same kernels. `a` has the accumulator's dtype, x and y that of the inputs;
a kernel may take narrower weights (`plan.weights_dtype`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jax import Array

from jax_na.kernels import plan, target
from jax_na.kernels.table import UNFUSED, choose
from jax_na.kernels.target import align, is_linear, is_zero, like
from jax_na.neighborhood import Op, Shape
from jax_na.xla import attention as reference
from jax_na.xla.attention import accumulator


def _result(operation: str, op: Op, first: Any, second: Any, keys: Shape = ()) -> tuple[Shape, Any]:
    """Shape and dtype of a result."""
    if operation == "qk":
        return (*first.shape[:-1], op.pitch), accumulator(first.dtype)
    if operation == "av":
        return (*first.shape[:-1], second.shape[-1]), second.dtype
    return (*second.shape[: -op.neighborhood.rank - 2], *keys, second.shape[-1]), second.dtype


ROLES = {
    "qk": (["BXH", "BKH", "O"], ["BXH"]),
    "av": (["BXH", "BKH", "O"], ["BXH"]),
    "inverse": (["BXH", "BXH", "O"], ["BKH"]),
}


def _primitive(operation: str) -> Any:
    def abstract(first: Any, second: Any, offsets: Any, *, op: Op, **keys: Shape) -> list[Any]:
        return [like(first, *_result(operation, op, first, second, **keys))]

    def lower(platform: str, *operands: Array, op: Op, **keys: Shape) -> Sequence[Array]:
        first, second, _ = operands
        implementation = choose(op, UNFUSED, platform, second)
        if implementation == "xla":
            return [getattr(reference, operation)(op, *operands, **keys)]
        name, features = f"na_{implementation}_{operation}", second.shape[-1]
        shape, dtype = _result(operation, op, first, second, **keys)
        sums = plan.sums_dtype(platform, dtype) if name == "na_gemm_inverse" else dtype
        if operation != "qk":
            weights = plan.weights_dtype(platform, name, first.dtype, second.dtype)
            operands = (first.astype(weights), *operands[1:])
        queries = math.prod((second if operation == "inverse" else first).shape[:-1])
        sizes = plan.Sizes(queries, features, features, second.dtype)
        how = plan.plan(platform, name, op, sizes)
        (result,) = target.call(name, [(shape, sums)], operands, op, how)
        return [result.astype(dtype)]

    def jvp(
        primals: Sequence[Any], tangents: Sequence[Any], **params: Any
    ) -> tuple[list[Any], list[Any] | None]:
        (first, second, offsets), (dfirst, dsecond, _) = primals, tangents
        terms = [] if is_zero(dfirst) else p.bind(dfirst, second, offsets, **params)
        terms = terms if is_zero(dsecond) else [*terms, *p.bind(first, dsecond, offsets, **params)]
        return p.bind(*primals, **params), [sum(terms[1:], terms[0])] if terms else None

    p = target.primitive(f"na_{operation}", abstract, lower, lambda *_: ROLES[operation])
    target.define_jvp(p, jvp)
    return p


qk_p, av_p, inverse_p = map(_primitive, ("qk", "av", "inverse"))


def qk(op: Op, x: Array, y: Array, offsets: Array) -> Array:
    """PN: a[q, j] = <x[q], y[key(q, j)]>, rows of op.pitch slots; 0 in slots without a key and in padding."""
    a: Array
    (a,) = qk_p.bind(*align(x, y, offsets), op=op)
    return a


def av(op: Op, a: Array, y: Array, offsets: Array) -> Array:
    """NN: x[q] = sum_j a[q, j] y[key(q, j)]"""
    x: Array
    (x,) = av_p.bind(*align(a, y, offsets), op=op)
    return x


def inverse(op: Op, a: Array, x: Array, offsets: Array, keys: Shape) -> Array:
    """IN: y[k] = sum of a[q, j] x[q] over the (q, j) whose key is k; `keys` is [*Sk, kv heads] of y."""
    y: Array
    (y,) = inverse_p.bind(*align(a, x, offsets), op=op, keys=keys)
    return y


# Transposes: the cotangent takes the place of the result in the trilinear form.


def _keys(op: Op, y: Any) -> Shape:
    return tuple(y.aval.shape[-op.neighborhood.rank - 2 : -1])


def _qk_transpose(cts: list[Array], x: Any, y: Any, offsets: Array, *, op: Op) -> list[Any]:
    (da,) = cts
    if is_linear(x):
        return [av(op, da, y, offsets), None, None]
    return [None, inverse(op, da, x, offsets, _keys(op, y)), None]


def _av_transpose(cts: list[Array], a: Any, y: Any, offsets: Array, *, op: Op) -> list[Any]:
    (dx,) = cts
    if is_linear(a):
        return [qk(op, dx, y, offsets), None, None]
    return [None, inverse(op, a, dx, offsets, _keys(op, y)), None]


def _inverse_transpose(cts: list[Array], a: Any, x: Any, offsets: Array, *, op: Op, keys: Shape) -> list[Any]:
    (dy,) = cts
    if is_linear(a):
        return [qk(op, x, dy, offsets), None, None]
    return [None, av(op, a, dy, offsets), None]


target.define_transpose(qk_p, _qk_transpose)
target.define_transpose(av_p, _av_transpose)
target.define_transpose(inverse_p, _inverse_transpose)
