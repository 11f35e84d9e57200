# SPDX-License-Identifier: Apache-2.0
"""The fused CUDA kernels against the oracle, on the host executor (on the GPU with JAX_NA_KERNELS=device).

The executor reports races, missing barriers and waits, accesses out of bounds and misaligned ones; results
are poisoned with NaN, so that what is not written shows.
"""

import dataclasses
import math

import numpy as np
import pytest

from . import cuda_kernels, cuda_tilings, helpers, oracle
from .cases import CASES, NAMED, Case
from .cuda_kernels import NO_NAN, any_seed
from .cuda_problems import Problem, any_problem, dtype_of, lost_queries, outside, region
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = pytest.mark.some(5)  # the rest is for --exhaustive: the executor is slow

LARGER = (  # than a tile, or with sizes that matter to these kernels
    Case("boxes-1d", (150,), 33, head_dim=32, heads=2),
    Case("boxes-2d", (16, 19), (7, 9), head_dim=64, is_causal=(True, False)),
    Case("boxes-3d", (4, 7, 9), (3, 5, 4), head_dim=16, rpb=True),
    Case("interior-1d", (300,), 200, head_dim=16, heads=2, kv_heads=1),
    Case("interior-causal", (260,), 170, stride=8, is_causal=True, head_dim=16, rpb=True),
    Case("interior-2d", (20, 18), (15, 13), stride=(1, 4), head_dim=32),
    Case("head-dim-12", (40,), 7, head_dim=12, value_dim=20, heads=2, rpb=True),
    Case("head-dim-20", (6, 7), (3, 5), head_dim=20, value_dim=12, dilation=(2, 1)),
    Case("head-dim-96", (33,), 9, head_dim=96, value_dim=128),
    Case("head-dim-256", (36,), 17, head_dim=256, heads=2, kv_heads=1),
    Case("value-dim-256", (30,), 5, head_dim=8, value_dim=250),
    Case("negative-scale", (9, 8), (3, 4), scale=-0.4, heads=2, rpb=True),
    Case("scale-0-rpb", (14,), 5, scale=0.0, rpb=True, heads=2),
    Case("tokens-boxes", (37,), 9, additional=70, head_dim=24, is_causal=True, dilation=2),
    Case("tokens-1", (5, 6, 4), (3, 2, 3), additional=1, heads=2, scale=-0.3, batch=(2,)),
    Case("dilated-groups", (41,), 4, dilation=7, heads=3, kv_heads=3, batch=(2,)),
    Case("rpb-many-tiles", (21, 19), (5, 3), batch=(3,), head_dim=48, heads=2, kv_heads=1, rpb=True),
    Case("rpb-large-table", (20, 19), (18, 17), is_causal=(True, False), rpb=True),  # not in shared memory
    Case("rpb-96", (9, 15), (5, 7), dilation=(1, 2), stride=(2, 1), head_dim=96, rpb=True),
    Case("rpb-256", (3, 5, 6), (3, 2, 4), head_dim=256, heads=2, kv_heads=1, rpb=True),
    Case("rpb-256-tokens", (40,), 9, head_dim=250, additional=3, is_causal=True, rpb=True),
)
NAMED_HERE = NAMED | {case.name: case for case in LARGER}
HALVES = ("bfloat16", "float16")
MODES = (*((dtype, "default") for dtype in (*HALVES, "float32")), ("float32", "exact"))
ROWS = (16, 64, 128)

# Relative errors of out, lse, gradients. Of 2-byte types P, dS and the results are rounded, no input is.
TOLERANCE = {
    ("bfloat16", "default"): (4e-3, 2e-5, 4e-3),
    ("float16", "default"): (6e-4, 2e-5, 6e-4),
    ("float32", "exact"): (5e-6, 5e-6, 1e-5),
}
TF32 = 2**-11  # relative error of a rounded input, at most


def tolerance(problem, mode):
    """Of TF32: an error of a score is one of its weight, and grows with the scores."""
    if mode in TOLERANCE:
        return TOLERANCE[mode]
    spread = max(1.0, abs(problem.softmax_scale) * problem.head_dim**0.5)  # of the scores of standard normals
    return 2 * TF32 * spread, 2 * TF32 * spread, 4 * TF32 * spread


