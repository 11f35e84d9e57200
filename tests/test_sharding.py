# SPDX-License-Identifier: Apache-2.0
"""Attention over eight devices: the same values, and no more communication than the windows need."""

import functools
import warnings
from collections import Counter

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jax_na
from jax_na.mesh import communication

from . import helpers

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
every_kind = pytest.mark.parametrize("kind", KINDS)
ARRAYS = ("query", "key", "value", "rpb")
TOLERANCE = 1e-6


def mesh_of(kind, sizes, names):
    return jax.make_mesh(sizes, names, axis_types=(KINDS[kind],) * len(names))


def problem(rng, grid, kernel_size, batch=(2,), heads=4, kv_heads=2, head_dim=4, rpb=True):
    """Inputs by name and the cotangents of (out, lse)."""
    kv = (*batch, *grid, kv_heads, head_dim)
    shapes = {"query": (*batch, *grid, heads, head_dim), "key": kv, "value": kv}
    if rpb:
        shapes["rpb"] = (heads, *(2 * w - 1 for w in kernel_size))
    inputs = {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    out = shapes["query"]
    return inputs, tuple(rng.standard_normal(s).astype(np.float32) for s in (out, out[:-1]))


def put(mesh, spec, inputs, cotangents, rpb=None):
    """Arrays laid out over the mesh."""
    specs = {name: (rpb or P()) if name == "rpb" else spec for name in inputs}
    laid = {name: jax.device_put(x, NamedSharding(mesh, specs[name])) for name, x in inputs.items()}
    short = P(*tuple(spec)[: cotangents[1].ndim])
    return laid, tuple(
        jax.device_put(c, NamedSharding(mesh, s)) for c, s in zip(cotangents, (spec, short), strict=True)
    )


def attend(implementation=None, **options):
    """inputs -> (out, lse)"""

    def function(inputs):
        return jax_na.neighborhood_attention(
            **inputs, return_lse=True, implementation=implementation, **options
        )

    return function


def gradient(function):
    """(inputs, cotangents) -> results, gradients by all inputs"""

    def both(inputs, cotangents):
        results, pull = jax.vjp(function, inputs)
        return results, pull(cotangents)[0]

    return both


def collectives(compiled):
    """How many there are of each kind."""
    return Counter(c.kind for c in communication.collectives(compiled))


def assert_same(found, expected):
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    errors = [helpers.relative_error(x, y) for x, y in zip(found, expected, strict=True)]
    assert max(errors) <= TOLERANCE, errors


def compile_and_run(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled(*arguments), collectives(compiled)


# Batch and heads.


def entries(x):
    """The PartitionSpec of an array without trailing None."""
    spec = list(x.sharding.spec)
    while spec and spec[-1] is None:
        spec.pop()
    return tuple(spec)


@every_implementation
@every_kind
@pytest.mark.parametrize("rpb", [False, True])
def test_batch_and_heads(kind, implementation, rpb, rng):
    """No communication, forward and backward, but for the sum of the bias's gradient over the batch."""
    mesh, spec = mesh_of(kind, (4, 2), ("data", "model")), P("data", None, "model")
    data = problem(rng, (9,), (3,), batch=(4,), rpb=rpb)
    laid = put(mesh, spec, *data, rpb=P("model"))
    run = gradient(attend(implementation, kernel_size=(3,)))
    found, counts = compile_and_run(run, *laid)
    assert counts == ({"all-reduce": 1} if rpb else {})
    assert_same(found, jax.jit(run)(*data))
    assert all(entries(x) == tuple(spec) for x in found[0])
    assert all(entries(found[1][name]) == tuple(spec) for name in ARRAYS[:3])


@every_kind
def test_one_kv_head_goes_everywhere(kind, rng):
    """Shared by all heads, it costs nothing forward."""
    mesh, spec = mesh_of(kind, (2, 4), ("data", "model")), P("data", None, "model")
    (inputs, cotangents) = problem(rng, (9,), (3,), kv_heads=1, rpb=False)
    laid, cotangents_laid = put(mesh, P("data"), inputs, cotangents)
    laid["query"] = jax.device_put(inputs["query"], NamedSharding(mesh, spec))
    cotangents_laid = put(mesh, spec, {}, cotangents)[1]
    forward = attend(kernel_size=(3,))
    found, counts = compile_and_run(forward, laid)
    assert counts == {}
    assert_same(found, jax.jit(forward)(inputs))
    assert entries(found[0]) == tuple(spec)
    run = gradient(forward)
    assert_same(jax.jit(run)(laid, cotangents_laid), jax.jit(run)(inputs, cotangents))


def test_kv_heads_that_do_not_divide(rng):
    """They are gathered, and a warning says so once."""
    mesh, spec = mesh_of("auto", (4, 2), ("model", "rest")), P(None, None, "model")
    inputs, cotangents = problem(rng, (11,), (3,), heads=4, kv_heads=2)
    laid, _ = put(mesh, P(), inputs, cotangents)
    laid["query"] = jax.device_put(inputs["query"], NamedSharding(mesh, spec))
    forward = attend(kernel_size=(3,))
    with pytest.warns(UserWarning, match="gathers axis 2 .* 2 heads do not divide over 4 devices"):
        found = jax.jit(forward)(laid)
    assert_same(found, jax.jit(forward)(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.jit(lambda x: forward(x))(laid)


@every_kind
def test_features_are_gathered(kind, rng):
    mesh = mesh_of(kind, (2,), ("model",))
    grid = (13,) if kind == "auto" else (14,)  # the warning comes once per shape
    inputs, cotangents = problem(rng, grid, (3,))
    laid, _ = put(mesh, P(), inputs, cotangents)
    laid["key"] = jax.device_put(inputs["key"], NamedSharding(mesh, P(None, None, None, "model")))
    forward = attend(kernel_size=(3,))
    with pytest.warns(UserWarning, match="gathers axis 3 .* split over model: every device needs all"):
        found = jax.jit(forward)(laid)
    assert_same(found, jax.jit(forward)(inputs))


def test_a_bias_split_where_queries_are_not(rng):
    mesh = mesh_of("explicit", (2,), ("model",))
    inputs, cotangents = problem(rng, (12,), (3,))
    laid, _ = put(mesh, P(), inputs, cotangents, rpb=P("model"))
    forward = attend(kernel_size=(3,))
    with pytest.warns(UserWarning, match=r"gathers axis 0 of an array of shape \(4, 5\), split over model"):
        found = jax.jit(forward)(laid)
    assert_same(found, jax.jit(forward)(inputs))


@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map(check_vma, rng):
    """Manual axes: the calls are local."""
    mesh, spec = mesh_of("auto", (4, 2), ("data", "model")), P("data", None, "model")
    inputs, cotangents = problem(rng, (9,), (3,), batch=(4,), rpb=False)
    forward = attend(kernel_size=(3,))
    blocks = jax.shard_map(forward, mesh=mesh, in_specs=(spec,), out_specs=(spec, spec), check_vma=check_vma)
    found, counts = compile_and_run(gradient(blocks), *put(mesh, spec, inputs, cotangents))
    assert counts == {}
    assert_same(found, jax.jit(gradient(forward))(inputs, cotangents))


def test_pmap(rng):
    inputs, cotangents = problem(rng, (9,), (3,), batch=(8, 1), rpb=False)
    run = gradient(attend(kernel_size=(3,)))
    assert_same(jax.pmap(run)(inputs, cotangents), jax.jit(run)(inputs, cotangents))


@every_kind
def test_vmap(kind, rng):
    """The mapped axis is a batch axis like others."""
    mesh, spec = mesh_of(kind, (2, 4), ("data", "x")), P(None, "data", "x")
    inputs, _ = problem(rng, (3, 16), (5,), batch=(2,), rpb=False)
    moved = {name: x.swapaxes(0, 1) for name, x in inputs.items()}
    forward = jax.vmap(attend(kernel_size=(5,)))
    laid = {name: jax.device_put(x, NamedSharding(mesh, spec)) for name, x in moved.items()}
    found, counts = compile_and_run(forward, laid)
    assert set(counts) == {"collective-permute"}
    assert_same(found, jax.jit(forward)(moved))


# Space.

SPACE = {
    "1d": ((16,), {"kernel_size": (5,)}, (4, 2), P("b", "a")),
    "stride and dilation": (
        (24,),
        {"kernel_size": (4,), "stride": 3, "dilation": 2},
        (4, 2),
        P(None, "a", "b"),
    ),
    "wide": ((16,), {"kernel_size": (9,)}, (8, 1), P(None, "a")),
    "everything": ((16,), {"kernel_size": (16,)}, (4, 2), P("b", "a")),
    "everything over two": ((8,), {"kernel_size": (8,)}, (4, 2), P(None, ("b", "a"))),
    "two mesh axes": ((16,), {"kernel_size": (3,), "is_causal": True}, (4, 2), P(None, ("b", "a"))),
    "2d": (
        (8, 12),
        {"kernel_size": (3, 5), "stride": (2, 1), "dilation": (1, 2), "is_causal": (True, False)},
        (2, 4),
        P(None, "a", "b"),
    ),
    "2d and heads": ((8, 4), {"kernel_size": (3, 3)}, (4, 2), P(None, "a", None, "b")),
    "3d": ((4, 4, 6), {"kernel_size": (3, 2, 3), "dilation": (1, 2, 1)}, (2, 2, 2), P("b", "a", None, "c")),
}


@pytest.mark.some(5)
@every_implementation
@every_kind
@pytest.mark.parametrize("name", SPACE)
def test_space(name, kind, implementation, rng):
    """Halos travel, keys do not."""
    grid, options, sizes, spec = SPACE[name]
    mesh = mesh_of(kind, sizes, ("a", "b", "c")[: len(sizes)])
    data = problem(rng, grid, options["kernel_size"])
    run = gradient(attend(implementation, **options))
    found, counts = compile_and_run(run, *put(mesh, spec, *data))
    moving = {"all-gather", "reduce-scatter"} if "everything" in name else {"collective-permute"}
    heads_split = kind == "explicit" and len(spec) > 1 + len(grid)
    bias = {"all-gather"} if heads_split else set()  # its gradient is whole, as its type says
    assert set(counts) <= moving | bias | {"all-reduce"}
    assert moving & set(counts)
    assert_same(found, jax.jit(run)(*data))
    assert [entries(x) for x in found[0]] == [tuple(spec)] * 2


@pytest.mark.some(1)
@every_kind
def test_second_order(kind, rng):
    """A Hessian-vector product, forward over reverse."""
    mesh, spec = mesh_of(kind, (4, 2), ("a", "b")), P("b", "a")
    inputs, cotangents = problem(rng, (16,), (5,))
    forward = attend(kernel_size=(5,))

    def product(inputs, cotangents):
        pull = functools.partial(gradient(forward), cotangents=cotangents)
        return jax.jvp(lambda x: pull(x)[1], (inputs,), (inputs,))[1]

    found = jax.jit(product)(*put(mesh, spec, inputs, cotangents))
    errors = jax.tree.map(helpers.relative_error, found, jax.jit(product)(inputs, cotangents))
    assert max(errors.values()) <= 5e-6


@every_kind
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (7,)},
        {"kernel_size": (12,)},
        {"kernel_size": (5,), "dilation": 2, "stride": 3},
        {"kernel_size": (6,), "is_causal": True},
    ],
)
def test_communication_is_the_halo(kind, options, rng):
    """Forward: keys and values that windows reach outside of the shard, once."""
    length, n = 64, 8
    local = length // n
    mesh, spec = mesh_of(kind, (n,), ("x",)), P(None, "x")
    inputs, cotangents = problem(rng, (length,), (1,), rpb=False)
    laid, _ = put(mesh, spec, inputs, cotangents)
    compiled = jax.jit(attend(**options)).lower(laid).compile()
    assert set(collectives(compiled)) == {"collective-permute"}
    bounds = jax_na.Neighborhood(**options).bounds((length,))[0].reshape(n, local, 2)
    left = np.maximum(np.arange(n) * local - bounds[..., 0].min(1), 0)
    right = np.maximum(bounds[..., 1].max(1) - np.arange(1, n + 1) * local, 0)
    rows = sum(side.max() * np.count_nonzero(side) for side in (left, right))
    token = sum(x[:, 0].nbytes for x in (inputs["key"], inputs["value"]))
    received = communication.received(communication.collectives(compiled))
    assert 0 < received.total() <= rows * token
