# SPDX-License-Identifier: Apache-2.0
"""What only a GPU and its memory can tell; the kernels themselves are tested in test_cuda_kernels.py."""

import dataclasses
import functools
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


LONG = (1 << 25) + (1 << 12)  # tokens; of 64 features, the last 2^18 elements are beyond 2^31
PART = 1 << 10
PLACES = (0, (1 << 24) - PART // 2, (1 << 25) - PART // 2, LONG - PART)  # also bytes and elements 2^31


def require_memory(arrays):
    """Memory for so many arrays of LONG tokens with 64 features of 2 bytes."""
    needed = arrays * LONG * 64 * 2
    if memory() < needed:
        pytest.skip(f"it takes {needed / GB:.0f} GB")


def long_arrays(rng, *lengths):
    keys = jax.random.split(jax.random.key(int(rng.integers(2**31))), len(lengths))
    return [jax.random.normal(k, (1, n, 1, 64), jnp.bfloat16) for k, n in zip(keys, lengths, strict=True)]


def assert_as_alone(found, alone, start, window):
    """Away from the ends of a part that are no ends of the sequence, tokens see the same in it."""
    first = 0 if start == 0 else window
    last = PART if start + PART == LONG else PART - window
    whole = {name: x[:, start + first : start + last] for name, x in found.items()}
    helpers.assert_close(whole, {name: x[:, first:last] for name, x in alone.items()}, 4e-3)


@pytest.mark.some(0)  # when asked for: minutes, and a GPU with 80 GB
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
def test_long_sequences(implementation, rng):
    """More than 2^31 elements of one sequence, forward and backward, against parts of it alone."""
    require_memory(14)
    *inputs, dout = long_arrays(rng, *[LONG] * 4)
    parameters = {"kernel_size": (7,), "implementation": implementation}

    def run(inputs, dout):
        out, lse, gradients = attend_and_pull(inputs, dout, **parameters)
        return {"out": out, "lse": lse, **dict(zip(("dquery", "dkey", "dvalue"), gradients, strict=True))}

    found = run(inputs, dout)
    for start in PLACES:
        part = lambda x: x[:, start : start + PART]  # noqa: B023, E731
        assert_as_alone(found, run([part(x) for x in inputs], part(dout)), start, 7)


@pytest.mark.some(0)
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
def test_long_sequences_with_as_many_weights(implementation, rng):
    """Forward: 63 slots in rows of 64, more than 2^31 weights where they are stored."""
    require_memory(12)
    inputs = long_arrays(rng, *[LONG] * 3)

    @jax.jit
    def run(*inputs):
        options = {"implementation": implementation, "return_lse": True}
        return dict(zip(("out", "lse"), jax_na.na1d(*inputs, kernel_size=63, **options), strict=True))

    found = run(*inputs)
    for start in PLACES:
        assert_as_alone(found, run(*(x[:, start : start + PART] for x in inputs)), start, 63)


@pytest.mark.some(0)
@pytest.mark.parametrize("implementation", ["fused", "gemm", "naive"])
def test_long_regions(implementation, rng):
    """More than 2^31 elements are the end of a longer grid; the region has no query for the first 3 keys."""
    require_memory(8)
    query, key, value = long_arrays(rng, LONG - 3, LONG, LONG)
    options = {"implementation": implementation, "return_lse": True}
    grid = 1 << 26
    starts = {"length": grid, "query_start": grid - LONG + 3, "key_start": grid - LONG}
    out, lse = jax.jit(lambda *x: jax_na.region_attention(*x, (7,), **starts, **options))(query, key, value)
    for start in PLACES:
        keys = slice(max(start, 3), start + PART)  # as many as queries
        queries = slice(keys.start - 3, keys.stop - 3)
        alone = jax_na.na1d(query[:, queries], key[:, keys], value[:, keys], kernel_size=7, **options)
        last = None if keys.stop == LONG else -7
        whole = {"out": out[:, queries][:, 7:last], "lse": lse[:, queries][:, 7:last]}
        helpers.assert_close(whole, {"out": alone[0][:, 7:last], "lse": alone[1][:, 7:last]}, 4e-3)


WIDE = ((64, 384), (200, 300), (256, 1000), (320, 64), (320, 384))  # head_dim, value_dim


@pytest.mark.parametrize("implementation", [None, "gemm", "naive"])
@pytest.mark.parametrize("name", ["all-2d", "tokens-2d", "grouped-heads", "all-3d"])
@pytest.mark.parametrize("dims", WIDE, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_wide_heads(dims, name, implementation, dtype, rng):
    """More features than fused kernels take: None computes chunks of the value's, or stores weights."""
    case = dataclasses.replace(NAMED[name], head_dim=dims[0], value_dim=dims[1])
    inputs, cotangents = case.inputs(rng, jnp.dtype(dtype)), case.cotangents(rng, jnp.dtype(dtype))
    found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)
    rows = jax_na.implementations(inputs["query"], **case.spec, value=inputs["value"])
    assert [row.name for row in rows if row.taken] == ["fused" if dims[0] <= 256 else "gemm"]


@pytest.mark.parametrize("dims", [(64, 384), (320, 320)], ids=str)
def test_wide_heads_of_a_model(dims, rng):
    """A grid of many tiles, against pure JAX."""
    query, key = jnp.asarray(rng.standard_normal((2, 2, 32, 32, 4, dims[0])), jnp.bfloat16)
    value = jnp.asarray(rng.standard_normal((2, 32, 32, 4, dims[1])), jnp.bfloat16)
    out, expected = (
        jax.jit(functools.partial(jax_na.na2d, kernel_size=7, implementation=name))(query, key, value)
        for name in (None, "xla")
    )
    helpers.assert_close({"out": out}, {"out": expected}, 8e-3)


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
