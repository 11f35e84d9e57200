# SPDX-License-Identifier: Apache-2.0
"""The forward kernel for compute capability 9.0 against the oracle, on the host executor (on such a GPU with
JAX_NA_KERNELS=device), and the rule that says which calls it takes."""

import dataclasses
import itertools
import re

import pytest

from . import cuda_checks, cuda_kernels, cuda_tilings, helpers, oracle
from .cases import NAMED, Case
from .cuda_checks import PLAIN, assert_goes_on, assert_lost_queries_are_nan, assert_same_bits
from .cuda_kernels import Kernel, Pass, any_seed
from .cuda_problems import UNMERGED, Problem, any_problem, outside, region
from .test_cuda_kernels import HALVES, LARGER, TOLERANCE, repeated
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = [
    pytest.mark.some(4),
    pytest.mark.skipif(
        cuda_kernels.ON_DEVICE and cuda_kernels.build.architecture() != "90a",
        reason="this GPU has another compute capability than 9.0",
    ),
]

CASES = (
    Case("wide-1d", (300,), 200, head_dim=128, heads=2, kv_heads=1),
    Case("wide-2d", (20, 18), (11, 13), head_dim=128),
    Case("wide-3d", (5, 9, 10), (3, 5, 7), head_dim=128, is_causal=(False, True, False)),
    Case("several-tiles", (700,), 400, head_dim=32, stride=16),
    Case("several-tiles-causal", (530,), 300, head_dim=64, is_causal=True),
    Case("stages", (17, 66), (13, 50), head_dim=64, stride=(1, 8)),
    Case("even-2d", (14, 21), (6, 10), head_dim=96, value_dim=64, heads=4, kv_heads=2, batch=(2,)),
    Case("batch-3d", (5, 6, 7), (3, 4, 5), head_dim=64, batch=(2,), heads=2),
    Case("wide-256", (150,), 60, head_dim=256, stride=3),
    Case("value-256", (9, 17), (3, 9), head_dim=72, value_dim=248, heads=2),
    Case("batch-3d-24", (5, 6, 7), (3, 4, 5), head_dim=24, value_dim=72, batch=(2,), heads=4, kv_heads=2),
    Case("dilated-8", (400,), 40, dilation=8, head_dim=16),
    Case("dilated-17", (450,), 20, dilation=17, head_dim=64, batch=(2,), heads=2, kv_heads=1),
    Case("dilated-50", (403,), 8, dilation=50, head_dim=128, stride=2),
    Case(
        "dilated-2d-long",
        (37, 40),
        (3, 4),
        dilation=(12, 9),
        head_dim=40,
        batch=(2,),
        is_causal=(False, True),
    ),
    Case("dilated-3", (431,), 130, dilation=3, head_dim=16, heads=2),
    Case("dilated-2d", (40, 45), (4, 5), dilation=(5, 8), head_dim=32),
    Case("dilated-3d", (9, 12, 14), (2, 3, 4), dilation=(4, 2, 3), head_dim=32, batch=(2,)),
    Case("scale-negative", (9, 8), (3, 4), scale=-0.4, head_dim=32),
    Case("scale-0", (40,), 12, scale=0.0, head_dim=32),
)


def taken(problem):
    """Whether the kernel takes a problem, by its documentation."""
    whole_chunks = problem.head_dim % 8 == problem.value_dim % 8 == 0
    return whole_chunks and not problem.rpb and not problem.additional


def without_bias(case):
    return Problem.of(dataclasses.replace(case, rpb=False))


def assert_attention(problem, dtype, rng):
    problem = repeated(problem)
    inputs = problem.inputs(rng, dtype)
    kernels = cuda_tilings.hopper_kernels(problem, dtype, rng)
    found = cuda_kernels.forward(problem, dtype, inputs, kernels=kernels, seed=any_seed(rng))
    attention = oracle.Attention(problem.geometry, inputs, problem.scale)
    out, lse, _ = TOLERANCE[dtype, "default"]
    helpers.assert_close({"out": found["out"]}, {"out": attention.out}, out)
    helpers.assert_close({"lse": found["lse"]}, {"lse": attention.lse}, lse)


