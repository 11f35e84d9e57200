# SPDX-License-Identifier: Apache-2.0
"""What the CPU kernels cost: a count of the products of queries with keys that they do, useful or not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jax_na.kernels.contract import Problem
from jax_na.kernels.work import Work
from jax_na.neighborhood import Axis, Shape, inverse_windows, windows

# Measured: what one product of a query with a key costs in the row kernels, in units of the tile kernels.
ROW_PRODUCT = 1.15
KEY_ROW = 4  # starting a row of keys costs the tile kernels as much as this many keys

# Products of each pass: queries with keys (scores), and weights with tokens.
PRODUCTS = {"forward": (1, 1), "backward": (2, 3), "qk": (1, 0), "av": (0, 1), "inverse": (0, 1)}


def cost(pass_name: str, name: str, problem: Problem, tiling: Any) -> float:
    """What one pass costs with a tiling of the kernel `name`."""
    if name == "naive" or pass_name not in PRODUCTS:  # the only kernel of its pass, without tiles
        return 0.0
    if name == "single":  # takes few queries, of which tiles would have many that are not there
        return 0.0
    scores, weighted = PRODUCTS[pass_name]
    if name == "rows":
        score_cost, weighted_cost = row_costs(problem.axes, tuple(tiling.query), tiling.columns)
        return scores * score_cost + weighted * weighted_cost
    table = inverse_windows if pass_name == "inverse" else windows
    return (scores + weighted) * tile_cost(problem.axes, tuple(tiling.query), table)


def work(pass_name: str, name: str, problem: Problem, tiling: Any) -> Work:
    """What one pass does with a tiling of a kernel that has tiles."""
    if name == "rows":
        return _row_work(problem.axes, tuple(tiling.query), tiling.columns)
    unions, inner = [], []
    for axis, extent in zip(problem.axes, tiling.query, strict=True):
        unions.append(_unions(axis, windows(axis), extent))
        inner.append(_intersections(axis, extent))
    extents, counts = map(math.prod, zip(*unions, strict=True))
    return Work(counts, math.prod(tiling.query) * extents, extents, math.prod(inner) / extents)


def _row_work(axes: tuple[Axis, ...], block: Shape, width: int) -> Work:
    """Blocks of rows take exactly their key rows; along the last axis, what one of `width` lanes needs."""
    *leading, last = axes
    used = math.prod(int((windows(axis)[:, 1] - windows(axis)[:, 0]).sum()) for axis in leading)
    unions = [_unions(axis, windows(axis), rows) for axis, rows in zip(leading, block, strict=True)]
    loaded, blocks = (math.prod(side) for side in zip(*unions, (1, 1), strict=True))
    columns, runs = _unions(last, windows(last), width)
    return Work(blocks * runs, used * width * _columns(last, width), loaded * columns, None)


@functools.lru_cache(maxsize=4096)
def tile_cost(axes: tuple[Axis, ...], tile: Shape, table: Callable[[Axis], Any]) -> float:
    """What one product costs in the tile kernels: that of all lanes with the keys that their tiles visit.

    A tile visits the union of its windows, which is a box. So the keys visited by all tiles are the product
    over the axes of the sum over the tiles of the extent of that union.
    """
    unions = [_unions(axis, table(axis), extent) for axis, extent in zip(axes, tile, strict=True)]
    extents, counts = zip(*unions, strict=True)
    key_rows = math.prod(extents[:-1]) * counts[-1]
    return math.prod(tile) * float(math.prod(extents) + KEY_ROW * key_rows)


@functools.lru_cache(maxsize=4096)
def row_costs(axes: tuple[Axis, ...], block: Shape, width: int) -> tuple[float, float]:
    """What the row kernels cost with blocks of so many rows: of scores, and of a product with weights.

    Scores: every query row takes exactly its key rows, but loading a key row costs half as much as using
    it; along the last axis, `width` lanes take the columns that one of them needs. Weights: exactly the
    windows, for two neighbours at a time.
    """
    *leading, last = axes
    columns = width * _columns(last, width)
    pairs = 2 * _unions(last, windows(last), 2)[0]
    used = math.prod(int((windows(axis)[:, 1] - windows(axis)[:, 0]).sum()) for axis in leading)
    unions = [_unions(axis, windows(axis), rows) for axis, rows in zip(leading, block, strict=True)]
    loaded = math.prod(extent for extent, _ in unions)
    return ROW_PRODUCT * (used + loaded / 2) * columns, ROW_PRODUCT * used * pairs


@functools.lru_cache(maxsize=1024)
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


def _intersections(axis: Axis, tile: int) -> int:
    """Over all groups of an axis: the sum of the keys that all queries of a tile see."""
    total = 0
    for group in range(min(axis.dilation, axis.length)):
        start, stop = windows(axis)[group :: axis.dilation].T
        first = np.arange(0, len(start), tile)
        last = np.minimum(first + tile, len(start)) - 1
        total += int(np.maximum(stop[first] - start[last], 0).sum())
    return total
