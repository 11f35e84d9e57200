# SPDX-License-Identifier: Apache-2.0
"""What is compiled for a GPU, seen without one: custom calls, their attributes and types, what is refused."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_na
from jax_na import cuda_planner, devices, target, tuning
from jax_na.cuda_planner import Kernel
from jax_na.implementations import ROWS
from jax_na.neighborhood import Op

from . import helpers
from .cases import NAMED, Case

CASE = Case("2d", (9, 8), (4, 3), (2, 1), (2, 1), (True, False), heads=4, kv_heads=2, head_dim=16, rpb=True)
UNFUSED = {f"na_{name}_{part}" for name in ("gemm", "naive") for part in ("qk", "av", "inverse")}
KERNELS = {"na_fused_forward", "na_fused_backward"} | UNFUSED
DIMS = {"query": "9x8x4x16", "key": "9x8x2x16", "bias": "4x7x5"}


@pytest.fixture(autouse=True)
def cuda_kernels(monkeypatch):
    """As if CUDA kernels were built, where they are not."""
    if "cuda" not in target.TARGETS:
        shapes = (Kernel(16, 16, 32), Kernel(64, 16, 64), Kernel(128, 32, 64))
        monkeypatch.setitem(target.TARGETS, "cuda", frozenset(KERNELS))
        monkeypatch.setattr(target, "cuda_architectures", lambda: ["80-virtual"])
        monkeypatch.setattr(cuda_planner, "kernels", lambda *_: shapes)
        monkeypatch.setattr(cuda_planner, "staged_slots", lambda *_: 64)


def lowered(function, *arguments):
    """The program for a GPU."""
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@dataclasses.dataclass
class Call:
    name: str
    attributes: dict
    operands: list
    results: list


def calls(text):
    """The custom calls to kernels of this library, in the order of the program."""
    found = []
    pattern = r"stablehlo\.custom_call @(na_\w+)\(.*?backend_config = \{(.*?)\}.*? : \((.*?)\) -> (.*)"
    for name, config, operands, results in re.findall(pattern, text):
        attributes = {
            key: [int(x) for x in re.findall(r"-?\d+", dense)] for key, dense in INTEGERS.findall(config)
        }
        for key, value in re.findall(r"(\w+) = (-?[\d.e+-]+) : [if]\d+", config):
            attributes[key] = float(value)
        found.append(Call(name, attributes, *(re.findall(r"tensor<(\S+?)>", x) for x in (operands, results))))
    assert len(found) == text.count("custom_call @na_")
    return found


INTEGERS = re.compile(r"(\w+) = (?:dense|array)<(?:i64: )?(.*?)>")


def attend(case, implementation=None, **options):
    def function(inputs):
        return jax_na.neighborhood_attention(
            **inputs, **case.spec, return_lse=True, implementation=implementation, **options
        )

    return function


def gradient(case, implementation=None, **options):
    """Of all inputs, with cotangents that depend on the results."""

    def value(inputs):
        out, lse = attend(case, implementation, **options)(inputs)
        return jnp.sum(out.astype(jnp.float32) ** 2) + jnp.sum(lse**2)

    return jax.grad(value)


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
    assert backward.results == [query, key, key, f"64x{DIMS['bias']}xf32"]


def test_attributes(rng):
    """All that a kernel is told, and the tiles of the planner."""
    first, backward = calls(lowered(gradient(CASE, "fused", scale=0.75), CASE.inputs(rng)))
    op = Op(jax_na.Neighborhood(**CASE.spec), CASE.grid)
    for call in (first, backward):
        expected = {
            "kernel_size": [4, 3],
            "stride": [2, 1],
            "dilation": [2, 1],
            "is_causal": [1, 0],
            "length": [9, 8],
            "tile": list(cuda_planner.tile(call.name, op, 4, 16, 16)),
            "scale": 0.75,
            "is_exact": 0,
        }
        assert expanded(call.attributes) == expected


def expanded(attributes):
    """A splat like dense<1> : tensor<2xi64> has one number for all."""
    return {
        name: value * 2 if isinstance(value, list) and len(value) == 1 else value
        for name, value in attributes.items()
    }


def test_parts_of_a_large_bias(rng):
    """As many partial sums as keep them small."""
    case = Case("large", (130,), 129, heads=8192, head_dim=1, rpb=True)
    shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in case.shapes().items()}
    *_, backward = calls(lowered(gradient(case, "fused"), shapes))
    assert backward.results[-1] == f"{2**22 // (8192 * 257)}x8192x257xf32"


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
    assert "is_exact" not in qk.attributes

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
    op = Op(jax_na.Neighborhood(**CASE.spec), CASE.grid)
    for call in found:
        assert len(call.attributes["tile"]) == 4
        tile = cuda_planner.tile(call.name, op, jnp.dtype(dtype).itemsize, 16, 16)
        assert expanded(call.attributes)["tile"] == list(tile)
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


def test_default_for_what_fused_cannot(rng, x64):
    """float64, and more features than its kernels have room for."""
    assert not calls(lowered(attend(CASE), CASE.inputs(rng, np.float64)))
    wide = dataclasses.replace(CASE, value_dim=257)
    assert not calls(lowered(attend(wide), wide.inputs(rng)))
    message = "implementation 'fused' cannot run here: on cuda it takes up to 256 features per head, not 257"
    with pytest.raises(ValueError, match=re.escape(message)):
        lowered(attend(wide, "fused"), wide.inputs(rng))


def test_gemm_does_not_take_float64(rng, x64):
    why = "implementation 'gemm' cannot run: it takes float32, bfloat16, float16, not float64"
    with pytest.raises(ValueError, match=re.escape(why)):
        lowered(attend(CASE, "gemm"), CASE.inputs(rng, np.float64))


def test_xla_has_no_kernels(rng):
    assert not calls(lowered(gradient(CASE, "xla"), CASE.inputs(rng)))


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
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in target.TARGETS["cpu"]]
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
    other = cuda_planner.tiles("na_fused_forward", op, 4, 16, 16)[5]
    assert tuning.key(op, "cuda").startswith(f"cuda {devices.cuda_kind()} | 9x8 | kernel 4x3 ")
    with tuning.trial(op, {"tiles": {"na_fused_forward": list(other)}}, "cuda"):
        (call,) = calls(lowered(attend(CASE), CASE.inputs(rng)))
    assert expanded(call.attributes)["tile"] == list(other)
    with tuning.trial(op, {"attention": "xla"}, "cuda"):
        assert not calls(lowered(attend(CASE), CASE.inputs(rng)))


# What cannot run, and why


def reasons(**arguments):
    return {row.name: row.reason for row in jax_na.implementations(platform="cuda", **arguments)}


class Gpu:
    device_kind = "NVIDIA Test"

    def __init__(self, capability):
        self.compute_capability = capability


@pytest.fixture
def gpu(monkeypatch):
    """JAX seems to have a GPU of this compute capability."""

    def pretend(*capabilities):
        monkeypatch.setattr(devices, "cuda_devices", lambda: [Gpu(c) for c in capabilities])

    return pretend


def test_no_gpu(gpu):
    gpu()
    found = reasons()
    assert found["xla"] is None
    assert found["fused"] == found["gemm"] == found["naive"]
    assert found["fused"].startswith(
        "JAX has no CUDA device here: that needs a GPU, its driver, and jax[cuda13]"
    )


def test_a_gpu(gpu):
    gpu("9.0")
    assert [name for name, reason in reasons().items() if reason is None] == ["fused", "gemm", "naive", "xla"]
    wide = jax.ShapeDtypeStruct((1, 9, 8, 4, 320), np.float32)
    assert reasons(query=wide)["fused"] == "on cuda it takes up to 256 features per head, not 320"
    assert reasons(query=wide)["gemm"] is None
    assert tuning.key(Op(jax_na.Neighborhood((3,)), (9,)), "cuda").startswith("cuda NVIDIA Test | 9 |")


def test_an_old_gpu(gpu, monkeypatch, rng):
    """Its programs are pure JAX, unless a kernel is asked for by name."""
    gpu("7.0")
    monkeypatch.setattr(target, "cuda_architectures", lambda: ["80", "90a", "80-virtual"])
    why = "it was compiled for 80, 90a, 80-virtual, this GPU has compute capability 7.0"
    assert reasons()["fused"] == reasons()["gemm"] == reasons()["naive"] == why
    assert not calls(lowered(attend(CASE), CASE.inputs(rng)))
    with pytest.raises(ValueError, match=re.escape(f"implementation 'fused' cannot run here: {why}")):
        lowered(attend(CASE, "fused"), CASE.inputs(rng))


def test_not_built(gpu, monkeypatch, rng):
    gpu("9.0")
    monkeypatch.delitem(target.TARGETS, "cuda")
    monkeypatch.setitem(target.REFUSED, "cuda", target.NOT_BUILT)
    assert reasons()["fused"] == reasons()["gemm"] == reasons()["naive"] == target.NOT_BUILT
    assert "JAX_NA_CUDA_TOOLKIT=pypi" in target.NOT_BUILT
    assert not calls(lowered(attend(CASE), CASE.inputs(rng)))
    with pytest.raises(ValueError, match="this installation has no CUDA kernels"):
        lowered(attend(CASE, "fused"), CASE.inputs(rng))


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ("9.0", ["90a"], True),
        ("8.0", ["90a"], False),
        ("10.0", ["90a"], False),
        ("8.9", ["80"], True),
        ("8.0", ["86", "89"], False),
        ("9.0", ["80"], False),
        ("12.1", ["80-virtual"], True),
        ("7.5", ["80-virtual", "80"], False),
        ("10.3", ["100"], True),
        ("10.3", ["100a"], False),
        ("10.3", ["100f"], True),
        ("12.0", ["100", "120"], True),
        ("12.0", ["native"], True),
    ],
)
def test_what_runs_on_what(capability, architectures, runs):
    assert devices.runs_on(capability, architectures) is runs


def test_table_names_registered_kernels():
    """Those that the module has, if it is built."""
    for row in ROWS:
        for platform in row.platforms:
            assert set(row.kernels) <= target.TARGETS[platform]
