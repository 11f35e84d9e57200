# SPDX-License-Identifier: Apache-2.0
"""Axes that wrap around, against the rule written out: gathered keys, in float64."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jax_na
from jax_na import Neighborhood

from . import helpers

# length, window: [kernel_size, stride, dilation, is_causal, is_periodic]
CASES = {
    "1d": ((12,), ((5,), 1, 1, False, True)),
    "whole circle": ((9,), ((9,), 1, 1, False, True)),
    "even window": ((10,), ((4,), 1, 1, False, True)),
    "dilated": ((12,), ((3,), 1, 4, False, True)),
    "strided": ((24,), ((7,), 3, 2, False, True)),
    "strided, even": ((16,), ((4,), 4, 1, False, True)),
    "longitude": ((7, 12), ((5, 5), 1, (1, 2), False, (False, True))),
    "torus": ((8, 9), ((3, 5), (2, 1), 1, False, True)),
    "causal beside": ((7, 8), ((3, 3), 1, 1, (True, False), (False, True))),
    "3d": ((4, 5, 6), ((3, 3, 3), 1, 1, False, (False, True, True))),
}
pytestmark = pytest.mark.usefixtures("quick_compile")
HEADS, KV_HEADS, DIM = 4, 2, 8


def line(axis, length, n):
    """Keys and whether they exist, [length, w], indices into a bias, of an axis: the rule, word by word."""
    w, s, d = n.kernel_size[axis], n.stride[axis], n.dilation[axis]
    keys, seen, bias = (np.zeros((length, w), int) for _ in range(3))
    for x in range(length):
        group, i = x % d, x // d
        size = -(-(length - group) // d)
        if n.is_periodic[axis]:
            start = i // s * s + s // 2 - w // 2
            stop = start + w
        else:
            lead = min(i // s * s + s // 2, size - 1) if not n.is_causal[axis] else i
            start = max(i - w + 1, 0) if n.is_causal[axis] else min(max(lead - w // 2, 0), size - w)
            stop = i + 1 if n.is_causal[axis] else start + w
        for j in range(w):
            position = start + j
            keys[x, j] = position % size * d + group
            seen[x, j] = position < stop
            bias[x, j] = min(max(position - i + w - 1, 0), 2 * w - 2)
    return keys, seen, bias


def slots(grid, n):
    """[queries, slots] each: flat keys, whether they exist, and flat indices into a bias."""
    lines = [line(a, length, n) for a, length in enumerate(grid)]
    queries, windows = (
        [*itertools.product(*map(range, grid))],
        [*itertools.product(*map(range, n.kernel_size))],
    )
    found = np.zeros((3, len(queries), len(windows)), int)
    sizes = [2 * w - 1 for w in n.kernel_size]
    for q, query in enumerate(queries):
        for j, slot in enumerate(windows):
            parts = [
                [t[x, i] for t, x, i in zip(kind, query, slot, strict=True)]
                for kind in zip(*lines, strict=True)
            ]
            keys, seen, bias = parts
            found[:, q, j] = np.ravel_multi_index(keys, grid), all(seen), np.ravel_multi_index(bias, sizes)
    return found


def expected(query, key, value, rpb, found):
    """(out, lse), of [tokens, heads, features]."""
    keys, seen, bias = found
    key, value = (jnp.repeat(x, HEADS // KV_HEADS, 1)[keys] for x in (key, value))
    scores = DIM**-0.5 * jnp.einsum("qhd,qjhd->qhj", query, key)
    scores += rpb.reshape(HEADS, -1)[:, bias].transpose(1, 0, 2)
    scores = jnp.where(seen[:, None].astype(bool), scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, -1)
    return jnp.einsum("qhj,qjhd->qhd", jnp.exp(scores - lse[..., None]), value), lse


def inputs(rng, grid, n):
    shapes = [(*grid, HEADS, DIM), (*grid, KV_HEADS, DIM), (*grid, KV_HEADS, DIM)]
    shapes.append((HEADS, *(2 * w - 1 for w in n.kernel_size)))
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients(name, implementation, rng, x64):
    grid, window = CASES[name]
    n = Neighborhood(*window)
    arrays = inputs(rng, grid, n)
    tokens = math.prod(grid)
    cotangents = rng.standard_normal((*grid, HEADS, DIM)), rng.standard_normal((*grid, HEADS))

    def attend(query, key, value, rpb):
        return jax_na.neighborhood_attention(
            query, key, value, n, rpb=rpb, return_lse=True, implementation=implementation
        )

    found = slots(grid, n)
    flat = [x.reshape(tokens, *x.shape[len(grid) :]).astype(float) for x in arrays[:3]]

    @jax.jit
    def oracle(arrays, cotangents):
        results, pull = jax.vjp(lambda *x: expected(*x, found), *arrays)
        return results, pull(cotangents)

    right, gradients = oracle(
        (*flat, arrays[3].astype(float)), tuple(x.reshape(tokens, *x.shape[len(grid) :]) for x in cotangents)
    )

    @jax.jit
    def both(arrays, cotangents):
        results, pull = jax.vjp(attend, *arrays)
        return results, pull(cotangents)

    results, own = both(arrays, tuple(np.float32(x) for x in cotangents))
    for x, y in zip((*results, *own), (*right, *gradients), strict=True):
        assert helpers.relative_error(np.asarray(x).reshape(y.shape), y) < 2e-5


@pytest.mark.parametrize("name", CASES)
def test_what_a_neighborhood_tells(name):
    """Indices, masks and bounds are those of the rule."""
    grid, window = CASES[name]
    n = Neighborhood(*window)
    keys, seen, _ = slots(grid, n)
    indices = n.indices(grid).reshape(keys.shape)
    np.testing.assert_array_equal(indices, np.where(seen, keys, -1))
    mask = np.zeros((len(keys), len(keys)), bool)
    for query, (row, exists) in enumerate(zip(keys, seen, strict=True)):
        mask[query, row[exists.astype(bool)]] = True
    np.testing.assert_array_equal(n.mask(grid).reshape(mask.shape), mask)
    assert n.flops(grid, 1, 1, 0) == 2 * mask.sum()
    for a, bounds in enumerate(n.bounds(grid)):
        line_keys, line_seen, _ = line(a, grid[a], n)
        for x, (start, stop) in enumerate(bounds):
            own = np.arange(start, stop, n.dilation[a]) % grid[a]
            assert own.tolist() == line_keys[x][line_seen[x].astype(bool)].tolist()


def test_halves(rng):
    """Scores and weighted sums give what attention gives."""
    grid, window = CASES["torus"]
    n = Neighborhood(*window)
    query, key, value, rpb = inputs(rng, grid, n)
    scores = jax_na.neighborhood_qk(query, key, n, scale=None, rpb=rpb)
    out = jax_na.neighborhood_av(jax.nn.softmax(scores), value, n)
    whole = jax_na.neighborhood_attention(query, key, value, n, rpb=rpb)
    np.testing.assert_allclose(out, whole, rtol=1e-4, atol=1e-5)


def test_turning(rng):
    """Around a circle there is no first token: turned inputs give turned results, under jit and vmap too."""
    query, key, value = (rng.standard_normal((3, 24, 2, 8), np.float32) for _ in range(3))

    @jax.jit
    def attend(*arrays):
        return jax.vmap(lambda q, k, v: jax_na.na1d(q, k, v, 5, dilation=2, is_periodic=True))(*arrays)

    turned = attend(*(np.roll(x, 6, 1) for x in (query, key, value)))
    np.testing.assert_allclose(turned, np.roll(attend(query, key, value), 6, 1), rtol=1e-5, atol=1e-6)


def test_tokens_and_second_order(rng):
    """Additional tokens are seen besides; second derivatives are those of "xla"."""
    query, key, value = (rng.standard_normal((10, 2, 8), np.float32) for _ in range(3))
    tokens = rng.standard_normal((2, 3, 2, 8), np.float32)

    def loss(query, implementation):
        options = {"additional_keys": tokens[0], "additional_values": tokens[1], "is_periodic": True}
        return jnp.sum(jnp.sin(jax_na.na1d(query, key, value, 5, implementation=implementation, **options)))

    def second(implementation):
        return jax.jit(jax.grad(lambda x: jnp.sum(jax.grad(loss)(x, implementation) ** 2)))(query)

    assert helpers.relative_error(second(None), second("xla")) < 1e-4


WINDOWS = {
    "one axis": Neighborhood((5, 5), is_periodic=(False, True)),
    "torus": Neighborhood((5, 4), dilation=(1, 2), is_periodic=True),
    "wide": Neighborhood((15, 23), is_periodic=True),
    "strided": Neighborhood((6, 9), stride=(4, 3), is_periodic=True),
}
SPECS = [("x", None, None), (None, "x", None), (None, "x", "y"), (None, None, ("y", "x"))]
needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def loss_of(n, implementation=None):
    def loss(query, key, value, rpb):
        attend = jax_na.neighborhood_attention
        out, lse = attend(query, key, value, n, rpb=rpb, return_lse=True, implementation=implementation)
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse**2)

    return loss


def on_mesh(rng, n, spec, kind):
    """A mesh, and arrays of a problem that lie on it, all but a bias cut by this spec."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    shapes = [(4, 16, 24, HEADS, 8), *[(4, 16, 24, KV_HEADS, 8)] * 2]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    rpb = rng.standard_normal((HEADS, *(2 * w - 1 for w in n.kernel_size)), np.float32)
    placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec))) for x in arrays]
    return mesh, [*placed, jax.device_put(rpb, jax.NamedSharding(mesh, jax.P()))]


