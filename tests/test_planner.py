# SPDX-License-Identifier: Apache-2.0
"""The choice of kernel and tile: legal, counted right, and the row kernels where they are meant to be."""

import itertools

import numpy as np
import pytest

from jax_na import Neighborhood, _cpu
from jax_na.kernels import cost_cpu as planner
from jax_na.neighborhood import inverse_windows, windows
from jax_na.op import Op

OPS = [
    Op(Neighborhood((7, 7)), (20, 17)),
    Op(Neighborhood((3, 5), stride=(2, 3), dilation=(2, 1), is_causal=(False, True)), (9, 14)),
    Op(Neighborhood((9,), stride=4), (50,)),
    Op(Neighborhood((3, 2, 4), dilation=(1, 2, 1)), (6, 7, 9)),
]


def groups(axis):
    return range(min(axis.dilation, axis.length))


def visited(axis, bounds, size):
    """Extents of the unions of the windows of `size` neighbours, one by one."""
    for group in groups(axis):
        rows = bounds[group :: axis.dilation]
        for first in range(0, len(rows), size):
            yield rows[first : first + size][:, 1].max() - rows[first : first + size][:, 0].min()


@pytest.mark.parametrize("op", OPS, ids=str)
def test_tile_costs_count_visited_keys(op):
    costs = planner._tile_costs(op.axes, windows)
    for tile, cost in costs:
        extents = [list(visited(axis, windows(axis), t)) for axis, t in zip(op.axes, tile, strict=True)]
        keys = sum(np.prod(box) for box in itertools.product(*extents))
        key_rows = sum(np.prod(box) for box in itertools.product(*extents[:-1], [1] * len(extents[-1])))
        assert cost == planner.LANES * (keys + planner.KEY_ROW * key_rows)


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("width", [4, 8, 16])
def test_columns_of_lanes(op, width):
    """Every key of every lane is among the columns, and no fewer columns would do."""
    axis = op.axes[-1]
    total = 0
    for group in groups(axis):
        rows = windows(axis)[group :: axis.dilation]
        for first in range(0, len(rows), width):
            run = list(enumerate(rows))[first : first + width]
            keys = {k for _, (start, stop) in run for k in range(start, stop)}
            offsets = {k - i for i, (start, stop) in run for k in range(start, stop)}
            total += min(max(keys) - min(keys), max(offsets) - min(offsets)) + 1
    assert planner._columns(axis, width) == total


@pytest.mark.parametrize("name", sorted(planner.PRODUCTS))
@pytest.mark.parametrize("op", OPS, ids=str)
def test_tiles_are_legal(name, op):
    legal = planner.tiles(name, op, 24, 24)
    assert len(set(legal)) == len(legal) > 0
    for tile in legal:
        if tile[-1] == 0:
            assert _cpu.rows_fit(name, list(tile), list(op.axes), 24, 24)
            assert np.prod(tile[:-1], dtype=int) <= planner.BLOCK_ROWS
        else:
            assert np.prod(tile) == planner.LANES
    assert planner.tile(name, op, 24, 24) == legal[0]


@pytest.mark.parametrize("name", ["na_fused_forward", "na_fused_backward"])
def test_small_windows_take_rows_and_long_ones_tiles(name):
    for kernel_size, grid in (
        ((7, 7), (56, 56)),
        ((13, 13), (64, 64)),
        ((5, 5, 5), (16, 16, 16)),
        ((7,), (1024,)),
    ):
        assert planner.tile(name, Op(Neighborhood(kernel_size), grid), 32, 32)[-1] == 0
    assert planner.tile(name, Op(Neighborhood((257,)), (4096,)), 64, 64) == (16,)


def test_rows_that_do_not_fit_are_not_offered():
    """The scores of a block have to fit: a window of 101 x 101 keys leaves the tile kernels."""
    op = Op(Neighborhood((101, 101)), (128, 128))
    assert all(tile[-1] for tile in planner.tiles("na_fused_forward", op, 64, 64))


def test_key_tiles_visit_queries():
    op = OPS[1]
    assert planner._tile_costs(op.axes, inverse_windows) != planner._tile_costs(op.axes, windows)


def test_scratch_of_a_small_call_is_for_one_worker():
    op = Op(Neighborhood((3,)), (16,))
    tile = planner.tile("na_fused_forward", op, 8, 8)
    one = _cpu.scratch_bytes("na_fused_forward", list(tile), list(op.axes), 8, 8)
    assert planner.scratch("na_fused_forward", op, tile, 8, 8, queries=16) == one < 1 << 16
    assert planner.scratch("na_fused_forward", op, tile, 8, 8, queries=1 << 20) == planner.workers() * one


def test_scratch_stays_within_a_megabyte():
    for name in planner.PRODUCTS:
        for op in (*OPS, Op(Neighborhood((13, 13)), (512, 512)), Op(Neighborhood((2047,)), (1 << 16,))):
            for tile in planner.tiles(name, op, 64, 64):
                assert _cpu.scratch_bytes(name, list(tile), list(op.axes), 64, 64) <= 1 << 20
