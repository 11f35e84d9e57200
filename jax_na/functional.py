# SPDX-License-Identifier: Apache-2.0
"""The public functions: check the arguments, put them into one static `Op`, compute."""

from __future__ import annotations

from typing import Any

from jax import Array

from jax_na import attention as compose
from jax_na import checks, implementations
from jax_na.neighborhood import Op

Ints = int | tuple[int, ...]
Flags = bool | tuple[bool, ...]


def neighborhood_attention(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
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
            whichever of kernel_size, stride, dilation, is_causal is a tuple, else query.ndim - 3.
        stride: this many neighbouring queries share one window; 1 <= stride <= kernel_size.
        dilation: distance between the keys of a window, >= 1.
        is_causal: whether the window ends at the query.
        scale: factor of the products, head_dim ** -0.5 by default; a number known when compiling.
        rpb: relative positional bias [heads, 2 * kernel_size - 1 per axis], indexed by the distance in
            positions (coordinates divided by dilation).
        additional_keys: [batch..., tokens, kv_heads, head_dim], seen by every query (no bias); with
        additional_values: [batch..., tokens, kv_heads, value_dim].
        return_lse: also return the log-sum-exp, see `merge_attentions`.
        implementation: "fused", "gemm", "naive" (compiled kernels), "xla" (pure JAX), or None: the fastest
            that runs this problem on the platform it is compiled for. See `implementations`.

    Returns:
        out [batch..., *spatial, heads, value_dim] in the dtype of the query; with return_lse (out, lse),
        where lse is [batch..., *spatial, heads], float32 (float64 for float64), natural logarithm.

    Raises:
        TypeError, ValueError: for arguments that are not of these; the message has the nearest legal value.

    Differentiable in forward and reverse mode, to any order, by all arrays, through out and through lse.

    Sources: Hassani et al., Neighborhood Attention Transformer (CVPR 2023); Hassani and Shi, Dilated
    Neighborhood Attention Transformer (2022); Hassani et al., Faster Neighborhood Attention (NeurIPS 2024),
    Generalized Neighborhood Attention (2025).

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 56, 56, 4, 32))
        >>> jax_na.neighborhood_attention(q, k, v, kernel_size=7, dilation=(2, 4)).shape
        (1, 56, 56, 4, 32)
    """
    query, key, value = checks.arrays(query=query, key=key, value=value)
    n = checks.neighborhood(query.ndim, kernel_size, stride, dilation, is_causal)
    checks.same_grid(n, query=query, key=key, value=value)
    checks.head_dims(query, key)
    checks.kv_heads(key, value)
    checks.heads(query.shape[-2], key.shape[-2])
    rpb = checks.rpb(rpb, n, query.shape[-2])
    tokens = checks.additional(additional_keys, additional_values, n, query, value)
    implementations.check(implementation, query.dtype)
    length = query.shape[-n.rank - 2 : -2]
    op = Op(n, length, checks.scale(scale, query.shape[-1]), implementation)
    out, lse = compose.attention(op, query, key, value, compose.whole_grid(n.rank), rpb)
    if tokens is not None:
        out_tokens, lse_tokens = compose.attend_everywhere(op.scale, query, *tokens)
        out, lse = compose.merge_attentions((out, out_tokens), (lse, lse_tokens))
    return (out, lse) if return_lse else out


def na1d(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """`neighborhood_attention` on sequences [batch..., X, heads, head_dim], any number of batch axes.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1000, 4, 32))
        >>> jax_na.na1d(q, k, v, kernel_size=33, is_causal=True).shape
        (1000, 4, 32)
    """
    return neighborhood_attention(
        query,
        key,
        value,
        checks.with_rank(1, kernel_size, stride, dilation, is_causal),
        stride=stride,
        dilation=dilation,
        is_causal=is_causal,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
        implementation=implementation,
    )


def na2d(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """`neighborhood_attention` on images [batch..., X, Y, heads, head_dim], any number of batch axes.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 28, 28, 4, 32))
        >>> jax_na.na2d(q, k, v, kernel_size=7).shape
        (28, 28, 4, 32)
    """
    return neighborhood_attention(
        query,
        key,
        value,
        checks.with_rank(2, kernel_size, stride, dilation, is_causal),
        stride=stride,
        dilation=dilation,
        is_causal=is_causal,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
        implementation=implementation,
    )


def na3d(
    query: Array,
    key: Array,
    value: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    additional_keys: Array | None = None,
    additional_values: Array | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> Any:
    """`neighborhood_attention` on volumes and videos [batch..., X, Y, Z, heads, head_dim].

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 8, 14, 14, 4, 32))
        >>> jax_na.na3d(q, k, v, kernel_size=(3, 7, 7), is_causal=(True, False, False)).shape
        (8, 14, 14, 4, 32)
    """
    return neighborhood_attention(
        query,
        key,
        value,
        checks.with_rank(3, kernel_size, stride, dilation, is_causal),
        stride=stride,
        dilation=dilation,
        is_causal=is_causal,
        scale=scale,
        rpb=rpb,
        additional_keys=additional_keys,
        additional_values=additional_values,
        return_lse=return_lse,
        implementation=implementation,
    )


def neighborhood_qk(
    query: Array,
    key: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    rpb: Array | None = None,
    implementation: str | None = None,
) -> Array:
    """The products of every query with the keys of its neighborhood, without a scale (PN of the paper).

        weights[q, j] = <query[q], key[k]> + rpb[k' - q' + kernel_size - 1],     k the key in slot j of q

    Args:
        query: [batch..., *spatial, heads, head_dim].
        key: [batch..., *spatial, kv_heads, head_dim].
        implementation: "gemm", "naive", "xla" or None; "fused" has no weights to return.
        The rest as in `neighborhood_attention`.

    Returns:
        [batch..., *spatial, heads, prod(kernel_size)] in the dtype of the query. Slots are row-major over the
        axes, as in `Neighborhood.indices`; causal slots past the query are -inf.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`.

    Example:
        >>> weights = jax.nn.softmax(jax_na.neighborhood_qk(q * q.shape[-1] ** -0.5, k, kernel_size=7))
        >>> out = jax_na.neighborhood_av(weights, v, kernel_size=7)
    """
    query, key = checks.arrays(query=query, key=key)
    n = checks.neighborhood(query.ndim, kernel_size, stride, dilation, is_causal)
    checks.same_grid(n, query=query, key=key)
    checks.head_dims(query, key)
    checks.heads(query.shape[-2], key.shape[-2])
    rpb = checks.rpb(rpb, n, query.shape[-2])
    implementations.check(implementation, query.dtype, unfused=True)
    op = Op(n, query.shape[-n.rank - 2 : -2], implementation=implementation)
    scores = compose.scores(op, query, key, compose.whole_grid(n.rank), rpb)
    return scores[..., : n.size].astype(query.dtype)


def neighborhood_av(
    weights: Array,
    value: Array,
    kernel_size: Ints,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    implementation: str | None = None,
) -> Array:
    """The sum of the values of every query's neighborhood, weighted (NN of the paper).

        out[q] = sum_j weights[q, j] value[k],     k the key in slot j of q

    Args:
        weights: [batch..., *spatial, heads, prod(kernel_size)] in the dtype of the value or float32; causal
            slots past the query count for nothing, whatever they hold.
        value: [batch..., *spatial, kv_heads, value_dim].
        The rest as in `neighborhood_qk`, which has an example.

    Returns:
        [batch..., *spatial, heads, value_dim] in the dtype of the value.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`.
    """
    weights, value = checks.weights(weights, value)
    n = checks.neighborhood(weights.ndim, kernel_size, stride, dilation, is_causal)
    checks.same_grid(n, weights=weights, value=value)
    checks.slots(weights, n)
    checks.heads(weights.shape[-2], value.shape[-2])
    implementations.check(implementation, value.dtype, unfused=True)
    op = Op(n, weights.shape[-n.rank - 2 : -2], implementation=implementation)
    return compose.weighted_sum(op, weights, value, compose.whole_grid(n.rank))
