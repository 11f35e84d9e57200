# SPDX-License-Identifier: Apache-2.0
"""What only a GPU and its memory can tell; the kernels themselves are tested in test_cuda_kernels.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers
from .cases import NAMED, Case
from .cuda_problems import Problem
from .seen import Seen, assert_same, plant

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="JAX has no GPU here")
GB = 1 << 30


def memory():
    """Bytes that JAX may use."""
    return jax.devices()[0].memory_stats()["bytes_limit"]


def attend_and_pull(inputs, dout, **parameters):
    """out, lse and the gradients of query, key and value."""

    @jax.jit
    def run(inputs, dout):
        attend = lambda *x: jax_na.neighborhood_attention(*x, **parameters, return_lse=True)  # noqa: E731
        (out, lse), pull = jax.vjp(attend, *inputs)
        return out, lse, pull((dout, jnp.zeros_like(lse)))

    return run(inputs, dout)


def test_more_elements_than_32_bits_count(rng):
    """The last of so many heads that offsets exceed 2^31 is as it is alone."""
    shape = (1, 1 << 16, 129, 256)
    assert math.prod(shape) > 2**31
    if memory() < 14 * 2 * math.prod(shape):
        pytest.skip(f"it takes {14 * 2 * math.prod(shape) / GB:.0f} GB")
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), 4)
    *inputs, dout = (jax.random.normal(k, shape, jnp.bfloat16) for k in keys)
    parameters = {"kernel_size": (5,), "implementation": "fused"}
    last = lambda x: x[:, :, -1:]  # noqa: E731
    out, lse, gradients = attend_and_pull(inputs, dout, **parameters)
    found = {"out": last(out), "lse": last(lse), "gradients": jnp.stack([last(x) for x in gradients])}
    del out, lse, gradients
    out, lse, gradients = attend_and_pull([last(x) for x in inputs], last(dout), **parameters)
    helpers.assert_identical((found.pop("out"), found.pop("lse")), (out, lse))
    # XLA adds up delta, one of their inputs, in an order that depends on the shape.
    helpers.assert_close(found, {"gradients": jnp.stack(gradients)}, 1e-3)


# "naive" and "gemm" have the gradient of their bias from XLA, which scatters in any order.
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("all-2d", "fused"),
        ("plain-3d", "fused"),
        ("grouped-heads", "fused"),
        ("grouped-heads", "gemm"),
        ("grouped-heads", "naive"),
    ],
)
def test_every_run_gives_the_same_bits(name, implementation, rng):
    """Called one after the other, and in a loop on the device, where XLA may record the calls in a graph."""
    case = NAMED[name]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    run = helpers.compiled(helpers.attend(case, implementation))
    first = run(inputs, cotangents)

    @jax.jit
    def loop(inputs, cotangents):
        return jax.lax.map(lambda _: run(inputs, cotangents), jnp.arange(8))

    looped = loop(inputs, cotangents)
    for i in range(8):
        helpers.assert_identical(run(inputs, cotangents), first)
        helpers.assert_identical(jax.tree.map(lambda x, i=i: x[i], looped), first)


@pytest.mark.parametrize("implementation", ["fused", "gemm"])
@pytest.mark.parametrize(("precision", "tolerance"), [("highest", 2e-5), ("tensorfloat32", 4e-3)])
def test_precision_of_float32(precision, tolerance, implementation, rng):
    case = NAMED["head-dim-64"]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    with jax.default_matmul_precision(precision):
        found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    results, gradients = helpers.expected(case, inputs, cotangents)
    helpers.assert_close(helpers.named(found[0]), results, tolerance)
    helpers.assert_close(found[1], gradients, tolerance)


# Of several tiles. The forward kernel for compute capability 9.0 takes those without a bias, in bfloat16.
NON_FINITE = (
    Case("causal", (700,), 33, dilation=2, is_causal=True, heads=4, kv_heads=2, head_dim=64, rpb=True),
    Case("plane", (30, 41), (7, 9), stride=(2, 1), head_dim=64, value_dim=128, batch=(2,), heads=2),
    Case("volume", (8, 9, 10), (3, 5, 4), is_causal=(True, False, False), head_dim=32, rpb=True),
)


def assert_seen(case, implementation, inputs, cotangents, tolerance):
    """Results and gradients through the public functions agree with a reference that counts what is seen."""
    reference = Seen(Problem.of(case), inputs)
    with jax.default_matmul_precision("highest"):
        (out, lse), gradients = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    assert_same({"out": out, "lse": lse}, {"out": reference.out, "lse": reference.lse}, tolerance[0])
    assert_same(gradients, reference.gradients(*cotangents), tolerance[1])


@pytest.mark.parametrize("planted", [("key", "value"), ("query", "value"), ("dout",)], ids="-".join)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
@pytest.mark.parametrize("case", NON_FINITE, ids=str)
def test_what_is_not_seen_does_not_count(case, implementation, dtype, planted, rng):
    inputs = Problem.of(case).inputs(rng, dtype)
    dout = rng.standard_normal(Problem.of(case).shapes()["out"]).astype(inputs["value"].dtype)
    for name in planted:
        plant((inputs | {"dout": dout})[name], rng, 0.01)
    dlse = rng.standard_normal(dout.shape[:-1]).astype(np.float32)
    assert_seen(case, implementation, inputs, (dout, dlse), helpers.TOLERANCE[dtype])


@pytest.mark.parametrize("bias", [-np.inf, -7e29])
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
@pytest.mark.parametrize("case", [case for case in NON_FINITE if case.rpb], ids=str)
def test_biases_that_hide_or_swallow_scores(case, implementation, bias, rng):
    """-inf leaves the first queries without keys; a large number for all makes the weights equal."""
    inputs = Problem.of(case).inputs(rng, "float32")
    window = case.axes[0].kernel_size
    inputs["rpb"][:, window - window // 2 if np.isinf(bias) else 0 :] = bias
    shape = Problem.of(case).shapes()["out"]
    cotangents = tuple(rng.standard_normal(s).astype(np.float32) for s in (shape, shape[:-1]))
    assert_seen(case, implementation, inputs, cotangents, (2e-5, 1e-4))
