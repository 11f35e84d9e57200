# SPDX-License-Identifier: Apache-2.0
"""The halo kernels against the oracle, on the host executor (on the GPU with JAX_NA_KERNELS=device), and the
rule that says which calls they take."""

import dataclasses
import itertools
import math

import pytest

from . import cuda_checks, cuda_kernels, cuda_tilings, helpers, oracle
from .cases import NAMED, Case
from .cuda_checks import (
    PLAIN,
    assert_goes_on,
    assert_lost_gradients_are_nan,
    assert_lost_queries_are_nan,
    assert_same_bits,
)
from .cuda_kernels import Kernel, Pass, any_seed
from .cuda_problems import UNMERGED, Problem, any_problem, outside, region
from .test_cuda_kernels import HALVES, LARGER, TOLERANCE, repeated, saved
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = pytest.mark.some(4)
NAMES = ("halo", "halo_sm90")
HALF_MODES = [(dtype, "default") for dtype in HALVES]
ROOM = {"halo": 99 << 10, "halo_sm90": 227 << 10}  # shared memory of a block
TABLES = 16 << 10  # what a kernel keeps besides, at most

CASES = (
    Case("one-window", (7, 7), (7, 7), head_dim=32, heads=3, rpb=True),
    Case("nat", (15, 17), (7, 7), head_dim=32, heads=3, batch=(2,), rpb=True),
    Case("nat-64", (9, 21), (7, 7), head_dim=64, heads=2),
    Case("three-by-three", (19, 10), (3, 3), head_dim=32, heads=4, kv_heads=2, rpb=True),
    Case("even", (12, 21), (6, 4), head_dim=40, value_dim=64, rpb=True, batch=(2,)),
    Case("parts", (22, 19), (13, 11), head_dim=64, rpb=True),
    Case("parts-32", (18, 19), (9, 13), head_dim=24, heads=3, kv_heads=1),
    Case("parts-128", (17, 9), (11, 9), head_dim=104, value_dim=128, rpb=True),
    Case("whole-128", (10, 11), (5, 3), head_dim=128, heads=2, kv_heads=1, rpb=True),
    Case("sequence", (300,), 7, head_dim=64, heads=2),
    Case("sequence-causal", (150,), 60, head_dim=32, is_causal=True, heads=2, rpb=True),
    Case("sequence-128", (130,), 21, head_dim=128, is_causal=True),
    Case("sequence-dilated", (203,), 9, dilation=5, stride=4, head_dim=40, heads=3, batch=(2,)),
    Case("video", (6, 9, 10), (3, 5, 5), head_dim=64, heads=2, kv_heads=1, rpb=True),
    Case("video-causal", (5, 8, 9), (3, 3, 4), is_causal=(True, False, False), head_dim=32, rpb=True),
    Case("video-dilated", (7, 13, 11), (3, 5, 4), dilation=(2, 1, 2), stride=(1, 2, 1), head_dim=48, heads=2),
    Case(
        "all",
        (19, 23),
        (6, 5),
        stride=(3, 2),
        dilation=(2, 3),
        is_causal=(False, True),
        head_dim=16,
        heads=2,
        kv_heads=1,
        rpb=True,
    ),
    Case("scale-negative", (9, 8), (3, 4), scale=-0.4, head_dim=32, rpb=True),
    Case("scale-0", (40,), 12, scale=0.0, head_dim=32),
)


def has_place(name):
    """Whether the kernel runs here: on a GPU, those for 9.0 want one."""
    return name == "halo" or not cuda_kernels.ON_DEVICE or cuda_kernels.build.architecture() == "90a"


every_kernel = pytest.mark.parametrize("name", [name for name in NAMES if has_place(name)])
every_type = pytest.mark.parametrize("mode", HALF_MODES, ids="-".join)


FORWARD = (Kernel.FORWARD, Pass.FORWARD)
BACKWARD = ((Kernel.BACKWARD, Pass.BACKWARD_QUERY), (Kernel.BACKWARD, Pass.BACKWARD_KEY))


def legal(problem, dtype, name, which=FORWARD):
    """The tiles with which a kernel takes a problem."""
    return cuda_tilings.tilings(*which, problem, (dtype, "default"), name)


def obstacle(problem, dtype, name, which=FORWARD):
    return cuda_tilings.obstacle(*which, problem, (dtype, "default"), name)


def any_choice(problem, dtype, name, rng, which=FORWARD):
    """The kernel with random tiles."""
    tilings = legal(problem, dtype, name, which)
    return tilings[rng.integers(len(tilings))].choice(name)


def backward_choices(problem, dtype, name, rng):
    """Of both passes; the portable kernel where this one has no place. And how many it has."""
    portable = cuda_tilings.backward_kernels(problem, (dtype, "default"), 16, rng).split(";")
    takes = [bool(legal(problem, dtype, name, which)) for which in BACKWARD]
    chosen = [
        any_choice(problem, dtype, name, rng, which) if place else other
        for which, place, other in zip(BACKWARD, takes, portable, strict=True)
    ]
    return ";".join(chosen), takes


