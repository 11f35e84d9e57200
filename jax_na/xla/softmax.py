# SPDX-License-Identifier: Apache-2.0
"""Weights from scores. A score of -inf is a key that is not seen: weight and derivative are 0."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LARGEST_LSE = 65536.0  # one of this size has lost digits behind the point, and exp(score - lse) with it


def is_seen(scores: Array) -> Array:
    """Whether a key is seen; one whose score is not a number is."""
    return scores != -jnp.inf


def exp(scores: Array, *shifts: Array) -> Array:
    """exp(S - shifts) for shifts of the rows, 0 for keys that are not seen."""
    seen = is_seen(scores)  # selected before and after exp, so that no derivative is 0 * inf
    shifted = functools.reduce(lambda s, shift: s - shift[..., None], shifts, scores)
    return jnp.where(seen, jnp.exp(jnp.where(seen, shifted, 0)), 0)


def sums(scores: Array) -> tuple[Array, Array, Array]:
    """exp(S - max S), its sum over a row, and LSE = log sum exp(S); 0, 1 and -inf for a row without keys."""
    top = lax.stop_gradient(scores.max(-1))
    top = jnp.where(is_seen(top), top, 0)
    weights = exp(scores, top)
    total = weights.sum(-1)
    is_empty = total == 0
    total = jnp.where(is_empty, 1, total)
    return weights, total, jnp.where(is_empty, -jnp.inf, top + jnp.log(total))


def is_large(lse: Array) -> Array:
    """Whether a log-sum-exp has lost digits; not that of a query that sees no key."""
    return ~(jnp.abs(lse) < LARGEST_LSE) & (lse != -jnp.inf)


def rounding(scores: Callable[[], Array], lse: Array) -> Array:
    """What rounding has left out of LSE, to be subtracted from S - LSE; 0 where it is not large."""
    lse = lax.stop_gradient(lse)
    some = is_large(lse).any()
    found: Array = lax.cond(some, lambda: _rounding(scores(), lse), lambda: jnp.zeros_like(lse))
    return found


def _rounding(scores: Array, lse: Array) -> Array:
    """log sum exp(S - LSE), which is 0 of an exact one.

    Where that is more than rounding, LSE is that of more keys than these, which have most of the weight.
    """
    total = exp(scores, lse).sum(-1)
    least = jnp.exp(-4 * np.finfo(lse.dtype).eps * jnp.abs(lse))
    is_all = is_large(lse) & (total > 0) & (total >= least)
    return jnp.where(is_all, jnp.log(jnp.where(is_all, total, 1)), 0)
