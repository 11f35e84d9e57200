# SPDX-License-Identifier: Apache-2.0
"""The tiles of the CUDA kernels: counted right, legal, the cheapest first, replaced by measured ones."""

import itertools
import math

import numpy as np
import pytest

from jax_na import Neighborhood
from jax_na.kernels import cost_cuda as cuda_planner
from jax_na.kernels import devices, tuning
from jax_na.kernels.cost_cuda import Count, Kernel
from jax_na.neighborhood import inverse_windows, windows
from jax_na.op import Op

OPS = [
    Op(Neighborhood((7, 7)), (20, 17)),
    Op(Neighborhood((3, 5), stride=(2, 3), dilation=(2, 1), is_causal=(False, True)), (9, 14)),
    Op(Neighborhood((9,), stride=4), (50,)),
    Op(Neighborhood((33,), dilation=3), (140,)),
    Op(Neighborhood((3, 2, 4), dilation=(1, 2, 1)), (6, 7, 9)),
]
KERNELS = (Kernel(16, 16, 32), Kernel(64, 16, 64), Kernel(128, 32, 64))
HOPPER = (Kernel(128, 16, 128),)
FORWARD = "na_fused_forward"
every_op = pytest.mark.parametrize("op", OPS, ids=str)
either_side = pytest.mark.parametrize("keys_stay", [False, True], ids=["queries stay", "keys stay"])


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """As if these kernels were built, whatever is."""
    monkeypatch.setattr(
        cuda_planner, "kernels", lambda name, *_: HOPPER if name == "hopper_forward" else KERNELS
    )
    monkeypatch.setattr(cuda_planner, "staged_slots", slots)


def slots(name, element_bytes, features, kernel_size, rows, columns):
    """As if there were room for 64 of them: where keys stay, of the tile's keys."""
    extents = rows if name == "inverse" else columns
    found = math.prod(map(min, extents, kernel_size))
    return found if found <= 64 else 0


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
@pytest.mark.parametrize("name", cuda_planner.PASSES)
def test_tiles_are_legal(op, name):
    rank = op.neighborhood.rank
    ranked = cuda_planner.tiles(name, op, 2, 64, 64)
    assert len(set(ranked)) == len(ranked) > 0
    for tile in ranked:
        pairs = [tile[i : i + 2 * rank] for i in range(0, len(tile), 2 * rank)]
        assert len(pairs) == len(cuda_planner.PASSES[name])
        for pair, kernel in zip(pairs, cuda_planner.PASSES[name], strict=True):
            queries, keys = math.prod(pair[:rank]), math.prod(pair[rank:])
            legal = {(k.rows, k.columns) for k in cuda_planner.kernels(kernel)}
            legal |= {(0, 0)} if kernel == "hopper_forward" else set()
            assert ((keys, queries) if kernel in cuda_planner.KEYS_STAY else (queries, keys)) in legal
    assert cuda_planner.tile(name, op, 2, 64, 64) == ranked[0]


@pytest.mark.parametrize("name", ["na_gemm_qk", "na_gemm_av", "na_gemm_inverse"])
def test_tiles_without_room_for_weights_are_left_out(name):
    op = Op(Neighborhood((5, 17, 18)), (9, 20, 20))
    (kernel,) = cuda_planner.PASSES[name]
    found = cuda_planner.tiles(name, op, 2, 64, 64)
    sides = [(t[3:], t[:3]) if kernel in cuda_planner.KEYS_STAY else (t[:3], t[3:]) for t in found]
    assert all(slots(kernel, 2, 64, (5, 17, 18), *pair) for pair in sides)
    every = sum(
        len(list(cuda_planner._shapes(k.rows, 3))) * len(list(cuda_planner._shapes(k.columns, 3)))
        for k in KERNELS
    )
    assert 0 < len(found) <= every


def test_staged_weights_cost():
    """Where they come with every column, and where they leave no room for other blocks."""
    count, kernel = Count(4, 100, 0), KERNELS[1]
    cost = {
        keys_stay: [cuda_planner.gemm_cost(kernel, count, 64, n, keys_stay) for n in (8, 100, 600)]
        for keys_stay in (False, True)
    }
    assert cost[True] == sorted(set(cost[True]))
    assert cost[False][0] == cost[False][1] < cost[False][2]


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


@pytest.mark.parametrize(
    ("kernel_size", "grid", "is_used"),
    [((7, 7), (56, 56), False), ((3, 5, 5), (16, 64, 64), False), ((2048,), (32768,), True),
     ((80, 80), (256, 256), True), ((18, 24, 24), (30, 48, 80), True)],
)  # fmt: skip
def test_the_hopper_kernel_has_tiles_where_it_is_the_cheaper_one(kernel_size, grid, is_used):
    op, size = Op(Neighborhood(kernel_size), grid), 2 * len(grid)
    tile = cuda_planner.tile(FORWARD, op, 2, 128, 128)
    assert len(tile) == 2 * size
    assert all(tile[:size])
    assert all(tile[size:]) == any(tile[size:]) == is_used


def test_the_hopper_kernel_may_not_exist(monkeypatch):
    monkeypatch.setattr(cuda_planner, "kernels", lambda name, *_: () if name == "hopper_forward" else KERNELS)
    op = Op(Neighborhood((80, 80)), (256, 256))
    assert cuda_planner.tile(FORWARD, op, 2, 128, 128)[4:] == (0, 0, 0, 0)


@pytest.mark.parametrize("is_hopper", [False, True])
def test_both_forward_kernels_are_tried_where_both_run(is_hopper, monkeypatch):
    """Elsewhere tiles of the other one would change nothing."""
    monkeypatch.setattr(devices, "is_hopper", lambda: is_hopper)
    for op in (Op(Neighborhood((80, 80)), (256, 256)), OPS[0]):
        found = cuda_planner.tiles(FORWARD, op, 2, 64, 64)
        portable, hopper = cuda_planner.rankings(FORWARD, op, 2, 64, 64)
        assert found[0] == cuda_planner.tile(FORWARD, op, 2, 64, 64)
        assert {tile[:4] for tile in found} == set(portable)
        assert {tile[4:] for tile in found} == (set(hopper) if is_hopper else {hopper[0]})
        if is_hopper:
            assert any(found[0][4:]) != any(found[1][4:])


def test_tiles_of_either_kernel_may_be_measured():
    op = Op(Neighborhood((80, 80)), (256, 256))
    portable, hopper = cuda_planner.rankings(FORWARD, op, 2, 64, 64)
    for pair in (hopper[7], (0, 0, 0, 0)):
        tiles = (*portable[3], *pair)
        with tuning.trial(op, {"tiles": {FORWARD: list(tiles)}}, "cuda"):
            assert cuda_planner.tile(FORWARD, op, 2, 64, 64) == tiles


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
