# SPDX-License-Identifier: Apache-2.0
"""The public functions for the two halves of attention, with the weights in between."""

from __future__ import annotations

from jax import Array
from jax.typing import DTypeLike

from jax_na.api import arguments
from jax_na.api.arguments import Precision
from jax_na.api.request import Arrays, Extras, Options, request, whole_grid
from jax_na.api.window import Flags, Ints, Window
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.rules import compose


def neighborhood_qk(
    query: Array,
    key: Array,
    kernel_size: Ints | Neighborhood,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    is_periodic: Flags = False,
    scale: float | None = 1.0,
    rpb: Array | None = None,
    key_mask: Array | None = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: str | None = None,
    precision: Precision = None,
) -> Array:
    """The products of every query with the keys of its neighborhood (PN of the paper).

        scores[q, j] = scale * <query[q], key[k]> + rpb[k' - q' + kernel_size - 1],   k the key in slot j of q

    Args:
        query: [batch..., *spatial, heads, head_dim].
        key: [batch..., *spatial, kv_heads, head_dim].
        scale: factor of the products, 1 by default; None is head_dim ** -0.5. Products are scaled in the
            accumulator's dtype, so none overflows that the scale makes small.
        preferred_element_type: floating dtype of the scores, as in `jax.lax.dot`; None is the accumulator's:
            float32, or float64 for float64. Rounded to half precision, scores lose what softmax needs.
        implementation: "gemm", "naive", "xla" or None; "fused" has no weights to return.
        The rest as in `neighborhood_attention`.

    Returns:
        [batch..., *spatial, heads, prod(kernel_size)]. Slots are row-major over the axes, as in
        `Neighborhood.indices`; causal slots past the query and those of masked keys are -inf.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`.

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 20, 20, 4, 32))
        >>> weights = jax.nn.softmax(jax_na.neighborhood_qk(q, k, (7, 7), scale=None))
        >>> weights.shape
        (1, 20, 20, 4, 49)
        >>> jax_na.neighborhood_av(weights, v, (7, 7)).shape
        (1, 20, 20, 4, 32)
    """
    arrays = arguments.arrays({"query": query, "key": key})
    window = Window(kernel_size, stride, dilation, is_causal, is_periodic)
    extras = Extras(rpb, key_mask=key_mask)
    call = request(arrays, window, Options(scale, implementation, precision), extras)
    dtype = arguments.floating("preferred_element_type", preferred_element_type)
    scores: Array = compose.scores(call.op, call.inputs, call.at(compose.whole_grid(call.op.rank)))
    return scores if dtype is None else scores.astype(dtype)


def neighborhood_av(
    weights: Array,
    value: Array,
    kernel_size: Ints | Neighborhood,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    is_periodic: Flags = False,
    implementation: str | None = None,
    precision: Precision = None,
) -> Array:
    """The sum of the values of every query's neighborhood, weighted (NN of the paper).

        out[q] = sum_j weights[q, j] value[k],     k the key in slot j of q

    Args:
        weights: [batch..., *spatial, heads, prod(kernel_size)] in the dtype of the value or float32; causal
            slots past the query count for nothing, whatever they hold. A weight of exactly zero contributes
            nothing, whatever the value holds, nor does a cotangent of zero in the gradients of both halves.
        value: [batch..., *spatial, kv_heads, value_dim].
        The rest as in `neighborhood_qk`, which has an example.

    Returns:
        [batch..., *spatial, heads, value_dim] in the dtype of the value.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`.
    """
    arrays = arguments.weights_and_value({"weights": weights, "value": value})
    window = Window(kernel_size, stride, dilation, is_causal, is_periodic)
    options = Options(implementation=implementation, precision=precision)
    op, inputs, *_ = request(arrays, window, options, grid=_grid_of_weights)
    out: Array = compose.weighted_sum(op, inputs.query, inputs.value, compose.whole_grid(op.rank))
    return out


def _grid_of_weights(n: Neighborhood, arrays: Arrays) -> Shape:
    length = whole_grid(n, arrays)
    arguments.require_slots(arrays["weights"], n)
    return length