def taken(problem, most=128):
    """Whether the kernels take such features, by their documentation."""
    widths = (problem.head_dim, problem.value_dim)
    return all(width % 8 == 0 and width <= most for width in widths)


def smallest_halo(problem, seen):
    """Bytes of the columns that a tile of 64 rows may see, with the best tile."""
    features = max(problem.head_dim, problem.value_dim)
    row = 2 * max(64, 1 << (features - 1).bit_length())
    tiles = itertools.product([1 << i for i in range(7)], repeat=len(problem.axes))
    return min(
        2 * row * math.prod(seen(axis, n) for axis, n in zip(problem.axes, tile, strict=True))
        for tile in tiles
        if math.prod(tile) == 64
    )


def most_keys(axis, queries):
    """Keys of so many neighbouring queries, by the definition of a window."""
    return min(-(-axis.length // axis.dilation), axis.kernel_size + queries - 1 + axis.stride - 1)


def most_queries(axis, keys):
    """Queries that see so many neighbouring keys: at borders windows stay behind their query."""
    return min(-(-axis.length // axis.dilation), most_keys(axis, keys) + axis.kernel_size // 2 + axis.stride)


def assert_taken(problem, dtype, name, which, most, seen):
    """Whether it is; it must be, but for features, and for halos without room."""
    if not taken(problem, most):
        assert obstacle(problem, dtype, name, which).startswith("it takes ")
        return False
    assert not obstacle(problem, dtype, name, which)
    if legal(problem, dtype, name, which):
        return True
    tables = 0
    if which == BACKWARD[0] and problem.rpb:
        tables = 4 * 4 * 8 * 2 * (math.prod(2 * axis.kernel_size - 1 for axis in problem.axes) + 4)
    if len(problem.axes) == 1:  # who sees what: for every part a row of bits for each plane and each query
        box = seen(problem.axes[0], 16)
        tables += 16 * -(-box // 32) * (box + 64 + 6)
    assert smallest_halo(problem, seen) > ROOM[name] - TABLES - tables
    return False


def assert_attention(problem, dtype, name, rng):
    """Right where the kernels take the problem; whether those of the two backward passes do."""
    problem = repeated(problem)
    inputs = problem.inputs(rng, dtype)
    attention = oracle.Attention(problem.geometry, inputs, problem.scale)
    out, lse, gradients = TOLERANCE[dtype, "default"]
    if assert_taken(problem, dtype, name, FORWARD, 128, most_keys):
        kernels = any_choice(problem, dtype, name, rng)
        found = cuda_kernels.forward(problem, dtype, inputs, kernels=kernels, seed=any_seed(rng))
        helpers.assert_close({"out": found["out"]}, {"out": attention.out}, out)
        helpers.assert_close({"lse": found["lse"]}, {"lse": attention.lse}, lse)
    kernels, takes = backward_choices(problem, dtype, name, rng)
    expected_to_take = [
        assert_taken(problem, dtype, name, BACKWARD[0], 128, most_keys),
        assert_taken(problem, dtype, name, BACKWARD[1], 64, most_queries),
    ]
    assert takes == expected_to_take
    if not any(takes):
        return takes
    given, cotangents = saved(problem, (dtype, "default"), attention, rng)
    how = {"kernels": kernels, "seed": any_seed(rng), "parts": int(rng.integers(4, 30))}
    found = cuda_kernels.backward(problem, dtype, inputs, given, **how)
    expected = attention.gradients(*cotangents)
    helpers.assert_close(found, {n: expected[n] for n in found}, gradients)
    return takes


@every_type
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, mode, rng):
    """These are small enough for the room that compute capability 9.0 has."""
    name = "halo_sm90" if has_place("halo_sm90") else "halo"
    takes = assert_attention(Problem.of(case), mode[0], name, rng)
    if name == "halo_sm90":
        width = max(case.head_dim, case.value_dim or case.head_dim)
        assert takes == [True, width <= 64]


@every_kernel
@pytest.mark.parametrize("case", [case for case in (*UNMERGED, *LARGER) if not case.additional], ids=str)
def test_cases_of_all_kernels(case, name, rng):
    assert_attention(Problem.of(case), "bfloat16", name, rng)


@pytest.mark.parametrize("name", CUTS)
def test_regions(name, rng):
    case = dataclasses.replace(NAMED[name], head_dim=16, value_dim=24)
    for queries, keys in regions(case, CUTS[name]):
        assert_attention(Problem.of(case, region(case, queries, keys)), "bfloat16", "halo", rng)


@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, rpb, rng):
    problem = dataclasses.replace(outside(OUTSIDE[reason]), rpb=rpb)
    assert_lost_queries_are_nan(problem, any_choice(problem, "bfloat16", "halo", rng), rng)
    kernels, takes = backward_choices(problem, "bfloat16", "halo", rng)
    assert all(takes)
    assert_lost_gradients_are_nan(problem, kernels, rng)


@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(40))
def test_random_problems(number, rng):
    problem = any_problem(rng)
    while problem.additional:
        problem = any_problem(rng)
    print(problem)
    built = [mode for mode in HALF_MODES if cuda_kernels.is_built(mode)]
    assert_attention(problem, built[number % len(built)][0], NAMES[number // 2 % 2], rng)


@every_type
def test_deterministic(mode, rng):
    problem = Problem.of(CASES[1])
    assert_same_bits(problem, mode[0], any_choice(problem, mode[0], "halo", rng), rng)
    inputs = problem.inputs(rng, mode[0])
    given, _ = saved(problem, mode, oracle.Attention(problem.geometry, inputs, problem.scale), rng)
    kernels, takes = backward_choices(problem, mode[0], "halo", rng)
    assert all(takes)
    first, second = (
        cuda_kernels.backward(problem, mode[0], inputs, given, kernels=kernels, seed=any_seed(rng))
        for _ in range(2)
    )
    helpers.assert_identical(first, second)


@pytest.mark.skipif(cuda_kernels.ON_DEVICE, reason="the GPU is what it is")
def test_another_gpu(monkeypatch, rng):
    """Has less room: the program goes on to its next choice."""
    monkeypatch.setenv("JAX_NA_SIMT_CAPABILITY", "80")
    assert_attention(PLAIN, "bfloat16", "halo", rng)
    with pytest.raises(AssertionError, match=r"it takes a GPU of compute capability 9\.0"):
        assert_attention(PLAIN, "bfloat16", "halo_sm90", rng)
    portable = cuda_tilings.forward_kernels(PLAIN, ("bfloat16", "default"), 64, rng)
    assert_goes_on(PLAIN, any_choice(PLAIN, "bfloat16", "halo_sm90", rng), portable, rng)
    inputs = PLAIN.inputs(rng, "bfloat16")
    attention = oracle.Attention(PLAIN.geometry, inputs, PLAIN.scale)
    given, _ = saved(PLAIN, ("bfloat16", "default"), attention, rng)
    kernels, takes = backward_choices(PLAIN, "bfloat16", "halo_sm90", rng)
    assert all(takes)
    with pytest.raises(AssertionError, match=r"it takes a GPU of compute capability 9\.0"):
        cuda_kernels.backward(PLAIN, "bfloat16", inputs, given, kernels=kernels)


REFUSED = cuda_checks.REFUSED | {
    "wide": (dataclasses.replace(PLAIN, value_dim=136), "up to 128 features per head, not 136"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_they_do_not_take(reason, rng):
    problem, text = REFUSED[reason]
    for name in NAMES:
        assert obstacle(problem, "float16", name).startswith(f"it takes {text}")
    assert obstacle(PLAIN, "float32", "halo") == "it takes bfloat16, float16, not float32"
    with pytest.raises(AssertionError, match=f"refused: no kernel can run .* it takes {text}"):
        cuda_kernels.forward(problem, "bfloat16", problem.inputs(rng, "bfloat16"), kernels="halo:64")


LONG = dataclasses.replace(PLAIN, axes=(oracle.Axis(2000, 1000),))
LARGE = Problem((oracle.Axis(64, 33), oracle.Axis(64, 33)), head_dim=64, value_dim=64)
ILLEGAL = {
    "halo:32": (PLAIN, "a tile of 64 queries with powers of two as extents, not 1x1x32"),
    "halo:3": (PLAIN, "a tile of 64 queries with powers of two as extents, not 1x1x3"),
    "halo:64,16": (PLAIN, "a name and 1 extents of a tile"),
    "halo:8x8": (LARGE, "it takes 99 KB of shared memory for a block, too few for the 1600 keys"),
    "halo_sm90:8x8": (LARGE, "it takes 227 KB of shared memory for a block, too few"),
    "halo:64": (LONG, "up to 1024 keys along an axis, not 1063"),
}


@pytest.mark.parametrize("kernels", ILLEGAL)
def test_illegal_tiles_are_refused(kernels, rng):
    problem, text = ILLEGAL[kernels]
    with pytest.raises(AssertionError, match=f"refused: (.|\n)*{text}"):
        cuda_kernels.forward(problem, "bfloat16", problem.inputs(rng, "bfloat16"), kernels=kernels)


def test_more_room_takes_more(rng):
    """What fits into the room of every GPU fits into that of compute capability 9.0."""
    problem = Problem((oracle.Axis(64, 13), oracle.Axis(64, 13)), head_dim=64, value_dim=64)
    every, hopper = (legal(problem, "bfloat16", name) for name in NAMES)
    assert set(every) < set(hopper)
