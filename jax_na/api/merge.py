# SPDX-License-Identifier: Apache-2.0
"""The public function that joins attentions over disjoint sets of keys."""

from __future__ import annotations

from collections.abc import Sequence

from jax import Array

from jax_na.api import arguments
from jax_na.rules import tokens


def merge_attentions(outputs: Sequence[Array], lses: Sequence[Array]) -> tuple[Array, Array]:
    """The attention over the union of disjoint key sets, from the attentions over each of them.

        LSE = log sum_i exp(LSE_i),    O = sum_i exp(LSE_i - LSE) O_i

    Args:
        outputs: arrays [..., heads, value_dim], one per key set.
        lses: their log-sum-exps [..., heads], natural logarithm; -inf for a query whose key set is empty
            (its output is then ignored, also if it is NaN). If all are empty, out is 0 and lse is -inf.

    Returns:
        (out, lse): out in the dtype of the outputs; lse, and what is computed inside, at least float32.

    Raises:
        ValueError: if there are none, if their numbers differ, or if shapes do not match.

    Differentiable to every order. (Source: the merge of partial softmaxes of FlashAttention's split keys.)

    Example:
        >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 20, 4, 32))
        >>> def attend(k, v):  # of every query to these keys
        ...     scores = jnp.einsum("qhd,khd->qhk", q, k)
        ...     weights = jax.nn.softmax(scores)
        ...     return jnp.einsum("qhk,khd->qhd", weights, v), jax.nn.logsumexp(scores, -1)
        >>> (out_a, lse_a), (out_b, lse_b) = attend(k[:12], v[:12]), attend(k[12:], v[12:])
        >>> out, lse = jax_na.merge_attentions([out_a, out_b], [lse_a, lse_b])
        >>> jnp.allclose(out, attend(k, v)[0], atol=1e-5).item()
        True
    """
    arguments.require_partial_attentions(outputs, lses)
    return tokens.merge(outputs, lses)
