# SPDX-License-Identifier: Apache-2.0
"""The kernel and the tile of a call, chosen by a count of the work they cause, and its scratch space."""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_na import _cpu
from jax_na.kernels import tuning
from jax_na.neighborhood import Axis, Shape, inverse_windows, windows
from jax_na.op import Op

LANES = 16  # queries of a tile of the tile kernels
BLOCK_ROWS = 4  # query rows of a block of the row kernels, at most

# Measured: what one product of a query with a key costs in the row kernels, in units of the tile kernels.
ROW_PRODUCT = 1.15
KEY_ROW = 4  # starting a row of keys costs the tile kernels as much as this many keys


# Products of each kernel: queries with keys (scores), and weights with tokens.
PRODUCTS = {
    "na_fused_forward": (1, 1),
    "na_fused_backward": (2, 3),
    "na_gemm_qk": (1, 0),
    "na_gemm_av": (0, 1),
    "na_gemm_inverse": (0, 1),
}


def tile(name: str, op: Op, head_dim: int, value_dim: int) -> Shape:
    """The tile for the kernel `name`: for a fused kernel the measured one (`jax-na tune`), else the cheapest.

    Its sizes along the axes have the product 16 (16 neighbouring queries for the tile kernels; keys for
    "na_gemm_inverse"), or the last one is 0: then the row kernels take whole rows of queries, and the other
    sizes are the rows of a block.
    """
    legal = tiles(name, op, head_dim, value_dim)
    tuned = tuple(tuning.lookup(op).get("query_tile", ()))
    return tuned if tuned in legal and name.startswith("na_fused") else legal[0]


def tiles(name: str, op: Op, head_dim: int, value_dim: int) -> tuple[Shape, ...]:
    """All that a kernel can do for a problem, the cheapest first."""
    if name not in PRODUCTS:  # the naive kernels have no tiles
        return ((LANES,) * op.neighborhood.rank,)
    scores, weighted = PRODUCTS[name]
    table = inverse_windows if name == "na_gemm_inverse" else windows
    costs = {t: (scores + weighted) * cost for t, cost in _tile_costs(op.axes, table)}
    for t, score_cost, weighted_cost in _row_costs(op.axes, _cpu.width()):
        if _cpu.rows_fit(name, list(t), list(op.axes), head_dim, value_dim):
            costs[t] = scores * score_cost + weighted * weighted_cost
    return tuple(sorted(costs, key=lambda t: costs[t]))  # among equals, the longest along the last axis


@functools.lru_cache(maxsize=1024)
def _tile_costs(axes: tuple[Axis, ...], table: Callable[[Axis], Any]) -> tuple[tuple[Shape, float], ...]:
    """Every tile shape and the cost of a product: that of all lanes with the keys that their tiles visit.

    A tile visits the union of its windows, which is a box. So the keys visited by all tiles are the product
    over the axes of the sum over the tiles of the extent of that union.
    """

    def cost(tile: Shape) -> float:
        extents, counts = zip(
            *(_unions(axis, table(axis), t) for axis, t in zip(axes, tile, strict=True)), strict=False
        )
        key_rows = math.prod(extents[:-1]) * counts[-1]
        return LANES * float(math.prod(extents) + KEY_ROW * key_rows)

    sizes = [1 << i for i in range(LANES.bit_length())]
    tiles = [t for t in itertools.product(sizes, repeat=len(axes)) if math.prod(t) == LANES]
    return tuple((tile, cost(tile)) for tile in tiles)


@functools.lru_cache(maxsize=1024)
def _row_costs(axes: tuple[Axis, ...], width: int) -> tuple[tuple[Shape, float, float], ...]:
    """Every block shape of the row kernels and its costs, of scores and of a product with weights.

    Scores: every query row takes exactly its key rows, but loading a key row costs half as much as using
    it; along the last axis, `width` lanes take the columns that one of them needs. Weights: exactly the
    windows, for two neighbours at a time.
    """
    *leading, last = axes
    columns = width * _columns(last, width)
    pairs = 2 * _unions(last, windows(last), 2)[0]

    def costs(block: Shape) -> tuple[float, float]:
        used = math.prod(int((windows(axis)[:, 1] - windows(axis)[:, 0]).sum()) for axis in leading)
        loaded = math.prod(_unions(axis, windows(axis), t)[0] for axis, t in zip(leading, block, strict=True))
        return ROW_PRODUCT * (used + loaded / 2) * columns, ROW_PRODUCT * used * pairs

    sizes = range(1, BLOCK_ROWS + 1)
    blocks = [b for b in itertools.product(sizes, repeat=len(leading)) if math.prod(b) <= BLOCK_ROWS]
    return tuple(((*block, 0), *costs(block)) for block in blocks)


def _columns(axis: Axis, width: int) -> int:
    """Over all runs of `width` neighbouring queries: the keys it needs, or the offsets of keys if fewer."""
    total = 0
    for group in range(min(axis.dilation, axis.length)):
        start, stop = windows(axis)[group :: axis.dilation].T
        position = np.arange(len(start))
        first = np.arange(0, len(start), width)
        last = np.minimum(first + width, len(start)) - 1
        offsets = np.maximum.reduceat(stop - position, first) - np.minimum.reduceat(start - position, first)
        total += int(np.minimum(offsets, stop[last] - start[first]).sum())
    return total


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


def scratch(name: str, op: Op, tile: Shape, head_dim: int, value_dim: int, queries: int) -> int:
    """Bytes of scratch space for a call of the kernel `name`; `queries` counts batch, heads and grid."""
    work = 2 * queries * op.neighborhood.size * (head_dim + value_dim)
    alone = isinstance(work, int) and work < _cpu.SMALLEST_SHARED_WORK  # it may be symbolic
    threads = 1 if alone else workers()
    return max(1, threads * _cpu.scratch_bytes(name, list(tile), list(op.axes), head_dim, value_dim))
