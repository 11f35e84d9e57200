# SPDX-License-Identifier: Apache-2.0
"""What blocks of the fused CUDA kernels visit: every legal pair once, no box and no mask for nothing.

The ranges of keys of tiles, on which all kernels build, are compared with the oracle here too.
"""

import ctypes
import functools
import itertools
import math

import numpy as np
import pytest

from . import cuda_kernels, oracle
from .cases import CASES, NAMED
from .cuda_problems import Problem, boxes, boxes_visited, region
from .simt import build
from .test_regions import CUTS, PLACES, places, regions
from .test_window import legal_axes

QUERIES, KEYS = "queries", "keys"  # which side's tokens stay in a block, as rows


pytestmark = pytest.mark.some(2)  # the rest is for --exhaustive


@functools.cache
def library():
    if build.host_compiler() is None:
        pytest.skip("there is no C++ compiler to build cuda/geometry/tile.cuh for the host with")
    built = ctypes.CDLL(str(build.host_library("schedule", [], [build.SIMT / "harness" / "schedule.cc"])))
    built.jax_na_schedule.restype = ctypes.c_int64
    built.jax_na_schedule.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    built.jax_na_schedule.argtypes += [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return built


def schedule(axes, side, row_tile, column_tile, warp_rows):
    """[rows, columns] how often a pair is computed; [visits, 2] whether unmasked, and whether all is seen."""
    problem = cuda_kernels.native(Problem(axes))
    for a, axis in enumerate(axes, cuda_kernels.AXES - len(axes)):
        problem.q0[a], problem.k0[a] = axis.query_start, axis.key_start
    shape = [
        math.prod(len(x) for x in side_of)
        for side_of in zip(*((a.queries, a.keys) for a in axes), strict=True)
    ]
    pairs = np.zeros(shape if side == QUERIES else shape[::-1], np.uint8)
    tiles = np.array([cuda_kernels.padded(t) for t in (row_tile, column_tile)], np.int32)
    visits = np.zeros(
        (boxes_visited(axes, row_tile, column_tile, side == KEYS) * math.prod(row_tile) // warp_rows, 2),
        np.int32,
    )
    arrays = tiles.ctypes.data, warp_rows, pairs.ctypes.data, visits.ctypes.data, len(visits)
    count = library().jax_na_schedule(ctypes.addressof(problem), side == KEYS, *arrays)
    assert 0 <= count <= len(visits)
    return pairs, visits[:count]


def assert_schedule(axes, side, row_tile, column_tile, warp_rows):
    what = axes, side, row_tile, column_tile, warp_rows
    pairs, visits = schedule(*what)
    mask = oracle.Geometry(tuple(axes)).mask
    assert np.array_equal(pairs, mask if side == QUERIES else mask.T), what
    unmasked, all_seen = visits.T
    assert np.array_equal(unmasked, all_seen), what
    if warp_rows == math.prod(row_tile):
        assert len(visits) == boxes_visited(axes, row_tile, column_tile, side == KEYS), what


def any_box(rng, tokens, rank):
    choices = boxes(tokens, rank)
    return choices[rng.integers(len(choices))]


def assert_schedules(axes, rng):
    """Both sides, with random tiles of the sizes that the kernels have and with tiny ones."""
    for side, (rows, columns) in itertools.product(
        (QUERIES, KEYS), [(16, 32), (64, 64), (128, 64), (32, 16), (4, 8)]
    ):
        tiles = any_box(rng, rows, len(axes)), any_box(rng, columns, len(axes))
        for warp_rows in {rows, min(rows, 16)}:
            assert_schedule(axes, side, *tiles, warp_rows)


@pytest.mark.parametrize("length", range(1, 14))
def test_every_short_axis(length, rng):
    """Every legal axis of a length, with every tile up to 8 rows in turn."""
    for i, axis in enumerate(legal_axes(length)):
        rows, columns = 1 << i % 4, 1 << i // 4 % 4
        for side in (QUERIES, KEYS):
            assert_schedule((axis,), side, (rows,), (columns,), rows)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_cases(case, rng):
    assert_schedules(case.axes, rng)


@pytest.mark.parametrize("name", CUTS)
def test_regions(name, rng):
    case = NAMED[name]
    for queries, keys in regions(case, CUTS[name]):
        assert_schedules(region(case, queries, keys), rng)


@pytest.mark.parametrize("name", PLACES)
def test_every_place(name, rng):
    for geometry in places(PLACES[name]):
        for side in (QUERIES, KEYS):
            assert_schedule(geometry.axes, side, (4,), (2,), 4)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(8))
def test_random_problems(rank, number, rng):
    lengths = {1: 200, 2: 24, 3: 9}
    axes = []
    for _ in range(rank):
        length = int(rng.integers(1, lengths[rank] + 1))
        dilation = int(rng.integers(1, min(length, 4) + 1))
        kernel_size = int(rng.integers(1, length // dilation + 1))
        stride = int(rng.integers(1, kernel_size + 1))
        axes.append(oracle.Axis(length, kernel_size, stride, dilation, bool(rng.integers(2))))
    assert_schedules(tuple(axes), rng)


@pytest.mark.parametrize("tokens", [64, 128])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_mask_of_the_hopper_kernel(tokens, rank):
    """The columns that a thread has, for all shapes of boxes and all intervals along an axis."""
    wrong = library().jax_na_wrong_owned_columns
    for box in boxes(tokens, rank):
        log2 = np.array([n.bit_length() - 1 for n in cuda_kernels.padded(box)], np.int32)
        assert wrong(ctypes.c_void_p(log2.ctypes.data)) == 0, box


def tile_ranges(mask):
    """(union, intersection) of the rows of a mask as ranges; an empty intersection is None."""
    union, inner = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.all(0))
    assert len(union) == union[-1] + 1 - union[0]
    return (union[0], union[-1] + 1), (inner[0], inner[-1] + 1) if len(inner) else None


@pytest.mark.parametrize("length", range(1, 17))
def test_tile_range(length):
    """Union and intersection of the windows of neighbouring queries, for all of them of every legal axis."""
    found = (ctypes.c_int32 * 4)()
    for axis in legal_axes(length):
        native = cuda_kernels.native_axis(axis)
        for group in range(axis.dilation):
            mask = oracle.axis_mask(axis)[group :: axis.dilation, group :: axis.dilation]
            for first, last in itertools.combinations_with_replacement(range(len(mask)), 2):
                library().jax_na_tile_range(ctypes.byref(native), group, first, last, found)
                start, stop, *inner = found
                union, intersection = tile_ranges(mask[first : last + 1])
                assert (start, stop) == union, (axis, group, first, last)
                known = tuple(inner) if inner[0] < inner[1] else None
                assert known == intersection, (axis, group, first, last)
