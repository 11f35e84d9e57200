# SPDX-License-Identifier: Apache-2.0
"""What devices get of each other where a grid is cut, on paper: docs/scaling.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_na.neighborhood import Neighborhood, Table


class Link(NamedTuple):
    """What lies between devices: bytes per second that one receives, and seconds before a message begins."""

    bandwidth: float
    latency: float

    def seconds(self, received: float, messages: int) -> float:
        """The time to receive so many bytes in so many messages, one after the other.

        Example:
            >>> Link(bandwidth=4e11, latency=1e-5).seconds(8e7, messages=2)
            0.00022
        """
        return received / self.bandwidth + messages * self.latency


def halo_keys(neighborhood: Neighborhood, grid: Sequence[int], cut: Sequence[int]) -> tuple[int, int]:
    """Halo keys that the busiest device gets in a forward pass, and in a forward and a backward pass.

    Axes are exchanged in turn, the later ones take along what the earlier ones brought. The backward pass
    brings the halos again, and every device gets the gradients of what it sent.

    Args:
        neighborhood: the window.
        grid: tokens along each axis.
        cut: devices along each axis.

    Raises:
        ValueError: if an axis is periodic, or does not divide over its devices.

    Example:
        >>> halo_keys(Neighborhood((7, 7)), (56, 56), (2, 1))
        (168, 504)
    """
    _check(neighborhood, grid, cut)
    block = [n // c for n, c in zip(grid, cut, strict=True)]
    forward, both, extended = 0, 0, list(block)
    for a, bounds in enumerate(neighborhood.bounds(tuple(grid))):
        of_device = bounds.reshape(cut[a], block[a], 2)
        start, stop = of_device[..., 0].min(1), of_device[..., 1].max(1)
        got, sent = exchange(start, stop, block[a])
        across = math.prod(extended) // extended[a]
        forward += int(got.max()) * across
        both += int((2 * got + sent).max()) * across
        extended[a] = int((stop - start).max())
    return forward, both


def _check(neighborhood: Neighborhood, grid: Sequence[int], cut: Sequence[int]) -> None:
    if any(neighborhood.is_periodic):
        raise ValueError(
            f"the formulas are for axes with borders, got is_periodic={neighborhood.is_periodic}"
        )
    for axis, (length, devices) in enumerate(zip(grid, cut, strict=True)):
        if length % devices:
            legal = [n for n in range(1, length + 1) if length % n == 0]
            below, above = max(n for n in legal if n < devices), min(n for n in legal if n > devices)
            raise ValueError(
                f"axis {axis} of {length} does not divide over {devices} devices, but over {below}, {above}"
            )


def exchange(start: Table, stop: Table, block: int) -> tuple[Table, Table]:
    """Coordinates that every device gets and sends along an axis where it needs start to stop.

    All devices run one program: one that gets keys of the first, second, .. block on a side gets as many as
    the one that needs most of that.
    """
    device = np.arange(len(start))
    got, sent = np.zeros((2, len(start)), int)
    for side, reach in ((-1, device * block - start), (1, stop - (device + 1) * block)):
        for distance in range(1, len(start)):
            rows: Table = np.clip(reach - (distance - 1) * block, 0, block)
            needs = device[rows > 0]
            got[needs] += rows.max()
            sent[needs + side * distance] += rows.max()
    return got, sent