def assert_alike(found, expected, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert helpers.relative_error(x, y) < tolerance


@needs_eight
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_sharded(name, spec, kind, rng, recwarn):
    """Batches and both axes cut over devices: what one device computes, by a ring of halos."""
    n = WINDOWS[name]
    mesh, placed = on_mesh(rng, n, spec, kind)
    both = jax.value_and_grad(loss_of(n), argnums=(0, 1, 2, 3))
    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(*placed).compile()
    assert "all-gather" not in program.as_text()
    assert not [w for w in recwarn if "gathers" in str(w.message)]
    assert_alike(program(*placed), jax.jit(both)(*map(np.asarray, placed)))


@needs_eight
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
def test_sharded_second_order(implementation, rng):
    """The derivative of a gradient, under a mesh."""
    n = WINDOWS["torus"]
    _, placed = on_mesh(rng, n, (None, "x", "y"), AxisType.Auto)
    loss = loss_of(n, implementation)

    def second(*arrays):
        return jax.jvp(jax.grad(loss, argnums=(0, 1, 2, 3)), arrays, arrays)[1]

    assert_alike(jax.jit(second)(*placed), jax.jit(second)(*map(np.asarray, placed)), 1e-4)


@needs_eight
@pytest.mark.parametrize("spec", [("x", None, None), ("x", None, "y")], ids=str)
def test_second_order_in_shard_map(spec, rng):
    """The derivative of a gradient; the periodic axis is whole in a block, or cut."""
    n = WINDOWS["one axis"]
    mesh, placed = on_mesh(rng, n, spec, AxisType.Auto)

    def block(*arrays):
        attend = jax_na.sharded_neighborhood_attention
        return attend(*arrays, n, axis_names=spec[1:])

    blocks = jax.shard_map(block, mesh=mesh, in_specs=(jax.P(*spec),) * 3, out_specs=jax.P(*spec))

    def second(attend):
        gradient = jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2))
        return jax.jit(lambda *arrays: jax.jvp(gradient, arrays, arrays)[1])

    def whole(*arrays):
        return jax_na.neighborhood_attention(*arrays, n)

    arrays = placed[:3]
    assert_alike(second(blocks)(*arrays), second(whole)(*map(np.asarray, arrays)), 1e-4)


