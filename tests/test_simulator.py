# SPDX-License-Identifier: Apache-2.0
"""What `jax-na profile --dry-run` counts: tiles, pairs and masks, against counts query by query."""

import itertools
import math

import numpy as np
import pytest

from jax_na.kernels import contract, plan
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.tools import problems, profiler, roofline, simulator

PROBLEMS = {
    "2d": problems.problem("", "", (2, 13, 10), (3, 8), (5, 3)),
    "dilated": problems.problem("", "", (1, 17, 11), (2, 8), 3, dilation=(3, 2)),
    "strided": problems.problem("", "", (1, 24, 9), (1, 16), (8, 4), stride=(4, 2), is_causal=(True, False)),
    "1d": problems.problem("", "", (1, 100), (1, 8), 9),
    "3d": problems.problem("", "", (1, 5, 6, 9), (1, 8), 3),
}


def tiles_of(problem, extents):
    """The queries of every tile, in groups of one dilation residue, [queries, rank]."""
    lines = []
    for length, dilation, extent in zip(problem.spatial, problem.dilation, extents, strict=True):
        groups = [np.arange(length)[r::dilation] for r in range(min(dilation, length))]
        lines.append([g[i : i + extent] for g in groups for i in range(0, len(g), extent)])
    for tile in itertools.product(*lines):
        yield [*itertools.product(*tile)]


def counted(problem, extents):
    """(tiles, pairs, keys of the boxes around windows, keys that all queries of a tile see)."""
    number = streamed = common = 0
    indices = profiler.neighborhood(problem).indices(problem.spatial)
    for queries in tiles_of(problem, extents):
        seen = [
            {tuple(np.unravel_index(i, problem.spatial)) for i in indices[query] if i >= 0}
            for query in queries
        ]
        dilation = np.array(problem.dilation)
        corners = np.array(sorted(set().union(*seen))) // dilation
        streamed += math.prod(int(x) for x in corners.max(0) - corners.min(0) + 1)
        common += len(set.intersection(*seen))
        number += 1
    return number, math.prod(extents) * streamed, streamed, common


@pytest.mark.parametrize("name", PROBLEMS)
def test_tiles_of_the_cpu(name):
    problem = PROBLEMS[name]
    planned = contract.problem(profiler.op(problem), profiler.types(problem))
    found = [
        (choice, work)
        for _, choice, work in plan.works(CPU, "na_fused_forward", planned, 3)
        if choice.startswith("tiles")
    ]
    assert found
    for choice, work in found:
        extents = tuple(map(int, choice.partition(":")[2].split("x")))
        tiles, pairs, streamed, common = counted(problem, extents)
        assert (work.tiles, work.pairs, work.streamed) == (tiles, pairs, streamed)
        assert work.unmasked == pytest.approx(common / streamed)


@pytest.mark.parametrize("direction", problems.PASSES)
@pytest.mark.parametrize("platform", [CPU, CUDA])
def test_rows(platform, direction, request):
    """No kernel computes fewer pairs than windows have; times are those of the roofline."""
    if platform == CUDA:
        request.getfixturevalue("cuda_kernels")
    base = PROBLEMS["2d"]
    problem = problems.replace(base, direction=direction)
    ceiling = roofline.Ceiling(1e9, 1e12)
    rows = simulator.rows(problem, platform, ceiling, most=2)
    passes = {row.pass_name for row in rows}
    assert ("forward" in passes) == (direction != problems.BACKWARD)
    assert any(name.startswith("backward") for name in passes) == (direction != problems.FORWARD)
    for row in rows:
        assert 0 < row.useful <= 1
        assert row.unmasked is None or 0 <= row.unmasked <= 1
        assert row.seconds == pytest.approx(row.flops / 1e9)
    least = {name: min(row.flops * row.useful for row in rows if row.pass_name == name) for name in passes}
    if direction == problems.FORWARD:
        assert least["forward"] == pytest.approx(profiler.flops(base))


def test_ceiling():
    """The larger of both times: of products, and of arrays that are read and written once."""
    problem = PROBLEMS["2d"]
    flops, moved = profiler.flops(problem), problem.least_bytes
    assert roofline.Ceiling(flops, 2 * moved).seconds(problem) == pytest.approx(1)
    assert roofline.Ceiling(2 * flops, moved).seconds(problem) == pytest.approx(1)
