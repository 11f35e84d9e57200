# SPDX-License-Identifier: Apache-2.0
"""The choice of kernel and tile: legal, counted right, and the row kernels where they are meant to be."""

import itertools

import numpy as np
import pytest

from jax_na import Neighborhood, _cpu
from jax_na.kernels import cost_cpu, plan, variants
from jax_na.kernels.contract import Problem
from jax_na.kernels.platforms import CPU
from jax_na.neighborhood import inverse_windows, windows
from jax_na.op import Op

LANES = 16  # tokens of a tile of the tile kernels
TARGETS = [name for name, signature in _cpu.targets().items() if "scratch" in signature.results]
FORWARD = "na_fused_forward"


def problem(op, features=24):
    return Problem(op.axes, "float32", features, features)


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


def tiles(rank):
    """All tuples of powers of two with the product 16."""
    powers = [1 << i for i in range(LANES.bit_length())]
    return [tile for tile in itertools.product(powers, repeat=rank) if np.prod(tile) == LANES]


@pytest.mark.parametrize("op", OPS, ids=str)
def test_tile_costs_count_visited_keys(op):
    for tile in tiles(op.rank):
        extents = [list(visited(axis, windows(axis), t)) for axis, t in zip(op.axes, tile, strict=True)]
        keys = sum(np.prod(box) for box in itertools.product(*extents))
        key_rows = sum(np.prod(box) for box in itertools.product(*extents[:-1], [1] * len(extents[-1])))
        cost = cost_cpu.tile_cost(op.axes, tile, windows)
        assert cost == LANES * (keys + cost_cpu.KEY_ROW * key_rows)


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
    assert cost_cpu._columns(axis, width) == total


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_choices_are_those_of_the_kernels(target, op):
    """All tiles of the tile kernels, the blocks of rows that fit, and the cheapest of both first."""
    found = plan.candidates(CPU, target, problem(op))
    assert len(set(found)) == len(found)
    assert {text for text in found if text.startswith("tiles")} == {
        f"tiles:{'x'.join(map(str, tile))}" for tile in tiles(op.rank)
    }
    rows = {text for text in found if text.startswith("rows")}
    assert len(rows) + len(tiles(op.rank)) == len(found)
    assert rows
    assert plan.plan(CPU, target, op, problem(op)) == found[0]
    assert all(plan.is_legal(CPU, target, problem(op), text) for text in found)


@pytest.mark.parametrize("target", ["na_fused_forward", "na_fused_backward"])
def test_small_windows_take_rows_and_long_ones_tiles(target):
    for kernel_size, grid in (
        ((7, 7), (56, 56)),
        ((13, 13), (64, 64)),
        ((5, 5, 5), (16, 16, 16)),
        ((7,), (1024,)),
    ):
        found = plan.cheapest(CPU, target, problem(Op(Neighborhood(kernel_size), grid), 32))
        assert found.startswith("rows")
    assert plan.cheapest(CPU, target, problem(Op(Neighborhood((257,)), (4096,)), 64)) == "tiles:16"


def test_rows_that_do_not_fit_are_not_offered():
    """The scores of a block have to fit: a window of 101 x 101 keys leaves the tile kernels."""
    large = problem(Op(Neighborhood((101, 101)), (128, 128)), 64)
    assert all(text.startswith("tiles") for text in plan.candidates(CPU, FORWARD, large))
    (rows,) = [row for row in variants.rows(CPU, FORWARD) if row.name == "rows"]
    assert variants.reason(CPU, rows, large).startswith("it takes windows of which")
    assert not plan.is_legal(CPU, FORWARD, large, "rows:1")


@pytest.mark.parametrize(
    "wrong", ["", "rows", "tiles:4x5", "tiles:4x4;tiles:4x4", "tiles:4x4|square:2x2", "naive"]
)
def test_choices_that_do_not_exist(wrong):
    assert plan.is_legal(CPU, FORWARD, problem(OPS[0]), "tiles:4x4|rows:2")
    assert not plan.is_legal(CPU, FORWARD, problem(OPS[0]), wrong)


def test_key_tiles_visit_queries():
    axes = OPS[1].axes
    found = [[cost_cpu.tile_cost(axes, t, table) for t in tiles(2)] for table in (windows, inverse_windows)]
    assert found[0] != found[1]


def scratch(target, problem, kernels, work):
    return plan.scratch_bytes(CPU, target, problem, kernels, work)


def test_scratch_of_a_small_call_is_for_one_worker():
    small = problem(Op(Neighborhood((3,)), (16,)), 8)
    kernels = plan.cheapest(CPU, FORWARD, small)
    one = scratch(FORWARD, small, kernels, work=1)
    assert 0 < one < 1 << 16
    assert scratch(FORWARD, small, kernels, work=1 << 40) == plan.workers() * one


def test_scratch_serves_every_choice():
    choices = plan.candidates(CPU, FORWARD, problem(OPS[0]))
    each = [scratch(FORWARD, problem(OPS[0]), choice, 1) for choice in choices]
    assert scratch(FORWARD, problem(OPS[0]), "|".join(choices), 1) == max(each) > min(each)


def test_scratch_stays_within_a_megabyte():
    for target in TARGETS:
        for op in (*OPS, Op(Neighborhood((13, 13)), (512, 512)), Op(Neighborhood((2047,)), (1 << 16,))):
            for kernels in plan.candidates(CPU, target, problem(op, 64)):
                assert scratch(target, problem(op, 64), kernels, 1) <= 1 << 20
