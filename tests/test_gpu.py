# SPDX-License-Identifier: Apache-2.0
"""What only a GPU and its memory can tell; the kernels themselves are tested in test_cuda_kernels.py."""

import math

import jax
import jax.numpy as jnp
import pytest

import jax_na

from . import helpers
from .cases import NAMED

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
