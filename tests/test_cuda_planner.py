# SPDX-License-Identifier: Apache-2.0
"""The tiles of the CUDA kernels: counted right, legal, the cheapest first, replaced by measured ones."""

import itertools
import math
import re
import types

import numpy as np
import pytest

from jax_na import Neighborhood
from jax_na.kernels import contract, cost_cuda, devices, plan, register, tuning, variants
from jax_na.kernels.contract import Problem
from jax_na.kernels.cost_cuda import Count
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.neighborhood import inverse_windows, windows
from jax_na.op import Op

pytestmark = pytest.mark.usefixtures("cuda_kernels")
OPS = [
    Op(Neighborhood((7, 7)), (20, 17)),
    Op(Neighborhood((3, 5), stride=(2, 3), dilation=(2, 1), is_causal=(False, True)), (9, 14)),
    Op(Neighborhood((9,), stride=4), (50,)),
    Op(Neighborhood((33,), dilation=3), (140,)),
    Op(Neighborhood((3, 2, 4), dilation=(1, 2, 1)), (6, 7, 9)),
]
FORWARD, BACKWARD = "na_fused_forward", "na_fused_backward"
TARGETS = ("na_fused_forward", "na_fused_backward", "na_gemm_qk", "na_gemm_av", "na_gemm_inverse")
every_op = pytest.mark.parametrize("op", OPS, ids=str)
either_side = pytest.mark.parametrize("keys_stay", [False, True], ids=["queries stay", "keys stay"])


def problem(op, features=64, dtype="bfloat16"):
    return Problem(op.axes, dtype, features, features)


def shapes(volume, rank):
    """All tuples of powers of two with this product."""
    powers = [1 << i for i in range(volume.bit_length())]
    return [tile for tile in itertools.product(powers, repeat=rank) if math.prod(tile) == volume]


def kernels_of(target, op):
    """(row, tiling) of everything that a target can do."""
    query = contract.query(CUDA, problem(op))
    return [(row, tiling) for row in variants.rows(CUDA, target) for tiling in row.tilings(query)]


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
    for warp_rows, rows_volume, columns_volume in ((16, 16, 16), (16, 64, 32), (32, 128, 64), (4, 8, 4)):
        every = [shapes(volume, op.rank) for volume in (rows_volume, columns_volume)]
        for _ in range(4):
            rows, columns = (legal[rng.integers(len(legal))] for legal in every)
            found = cost_cuda.count_boxes(op.axes, rows, columns, warp_rows, keys_stay)
            assert found == count_by_hand(op, rows, columns, warp_rows, keys_stay), (rows, columns, warp_rows)


