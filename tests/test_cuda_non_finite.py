# SPDX-License-Identifier: Apache-2.0
"""Rows without keys, and what is not finite, in the CUDA kernels: on the host executor (on the GPU with
JAX_NA_KERNELS=device).

NaN and infinities are planted at tokens that some queries of a tile see and others do not; the reference
counts what is seen alone.
"""

import dataclasses

import numpy as np
import pytest

from . import cuda_kernels, cuda_tilings
from .cases import NAMED, Case
from .cuda_kernels import NAN, Kernel, Pass, any_seed
from .cuda_problems import Problem, dtype_of, region
from .cuda_unfused import Unfused, gemm_kernels
from .seen import PLANTED, Seen, assert_same, plant
from .test_cuda_kernels import MODES, ROWS, tolerance
from .test_regions import CUTS, regions

CASES = (
    Case("causal", (75,), 6, dilation=2, is_causal=True, heads=4, kv_heads=2, head_dim=24, rpb=True),
    Case(
        "plane",
        (9, 10),
        (4, 5),
        stride=(2, 1),
        is_causal=(False, True),
        head_dim=40,
        value_dim=72,
        batch=(2,),
    ),
    Case("volume", (4, 5, 6), (3, 2, 4), head_dim=16, heads=2, kv_heads=1, rpb=True),
    Case("tokens", (50,), 7, head_dim=16, additional=3, heads=2),
    Case("wide", (40,), 9, head_dim=256, rpb=True),
)
MODES_HERE = tuple(mode for mode in MODES if mode[0] != "float16")


def planted_in(problem, mode, names, rng):
    """Inputs with NaN and infinities in these, and cotangents.

    An exact product of infinities is the sum of two parts and NaN, never -inf: no mask where the kernel of
    the bias' gradient takes it for a score. No float32 input has more bits than TF32: of a query that sees
    one key, what rounding makes of dP - delta is large beside its gradient.
    """
    dtype, precision = mode
    values = (np.nan,) if precision == "exact" and problem.rpb else PLANTED
    inputs = problem.inputs(rng, dtype)
    shapes = problem.shapes()
    cotangents = {"dout": rng.standard_normal(shapes["out"]).astype(dtype_of(dtype))}
    if mode[0] == "float32":
        inputs, cotangents = ({n: in_tf32(x) for n, x in arrays.items()} for arrays in (inputs, cotangents))
    cotangents["dlse"] = rng.standard_normal(shapes["lse"]).astype(np.float32)
    for name in names:
        plant((inputs | cotangents)[name], rng, values=values)
    return inputs, cotangents


