# SPDX-License-Identifier: Apache-2.0
"""Products of matrices in which a weight of zero contributes nothing, whatever it is multiplied with.

A step of "xla" computes for a tile of queries and a box of keys, with weights of zero outside the windows.
Zero times NaN or infinity is NaN: a matrix product brings to every query of the tile what is not finite
anywhere in the box. The products here do not, nor do their derivatives of any order. They are a primitive
since what JAX would derive from their parts does.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jax_na.avals import align, like
from jax_na.op import Op
from jax_na.xla.softmax import is_large


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of sums, statistics and weights: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def dot(op: Op, expression: str, x: Array, y: Array, dtype: jnp.dtype) -> Array:
    """einsum of operands rounded to `dtype`, summed in the accumulator's dtype."""
    x, y = x.astype(dtype), y.astype(dtype)
    return jnp.einsum(expression, x, y, precision=op.precision, preferred_element_type=accumulator(dtype))


def either(
    platform: str, compute: Callable[[bool | None], Any], operands: Sequence[Array], lse: Array | None = None
) -> Any:
    """compute(ordinary): whether operands are finite and exp(score - lse) has its digits; None is not known.

    Then every product asks for itself, which costs nothing but on a GPU, where a program that branches waits
    for the host. There it is asked once, for all steps, and the program has both ways.
    """
    if platform != "cuda":
        return compute(None)
    found = [jnp.isfinite(x).all() for x in operands]
    if lse is not None:
        found.append(~is_large(lse).any())
    ordinary = functools.reduce(operator.and_, found)
    return lax.cond(ordinary, functools.partial(compute, True), functools.partial(compute, False))


EXPRESSIONS = {
    "qk": "...grtd,...gud->...grtu",
    "av": "...grtu,...gue->...grte",
    "inverse": "...grtu,...grte->...gue",
}


@dataclass(frozen=True)
class Products:
    """The products of a step: of R query heads of each of G kv heads, T queries and U keys.

    Operands are rounded to `dtype`; results have the accumulator's. `ordinary`, see `either`: True leaves out
    what is needed for operands that are not finite.
    """

    op: Op
    dtype: jnp.dtype
    ordinary: bool | None = None

    def qk(self, x: Array, y: Array) -> Array:
        """w[t, u] = <x[t], y[u]>: [.., G, R, T, D], [.., G, U, D] -> [.., G, R, T, U]"""
        return self._product("qk", x, y)

    def av(self, w: Array, y: Array) -> Array:
        """x[t] = sum_u w[t, u] y[u]: [.., G, R, T, U], [.., G, U, E] -> [.., G, R, T, E]"""
        return self._product("av", w, y)

    def inverse(self, w: Array, x: Array) -> Array:
        """y[u] = sum_t w[t, u] x[t]: [.., G, R, T, U], [.., G, R, T, E] -> [.., G, U, E]"""
        return self._product("inverse", w, x)

    def _product(self, kind: str, x: Array, y: Array) -> Array:
        x, y = x.astype(self.dtype), y.astype(self.dtype)
        return _bind(x, y, kind=kind, precision=self.op.precision, ordinary=self.ordinary)


product_p = Primitive("na_tile_product")


def _bind(x: Array, y: Array, **params: Any) -> Array:
    result: Array = product_p.bind(*align(x, y), **params)
    return result


def _compute(x: Array, y: Array, *, kind: str, precision: Any, ordinary: bool | None) -> Array:
    dtype = accumulator(jnp.promote_types(x.dtype, y.dtype))
    multiply = functools.partial(
        jnp.einsum, EXPRESSIONS[kind], precision=precision, preferred_element_type=dtype
    )
    if kind == "qk" or ordinary:
        return multiply(x, y)
    exact = functools.partial(_exact, multiply, -1 if kind == "av" else -2)
    if ordinary is not None:
        return exact(x, y)
    plain = multiply(x, y)
    # a row of the result is a sum over all of y: the first shows whether something is not finite
    is_finite = jnp.isfinite(plain[..., 0, :]).all()
    found: Array = lax.cond(is_finite, lambda: plain, lambda: exact(x, y))
    return found


def _exact(multiply: Callable[[Array, Array], Array], summed: int, x: Array, y: Array) -> Array:
    """The sum over finite y, and infinities of the signs that meet a weight; NaN is both, inf - inf is NaN.

    `summed` is the axis of x that the product sums over with axis -2 of y.
    """
    above, below = ~(y < jnp.inf), ~(y > -jnp.inf)
    up, down = (jnp.concatenate(pair, -1) for pair in ((above, below), (below, above)))
    signs = jnp.concatenate([x > 0, x < 0], summed).astype(y.dtype)
    counts = multiply(signs, jnp.concatenate([up, down], -2).astype(y.dtype))
    plus, minus = (jnp.where(n > 0, jnp.inf, 0).astype(n.dtype) for n in jnp.split(counts, 2, -1))
    return multiply(x, jnp.where(jnp.isfinite(y), y, 0)) + (plus - minus)


def _type(x: Any, y: Any, *, kind: str, **params: Any) -> Any:
    shapes = {
        "qk": (*x.shape[:-1], y.shape[-2]),
        "av": (*x.shape[:-1], y.shape[-1]),
        "inverse": (*x.shape[:-3], x.shape[-1], y.shape[-1]),
    }
    return like(x, shapes[kind], accumulator(jnp.promote_types(x.dtype, y.dtype)))


def _batch(operands: Sequence[Array], dims: Sequence[int | None], **params: Any) -> tuple[Array, int]:
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    wide = (
        jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
        for x, d in zip(operands, dims, strict=True)
    )
    return _bind(*wide, **params), 0


def _jvp(primals: Sequence[Array], tangents: Sequence[Any], **params: Any) -> tuple[Array, Any]:
    x, y = primals
    dx, dy = tangents
    result = _bind(x, y, **params)
    terms = [_bind(dx, y, **params)] if type(dx) is not ad.Zero else []
    terms += [_bind(x, dy, **params)] if type(dy) is not ad.Zero else []
    zero = ad.Zero(jax.typeof(result).to_tangent_aval())
    return result, functools.reduce(operator.add, terms) if terms else zero


# The transposes: the cotangent takes the place of the result in sum w[t, u] <x[t], y[u]>.
# For every kind, which product gives the cotangent of which operand, of the other operand and the cotangent.
TRANSPOSES: dict[str, tuple[Callable[..., tuple[Any, ...]], ...]] = {
    "qk": (lambda ct, y: ("av", ct, y), lambda ct, x: ("inverse", ct, x)),
    "av": (lambda ct, y: ("qk", ct, y), lambda ct, w: ("inverse", w, ct)),
    "inverse": (lambda ct, x: ("qk", x, ct), lambda ct, w: ("av", w, ct)),
}


def _transpose(ct: Any, x: Any, y: Any, *, kind: str, **params: Any) -> list[Any]:
    by_y = ad.is_undefined_primal(y)
    linear, other = (y, x) if by_y else (x, y)
    if type(ct) is ad.Zero:
        return [None, None]
    product, *operands = TRANSPOSES[kind][by_y](ct, other)
    found = _bind(*operands, kind=product, **params).astype(linear.aval.dtype)
    return [None, found] if by_y else [found, None]


product_p.def_impl(jax.jit(_compute, static_argnames=("kind", "precision", "ordinary")))
product_p.def_abstract_eval(_type)
batching.primitive_batchers[product_p] = _batch
ad.primitive_jvps[product_p] = _jvp
ad.primitive_transposes[product_p] = _transpose
mlir.register_lowering(product_p, mlir.lower_fun(_compute, multiple_results=False))