@every_op
@pytest.mark.parametrize("target", TARGETS[:2])
def test_boxes_hold_all_pairs(op, target):
    """Boxes times their size is never less than the pairs of queries and keys."""
    pairs = math.prod(int(np.diff(windows(axis)).sum()) for axis in op.axes)
    for row, tiling in kernels_of(target, op):
        if row.name in cost_cuda.HALO:
            count = cost_cuda._count(problem(op), tiling, False)
            assert count.tiles * tiling.rows * tiling.columns >= pairs
            continue
        keys_stay = row.pass_name in cost_cuda.KEYS_STAY
        sides = (tiling.key, tiling.query) if keys_stay else (tiling.query, tiling.key)
        assert tuple(map(math.prod, sides)) == (tiling.rows, tiling.columns)
        count = cost_cuda.count_boxes(op.axes, *map(tuple, sides), tiling.warp_rows, keys_stay)
        assert count.boxes * tiling.rows * tiling.columns >= pairs
        assert count.unmasked <= count.boxes * (tiling.rows // tiling.warp_rows)
        assert count.boxes >= count.tiles


def test_blocked_windows_need_no_mask():
    """Windows of 16 x 16 in steps of 16: a tile inside a step sees whole boxes."""
    op = Op(Neighborhood((16, 16), stride=(16, 16)), (64, 64))
    count = cost_cuda.count_boxes(op.axes, (8, 8), (8, 8), 16, False)
    assert count == Count(64, 64 * 4, 64 * 4 * 4)


def test_tiles_of_warps():
    assert cost_cuda._warp_tile((2, 4, 4), 16) == (1, 4, 4)
    assert cost_cuda._warp_tile((32, 2), 32) == (16, 2)
    assert cost_cuda._warp_tile((1, 128), 32) == (1, 32)


@every_op
@pytest.mark.parametrize("target", TARGETS)
def test_choices_are_those_of_the_kernels(op, target):
    """Every pass has its choices, the cheapest first, and all are legal."""
    found = plan.candidates(CUDA, target, problem(op))
    assert len(set(found)) == len(found) > 0
    assert found[0] == plan.cheapest(CUDA, target, problem(op)) == plan.plan(CUDA, target, op, problem(op))
    assert all(plan.is_legal(CUDA, target, problem(op), kernels) for kernels in found)
    assert {kernels.count(";") for kernels in found} == {1 if target == "na_fused_backward" else 0}
    every = {tiling.choice for _, tiling in kernels_of(target, op)}
    tried = {choice for kernels in found for text in kernels.split(";") for choice in text.split("|")}
    assert tried <= every


@every_op
@pytest.mark.parametrize("target", TARGETS)
def test_rankings_are_by_cost(op, target):
    for (pass_name, rows), ranked in zip(
        variants.passes(CUDA, target).items(), plan.rankings(CUDA, target, problem(op)), strict=True
    ):
        assert {tilings[0].name for tilings in ranked} == {row.name for row in rows}
        for tilings in ranked:
            costs = [priced.cost for priced in tilings]
            assert costs == sorted(costs), pass_name


class Staged:
    """A tiling of a GEMM kernel with so many slots."""

    rows, warp_rows, columns = 64, 16, 64

    def __init__(self, slots):
        self.staged_slots = slots


def test_staged_weights_cost():
    """Where they come with every column, and where they leave no room for other blocks."""
    cost = {
        keys_stay: [cost_cuda.gemm_cost(Staged(n), Count(4, 100, 0), 64, keys_stay) for n in (8, 100, 600)]
        for keys_stay in (False, True)
    }
    assert cost[True] == sorted(set(cost[True]))
    assert cost[False][0] == cost[False][1] < cost[False][2]


def test_naive_kernels_have_no_tile():
    for target in ("na_naive_qk", "na_naive_av", "na_naive_inverse"):
        assert plan.candidates(CUDA, target, problem(OPS[0], dtype="float64")) == ("naive",)


def test_small_windows_take_small_tiles_and_large_ones_large():
    """The families are there for this."""
    found = []
    for kernel_size, grid in (
        ((3, 3), (56, 56)),
        ((5, 5), (56, 56)),
        ((33, 33), (128, 128)),
        ((2048,), (32768,)),
    ):
        *_, last = plan.cheapest(CUDA, FORWARD, problem(Op(Neighborhood(kernel_size), grid))).split("|")
        (tiling,) = [
            t for _, t in kernels_of(FORWARD, Op(Neighborhood(kernel_size), grid)) if t.choice == last
        ]
        found.append((last.partition(":")[0], tiling.rows))
    assert found == [("halo", 64), ("halo", 64), ("portable", 128), ("portable", 128)]


@pytest.mark.parametrize(
    ("kernel_size", "grid", "features", "expected"),
    [((7, 7), (56, 56), 64, ["halo"]), ((7, 7), (56, 56), 128, ["halo_sm90", "portable"]),
     ((3, 5, 5), (16, 64, 64), 64, ["halo_sm90", "portable"]),
     ((2048,), (32768,), 128, ["sm90", "portable"]), ((80, 80), (256, 256), 128, ["sm90", "portable"]),
     ((18, 24, 24), (30, 48, 80), 128, ["sm90", "portable"])],
)  # fmt: skip
def test_kernels_for_hopper_are_named_where_they_are_cheaper(kernel_size, grid, features, expected):
    large = problem(Op(Neighborhood(kernel_size), grid), features)
    names = [choice.partition(":")[0] for choice in plan.cheapest(CUDA, FORWARD, large).split("|")]
    assert names == expected


def test_the_hopper_kernel_may_not_take_the_problem():
    op = Op(Neighborhood((80, 80)), (256, 256))
    for other in (
        problem(op, 128, "float32"),
        problem(op, 100),
        problem(op, 128)._replace(operands=("rpb",)),
    ):
        assert plan.cheapest(CUDA, FORWARD, other).startswith("portable:")


def test_no_kernel_takes_the_problem():
    with pytest.raises(
        ValueError,
        match=r"no kernel of na_fused_forward .* portable: it takes up to 256 features per",
    ):
        plan.cheapest(CUDA, FORWARD, problem(OPS[0], 320))


@pytest.mark.parametrize("is_hopper", [False, True])
def test_all_forward_kernels_are_tried_where_they_run(is_hopper, monkeypatch):
    """Elsewhere tiles of the other one would change nothing."""
    device = types.SimpleNamespace(device_kind="a GPU", compute_capability="9.0" if is_hopper else "8.0")
    monkeypatch.setattr(devices, "cuda_devices", lambda: (device,))
    for op in (Op(Neighborhood((80, 80)), (256, 256)), OPS[0]):
        found = [kernels.split("|") for kernels in plan.candidates(CUDA, FORWARD, problem(op))]
        tilings = {
            name: {t.choice for row, t in kernels_of(FORWARD, op) if row.name == name}
            for name in ("sm90", "halo", "halo_sm90", "portable")
        }
        everywhere = tilings["halo"] | tilings["portable"]
        best = plan.cheapest(CUDA, FORWARD, problem(op)).split("|")
        assert found[0] == best
        assert {kernels[-1] for kernels in found} == everywhere
        if is_hopper:
            assert {kernels[0] for kernels in found} == everywhere | tilings["halo_sm90"] | tilings["sm90"]
            assert found[0][0].partition(":")[0] != found[1][0].partition(":")[0]
        else:
            assert all(kernels[:-1] == best[:-1] for kernels in found)


def test_measured_choices_are_taken_where_they_are_legal():
    op = OPS[0]
    tuning._warn_once.cache_clear()
    for target in TARGETS:
        cheapest, other = plan.candidates(CUDA, target, problem(op))[:2]
        with tuning.trial(op, {"kernels": {target: other}}, CUDA):
            assert plan.plan(CUDA, target, op, problem(op)) == other
        for wrong in (other[:-1] + "3", other + ";" + other, "", "naive"):
            trial = tuning.trial(op, {"kernels": {target: wrong}}, CUDA)
            with (
                trial,
                pytest.warns(
                    UserWarning, match=f"is ignored: {target} has no kernels {re.escape(repr(wrong))}"
                ),
            ):
                assert plan.plan(CUDA, target, op, problem(op)) == cheapest
        with tuning.trial(op, {"kernels": {target: other}}, CPU):
            assert plan.plan(CUDA, target, op, problem(op)) == cheapest


def test_costs_are_known_for_every_kernel():
    """A new kernel needs its numbers."""
    names = {row.name for target in register.TARGETS[CUDA] for row in variants.rows(CUDA, target)}
    assert names == {*cost_cuda.COSTS, "naive"}


@pytest.mark.parametrize(
    ("op", "features", "operands", "expected"),
    [
        (Op(Neighborhood((7, 7)), (56, 56)), 32, (), ["halo", "halo"]),
        (Op(Neighborhood((7, 7)), (56, 56)), 32, ("rpb",), ["halo_sm90", "halo"]),
        (Op(Neighborhood((7, 7), dilation=8), (56, 56)), 32, ("rpb",), ["halo", "halo"]),
        (Op(Neighborhood((13, 13)), (64, 64)), 64, ("rpb",), ["portable", "halo_sm90"]),
        (Op(Neighborhood((3, 5, 5)), (16, 64, 64)), 64, ("rpb",), ["portable", "halo_sm90"]),
        (Op(Neighborhood((7, 7)), (64, 64)), 128, (), ["halo_sm90", "portable"]),
        (Op(Neighborhood((80, 80)), (256, 256)), 64, (), ["portable", "portable"]),
    ],
    ids=str,
)
def test_kernels_of_small_windows_are_taken_backward(op, features, operands, expected):
    """Of every pass the kernel with the lowest cost: as measured, but where the two are close."""
    call = Problem(op.axes, "bfloat16", features, features, operands=operands)
    query, found = contract.query(CUDA, call), []
    for pass_name in ("backward_query", "backward_key"):
        rows = [row for row in variants.rows(CUDA, BACKWARD) if row.pass_name == pass_name]
        costs = {
            row.name: min(cost_cuda.cost(pass_name, row.name, call, tiling) for tiling in tilings)
            for row in rows
            if (tilings := list(row.tilings(query)))
        }
        found.append(min(costs, key=lambda name: (costs[name], name)))
    assert found == expected