def in_tf32(x):
    """Cut to the 10 bits of mantissa that TF32 has."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def assert_rows(problem, mode, inputs, cotangents, kernels, rng, limits=None):
    """Forward and backward kernels with these inputs; `kernels`: of both."""
    reference = Seen(problem, inputs)
    out, lse, gradients = limits or tolerance(problem, mode)
    gradients *= 2  # few keys or queries are left in a sum: what its products round is more of it
    how = {"precision": mode[1]}
    found = cuda_kernels.forward(problem, mode[0], inputs, kernels=kernels[0], seed=any_seed(rng), **how)
    assert_same({"out": found["out"]}, {"out": reference.out}, out)
    assert_same({"lse": found["lse"]}, {"lse": reference.lse}, lse)
    if kernels[1] is None:
        return
    dout, dlse = cotangents["dout"], cotangents["dlse"]
    with np.errstate(invalid="ignore"):
        delta = reference.delta(dout, dlse).astype(np.float32)
    given = {"lse": reference.lse.astype(np.float32), "delta": delta, "dout": dout}
    found = cuda_kernels.backward(
        problem, mode[0], inputs, given, kernels=kernels[1], seed=any_seed(rng), **how
    )
    assert_same(found, reference.gradients(dout, dlse), gradients)


def portable(problem, mode, rng):
    rows = ROWS[any_seed(rng) % 3]
    return (
        cuda_tilings.forward_kernels(problem, mode, rows, rng),
        cuda_tilings.backward_kernels(problem, mode, rows, rng),
    )


@pytest.mark.some(3)
@pytest.mark.parametrize(
    "names", [("key", "value"), ("query",), ("dout",), ("query", "key", "value", "dout")]
)
@pytest.mark.parametrize("mode", MODES_HERE, ids="-".join)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_not_seen_does_not_count(case, mode, names, rng):
    problem = Problem.of(case)
    inputs, cotangents = planted_in(problem, mode, names, rng)
    assert_rows(problem, mode, inputs, cotangents, portable(problem, mode, rng), rng)


@pytest.mark.some(1)
@pytest.mark.parametrize("mode", MODES_HERE, ids="-".join)
@pytest.mark.parametrize("name", CUTS)
def test_regions(name, mode, rng):
    for queries, keys in regions(NAMED[name], CUTS[name]):
        problem = Problem.of(NAMED[name], region(NAMED[name], queries, keys))
        inputs, cotangents = planted_in(problem, mode, ("key", "value", "dout"), rng)
        assert_rows(problem, mode, inputs, cotangents, portable(problem, mode, rng), rng)


@pytest.mark.some(2)
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("mode", MODES_HERE, ids="-".join)
@pytest.mark.parametrize("case", [case for case in CASES if case.rpb], ids=str)
def test_queries_without_keys(case, mode, planted, rng):
    """A bias of -inf hides what does not come before a query: from the first queries, all."""
    problem = Problem.of(case)
    inputs, cotangents = planted_in(problem, mode, ("value", "dout") if planted else (), rng)
    window = problem.axes[0].kernel_size
    inputs["rpb"][:, window - 1 :] = -np.inf
    reference = Seen(problem, inputs)
    assert np.isneginf(reference.lse).any()
    assert np.isfinite(reference.lse).any()
    assert_rows(problem, mode, inputs, cotangents, portable(problem, mode, rng), rng)


LEAST = float(np.finfo(np.float32).min)
BIASED = [case for case in CASES if case.rpb]
# A minute for each of a volume.
SWALLOWED = [
    (case, bias) for case in BIASED for bias in (LEAST, 7e29, -7e29) if len(case.grid) < 3 or bias == LEAST
]


@pytest.mark.some(2)
@pytest.mark.parametrize("mode", MODES_HERE, ids="-".join)
@pytest.mark.parametrize(("case", "bias"), SWALLOWED, ids=str)
def test_scores_of_any_size(case, mode, bias, rng):
    """A bias that swallows all products weighs all keys alike, as in jax.nn."""
    problem = Problem.of(case)
    inputs, cotangents = planted_in(problem, mode, (), rng)
    inputs["rpb"] = np.full_like(inputs["rpb"], bias)
    limits = {"float32": (2e-5, 2e-6, 1e-5)}.get(mode[0])
    if mode == ("float32", "default"):
        limits = tolerance(problem, mode)
    assert_rows(problem, mode, inputs, cotangents, portable(problem, mode, rng), rng, limits)


LONG = Case("long", (300,), 250, head_dim=56, value_dim=8, scale=1.0)  # several boxes of keys
# Rounded by much less than one, by a few, by more than exponents have; log2(e) times the last is no float32.
SIZES = (1e5, 6e7, 1e10, 2.9e38)


def equal_scores(problem, dtype, size, rng):
    """Inputs whose scores are all the same, about `size`."""
    found = problem.inputs(rng, dtype)
    each = 2.0 ** round(np.log2(size / problem.head_dim) / 2)
    return found | {name: np.full_like(found[name], each) for name in ("query", "key")}


@pytest.mark.some(2)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", [("bfloat16", "default"), ("float32", "exact")], ids="-".join)
def test_large_scores_that_are_equal(mode, size, rng):
    """The weights of several boxes are the same, however the maximum was rounded."""
    problem = Problem.of(LONG)
    inputs = equal_scores(problem, mode[0], size, rng)
    kernels = (cuda_tilings.forward_kernels(problem, mode, 64, rng), None)
    assert_rows(problem, mode, inputs, {}, kernels, rng)


HOPPER = (
    Case("hopper-1d", (150,), 21, dilation=2, head_dim=32, heads=2, kv_heads=1),
    Case("hopper-2d", (13, 17), (5, 6), is_causal=(True, False), head_dim=64, value_dim=128),
)


@pytest.mark.skipif(
    cuda_kernels.ON_DEVICE and cuda_kernels.build.architecture() != "90a", reason="it is for another GPU"
)
@pytest.mark.some(2)
@pytest.mark.parametrize("names", [("value",), ("query", "key", "value")])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HOPPER, ids=str)
def test_hopper(case, dtype, names, rng):
    problem = Problem.of(case)
    inputs, _ = planted_in(problem, (dtype, "default"), names, rng)
    kernels = (cuda_tilings.hopper_kernels(problem, dtype, rng), None)
    assert_rows(problem, (dtype, "default"), inputs, {}, kernels, rng)


@pytest.mark.skipif(
    cuda_kernels.ON_DEVICE and cuda_kernels.build.architecture() != "90a", reason="it is for another GPU"
)
@pytest.mark.some(1)
@pytest.mark.parametrize("size", SIZES[1::2])
def test_hopper_large_scores(size, rng):
    problem = Problem.of(LONG)
    inputs = equal_scores(problem, "bfloat16", size, rng)
    kernels = (cuda_tilings.hopper_kernels(problem, "bfloat16", rng), None)
    assert_rows(problem, ("bfloat16", "default"), inputs, {}, kernels, rng)


HALO = (
    Case("halo-1d", (150,), 21, dilation=2, head_dim=32, heads=2, kv_heads=1, rpb=True),
    Case("halo-2d", (13, 17), (5, 6), is_causal=(True, False), head_dim=64, value_dim=128),
    Case("halo-2d-rpb", (12, 15), (6, 5), head_dim=64, value_dim=40, heads=2, rpb=True),
    Case("halo-parts", (14, 18), (11, 9), head_dim=32, heads=3, rpb=True),
    Case("halo-heads", (14, 18), (5, 7), head_dim=32, heads=3, rpb=True),
)
# Of the passes backward, where they do not have both: a bias of many entries, 128 features.
HALO_TAKES = {"halo-parts": [False, True], "halo-2d": [True, False]}


@pytest.mark.some(2)
@pytest.mark.parametrize("names", [("value",), ("query", "key", "value")])
@pytest.mark.parametrize("mode", [("bfloat16", "default"), ("float16", "default")], ids="-".join)
@pytest.mark.parametrize("case", HALO, ids=str)
def test_halo(case, mode, names, rng):
    problem = Problem.of(case)
    inputs, cotangents = planted_in(problem, mode, names, rng)
    assert_rows(problem, mode, inputs, cotangents, halo(problem, mode, rng, case), rng)


HALO_SMALL = (  # every query is computed by its definition
    Case("halo-small-1d", (20,), 5, head_dim=32, heads=3, kv_heads=1, rpb=True),
    Case("halo-small-2d", (5, 6), (3, 4), head_dim=64, rpb=True),
)


@pytest.mark.some(2)
@pytest.mark.parametrize("bias", [LEAST, 7e29])
@pytest.mark.parametrize("case", HALO_SMALL, ids=str)
def test_halo_scores_of_any_size(case, bias, rng):
    """As test_scores_of_any_size: the least bias is -inf in the units of the exponents."""
    problem, mode = Problem.of(case), ("bfloat16", "default")
    inputs, cotangents = planted_in(problem, mode, (), rng)
    inputs["rpb"] = np.full_like(inputs["rpb"], bias)
    assert_rows(problem, mode, inputs, cotangents, halo(problem, mode, rng, case), rng)


@pytest.mark.some(1)
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize("case", [case for case in HALO if case.rpb], ids=str)
def test_halo_queries_without_keys(case, planted, rng):
    problem, mode = Problem.of(case), ("bfloat16", "default")
    inputs, cotangents = planted_in(problem, mode, ("value", "dout") if planted else (), rng)
    inputs["rpb"][:, problem.axes[0].kernel_size - 1 :] = -np.inf
    assert np.isneginf(Seen(problem, inputs).lse).any()
    assert_rows(problem, mode, inputs, cotangents, halo(problem, mode, rng, case), rng)


@pytest.mark.some(1)
@pytest.mark.parametrize("size", SIZES[1::2])
@pytest.mark.parametrize("window", [60, 150])
def test_halo_large_scores(window, size, rng):
    """Of a whole box and of several parts."""
    problem = Problem.of(dataclasses.replace(LONG, kernel_size=window))
    inputs = equal_scores(problem, "bfloat16", size, rng)
    mode = ("bfloat16", "default")
    assert_rows(problem, mode, inputs, {}, (halo(problem, mode, rng)[0], None), rng)


def halo(problem, mode, rng, case=None):
    """The halo kernels with random tiles; backward the portable one where the case has no place for them."""
    passes = (Pass.BACKWARD_QUERY, Pass.BACKWARD_KEY)
    which = ((Kernel.FORWARD, Pass.FORWARD), *((Kernel.BACKWARD, each) for each in passes))
    legal = [cuda_tilings.tilings(*each, problem, mode, "halo") for each in which]
    if case is not None:
        assert [bool(tilings) for tilings in legal[1:]] == HALO_TAKES.get(case.name, [True, True])
    portable = [None, *cuda_tilings.backward_kernels(problem, mode, 16, rng).split(";")]
    forward, *backward = [
        tilings[rng.integers(len(tilings))].choice("halo") if tilings else other
        for tilings, other in zip(legal, portable, strict=True)
    ]
    return forward, ";".join(backward)


NAIVE = (Kernel.NAIVE_QK, Kernel.NAIVE_AV, Kernel.NAIVE_INVERSE)
GEMM = (Kernel.GEMM_QK, Kernel.GEMM_AV, Kernel.GEMM_INVERSE)
UNFUSED = (
    *((NAIVE, (dtype, "default")) for dtype in ("float64", "float32", "bfloat16")),
    *((GEMM, mode) for mode in MODES_HERE),
)
UNFUSED_CASES = (
    *(case for case in CASES if not case.additional),
    Case("sliced", (30,), 5, head_dim=270, value_dim=300),
)


@pytest.mark.some(4)
@pytest.mark.parametrize(
    ("kernels", "mode"), UNFUSED, ids=lambda x: "-".join(map(str, x)) if x in MODES else None
)
@pytest.mark.parametrize("case", UNFUSED_CASES, ids=str)
def test_weights_of_zero_add_nothing(case, kernels, mode, rng):
    """Of av and inverse: whatever they would be multiplied with. Other weights pass on what is not finite."""
    weights_dtype = dtype_of(mode[0]) if kernels is GEMM else {"float64": np.float64}.get(mode[0], np.float32)
    unfused = Unfused(Problem.of(case), mode[0], weights_dtype, kernels, rng)
    problem, weights, inputs = unfused.problem, unfused.weights, unfused.inputs
    plant(inputs["value"], rng)
    plant(unfused.dout, rng)
    weights[rng.random(weights.shape) < 0.7] = 0

    def how(kernel, here):
        if kernels is NAIVE:
            return {}
        rows = (16, 64)[any_seed(rng) % 2]
        return {"kernels": gemm_kernels(kernel, here, mode, rows, rng), "precision": mode[1]}

    found = unfused.run(NAN, unfused.padded(weights, np.nan), how)
    expected = weighted(problem, weights, inputs["value"], unfused.dout)
    limit = 2 * tolerance(problem, mode)[0] if mode[0] != "float64" else 1e-13
    assert_same({name: found[name] for name in expected}, expected, limit)


@np.errstate(invalid="ignore")
def weighted(problem, weights, value, dout):
    """av and inverse by their definition, without the terms whose weight is 0."""
    heads, batch = problem.heads, len(value)
    dense = problem.geometry.from_slots(
        weights.astype(np.float64).reshape(batch, -1, heads, weights.shape[-1]).swapaxes(1, 2)
    )
    rows = lambda x: np.asarray(x, np.float64).reshape(batch, -1, *x.shape[-2:]).swapaxes(1, 2)  # noqa: E731
    values = np.repeat(rows(value), heads // problem.kv_heads, 1)
    used = dense[..., None] != 0
    av = np.where(used, dense[..., None] * values[:, :, None], 0).sum(3)
    of_keys = np.where(used, dense[..., None] * rows(dout)[:, :, :, None], 0).sum(2)
    shared = of_keys.reshape(batch, problem.kv_heads, -1, *of_keys.shape[2:]).sum(2)
    return {
        "av": av.swapaxes(1, 2).reshape(dout.shape),
        "inverse": shared.swapaxes(1, 2).reshape(value.shape),
    }
