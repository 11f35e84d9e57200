# SPDX-License-Identifier: Apache-2.0
"""The public functions for the two halves of attention, with the weights in between."""

from __future__ import annotations

from jax import Array

from jax_na.api import arguments as checks
from jax_na.api.attention import Flags, Ints, Precision
from jax_na.kernels import precision as precisions
from jax_na.kernels.table import check
from jax_na.neighborhood import Op
from jax_na.rules import compose


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
    precision: Precision = None,
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
    check(implementation, query, unfused=True)
    op = Op(n, query.shape[-n.rank - 2 : -2], 1.0, implementation, precisions.resolve(precision))
    scores: Array = compose.scores(op, query, key, compose.whole_grid(n.rank), rpb)
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
    precision: Precision = None,
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
    check(implementation, value, unfused=True)
    op = Op(n, weights.shape[-n.rank - 2 : -2], 1.0, implementation, precisions.resolve(precision))
    out: Array = compose.weighted_sum(op, weights, value, compose.whole_grid(n.rank))
    return out