@needs_eight
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_sharded_function(name, spec, rng):
    """Inside shard_map, gradients included."""
    n = WINDOWS[name]
    mesh, placed = on_mesh(rng, n, spec, AxisType.Auto)

    def block(*arrays):
        attend = jax_na.sharded_neighborhood_attention
        return attend(*arrays, n, axis_names=spec[1:])

    blocks = jax.shard_map(block, mesh=mesh, in_specs=(jax.P(*spec),) * 3, out_specs=jax.P(*spec))

    def whole(*arrays):
        return jax_na.neighborhood_attention(*arrays, n)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2)))

    arrays = placed[:3]
    assert_alike(gradients(blocks)(*arrays), gradients(whole)(*map(np.asarray, arrays)))


@needs_eight
def test_padding_of_blocks():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def block(x):
        attend = jax_na.sharded_neighborhood_attention
        return attend(x, x, x, (3,), axis_names="x", length=15, is_periodic=True)

    message = "length 15 of periodic axis 0 leaves padding in 8 blocks of 2; legal is 16"
    with pytest.raises(ValueError, match=message):
        jax.shard_map(block, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"))(np.zeros((16, 2, 8)))


def test_layers(rng):
    """The option of both layers; no padding, which would tear the circle."""
    nnx = pytest.importorskip("flax.nnx", reason="layers need flax")
    from flax_layers import NeighborhoodAttention
    from flax_layers.nnx import NeighborhoodAttention as OfNNX

    x = rng.standard_normal((2, 8, 8, 16), np.float32)
    periodic = (False, True)
    layer = OfNNX(2, 16, (3, 3), is_periodic=periodic, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer(np.roll(x, 3, 2)), np.roll(layer(x), 3, 2), rtol=1e-4, atol=1e-5)
    linen = NeighborhoodAttention(2, (3, 3), is_periodic=periodic)
    variables = linen.init(jax.random.key(0), x)
    turned = linen.apply(variables, np.roll(x, 3, 2))
    np.testing.assert_allclose(turned, np.roll(linen.apply(variables, x), 3, 2), rtol=1e-4, atol=1e-5)
    layer(x[:, :2])  # the other axis is padded
    with pytest.raises(ValueError, match=r"kernel_size 3 .* exceeds length 2 of spatial axis 1"):
        layer(x[:, :, :2])


X = np.zeros((12, 2, 8), np.float32)
ERRORS = {
    "causal": (lambda: Neighborhood((3,), is_causal=True, is_periodic=True), "axis 0 is causal and periodic"),
    "no multiple": (
        lambda: jax_na.na1d(X[:10], X[:10], X[:10], 3, dilation=3, is_periodic=True),
        r"length 10 of periodic axis 0 must be a multiple of .* dilation 3 = 3; the nearest is 9 or 12",
    ),
    "too long": (
        lambda: jax_na.na1d(X, X, X, 5, dilation=3, is_periodic=True),
        "the largest legal kernel_size with dilation 3 is 4",
    ),
    "region": (
        lambda: jax_na.region_attention(
            X, X, X, Neighborhood(3, is_periodic=True), length=12, query_start=0, key_start=0
        ),
        r"region_attention takes no periodic axes, got kernel 3, periodic; give the keys around",
    ),
    "no flag": (lambda: Neighborhood(3, is_periodic=1), "is_periodic must be True or False"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    function, message = ERRORS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        function()
