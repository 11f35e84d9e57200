# SPDX-License-Identifier: Apache-2.0
"""The tiles of a CUDA kernel, chosen by a count of the work they cause.

A block of a fused kernel has a tile of rows that stay (queries; for the gradient of key and value, keys), and
walks over boxes of columns that cover all that its rows see; the first box starts at the first column seen.
Windows are separable, so all counts below are products over the axes of exact counts along one axis.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jax_na import tuning
from jax_na.neighborhood import Axis, Op, Shape, Table, inverse_windows, windows

# A score costs its features, plus these in the same unit. Fitted to times measured on an H200 in bfloat16,
# for windows of 7x7, 13x13 and 80x80 and a sequence.
SOFTMAX = 16  # exponential, maximum and sum
MASK = 8  # of a box that some row of the warp does not see entirely
COPY_ROWS = 48  # a column of a box costs as much as computing it for this many rows, beside doing so


class Kernel(NamedTuple):
    """One of the kernels that exist, by the sizes of its tiles."""

    rows: int  # stay
    warp_rows: int
    columns: int  # streamed per step


class Count(NamedTuple):
    """Tiles of rows, the boxes of all of them, and the boxes that a warp need not mask, over all warps."""

    tiles: int
    boxes: int
    unmasked: int


# The kernels that a target launches, by name; keys stay in the last one.
PASSES = {"na_fused_forward": ("forward",), "na_fused_backward": ("backward_queries", "backward_keys")}


def tile(name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int) -> Shape:
    """The attribute `tile` of the target `name`: the measured one (`jax-na tune`), else the cheapest.

    Extents along the axes, (*queries, *keys); for "na_fused_backward" two such pairs: that of the gradient of
    query, where queries stay, and that of key and value, where keys stay.
    """
    if name not in PASSES:  # the naive kernels have no tiles
        return (1,) * op.neighborhood.rank
    ranked = rankings(name, op, element_bytes, head_dim, value_dim)
    tuned = tuple(tuning.lookup(op, "cuda").get("tiles", {}).get(name, ()))
    size = 2 * op.neighborhood.rank
    pairs = [tuned[i : i + size] for i in range(0, len(tuned), size)]
    if len(pairs) == len(ranked) and all(pair in legal for pair, legal in zip(pairs, ranked, strict=True)):
        return tuned
    return tuple(itertools.chain(*(legal[0] for legal in ranked)))


def tiles(name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int) -> tuple[Shape, ...]:
    """Tiles to try, the cheapest first: of a target with two kernels, the n-th cheapest of both together."""
    ranked = rankings(name, op, element_bytes, head_dim, value_dim)
    return tuple(tuple(itertools.chain(*pairs)) for pairs in zip(*ranked, strict=False))


def rankings(
    name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int
) -> tuple[tuple[Shape, ...], ...]:
    """For every kernel of the target all legal (*queries, *keys), the cheapest first."""
    features = max(32, 1 << (max(head_dim, value_dim) - 1).bit_length())
    return tuple(
        _ranking(op.axes, kernels(p, element_bytes, head_dim, value_dim), features, p == "backward_keys")
        for p in PASSES[name]
    )


@functools.cache
def kernels(name: str, element_bytes: int, head_dim: int, value_dim: int) -> tuple[Kernel, ...]:
    """Those that exist for a pass."""
    from jax_na import _cuda

    return tuple(Kernel(*k) for k in _cuda.shapes(name, element_bytes, head_dim, value_dim))


@functools.lru_cache(maxsize=256)
def _ranking(
    axes: tuple[Axis, ...], existing: tuple[Kernel, ...], features: int, keys_stay: bool
) -> tuple[Shape, ...]:
    costs = {}
    for kernel in existing:
        shapes = (tuple(_shapes(volume, len(axes))) for volume in (kernel.rows, kernel.columns))
        for rows, columns in itertools.product(*shapes):
            pair = (*columns, *rows) if keys_stay else (*rows, *columns)
            count = count_boxes(axes, rows, columns, kernel.warp_rows, keys_stay)
            costs[pair] = cost(kernel, count, features)
    return tuple(sorted(costs, key=lambda pair: costs[pair]))


def _shapes(volume: int, rank: int) -> Iterator[Shape]:
    """All tuples of powers of two with this product; the longest along the last axis first."""
    if rank == 1:
        yield (volume,)
        return
    for i in range(volume.bit_length()):
        for rest in _shapes(volume >> i, rank - 1):
            yield (1 << i, *rest)


def cost(kernel: Kernel, count: Count, features: int) -> float:
    """Time in units of one multiplication and addition per row and column."""
    box = kernel.rows * kernel.columns
    score = features + SOFTMAX
    masked = count.boxes * (kernel.rows // kernel.warp_rows) - count.unmasked  # of single warps
    copies = count.boxes * kernel.columns * COPY_ROWS * features
    # a tile takes one more step: loading the rows, storing results, waiting for the first box
    return (
        (count.boxes + count.tiles) * box * score + masked * kernel.warp_rows * kernel.columns * MASK + copies
    )


def count_boxes(
    axes: tuple[Axis, ...], rows: Shape, columns: Shape, warp_rows: int, keys_stay: bool
) -> Count:
    """What all blocks of one head do. A warp has `warp_rows` neighbouring rows of the tile, row-major."""
    counts = [
        _count_on_axis(axis, r, w, c, keys_stay)
        for axis, r, w, c in zip(axes, rows, _warp_tile(rows, warp_rows), columns, strict=True)
    ]
    return Count(*map(math.prod, zip(*counts, strict=True)))


def _warp_tile(rows: Shape, warp_rows: int) -> Shape:
    extents: list[int] = []
    for extent in reversed(rows):
        extents.append(min(extent, warp_rows))
        warp_rows //= extents[-1]
    return tuple(reversed(extents))


@functools.lru_cache(maxsize=4096)
def _count_on_axis(axis: Axis, rows: int, warp_rows: int, columns: int, keys_stay: bool) -> Count:
    table = inverse_windows(axis) if keys_stay else windows(axis)
    longer = axis.length % axis.dilation  # groups of an axis have at most two lengths
    total = Count(0, 0, 0)
    for group, groups in ((0, longer), (longer, axis.dilation - longer)):
        if groups:
            count = _count_in_group(table[group :: axis.dilation], rows, warp_rows, columns)
            total = Count(*(sum_ + groups * x for sum_, x in zip(total, count, strict=True)))
    return total


def _count_in_group(seen: Table, rows: int, warp_rows: int, columns: int) -> Count:
    """For tiles of `rows` neighbours; row i sees the columns [seen[i, 0], seen[i, 1]), non-decreasing."""
    start, stop = seen.T
    n = len(start)
    first = np.arange(0, n, rows)
    last = np.minimum(first + rows, n) - 1
    boxes = -(-(stop[last] - start[first]) // columns)
    # A warp masks no box between the latest start and the earliest stop of its rows.
    begin = first[:, None] + np.arange(0, rows, warp_rows)
    end = np.minimum(begin + warp_rows, n) - 1
    origin = start[first][:, None]
    before = -(-(start[end] - origin) // columns)
    until = np.minimum((stop[np.minimum(begin, n - 1)] - origin) // columns, boxes[:, None])
    unmasked = np.where(begin < n, np.maximum(until - before, 0), boxes[:, None])  # rows that do not exist
    return Count(len(first), int(boxes.sum()), int(unmasked.sum()))
