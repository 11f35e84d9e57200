# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels cost: a count of the work that their tiles cause.

A block has a tile of rows that stay (queries; for the gradient of key and value, keys), and walks over boxes
of columns that cover all that its rows see; the first box starts at the first column seen. The GEMM kernels
keep rows of weights in shared memory besides. The halo kernels copy all that a tile may see at once, and a
warp computes its scores with a box of its own. Windows are separable, so all counts below are products over
the axes of exact counts along one axis.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from jax_na.kernels.contract import Problem
from jax_na.kernels.work import Work
from jax_na.neighborhood import Axis, Shape, Table, inverse_windows, windows


class Costs(NamedTuple):
    """Of one score, all in one unit: a multiplication and addition of the portable kernels."""

    product: float  # per feature
    softmax: float  # exponential, maximum and sum
    mask: float  # of a box that some row of the warp does not see entirely
    copy_rows: float  # a column costs as much as computing it for this many rows, beside doing so
    start: float  # boxes that a tile costs besides its own: loading the rows, storing results, waiting


COSTS = {
    # Fitted to times measured on an H200 in bfloat16, for windows of 7x7, 13x13 and 80x80 and a sequence.
    "portable": Costs(product=1, softmax=16, mask=8, copy_rows=48, start=1),
    # From the instructions of a step. Copies go on beside the products; a block has a multiprocessor for
    # itself, so nothing hides how a tile begins and ends. On an H200 the faster kernel has the lower cost for
    # the problems above.
    "sm90": Costs(product=0.5, softmax=24, mask=16, copy_rows=0, start=3),
    # From the instructions of a tile: the products are a tenth of them. Measured on an H200 for windows from
    # 7x7 to 17x17 and 5x7x7, of which the last is where "portable" becomes as fast.
    "halo": Costs(product=0.3, softmax=77, mask=0, copy_rows=19, start=0.25),
    "halo_sm90": Costs(product=0.3, softmax=77, mask=0, copy_rows=19, start=0.25),
}
HALO = ("halo", "halo_sm90")
# Backward a halo kernel gains more: on an H100 and an H200 it takes 0.4 to 0.9 of the time of "portable" for
# windows of 7x7, 3x5x5 and 7 and 64 of a sequence.
BACKWARD = 0.95
TABLES = 128  # bytes of a block for each entry of a head's bias, of which the gradient is added up
ROOMY, ROOM = 60 << 10, 250 << 10  # bytes of a block: beyond the first, fewer hide each other's copies
ROOM_OF_TWO, ALONE = 106 << 10, 1.5  # beyond that, a block is alone on its multiprocessor, and costs more
STAGE = 64  # a weight of a score to or from shared memory; this and the next are not measured
CROWDED = 24 << 10  # staged weights of a block: as many take the room that other blocks would need


class Tiling(Protocol):
    """What the costs of a tiling depend on, besides the extents of its tiles."""

    @property
    def rows(self) -> int:
        """Tokens that stay in a block."""

    @property
    def warp_rows(self) -> int:
        """How many of them a warp has."""

    @property
    def columns(self) -> int:
        """Tokens streamed per step."""

    @property
    def staged_slots(self) -> int:
        """Slots of a row of weights kept in shared memory, if any are."""


class Count(NamedTuple):
    """Tiles of rows, the boxes of all of them, and the boxes that a warp need not mask, over all warps."""

    tiles: int
    boxes: int
    unmasked: int


KEYS_STAY = ("backward_key", "inverse")  # passes in which a block has a tile of keys


def cost(pass_name: str, name: str, problem: Problem, tiling: Any) -> float:
    """What one pass costs with a tiling of the kernel `name`, in the unit of `Costs`."""
    if name not in COSTS:  # the naive kernels have no tiles
        return 0.0
    keys_stay = pass_name in KEYS_STAY
    count = _count(problem, tiling, keys_stay)
    features = max(32, 1 << (max(problem.head_dim, problem.value_dim) - 1).bit_length())
    if tiling.staged_slots:
        return gemm_cost(tiling, count, features, keys_stay)
    if name in HALO:
        return halo_cost(pass_name, problem, tiling, count.tiles, features, COSTS[name])
    return fused_cost(tiling, count, features, COSTS[name])


def work(pass_name: str, name: str, problem: Problem, tiling: Any) -> Work:
    """What one pass does with a tiling of a kernel that has tiles."""
    count = _count(problem, tiling, pass_name in KEYS_STAY)
    if name in HALO:
        copied = count.tiles * _halo(problem, tiling)
        return Work(count.tiles, count.tiles * tiling.rows * tiling.columns, copied, None)
    pairs = count.boxes * tiling.rows * tiling.columns
    masks = count.boxes * (tiling.rows // tiling.warp_rows)  # of single warps
    return Work(count.tiles, pairs, count.boxes * tiling.columns, count.unmasked / masks)


def _count(problem: Problem, tiling: Any, keys_stay: bool) -> Count:
    query = tuple(tiling.query)
    key = tuple(tiling.key) or query  # halo kernels have no boxes: their tiles alone are counted
    rows, columns = (key, query) if keys_stay else (query, key)
    return count_boxes(problem.axes, rows, columns, tiling.warp_rows, keys_stay)


def fused_cost(tiling: Tiling, count: Count, features: int, costs: Costs) -> float:
    """What a fused kernel costs."""
    box = tiling.rows * tiling.columns
    score = costs.product * features + costs.softmax
    masked = count.boxes * (tiling.rows // tiling.warp_rows) - count.unmasked  # of single warps
    mask = masked * tiling.warp_rows * tiling.columns * costs.mask
    copies = count.boxes * tiling.columns * costs.copy_rows * features
    return (count.boxes + costs.start * count.tiles) * box * score + mask + copies


def halo_cost(
    pass_name: str, problem: Problem, tiling: Tiling, tiles: int, features: int, costs: Costs
) -> float:
    """What a halo kernel costs: tiles copy all that they may see, and warps score `columns` of it."""
    halo = _halo(problem, tiling)
    score = costs.product * features + costs.softmax
    scores = (1 + costs.start) * tiling.rows * tiling.columns * score
    copies = halo * costs.copy_rows * features
    room = 2 * halo * max(128, 2 * features)
    if pass_name == "backward_query" and "rpb" in problem.operands:
        entries = math.prod(2 * axis.kernel_size - 1 for axis in problem.axes)
        room += TABLES * (2 if features == 32 else 1) * entries
    crowded = (1 + max(0, room - ROOMY) / ROOM) * (ALONE if room > ROOM_OF_TWO else 1)
    return tiles * (scores + copies) * crowded * (1 if pass_name == "forward" else BACKWARD)


def _halo(problem: Problem, tiling: Any) -> int:
    """Columns that a tile of rows may see, away from borders: as many as a halo kernel copies."""
    return math.prod(
        min(-(-axis.length // axis.dilation), axis.kernel_size + extent - 1 + axis.stride - 1)
        for axis, extent in zip(problem.axes, tiling.query, strict=True)
    )


def gemm_cost(tiling: Tiling, count: Count, features: int, keys_stay: bool) -> float:
    """What a GEMM kernel costs, which stages rows of weights: of its queries, or with every column."""
    slots = tiling.staged_slots
    scores = (count.boxes + count.tiles) * tiling.rows * tiling.columns * (features + STAGE)
    copied = features + (slots if keys_stay else 0)
    copies = count.boxes * tiling.columns * COSTS["portable"].copy_rows * copied
    staged = slots * (tiling.columns if keys_stay else tiling.rows)
    return (scores + copies) * max(1.0, 0.7 + staged / CROWDED)


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
