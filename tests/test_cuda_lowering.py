# SPDX-License-Identifier: Apache-2.0
"""What is compiled for a GPU, seen without one: custom calls, their attributes and types."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_na
from jax_na.kernels import contract, devices, plan, register, tuning
from jax_na.kernels.platforms import CPU, CUDA, PLATFORMS
from jax_na.op import Op

from . import helpers
from .cases import NAMED, Case
from .cuda_programs import CASE, KERNELS, attend, calls, expanded, gradient, lowered

pytestmark = pytest.mark.usefixtures("cuda_kernels")
DIMS = {"query": "9x8x4x16", "key": "9x8x2x16", "bias": "4x7x5"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_fused(dtype, rng):
    inputs = CASE.inputs(rng, jnp.dtype(dtype))
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    (forward,) = calls(lowered(attend(CASE, "fused"), inputs))
    assert forward.name == "na_fused_forward"
    query, key = f"1x{DIMS['query']}x{short}", f"1x{DIMS['key']}x{short}"
    assert forward.operands == [query, key, key, "2x2xi32", f"{DIMS['bias']}xf32"]
    assert forward.results == [query, "1x9x8x4xf32"]  # no scratch buffer

    first, backward = calls(lowered(gradient(CASE, "fused"), inputs))
    assert (first.name, backward.name) == ("na_fused_forward", "na_fused_backward")
    lse = "1x9x8x4xf32"
    assert backward.operands == [query, key, key, "2x2xi32", lse, lse, query, f"{DIMS['bias']}xf32"]
    assert backward.results == [query, key, key, f"8x{DIMS['bias']}xf32"]


def planned(target, inputs):
    """The kernels that the planner takes for CASE."""
    op = Op(jax_na.Neighborhood(**CASE.spec), CASE.grid)
    return plan.plan(CUDA, target, op, contract.problem(op, inputs))


def test_attributes(rng):
    """All that a kernel is told."""
    inputs = CASE.inputs(rng)
    found = calls(lowered(gradient(CASE, "fused", scale=0.75), inputs))
    forward = {"query", "key", "value", "offsets", "rpb"}
    for call, operands in zip(found, (forward, forward | {"lse", "delta", "dout"}), strict=True):
        assert expanded(call.attributes) == {
            "kernel_size": [4, 3],
            "stride": [2, 1],
            "dilation": [2, 1],
            "is_causal": [1, 0],
            "length": [9, 8],
            "scale": 0.75,
            "is_exact": 0,
            "operands": contract.mask(CUDA, operands),
            "kernels": planned(call.name, inputs),
        }


def test_parts_of_a_large_bias(rng):
    """No more partial sums than the warps of a block need, where they are large."""
    case = Case("large", (130,), 129, heads=8192, head_dim=1, rpb=True)
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in case.shapes().items()}
    *_, backward = calls(lowered(gradient(case, "fused"), shapes))
    assert backward.results[-1] == "4x8192x257xf32"


@pytest.mark.parametrize(
    ("table", "queries", "parts"),
    [
        ((4, 13, 13), 128 * 56 * 56, 1024),  # 4096 warps
        ((4, 13, 13), 0, 1024),  # a batch that is not known
        ((4, 13, 13), 14 * 14, 16),  # 4 tiles of 64 queries, of 4 warps each
        ((4, 13, 13), 1, 4),
        ((3, 13, 13), 128 * 56 * 56, 1364),
        ((16, 63, 63), 128 * 56 * 56, 64),  # 16 MiB
        ((8192, 13, 13), 128 * 56 * 56, 4),
    ],
)
def test_parts_of_a_bias(table, queries, parts):
    """As many as keep a GPU busy, have something to do and are not too large; on CPUs always as many."""
    assert PLATFORMS[CUDA].bias_parts(table, queries) == parts
    assert PLATFORMS[CPU].bias_parts(table, queries) == 16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_naive(dtype, rng, x64):
    """Weights have the accumulator's type; the softmax between the products is JAX's."""
    inputs = CASE.inputs(rng, jnp.dtype(dtype))
    short, wide = {"float32": ("f32", "f32"), "bfloat16": ("bf16", "f32"), "float64": ("f64", "f64")}[dtype]
    query, key = f"1x{DIMS['query']}x{short}", f"1x{DIMS['key']}x{short}"
    weights = f"1x9x8x4x16x{wide}"  # 12 slots, padded
    qk, av = calls(lowered(attend(CASE, "naive"), inputs))
    assert (qk.name, qk.operands, qk.results) == ("na_naive_qk", [query, key, "2x2xi32"], [weights])
    assert (av.name, av.operands, av.results) == ("na_naive_av", [weights, key, "2x2xi32"], [query])
    assert (qk.attributes["kernels"], av.attributes["kernels"]) == ("naive", "naive")

    found = calls(lowered(gradient(CASE, "naive"), inputs))
    types = {(call.name, *call.operands, *call.results) for call in found}
    assert types == {
        ("na_naive_qk", query, key, "2x2xi32", weights),
        ("na_naive_av", weights, key, "2x2xi32", query),
        ("na_naive_inverse", weights, query, "2x2xi32", key),
    }
    assert len(found) == 6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gemm(dtype, rng):
    """Logits are float32, the weights that a kernel reads have the type of the inputs; rows stay padded."""
    inputs = CASE.inputs(rng, jnp.dtype(dtype))
    short = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    query, key = f"1x{DIMS['query']}x{short}", f"1x{DIMS['key']}x{short}"
    logits, weights = "1x9x8x4x16xf32", f"1x9x8x4x16x{short}"
    found = calls(lowered(gradient(CASE, "gemm"), inputs))
    types = {(call.name, *call.operands, *call.results) for call in found}
    assert types == {
        ("na_gemm_qk", query, key, "2x2xi32", logits),
        ("na_gemm_av", weights, key, "2x2xi32", query),
        ("na_gemm_inverse", weights, query, "2x2xi32", key),
    }
    assert len(found) == 6
    for call in found:
        assert call.attributes["kernels"] == planned(call.name, {"y": inputs["value"]})
        assert call.attributes["kernels"].startswith("portable:")
        assert call.attributes["is_exact"] == 0


def test_gemm_keeps_the_padding(rng):
    """Between the kernels of attention, rows of weights are neither cut nor padded again."""
    inputs = CASE.inputs(rng, jnp.bfloat16) | {"rpb": None}
    text = lowered(attend(dataclasses.replace(CASE, is_causal=False), "gemm"), inputs)
    assert "1x9x8x4x16x" in text
    assert "1x9x8x4x12x" not in text


def test_unfused(rng):
    """The two halves: without a name, the GEMM kernels, or for what they do not take the naive ones."""
    inputs = CASE.inputs(rng)
    halves = {
        np.float32: ["na_gemm_qk", "na_gemm_av"],
        np.float64: ["na_naive_qk", "na_naive_av"],
    }
    for dtype, names in halves.items():
        with jax.enable_x64(dtype == np.float64):
            query, key, value = (inputs[name].astype(dtype) for name in ("query", "key", "value"))
            qk = lowered(lambda q, k: jax_na.neighborhood_qk(q, k, **CASE.spec), query, key)
            weights = rng.standard_normal((1, 9, 8, 4, 12)).astype(dtype)
            av = lowered(lambda a, v: jax_na.neighborhood_av(a, v, **CASE.spec), weights, value)
        assert [call.name for call in (*calls(qk), *calls(av))] == names


def test_gemm_takes_any_number_of_features(rng):
    wide = dataclasses.replace(CASE, value_dim=300, head_dim=270, rpb=False)
    found = calls(lowered(attend(wide, "gemm"), wide.inputs(rng)))
    assert [call.name for call in found] == ["na_gemm_qk", "na_gemm_av"]


def test_default_is_fused(rng):
    assert [c.name for c in calls(lowered(attend(CASE), CASE.inputs(rng)))] == ["na_fused_forward"]


def test_default_for_what_no_kernel_takes(rng, x64):
    """float64; more features than fused kernels take are in test_cuda_wide.py."""
    assert not calls(lowered(attend(CASE), CASE.inputs(rng, np.float64)))


def test_gemm_does_not_take_float64(rng, x64):
    why = "implementation 'gemm' cannot run: it takes float32, bfloat16, float16, not float64"
    with pytest.raises(ValueError, match=re.escape(why)):
        lowered(attend(CASE, "gemm"), CASE.inputs(rng, np.float64))


def test_xla_has_no_kernels(rng):
    assert not calls(lowered(gradient(CASE, "xla"), CASE.inputs(rng)))


@pytest.mark.some(4)
@pytest.mark.parametrize("name", ["tokens-2d", "no-batch", "batches", "all-3d", "plain-1d", "batch-0"])
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
def test_every_kind_of_problem(name, implementation, rng):
    case = NAMED[name]
    found = {call.name for call in calls(lowered(gradient(case, implementation), case.inputs(rng)))}
    assert found == {kernel for kernel in KERNELS if implementation in kernel}


def test_vmap_and_remat(rng):
    """The same calls, with one more batch axis."""
    inputs = CASE.inputs(rng)
    batched = jax.tree.map(lambda x: np.stack([x] * 3), inputs)
    del batched["rpb"]
    plain = dataclasses.replace(CASE, rpb=False)
    (call,) = calls(lowered(jax.vmap(attend(plain, "fused")), batched))
    assert call.results == [f"3x1x{DIMS['query']}xf32", "3x1x9x8x4xf32"]
    text = lowered(jax.grad(lambda x: jax.checkpoint(attend(plain))(x)[0].sum()), {**inputs, "rpb": None})
    assert {c.name for c in calls(text)} == {"na_fused_forward", "na_fused_backward"}


def test_export_for_two_platforms(rng):
    """One program for CPUs and GPUs, made where there is no GPU."""
    inputs = CASE.inputs(rng)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in register.TARGETS["cpu"]]
    exported = export.export(
        jax.jit(gradient(CASE, "fused")), platforms=("cpu", "cuda"), disabled_checks=checks
    )(inputs)
    results = sorted(len(call.results) for call in calls(exported.mlir_module()))
    assert results == [2, 3, 4, 5]  # those of the CPU have a scratch buffer as well
    if not helpers.ON_GPU:
        found = exported.call(inputs)
        helpers.assert_close(found, jax.jit(gradient(CASE, "fused"))(inputs), 1e-6)


EXACT = [
    "highest",
    "float32",
    jax.lax.Precision.HIGHEST,
    ("default", "highest"),
    "F32_F32_F32",
    "TF32_TF32_F32_X3",
]
FAST = ["default", "high", "tensorfloat32", jax.lax.Precision.HIGH, ("high", "high"), "TF32_TF32_F32"]


@pytest.mark.parametrize("precision", [*EXACT, *FAST], ids=str)
def test_precision(precision, rng):
    for implementation in ("fused", "gemm"):
        found = calls(lowered(gradient(CASE, implementation, precision=precision), CASE.inputs(rng)))
        assert found
        for call in found:
            assert call.attributes["is_exact"] == (precision in EXACT)


def test_precision_of_the_configuration(rng):
    inputs = CASE.inputs(rng)
    with jax.default_matmul_precision("highest"):
        (exact,) = calls(lowered(attend(CASE, "fused"), inputs))
        (fast,) = calls(lowered(attend(CASE, "fused", precision="default"), inputs))
    assert (exact.attributes["is_exact"], fast.attributes["is_exact"]) == (1, 0)


def test_a_measured_choice(rng):
    """The implementation and the tile of the tuning file, under the key of this GPU."""
    op = Op(jax_na.Neighborhood(**CASE.spec), CASE.grid, CASE.head_dim**-0.5)
    inputs = CASE.inputs(rng)
    problem = contract.problem(op, inputs)
    other = plan.candidates(CUDA, "na_fused_forward", problem)[5]
    kind = " ".join([problem.dtype, str(CASE.head_dim), *problem.operands])
    assert tuning.key(op, problem, CUDA).startswith(
        f"cuda {devices.cuda_kind()} | {kind} | 9x8 | kernel 4x3 "
    )
    with tuning.trial(op, {"kernels": {"na_fused_forward": other}}, CUDA):
        (call,) = calls(lowered(attend(CASE), inputs))
    assert call.attributes["kernels"] == other
    with tuning.trial(op, {"attention": "xla"}, CUDA):
        assert not calls(lowered(attend(CASE), inputs))
