# SPDX-License-Identifier: Apache-2.0
"""The tiles of the CUDA kernels: counted right, legal, the cheapest first, replaced by measured ones."""

import itertools
import math

import numpy as np
import pytest

from jax_na import Neighborhood, cuda_planner, tuning
from jax_na.cuda_planner import Count, Kernel
from jax_na.neighborhood import Op, inverse_windows, windows

OPS = [
    Op(Neighborhood((7, 7)), (20, 17)),
    Op(Neighborhood((3, 5), stride=(2, 3), dilation=(2, 1), is_causal=(False, True)), (9, 14)),
    Op(Neighborhood((9,), stride=4), (50,)),
    Op(Neighborhood((33,), dilation=3), (140,)),
    Op(Neighborhood((3, 2, 4), dilation=(1, 2, 1)), (6, 7, 9)),
]
KERNELS = (Kernel(16, 16, 32), Kernel(64, 16, 64), Kernel(128, 32, 64))
every_op = pytest.mark.parametrize("op", OPS, ids=str)
either_side = pytest.mark.parametrize("keys_stay", [False, True], ids=["queries stay", "keys stay"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """As if these kernels were built, whatever is."""
    monkeypatch.setattr(cuda_planner, "kernels", lambda *_: KERNELS)


def boxes_of(axis_rows, extents):
    """Corners of boxes with these extents that hold all from the lowest start to the highest stop."""
    starts = [min(start for start, _ in rows) for rows in axis_rows]
    stops = [max(stop for _, stop in rows) for rows in axis_rows]
    grids = [range(a, b, c) for a, b, c in zip(starts, stops, extents, strict=True)]
    return list(itertools.product(*grids))


def count_by_hand(op, rows, columns, warp_rows, keys_stay):
    """One tile after the other, one warp after the other, one box after the other."""
    table = inverse_windows if keys_stay else windows
    tiles = boxes = unmasked = 0
    for group in itertools.product(*(range(axis.dilation) for axis in op.axes)):
        seen = [table(axis)[g :: axis.dilation].tolist() for axis, g in zip(op.axes, group, strict=True)]
        for corner in itertools.product(*(range(0, len(s), r) for s, r in zip(seen, rows, strict=True))):
            here = [s[c : c + r] for s, c, r in zip(seen, corner, rows, strict=True)]
            found = boxes_of(here, columns)
            tiles += 1
            boxes += len(found)
            members = list(itertools.product(*map(range, rows)))
            for first in range(0, len(members), warp_rows):
                warp = members[first : first + warp_rows]
                unmasked += sum(all_see(warp, here, box, columns) for box in found)
    return Count(tiles, boxes, unmasked)


def all_see(warp, here, box, columns):
    """Whether no row masks a column of the box; along an axis where a row does not exist it masks nothing."""
    for member in warp:
        for i, rows, start, extent in zip(member, here, box, columns, strict=True):
            if i < len(rows) and not (rows[i][0] <= start and start + extent <= rows[i][1]):
                return False
    return True


@every_op
@either_side
def test_counts(op, keys_stay, rng):
    """Of random tiles, against an enumeration."""
    rank = op.neighborhood.rank
    for warp_rows, rows_volume, columns_volume in ((16, 16, 16), (16, 64, 32), (32, 128, 64), (4, 8, 4)):
        every = [list(cuda_planner._shapes(v, rank)) for v in (rows_volume, columns_volume)]
        for _ in range(4):
            rows, columns = (shapes[rng.integers(len(shapes))] for shapes in every)
            found = cuda_planner.count_boxes(op.axes, rows, columns, warp_rows, keys_stay)
            assert found == count_by_hand(op, rows, columns, warp_rows, keys_stay), (rows, columns, warp_rows)


@every_op
def test_boxes_hold_all_pairs(op):
    """Boxes times their size is never less than the pairs of queries and keys."""
    pairs = math.prod(int(np.diff(windows(axis)).sum()) for axis in op.axes)
    for keys_stay, kernel in itertools.product((False, True), KERNELS):
        shapes = [list(cuda_planner._shapes(v, op.neighborhood.rank)) for v in (kernel.rows, kernel.columns)]
        for rows, columns in itertools.product(*shapes):
            count = cuda_planner.count_boxes(op.axes, rows, columns, kernel.warp_rows, keys_stay)
            assert count.boxes * kernel.rows * kernel.columns >= pairs
            assert count.unmasked <= count.boxes * (kernel.rows // kernel.warp_rows)
            assert count.boxes >= count.tiles


def test_blocked_windows_need_no_mask():
    """Windows of 16 x 16 in steps of 16: a tile inside a step sees whole boxes."""
    op = Op(Neighborhood((16, 16), stride=(16, 16)), (64, 64))
    count = cuda_planner.count_boxes(op.axes, (8, 8), (8, 8), 16, False)
    assert count == Count(64, 64 * 4, 64 * 4 * 4)


def test_shapes():
    assert list(cuda_planner._shapes(8, 1)) == [(8,)]
    assert list(cuda_planner._shapes(4, 2)) == [(1, 4), (2, 2), (4, 1)]
    assert len(set(cuda_planner._shapes(64, 3))) == math.comb(6 + 2, 2)
    assert cuda_planner._warp_tile((2, 4, 4), 16) == (1, 4, 4)
    assert cuda_planner._warp_tile((32, 2), 32) == (16, 2)
    assert cuda_planner._warp_tile((1, 128), 32) == (1, 32)


@every_op
@pytest.mark.parametrize("name", ["na_fused_forward", "na_fused_backward"])
def test_tiles_are_legal(op, name):
    rank, legal = op.neighborhood.rank, {(k.rows, k.columns) for k in KERNELS}
    ranked = cuda_planner.tiles(name, op, 2, 64, 64)
    assert len(set(ranked)) == len(ranked) > 0
    for tile in ranked:
        pairs = [tile[i : i + 2 * rank] for i in range(0, len(tile), 2 * rank)]
        assert len(pairs) == len(cuda_planner.PASSES[name])
        for pair, kernel in zip(pairs, cuda_planner.PASSES[name], strict=True):
            queries, keys = math.prod(pair[:rank]), math.prod(pair[rank:])
            assert ((keys, queries) if kernel == "backward_keys" else (queries, keys)) in legal
    assert cuda_planner.tile(name, op, 2, 64, 64) == ranked[0]


def test_naive_kernels_have_no_tile():
    assert cuda_planner.tile("na_naive_qk", OPS[0], 4, 8, 8) == (1, 1)


def test_small_windows_take_small_tiles_and_large_ones_large():
    """The two families are there for this."""
    sizes = []
    for kernel_size, grid in (
        ((3, 3), (56, 56)),
        ((5, 5), (56, 56)),
        ((33, 33), (128, 128)),
        ((2048,), (32768,)),
    ):
        op = Op(Neighborhood(kernel_size), grid)
        tile = cuda_planner.tile("na_fused_forward", op, 2, 64, 64)
        sizes.append(math.prod(tile[: len(grid)]))
    assert sizes == [16, 16, 128, 128]


def test_a_measured_tile_is_taken_where_it_is_legal():
    op = OPS[0]
    for name in cuda_planner.PASSES:
        cheapest, other = cuda_planner.tiles(name, op, 2, 64, 64)[:2]
        with tuning.trial(op, {"tiles": {name: list(other)}}, "cuda"):
            assert cuda_planner.tile(name, op, 2, 64, 64) == other
        for wrong in (other[:-1], [3] * len(other), []):
            with tuning.trial(op, {"tiles": {name: list(wrong)}}, "cuda"):
                assert cuda_planner.tile(name, op, 2, 64, 64) == cheapest
        with tuning.trial(op, {"tiles": {name: list(other)}}):  # on the CPU
            assert cuda_planner.tile(name, op, 2, 64, 64) == cheapest
