# SPDX-License-Identifier: Apache-2.0
"""The softmax between the two products of composed attention, over rows of scores of op.pitch slots.

Differentiable to every order: its derivative is written in terms of its results, which are all that is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from jax_na.avals import like
from jax_na.kernels import call as kernels
from jax_na.op import Op
from jax_na.rules.primitive import Primitive, instantiate, is_zero
from jax_na.xla.softmax import is_seen, sums

TARGET = "na_softmax"


class Scores(NamedTuple):
    """The operand of the softmax."""

    scores: Any  # [*batch, *queries, heads, op.pitch]


class Softmax(NamedTuple):
    """The results of the softmax, or their tangents."""

    weights: Any  # as the scores
    lse: Any  # [*batch, *queries, heads]


def _types(operands: Scores, *, op: Op) -> Softmax:
    (scores,) = operands
    return Softmax(like(scores), like(scores, scores.shape[:-1]))


def _lower(platform: str, operands: Scores, *, op: Op) -> Softmax:
    (scores,) = operands
    if kernels.exists(platform, TARGET) and scores.dtype == jnp.float32:
        types = {"weights": (scores.shape, scores.dtype), "lse": (scores.shape[:-1], scores.dtype)}
        overwrites = {"scores": "weights"}
        return Softmax(**kernels.call(platform, TARGET, op, {"scores": scores}, types, overwrites))
    is_slot = jnp.arange(op.pitch) < op.neighborhood.size
    scores = jnp.where(is_slot, op.scale * scores, -jnp.inf)
    weights, total, lse = sums(scores)
    weights = jnp.where(is_seen(scores), weights / total[..., None], 0)  # also where the total is NaN
    return Softmax(weights, lse)


softmax_p = Primitive(TARGET, _types, _lower)


def softmax(op: Op, scores: Array) -> Softmax:
    """Weights exp(scale * s - lse) [..., op.pitch], 0 in padding, and lse = log sum exp(scale * s) [...].

    Of a row of nothing but -inf the weights are 0 and lse is -inf.

    Args:
        op: has the scale and the number of slots.
        scores: [..., op.pitch] in float32 or float64, -inf in slots without a key; what padding holds is
            ignored.
    """
    results: Softmax = softmax_p(Scores(scores), op=op)
    return results


def _jvp(primals: Scores, tangents: Scores, *, op: Op) -> tuple[Softmax, Softmax | None]:
    results = softmax_p(primals, op=op)
    if is_zero(tangents.scores):
        return results, None
    weights, is_zero_weight = results.weights, results.weights == 0
    # a slot that is not seen moves nothing, even if its score moves by NaN, and is moved by nothing
    moved = jnp.where(is_zero_weight, 0, op.scale * weights * instantiate(tangents.scores))
    dlse = moved.sum(-1)
    return results, Softmax(jnp.where(is_zero_weight, 0, moved - weights * dlse[..., None]), dlse)


softmax_p.define_jvp(_jvp)
