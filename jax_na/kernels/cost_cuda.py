# SPDX-License-Identifier: Apache-2.0
"""The tiles of a CUDA kernel, chosen by a count of the work they cause.

A block has a tile of rows that stay (queries; for the gradient of key and value, keys), and
walks over boxes of columns that cover all that its rows see; the first box starts at the first column seen.
The GEMM kernels keep rows of weights in shared memory besides, and not all tiles leave room for them.
Windows are separable, so all counts below are products over the axes of exact counts along one axis.

The forward pass has two kernels: one for every GPU, and one with tiles of 128 rows for compute capability
9.0. A call carries tiles for both, so that a compiled program runs anywhere; zeros for the second where the
first is the cheaper one, or the only one (cuda/hopper_rule.h says for what), or the tuning file has zeros.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jax_na.kernels import devices, tuning
from jax_na.neighborhood import Axis, Shape, Table, inverse_windows, windows
from jax_na.op import Op


class Costs(NamedTuple):
    """Of one score, all in one unit: a multiplication and addition of the portable kernels."""

    product: float  # per feature
    softmax: float  # exponential, maximum and sum
    mask: float  # of a box that some row of the warp does not see entirely
    copy_rows: float  # a column costs as much as computing it for this many rows, beside doing so
    start: float  # boxes that a tile costs besides its own: loading the rows, storing results, waiting


# Fitted to times measured on an H200 in bfloat16, for windows of 7x7, 13x13 and 80x80 and a sequence.
PORTABLE = Costs(product=1, softmax=16, mask=8, copy_rows=48, start=1)
# From the instructions of a step. Copies go on beside the products; a block has a multiprocessor for itself,
# so nothing hides how a tile begins and ends. On an H200 it takes the faster kernel for the problems above.
HOPPER = Costs(product=0.5, softmax=24, mask=16, copy_rows=0, start=3)
STAGE = 64  # a weight of a score to or from shared memory; this and the next are not measured
CROWDED = 24 << 10  # staged weights of a block: as many take the room that other blocks would need


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


# The kernels that a target launches, by name.
PASSES = {
    "na_fused_forward": ("forward", "hopper_forward"),
    "na_fused_backward": ("backward_queries", "backward_keys"),
    "na_gemm_qk": ("qk",),
    "na_gemm_av": ("av",),
    "na_gemm_inverse": ("inverse",),
}
KEYS_STAY = ("backward_keys", "inverse")
STAGED = ("qk", "av", "inverse")  # those that keep weights in shared memory


def tile(
    name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int, has_tokens: bool = False
) -> Shape:
    """The attribute `tile` of the target `name`: the measured one (`jax-na tune`), else the cheapest.

    Two pairs of extents along the axes, (*queries, *keys). For "na_fused_forward" that of the portable
    kernel and that of the one for compute capability 9.0, or zeros; for "na_fused_backward" that of the
    gradient of query, where queries stay, and that of key and value, where keys stay.
    """
    if name not in PASSES:  # the naive kernels have no tiles
        return (1,) * op.neighborhood.rank
    ranked = rankings(name, op, element_bytes, head_dim, value_dim, has_tokens)
    tuned = tuple(tuning.lookup(op, "cuda").get("tiles", {}).get(name, ()))
    size = 2 * op.neighborhood.rank
    pairs = [tuned[i : i + size] for i in range(0, len(tuned), size)]
    if len(pairs) == len(ranked) and all(pair in legal for pair, legal in zip(pairs, ranked, strict=True)):
        return tuned
    return tuple(itertools.chain(*(legal[0] for legal in ranked)))


def tiles(name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int) -> tuple[Shape, ...]:
    """Tiles to try, the cheapest first: where both kernels run, the n-th cheapest of both together.

    Of the forward kernels one runs: they take turns, beginning with the one that the planner takes.
    """
    ranked = rankings(name, op, element_bytes, head_dim, value_dim)
    if name != "na_fused_forward":
        return tuple(tuple(itertools.chain(*pairs)) for pairs in zip(*ranked, strict=False))
    portable, hopper = ranked
    none = (0,) * len(portable[0])
    those = [(*pair, *none) for pair in portable]
    if not devices.is_hopper():
        return tuple((*pair, *hopper[0]) for pair in portable)
    others = [(*portable[0], *pair) for pair in hopper if pair != none]
    both = (those, others) if hopper[0] == none else (others, those)
    turns = itertools.chain(*itertools.zip_longest(*both))
    return tuple(tiles for tiles in turns if tiles is not None)


def rankings(
    name: str, op: Op, element_bytes: int, head_dim: int, value_dim: int, has_tokens: bool = False
) -> tuple[tuple[Shape, ...], ...]:
    """For every kernel of the target all legal (*queries, *keys), the cheapest first."""
    features = max(32, 1 << (max(head_dim, value_dim) - 1).bit_length())
    found = []
    for which in PASSES[name]:
        existing = kernels(which, element_bytes, head_dim, value_dim, has_tokens)
        found.append(_costs(op.axes, existing, which, element_bytes, features))
    if name == "na_fused_forward":
        portable, hopper = found
        none = (0,) * (2 * op.neighborhood.rank)
        found[1] = {**hopper, none: min(portable.values())}
    return tuple(tuple(sorted(costs, key=costs.__getitem__)) for costs in found)


@functools.cache
def kernels(
    name: str, element_bytes: int, head_dim: int, value_dim: int, additional: bool
) -> tuple[Kernel, ...]:
    """Those that exist for a pass, with additional tokens or without."""
    from jax_na import _cuda

    return tuple(Kernel(*k) for k in _cuda.shapes(name, element_bytes, head_dim, value_dim, additional))


def staged_slots(
    name: str, element_bytes: int, features: int, kernel_size: Shape, rows: Shape, columns: Shape
) -> int:
    """Slots of a row of weights that a GEMM kernel has room for in shared memory, 0 if it cannot run."""
    from jax_na import _cuda

    return _cuda.staged_slots(name, element_bytes, features, list(kernel_size), list(rows), list(columns))


@functools.lru_cache(maxsize=256)
def _costs(
    axes: tuple[Axis, ...], existing: tuple[Kernel, ...], name: str, element_bytes: int, features: int
) -> dict[Shape, float]:
    """Of all legal tiles of a pass."""
    found: dict[Shape, float] = {}
    keys_stay, kernel_size = name in KEYS_STAY, tuple(axis.kernel_size for axis in axes)
    costs = HOPPER if name == "hopper_forward" else PORTABLE
    for kernel in existing:
        shapes = (tuple(_shapes(volume, len(axes))) for volume in (kernel.rows, kernel.columns))
        for rows, columns in itertools.product(*shapes):
            pair = (*columns, *rows) if keys_stay else (*rows, *columns)
            count = count_boxes(axes, rows, columns, kernel.warp_rows, keys_stay)
            if name not in STAGED:
                found[pair] = cost(kernel, count, features, costs)
            elif slots := staged_slots(name, element_bytes, features, kernel_size, rows, columns):
                found[pair] = gemm_cost(kernel, count, features, slots, keys_stay)
    return found


def _shapes(volume: int, rank: int) -> Iterator[Shape]:
    """All tuples of powers of two with this product; the longest along the last axis first."""
    if rank == 1:
        yield (volume,)
        return
    for i in range(volume.bit_length()):
        for rest in _shapes(volume >> i, rank - 1):
            yield (1 << i, *rest)


def cost(kernel: Kernel, count: Count, features: int, costs: Costs = PORTABLE) -> float:
    """Time in the unit of `Costs`."""
    box = kernel.rows * kernel.columns
    score = costs.product * features + costs.softmax
    masked = count.boxes * (kernel.rows // kernel.warp_rows) - count.unmasked  # of single warps
    mask = masked * kernel.warp_rows * kernel.columns * costs.mask
    copies = count.boxes * kernel.columns * costs.copy_rows * features
    return (count.boxes + costs.start * count.tiles) * box * score + mask + copies


def gemm_cost(kernel: Kernel, count: Count, features: int, slots: int, keys_stay: bool) -> float:
    """The same for a GEMM kernel that stages rows of so many slots: of its queries, or with every column."""
    scores = (count.boxes + count.tiles) * kernel.rows * kernel.columns * (features + STAGE)
    copies = count.boxes * kernel.columns * PORTABLE.copy_rows * (features + (slots if keys_stay else 0))
    staged = slots * (kernel.columns if keys_stay else kernel.rows)
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
