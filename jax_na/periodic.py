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


def windows(axis: Any) -> Any:
    """int32 [length, 2]: start and stop of every coordinate's window, in positions of its group, going on."""
    position = np.arange(axis.length, dtype=np.int32) // np.int32(axis.dilation)
    lead = position // axis.stride * axis.stride + axis.stride // 2
    start = lead - axis.kernel_size // 2
    return np.stack([start, start + axis.kernel_size], axis=1).astype(np.int32)


def margins(axis: Any) -> tuple[int, int]:
    """How many keys are continued before the first one and after the last one."""
    reach = axis.kernel_size // 2 - axis.stride // 2  # of the first window, before the first query
    before = -(-reach // axis.stride) * axis.stride
    after = axis.kernel_size - axis.stride - reach  # of the last one; groups hold whole tiles
    return before * axis.dilation, after * axis.dilation


def continued(x: Array, dim: int, before: int, after: int) -> Array:
    """x with its end before it and its beginning after it. Linear; the transpose adds them up."""
    if not before and not after:
        return x
    length = x.shape[dim]

    def part(start: int, stop: int) -> Array:
        index = [slice(None)] * x.ndim
        index[dim] = slice(start, stop)
        return x[tuple(index)]

    return jnp.concatenate([part(length - before, length), x, part(0, after)], axis=dim)
