# SPDX-License-Identifier: Apache-2.0
"""The tile of a kernel call, chosen by an exact count of the work it causes, and its scratch space."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_na import _cpu, tuning
from jax_na.neighborhood import Axis, Op, Shape, inverse_windows, windows

LANES = 16  # queries of a tile: the float32 lanes of the widest vectors
ROW_COST = 4  # starting a row of keys costs as much as this many keys


def query_tile(op: Op) -> Shape:
    """The shape of the 16 neighbouring queries of a tile: the measured one (`jax-na tune`), else the best."""
    tiles = query_tiles(op)
    tuned = tuple(tuning.lookup(op).get("query_tile", ()))
    return tuned if tuned in tiles else tiles[0]


def query_tiles(op: Op) -> tuple[Shape, ...]:
    """All such shapes, powers of two; first those for which the tiles load the fewest keys.

    A tile loads the union of its windows, which is a box. So the keys loaded by all tiles are the product
    over the axes of the sum over the tiles of the extent of that union.
    """
    return _ranked(op.axes, windows)


def key_tile(op: Op) -> Shape:
    """The same for tiles of keys, which load the queries that see them."""
    return _ranked(op.axes, inverse_windows)[0]


@functools.lru_cache(maxsize=1024)
def _ranked(axes: tuple[Axis, ...], table: Callable[[Axis], Any]) -> tuple[Shape, ...]:
    def cost(tile: Shape) -> int:
        extents, counts = zip(
            *(_unions(axis, table(axis), t) for axis, t in zip(axes, tile, strict=True)), strict=False
        )
        rows = math.prod(extents[:-1]) * counts[-1]
        return int(math.prod(extents) + ROW_COST * rows)

    sizes = [1 << i for i in range(LANES.bit_length())]
    tiles = [t for t in itertools.product(sizes, repeat=len(axes)) if math.prod(t) == LANES]
    return tuple(sorted(tiles, key=cost))  # among equals, the longest along the last axis


def _unions(axis: Axis, bounds: Any, tile: int) -> tuple[int, int]:
    """Over all groups of an axis: the sum of the extents of the tiles' unions, and the number of tiles."""
    total = count = 0
    for group in range(min(axis.dilation, axis.length)):
        start, stop = bounds[group :: axis.dilation].T
        last = np.minimum(np.arange(tile - 1, len(start) + tile - 1, tile), len(start) - 1)
        total += int((stop[last] - start[::tile]).sum())
        count += len(last)
    return total, count


def workers() -> int:
    """CPUs available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scratch(name: str, head_dim: int, value_dim: int) -> int:
    """Bytes of scratch space for a call of the kernel `name`."""
    return max(1, workers() * _cpu.scratch_bytes(name, head_dim, value_dim))
