# SPDX-License-Identifier: Apache-2.0
"""What only a GPU and its memory can tell; the kernels themselves are tested in test_cuda_kernels.py."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers
from .cases import NAMED, Case
from .cuda_problems import Problem
from .seen import PLANTED, Seen, assert_same, plant

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
    # An exact product of infinities is the sum of two parts and NaN, which is no mask as -inf would be.
    values = (np.nan,) if (implementation, dtype) == ("gemm", "float32") else PLANTED
    for name in planted:
        plant((inputs | {"dout": dout})[name], rng, 0.01, values)
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
