# SPDX-License-Identifier: Apache-2.0
"""The softmax between the two products of composed attention, over rows of scores of op.pitch slots.

Differentiable to every order: its derivative is written in terms of its results, which are all that is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.kernels import target
from jax_na.kernels.plan import Plan
from jax_na.kernels.target import instantiate, is_zero, like
from jax_na.neighborhood import Op

NAME = "na_softmax"


def _type(s: Any, *, op: Op) -> list[Any]:
    return [like(s), like(s, s.shape[:-1])]


def _lower(platform: str, s: Array, *, op: Op) -> Sequence[Array]:
    if NAME in target.TARGETS.get(platform, ()) and s.dtype == jnp.float32:
        results = [(s.shape, s.dtype), (s.shape[:-1], s.dtype)]
        plan = Plan(op.neighborhood.kernel_size, scratch=1)  # neither is used
        return target.call(NAME, results, (s,), op, plan, aliases={0: 0})
    s = jnp.where(jnp.arange(op.pitch) < op.neighborhood.size, op.scale * s, -jnp.inf)
    lse = jax.nn.logsumexp(s, axis=-1)
    return jnp.exp(s - lse[..., None]), lse


softmax_p = target.primitive(NAME, _type, _lower, lambda *_: (["BXH"], ["BXH", "BXH"]))


def softmax(op: Op, s: Array) -> tuple[Array, Array]:
    """Weights exp(scale * s - lse) [..., op.pitch], 0 in padding, and lse = log sum exp(scale * s) [...].

    Args:
        s: scores [..., op.pitch] in float32 or float64, -inf in slots without a key; what padding holds is
            ignored.
    """
    weights, lse = softmax_p.bind(s, op=op)
    return weights, lse


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, op: Op) -> tuple[list[Any], list[Any] | None]:
    weights, lse = softmax_p.bind(*primals, op=op)
    if is_zero(tangents[0]):
        return [weights, lse], None
    moved = op.scale * weights * instantiate(tangents[0])
    dlse = moved.sum(-1)
    return [weights, lse], [moved - weights * dlse[..., None], dlse]


target.define_jvp(softmax_p, _jvp)