def repeated(problem):
    """The problem with so many heads that errors average out in every result: of 64 numbers or more."""
    few = min(math.prod(problem.shapes()[name]) for name in ("query", "key", "value", "out", "lse"))
    times = -(-64 // few) if few else 1
    return dataclasses.replace(problem, heads=problem.heads * times, kv_heads=problem.kv_heads * times)


def assert_forward(problem, mode, rows, inputs, rng):
    """Runs the forward kernel; returns what the oracle says."""
    attention = oracle.Attention(problem.geometry, inputs, problem.scale)
    how = {"precision": mode[1], "seed": any_seed(rng)}
    found = cuda_kernels.forward(
        problem, mode[0], inputs, kernels=cuda_tilings.forward_kernels(problem, mode, rows, rng), **how
    )
    out, lse, _ = tolerance(problem, mode)
    helpers.assert_close({"out": found["out"]}, {"out": attention.out}, out)
    helpers.assert_close({"lse": found["lse"]}, {"lse": attention.lse}, lse)
    return attention


def saved(problem, mode, attention, rng):
    """What the backward kernels are given, rounded as in a call, and the cotangents behind it."""
    dout = rng.standard_normal(attention.out.shape).astype(dtype_of(mode[0]))
    dlse = rng.standard_normal(attention.lse.shape).astype(np.float32)
    delta = (dout.astype(np.float64) * attention.out).sum(-1) - dlse
    given = {"lse": attention.lse.astype(np.float32), "delta": delta.astype(np.float32), "dout": dout}
    return given, (dout, dlse)


def assert_backward(problem, mode, rows, inputs, attention, rng):
    given, cotangents = saved(problem, mode, attention, rng)
    found = cuda_kernels.backward(
        problem,
        mode[0],
        inputs,
        given,
        parts=int(rng.integers(4, 14)),
        kernels=cuda_tilings.backward_kernels(problem, mode, rows, rng),
        precision=mode[1],
        seed=any_seed(rng),
    )
    expected = attention.gradients(*cotangents)
    helpers.assert_close(found, {name: expected[name] for name in found}, tolerance(problem, mode)[2])


def assert_attention(problem, mode, rows, rng):
    problem = repeated(problem)
    inputs = problem.inputs(rng, mode[0])
    attention = assert_forward(problem, mode, rows, inputs, rng)
    # Of a window of one key, dP - delta is a difference of large numbers, one of them from rounded values.
    if problem.geometry.window > 1 or mode[0] != "float32":
        assert_backward(problem, mode, rows, inputs, attention, rng)


def runs():
    """All cases in bfloat16 with every shape of kernel, and in the other modes with one of them."""
    for i, case in enumerate((*CASES, *LARGER)):
        for j, mode in enumerate(MODES):
            for rows in ROWS if mode[0] == "bfloat16" else ROWS[(i + j) % 3 :][:1]:
                yield pytest.param(case, mode, rows, id=f"{case}-{mode[0]}-{mode[1]}-{rows}")


@pytest.mark.parametrize(("case", "mode", "rows"), list(runs()))
def test_attention(case, mode, rows, rng):
    assert_attention(Problem.of(case), mode, rows, rng)


REGION_MODES = (("bfloat16", "default"), ("float32", "exact"))


@pytest.mark.parametrize("mode", REGION_MODES, ids="-".join)
@pytest.mark.parametrize("name", CUTS)
def test_regions(name, mode, rng):
    case = NAMED[name]
    for i, (queries, keys) in enumerate(regions(case, CUTS[name])):
        problem = Problem.of(case, region(case, queries, keys))
        assert_attention(problem, mode, ROWS[i % 3], rng)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, rows, rng):
    """Nothing is read out of bounds, and queries whose window is not there have no number for a result."""
    problem, mode = outside(OUTSIDE[reason]), ("bfloat16", "default")
    inputs = problem.inputs(rng, "bfloat16")
    kernels = cuda_tilings.forward_kernels(problem, mode, rows, rng)
    found = cuda_kernels.forward(
        problem, "bfloat16", inputs, poison=NO_NAN, kernels=kernels, seed=any_seed(rng)
    )
    shape = problem.shapes()["lse"]
    given = {"lse": found["lse"], "delta": rng.standard_normal(shape).astype(np.float32)}
    given["dout"] = rng.standard_normal(found["out"].shape).astype(inputs["query"].dtype)
    kernels = cuda_tilings.backward_kernels(problem, mode, rows, rng)
    gradients = cuda_kernels.backward(
        problem, "bfloat16", inputs, given, poison=NO_NAN, kernels=kernels, seed=any_seed(rng)
    )
    lost = lost_queries(problem)
    for x in (found["out"], found["lse"], gradients["query"]):
        assert np.isnan(x[:, lost].astype(np.float32)).all()


