# SPDX-License-Identifier: Apache-2.0
"""The public functions for attention on a whole grid."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from jax import Array

from jax_na.api import arguments
from jax_na.api.arguments import Precision
from jax_na.api.request import Extras, Options, request
from jax_na.api.window import Flags, Ints, Window, of_rank
from jax_na.neighborhood import Neighborhood
from jax_na.rules import compose

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def neighborhood_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints | Neighborhood,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    is_periodic: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    key_mask: Array | None = None,
    additional_mask: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
    precision: Precision = None,
) -> Any:
    """Attention of every query to the keys of its neighborhood.

        S[q, k] = scale * <query[q], key[k]> + rpb[k' - q' + kernel_size - 1]     for the keys k that q sees
        LSE[q]  = log sum_k exp S[q, k]
        out[q]  = sum_k exp(S[q, k] - LSE[q]) value[k]

    Windows never shrink at a border, they slide inward; `Neighborhood` states the rule and shows the windows.

    Args:
        query: [batch..., *spatial, heads, head_dim], 1 to 3 spatial axes, any number of batch axes; float32,
            bfloat16, float16, or float64 ("xla" and "naive").
        key: [batch..., *spatial, kv_heads, head_dim], the same dtype; heads is a multiple of kv_heads, query
            head h reads kv head h // (heads // kv_heads).
        value: [batch..., *spatial, kv_heads, value_dim], the same dtype.
        kernel_size: keys per window, one integer or a tuple with one per spatial axis;
            kernel_size * dilation <= length on every axis. The number of spatial axes is the length of
            whichever of kernel_size, stride, dilation, is_causal, is_periodic is a tuple; one of them must
            be. A `Neighborhood` instead stands for all five.
        stride: this many neighbouring queries share one window; 1 <= stride <= kernel_size.
        dilation: distance between the keys of a window, >= 1.
        is_causal: whether the window ends at the query.
        is_periodic: whether the axis wraps around, so that windows do instead of sliding inward; its length
            is a multiple of stride * dilation.
        scale: factor of the products, head_dim ** -0.5 by default; a number known when compiling. One that
            is not multiplies the query, with scale=1.0.
        rpb: relative positional bias [heads, 2 * kernel_size - 1 per axis], indexed by the distance in
            positions (coordinates divided by dilation); where a window goes around, keys are counted on.
        additional_keys: [batch..., tokens, kv_heads, head_dim], seen by every query (no bias); with
        additional_values: [batch..., tokens, kv_heads, value_dim].
        key_mask: bool [batch..., *spatial] or without the batch axes, True where the key exists. Nobody sees
            the others, whatever they hold; windows do not move because of them. The same for all heads.
        additional_mask: bool [batch..., tokens] or [tokens], which of the additional tokens exist.
        return_lse: also return the log-sum-exp, see `merge_attentions`.
        implementation: "fused", "gemm", "naive" (compiled kernels), "xla" (pure JAX), or None: the fastest
            that runs this problem on the platform it is compiled for. See `implementations`.
        precision: of products of float32 values, as in `jax.lax.dot`; None is JAX's setting
            jax_default_matmul_precision. On a CUDA GPU the default is TF32 for "fused" and "xla"; "highest"
            (or "float32") is exact. "naive", and every kernel on the CPU, is exact in any case.

    Returns:
        out [batch..., *spatial, heads, value_dim] in the dtype of the query; with return_lse (out, lse),
        where lse is [batch..., *spatial, heads], float32 (float64 for float64), natural logarithm.

    Raises:
        TypeError, ValueError: for arguments that are not of these; the message has the nearest legal value.

    Rows without keys: a score of -inf is a masked key, a finite one is not. A query all of whose keys are
    masked has out = 0 and lse = -inf, and adds nothing to any gradient. What is not finite, in a key, a value
    or a cotangent, reaches the queries that see it and what depends on them, and nothing else.

    Differentiable in forward and reverse mode, to any order, by all arrays, through out and through lse.

    Sources: Hassani et al., Neighborhood Attention Transformer (CVPR 2023); Hassani and Shi, Dilated
    Neighborhood Attention Transformer (2022); Hassani et al., Faster Neighborhood Attention (NeurIPS 2024),
    Generalized Neighborhood Attention (2025).

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 56, 56, 4, 32))
        >>> jax_na.neighborhood_attention(q, k, v, kernel_size=7, dilation=(2, 4)).shape
        (1, 56, 56, 4, 32)
    """
    arrays = arguments.arrays({"query": query, "key": key, "value": value})
    window = Window(kernel_size, stride, dilation, is_causal, is_periodic)
    extras = Extras(rpb, additional_keys, additional_values, key_mask, additional_mask)
    call = request(arrays, window, Options(scale, implementation, precision), extras)
    results = compose.attention(call.op, call.inputs, call.at(compose.whole_grid(call.op.rank)))
    return tuple(results) if return_lse else results.out


def _of_rank(
    function: Callable[Parameters, Result], rank: int, documentation: str
) -> Callable[Parameters, Result]:
    """The function for grids of this rank alone, under the name na1d, na2d or na3d."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def attend(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        given = signature.bind(*args, **options)
        given.apply_defaults()
        window = Window(*(given.arguments[name] for name in Window._fields))
        given.arguments["kernel_size"] = of_rank(rank, window)
        return function(*given.args, **given.kwargs)

    attend.__name__ = attend.__qualname__ = f"na{rank}d"
    attend.__doc__ = documentation
    return attend


na1d = _of_rank(
    neighborhood_attention,
    1,
    """`neighborhood_attention` on sequences [batch..., X, heads, head_dim], any number of batch axes.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1000, 4, 32))
        >>> jax_na.na1d(q, k, v, kernel_size=33, is_causal=True).shape
        (1000, 4, 32)
    """,
)

na2d = _of_rank(
    neighborhood_attention,
    2,
    """`neighborhood_attention` on images [batch..., X, Y, heads, head_dim], any number of batch axes.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 28, 28, 4, 32))
        >>> jax_na.na2d(q, k, v, kernel_size=7).shape
        (28, 28, 4, 32)
    """,
)

na3d = _of_rank(
    neighborhood_attention,
    3,
    """`neighborhood_attention` on volumes and videos [batch..., X, Y, Z, heads, head_dim].

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 14, 14, 4, 32))
        >>> jax_na.na3d(q, k, v, kernel_size=(3, 7, 7), is_causal=(True, False, False)).shape
        (8, 14, 14, 4, 32)
    """,
)
