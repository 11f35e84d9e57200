# SPDX-License-Identifier: Apache-2.0
"""Axes that wrap around, by continuing the keys past both ends: the queries are a region between them.

There no window meets a border, so the kernels need not know. Before the first query lie whole tiles of a
stride, so that neighbours that share a window still do.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_na.neighborhood import Axis


def margins(axis: Axis) -> tuple[int, int]:
    """How many keys are continued before the first one and after the last one."""
    reach = axis.kernel_size // 2 - axis.stride // 2  # of the first window, before the first query
    before = -(-reach // axis.stride) * axis.stride
    after = axis.kernel_size - axis.stride - reach  # of the last one; groups hold whole tiles
    return before * axis.dilation, after * axis.dilation


def continued(x: Array, dim: int, before: int, after: int) -> Array:
    """x with its end before it and its beginning after it."""
    if not before and not after:
        return x
    length = x.shape[dim]
    # one gather: on CPUs it runs on all cores, which a concatenation does not
    return jnp.take(x, np.arange(-before, length + after) % length, axis=dim, mode="clip")


def folded(x: Array, dim: int, before: int, after: int) -> Array:
    """The transpose of `continued`: what is before and after, added where it is continued from."""
    if not before and not after:
        return x
    length = x.shape[dim] - before - after
    place = np.arange(length)

    def part(index: Any, is_there: Any) -> Array:
        seen = np.expand_dims(is_there, tuple(d for d in range(x.ndim) if d != dim))
        return jnp.where(seen, jnp.take(x, index, axis=dim, mode="clip"), 0)

    own = jnp.take(x, before + place, axis=dim, mode="clip")
    following = part(before + length + place, place < after)
    return own + following + part(place - (length - before), place >= length - before)
