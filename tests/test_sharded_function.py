# SPDX-License-Identifier: Apache-2.0
"""sharded_neighborhood_attention: blocks inside shard_map give the blocks of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jax_na

from . import helpers
from .test_sharding import SPACE, assert_same, attend, collectives, gradient, mesh_of, problem

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]
ARRAYS = ("query", "key", "value")
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)


def in_blocks(mesh, names, spec, implementation=None, **options):
    """inputs -> (out, lse) by the explicit function"""

    def block(inputs):
        return jax_na.sharded_neighborhood_attention(
            **inputs, axis_names=names, return_lse=True, implementation=implementation, **options
        )

    def function(inputs):
        specs = ({name: spec if name in ARRAYS else P() for name in inputs},)
        return jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=(spec, spec))(inputs)

    return function


@pytest.mark.some(2)
@every_implementation
@pytest.mark.parametrize("name", ["stride and dilation", "wide", "2d", "3d"])
def test_inside_shard_map(name, implementation, rng):
    grid, options, sizes, spec = SPACE[name]
    mesh = mesh_of("auto", sizes, ("a", "b", "c")[: len(sizes)])
    data = problem(rng, grid, options["kernel_size"])
    names, head_spec = tuple(spec)[1 : 1 + len(grid)], P(*tuple(spec)[: 1 + len(grid)])
    names += (None,) * (len(grid) - len(names))
    run = gradient(in_blocks(mesh, names, head_spec, implementation, **options))
    expected = jax.jit(gradient(attend(implementation, **options)))(*data)
    assert_same(jax.jit(run)(*data), expected)


WINDOWS = {
    "wider than a block": (16, {"kernel_size": (7,)}),
    "across many blocks": (16, {"kernel_size": (13,), "is_causal": True}),
    "all keys": (16, {"kernel_size": (16,)}),
    "all keys by dilation": (32, {"kernel_size": (8,), "stride": 8, "dilation": 4}),
    "one key": (16, {"kernel_size": (1,)}),
    "stride over blocks": (24, {"kernel_size": (7,), "stride": 5, "dilation": 3, "is_causal": True}),
    "even": (32, {"kernel_size": (6,), "stride": 4}),
}


@pytest.mark.some(3)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, rng):
    """Windows that reach several blocks, or none."""
    length, options = WINDOWS[name]
    data = problem(rng, (length,), options["kernel_size"], heads=2, kv_heads=1)
    run = gradient(in_blocks(mesh_of("auto", (8,), ("x",)), "x", P(None, "x"), **options))
    assert_same(jax.jit(run)(*data), jax.jit(gradient(attend(**options)))(*data))


UNEVEN = {
    "a little": ((32,), (29,), {"kernel_size": (5,), "stride": 2}),
    "causal and dilated": ((32,), (25,), {"kernel_size": (9,), "dilation": 2, "is_causal": True}),
    "blocks of nothing but padding": ((32,), (19,), {"kernel_size": (9,)}),
    "2d": ((16, 3), (13, 3), {"kernel_size": (5, 2), "stride": (2, 1)}),
}


def pad(x, grid):
    """Zeros after the end of every spatial axis."""
    widths = [(0, 0)] * x.ndim
    for a, n in enumerate(grid):
        widths[1 + a] = (0, n - x.shape[1 + a])
    return np.pad(x, widths)


@pytest.mark.some(3)
@pytest.mark.parametrize("implementation", helpers.available("fused", "gemm", "xla"))
@pytest.mark.parametrize("name", UNEVEN)
def test_uneven(name, implementation, rng):
    """Lengths that do not divide: the last blocks end in padding, where results and gradients are 0."""
    padded, length, options = UNEVEN[name]
    inputs, cotangents = problem(rng, length, options["kernel_size"], heads=2, kv_heads=1)
    expected = jax.jit(gradient(attend(implementation, **options)))(inputs, cotangents)
    names = ("x", *[None] * (len(length) - 1))
    mesh = mesh_of("auto", (8,), ("x",))
    run = gradient(in_blocks(mesh, names, P(None, "x"), implementation, length=length, **options))
    wide = {name: x if name == "rpb" else pad(x, padded) for name, x in inputs.items()}
    garbage = tuple(pad(c, padded) for c in cotangents)
    results, gradients = jax.jit(run)(wide, garbage)
    expected_gradients = {n: x if n == "rpb" else pad(x, padded) for n, x in expected[1].items()}
    assert_same((results, gradients), (tuple(pad(x, padded) for x in expected[0]), expected_gradients))


def test_padding_counts_for_nothing(rng):
    """Whatever it holds and whatever its cotangents are."""
    padded, length, options = UNEVEN["a little"]
    inputs, cotangents = problem(rng, padded, (5,), heads=2, kv_heads=1)
    run = gradient(in_blocks(mesh_of("auto", (8,), ("x",)), "x", P(None, "x"), length=length, **options))
    found = jax.jit(run)(inputs, cotangents)
    real = {n: x if n == "rpb" else x[:, : length[0]] for n, x in inputs.items()}
    expected = jax.jit(gradient(attend(**options)))(real, tuple(c[:, : length[0]] for c in cotangents))
    cut = jax.tree.map(lambda x: x[:, : length[0]] if x.shape[1] == padded[0] else x, found)
    assert_same(cut, expected)


def test_tokens(rng):
    """Additional tokens are those of the whole batch entry."""
    inputs, cotangents = problem(rng, (16,), (5,), rpb=False)
    for name in ("additional_keys", "additional_values"):
        inputs[name] = rng.standard_normal((2, 3, 2, 4)).astype(np.float32)
    run = gradient(in_blocks(mesh_of("auto", (8,), ("x",)), "x", P(None, "x"), kernel_size=(5,)))
    found, expected = jax.jit(run)(inputs, cotangents), jax.jit(gradient(attend(kernel_size=(5,))))
    assert_same(found, expected(inputs, cotangents))


def test_compiler_axes_beside_manual_ones(rng):
    """Inside a shard_map over some axes, batch and heads may be split over the others; space is an error."""
    mesh = mesh_of("auto", (4, 2), ("data", "model"))
    inputs, _ = problem(rng, (8,), (3,), batch=(4,), rpb=False)
    forward = attend(kernel_size=(3,))
    part = jax.jit(
        jax.shard_map(
            forward, mesh=mesh, in_specs=(P("data"),), out_specs=(P("data"), P("data")), axis_names={"data"}
        )
    )

    def lay(spec):
        return {name: jax.device_put(x, NamedSharding(mesh, spec)) for name, x in inputs.items()}

    heads = lay(P("data", None, "model"))
    assert collectives(part.lower(heads).compile()) == {}
    assert_same(part(heads), jax.jit(forward)(inputs))
    with pytest.raises(jax.errors.JaxRuntimeError, match="make all axes of the mesh manual"):
        part(lay(P("data", "model")))


WRONG = {
    "entries": ({"axis_names": ("x", None)}, "has 2 entries, one per spatial axis are 1"),
    "name": ({"axis_names": "z"}, "'z', not all of which are manual axes"),
    "twice": ({"axis_names": (("x", "x"),)}, "has a mesh axis twice"),
    "too long": ({"axis_names": "x", "length": 17}, "length 17 of spatial axis 0 does not fit 8 blocks of 2"),
    "window": ({"axis_names": "x", "kernel_size": (17,)}, "kernel_size 17 .* exceeds length 16"),
}


@pytest.mark.parametrize("reason", WRONG)
def test_errors(reason):
    options, message = WRONG[reason]
    x = jnp.ones((1, 16, 1, 2))

    def block(x):
        return jax_na.sharded_neighborhood_attention(x, x, x, **({"kernel_size": (3,)} | options))

    mesh = mesh_of("auto", (8,), ("x",))
    with pytest.raises(ValueError, match=message):
        jax.shard_map(block, mesh=mesh, in_specs=P(None, "x"), out_specs=P(None, "x"))(x)
