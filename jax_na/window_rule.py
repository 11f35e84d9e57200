# SPDX-License-Identifier: Apache-2.0
"""The window rule along one axis, as tables of numpy: what plans, pictures and "xla" are made of.

Kernels have it in `common/window.h`. It is written a second time here, and Python takes this one always: what
is no kernel runs where nothing is compiled, and runs the same there. tests/test_window.py compares the two
for every legal short axis.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 20  # coordinates at a time: what is in between does not take more memory than the result
LONGEST_AXIS = 1 << 28  # what kernels count distances along an axis with has 32 bits


def windows(length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool) -> NDArray[Any]:
    """int32 [length, 2]: start and stop of every coordinate's window, in positions of its dilation group.

    With a stride, that many neighbouring queries share the window of their leader: the middle one, or if
    causal the last one. A window is centred on the leader and shifted inward at the borders; causal, it ends
    at the leader and is cut at the query itself.
    """
    table = np.empty((length, 2), np.int32)
    for first in range(0, length, PIECE):
        part = np.arange(first, min(first + PIECE, length), dtype=np.int32)
        table[first : first + PIECE] = _windows_of(part, length, kernel_size, stride, dilation, is_causal)
    return table


def periodic_windows(length: int, kernel_size: int, stride: int, dilation: int) -> NDArray[Any]:
    """The same for an axis that wraps around: nothing is shifted, positions go on past both ends."""
    position = np.arange(length, dtype=np.int32) // np.int32(dilation)
    start = position // stride * stride + stride // 2 - kernel_size // 2
    return np.stack([start, start + kernel_size], axis=1).astype(np.int32)


def _windows_of(
    coordinate: NDArray[Any], length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> NDArray[Any]:
    position, group = np.divmod(coordinate, dilation)
    positions = -((group - length) // dilation)  # that the group has: ceil((length - group) / dilation)
    first = position // stride * stride  # of those that share the window
    if is_causal:
        leader = np.minimum(first + stride - 1, positions - 1)
        start, stop = np.maximum(leader - kernel_size + 1, 0), position + 1
    else:
        leader = np.minimum(first + stride // 2, positions - 1)
        start = np.clip(leader - kernel_size // 2, 0, positions - kernel_size)
        stop = start + kernel_size
    return np.stack([start, stop], axis=1)


def inverse_windows(
    length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> NDArray[Any]:
    """int32 [length, 2]: first and stop of the query positions that see every key coordinate.

    An interval, because in a group both ends of the windows are non-decreasing: it begins after the windows
    that end before the key, and ends with the windows that start at it.
    """
    table = windows(length, kernel_size, stride, dilation, is_causal)
    inverse = np.empty_like(table)
    for group in range(dilation):
        start, stop = table[group::dilation].T
        key = np.arange(len(start))
        inverse[group::dilation, 0] = np.searchsorted(stop, key, side="right")
        inverse[group::dilation, 1] = np.searchsorted(start, key, side="right")
    return inverse