def assert_refused(problem, dtype, rng):
    """It says why, and there is no other choice here."""
    reason = cuda_tilings.obstacle(Kernel.FORWARD, Pass.FORWARD, problem, (dtype, "default"), "sm90")
    assert reason.startswith("it takes ")
    with pytest.raises(AssertionError, match="refused: no kernel can run .*" + re.escape(reason)):
        assert_attention(problem, dtype, rng)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "case", [*CASES, *(case for case in (*UNMERGED, *LARGER) if taken(without_bias(case)))], ids=str
)
def test_attention(case, dtype, rng):
    assert_attention(without_bias(case), dtype, rng)


@pytest.mark.parametrize("name", [name for name in CUTS if taken(without_bias(NAMED[name]))])
def test_regions(name, rng):
    case = dataclasses.replace(NAMED[name], rpb=False)
    for queries, keys in regions(case, CUTS[name]):
        assert_attention(Problem.of(case, region(case, queries, keys)), "bfloat16", rng)


@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, rng):
    problem = outside(OUTSIDE[reason])
    assert_lost_queries_are_nan(problem, cuda_tilings.hopper_kernels(problem, "bfloat16", rng), rng)


@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(40))
def test_random_problems(number, rng):
    problem = any_problem(rng)
    dtype = HALVES[number % 2]
    print(problem, dtype)
    (assert_attention if taken(problem) else assert_refused)(problem, dtype, rng)


@pytest.mark.parametrize("dtype", HALVES)
def test_deterministic(dtype, rng):
    problem = without_bias(CASES[1])
    assert_same_bits(problem, dtype, cuda_tilings.hopper_kernels(problem, dtype, rng), rng)


REFUSED = cuda_checks.REFUSED | {
    "wide": (dataclasses.replace(PLAIN, value_dim=264), "up to 256 features per head of the value, not 264"),
    "bias": (dataclasses.replace(PLAIN, rpb=True), "no relative positional bias"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_does_not_take(reason, rng):
    problem, text = REFUSED[reason]
    obstacle = cuda_tilings.obstacle(Kernel.FORWARD, Pass.FORWARD, problem, ("float16", "default"), "sm90")
    assert obstacle.startswith(f"it takes {text}")
    assert_refused(problem, "bfloat16", rng)


def test_other_types_and_other_choices(rng):
    """The portable kernel runs where this one does not and the call has both."""
    assert taken(PLAIN)
    assert_attention(PLAIN, "bfloat16", rng)
    assert_refused(PLAIN, "float32", rng)
    biased = REFUSED["bias"][0]
    portable = cuda_tilings.forward_kernels(biased, ("bfloat16", "default"), 64, rng)
    assert_goes_on(biased, cuda_tilings.hopper_kernels(PLAIN, "bfloat16", rng), portable, rng)


@pytest.mark.skipif(cuda_kernels.ON_DEVICE, reason="it is on the GPU that the kernel is for")
def test_another_gpu(monkeypatch, rng):
    monkeypatch.setenv("JAX_NA_SIMT_CAPABILITY", "80")
    with pytest.raises(AssertionError, match=r"it takes a GPU of compute capability 9\.0"):
        assert_attention(PLAIN, "bfloat16", rng)
    portable = cuda_tilings.forward_kernels(PLAIN, ("bfloat16", "default"), 64, rng)
    assert_goes_on(PLAIN, cuda_tilings.hopper_kernels(PLAIN, "bfloat16", rng), portable, rng)


@pytest.mark.parametrize(
    "tiles", list(itertools.product([(3,), (64,), (cuda_tilings.HOPPER_ROWS,)], [(64,), (256,)]))
)
def test_illegal_tiles_are_refused(tiles, rng):
    with pytest.raises(AssertionError, match=r"refused: no kernel can run .* it takes"):
        cuda_kernels.forward(
            PLAIN, "bfloat16", PLAIN.inputs(rng, "bfloat16"), kernels=cuda_tilings.choice("sm90", *tiles)
        )