@pytest.mark.parametrize("parts", [4, 7, 50])
@pytest.mark.parametrize("rows", ROWS[:2])
@pytest.mark.parametrize("name", ["rpb-many-tiles", "all-1d"])
def test_any_number_of_partial_sums(name, rows, parts, rng):
    """Of the gradient of the bias: many tiles for each, or none for some; all are written."""
    problem, mode = Problem.of(NAMED_HERE[name]), ("bfloat16", "default")
    inputs = problem.inputs(rng, mode[0])
    attention = oracle.Attention(problem.geometry, inputs, problem.scale)
    given, cotangents = saved(problem, mode, attention, rng)
    kernels = cuda_tilings.backward_kernels(problem, mode, rows, rng)
    found = cuda_kernels.backward(
        problem, mode[0], inputs, given, parts=parts, kernels=kernels, seed=any_seed(rng)
    )
    expected = attention.gradients(*cotangents)
    helpers.assert_close(found, {n: expected[n] for n in found}, tolerance(problem, mode)[2])


def test_fewer_partial_sums_than_warps_are_refused(rng):
    problem, mode = Problem.of(NAMED["stride-even"]), ("bfloat16", "default")
    inputs = problem.inputs(rng, mode[0])
    given, _ = saved(problem, mode, oracle.Attention(problem.geometry, inputs, problem.scale), rng)
    with pytest.raises(AssertionError, match="drpb must have 4 parts or more"):
        cuda_kernels.backward(
            problem, mode[0], inputs, given, parts=3, kernels="portable:64,64;portable:64,64"
        )


def test_tiles_with_too_many_distances_are_refused(rng):
    """With a bias, the kernel of the queries has room for so many; without one it takes these tiles."""
    case = dataclasses.replace(NAMED["all-2d"], head_dim=64)
    for rpb in (True, False):
        problem = Problem.of(dataclasses.replace(case, rpb=rpb))
        legal = cuda_tilings.tilings(
            cuda_kernels.Kernel.BACKWARD, cuda_kernels.Pass.BACKWARD_QUERY, problem, ("bfloat16", "default")
        )
        assert (((1, 64), (64, 1)) in [(t.query, t.key) for t in legal]) != rpb


@pytest.mark.parametrize("mode", MODES, ids="-".join)
@pytest.mark.parametrize("name", ["all-2d", "many-tiles", "head-dim-12"])
def test_deterministic(name, mode, rng):
    """The order in which warps and blocks run leaves no trace: the same bits."""
    problem = Problem.of(NAMED_HERE[name])
    inputs = problem.inputs(rng, mode[0])
    attention = oracle.Attention(problem.geometry, inputs, problem.scale)
    given, _ = saved(problem, mode, attention, rng)
    rows = ROWS[any_seed(rng) % 3]
    forward_kernels = cuda_tilings.forward_kernels(problem, mode, rows, rng)
    backward_kernels = cuda_tilings.backward_kernels(problem, mode, rows, rng)

    def both(seed):
        how = {"precision": mode[1], "seed": seed}
        return (
            cuda_kernels.forward(problem, mode[0], inputs, kernels=forward_kernels, **how),
            cuda_kernels.backward(problem, mode[0], inputs, given, kernels=backward_kernels, **how),
        )

    helpers.assert_identical(both(any_seed(rng)), both(any_seed(rng)))


@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(48))
def test_random_problems(number, rng):
    modes = [mode for mode in MODES if cuda_kernels.is_built(mode)]
    problem, mode = any_problem(rng), modes[number % len(modes)]
    print(problem, mode)
    assert_attention(problem, mode, ROWS[number // len(MODES) % len(ROWS)], rng)


ILLEGAL = {  # kernels -> what is said
    "portable:3,64": "powers of two as extents, not 1x1x3",
    "portable:32,64": "of 16 and 32, 64 and 64, 128 and 64 tokens, not 32 and 64",
    "portable:64": "2 extents|1 extents of a query tile and of a key tile",
    "portable:8x8,64": "where it should have",
    "portable:0,64": "each from 1 to 1024",
    "portable": "where it should have",
    "rows:4": 'no kernel of the pass forward in "rows:4"; there are sm90, halo, halo_sm90, portable',
    "": "there are sm90, halo, halo_sm90, portable",
    "portable:64,64;portable:64,64": "must have 1 parts",
    "sm90:3,4|portable:3,64": 'powers of two.*; "portable:3,64": it takes',
}


@pytest.mark.parametrize("kernels", ILLEGAL)
def test_illegal_kernels_are_refused(kernels, rng):
    problem = Problem.of(NAMED["plain-1d"])
    with pytest.raises(AssertionError, match=f"refused: (.|\n)*{ILLEGAL[kernels]}"):
        cuda_kernels.forward(problem, "bfloat16", problem.inputs(rng, "bfloat16"), kernels=kernels)


def test_more_features_than_there_is_room_for(rng):
    problem = dataclasses.replace(Problem.of(NAMED["plain-1d"]), value_dim=320)
    with pytest.raises(AssertionError, match="it takes up to 256 features per head of the value, not 320"):
        cuda_kernels.forward(problem, "bfloat16", problem.inputs(rng, "bfloat16"), kernels="portable:64,64")
