# SPDX-License-Identifier: Apache-2.0
"""Axes that wrap around, against attention by definition."""

import dataclasses

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood

from . import helpers, oracle
from .cases import Case

pytestmark = pytest.mark.usefixtures("quick_compile")
EVERY = {"is_periodic": True, "heads": 4, "kv_heads": 2}
CASES = (
    Case("plain", (12,), 5, rpb=True, half=True, **EVERY),
    Case("whole circle", (9,), 9, rpb=True, **EVERY),
    Case("one block", (6,), 6, stride=6, rpb=True, additional=2, **EVERY),
    Case("blocks", (12,), 4, stride=4, rpb=True, **EVERY),
    Case("even window", (10,), 4, value_dim=3, batch=(2, 3), **EVERY),
    Case("dilated", (12,), 3, dilation=4, additional=3, **EVERY),
    Case("strided", (24,), 7, stride=3, dilation=2, rpb=True, half=True, **EVERY),
    Case("strided, even", (16,), 8, stride=4, head_dim=5, **EVERY),
    Case("longitude", (7, 12), 5, dilation=(1, 2), rpb=True, **EVERY | {"is_periodic": (False, True)}),
    Case("torus", (8, 9), (3, 5), stride=(2, 1), rpb=True, additional=1, **EVERY),
    Case("one head", (8, 9), (8, 2), is_periodic=True, heads=3, kv_heads=1),
    Case("causal beside", (7, 8), 3, is_causal=(True, False), **EVERY | {"is_periodic": (False, True)}),
    Case("3d", (4, 5, 6), 3, rpb=True, **EVERY | {"is_periodic": (False, True, True)}),
)
NAMED = {case.name: case for case in CASES}
HALF = [(case, dtype) for case in CASES if case.half for dtype in ("bfloat16", "float16")]


@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case, implementation, rng):
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)


@pytest.mark.some(2)
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), HALF, ids=str)
def test_half_precision(case, dtype, implementation, rng):
    dtype = jnp.dtype(dtype)
    inputs, cotangents = case.inputs(rng, dtype), case.cotangents(rng, dtype)
    if case.rpb:
        inputs["rpb"] = inputs["rpb"].astype(np.float32)
    found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_a_neighborhood_tells(case):
    """Indices, masks, bounds and keys are those of the rule."""
    n, mask = Neighborhood(**case.spec), case.geometry.mask
    slots = case.geometry.to_slots(np.broadcast_to(np.arange(mask.shape[1]), mask.shape), -1)
    np.testing.assert_array_equal(n.indices(case.grid).reshape(slots.shape), slots)
    np.testing.assert_array_equal(n.mask(case.grid).reshape(mask.shape), mask)
    assert n.flops(case.grid, 1, 1, 0) == 2 * mask.sum()
    for axis, bounds, d in zip(case.axes, n.bounds(case.grid), n.dilation, strict=True):
        for x, (start, stop) in enumerate(bounds):
            seen = [key for key in oracle.slots(axis, x) if key is not None]
            assert (np.arange(start, stop, d) % axis.length).tolist() == seen
    region = [(length // 2, length // 2 + 1) for length in case.grid]
    keys = n.keys_of(case.grid, region)
    query = tuple(start for start, _ in region)
    seen = [b[x] for b, x in zip(n.bounds(case.grid), query, strict=True)]
    assert keys == tuple(map(tuple, seen))


def test_what_runs():
    """Rows of implementations are about the call that kernels get: all take it, and None takes one."""
    rows = jax_na.implementations(X, (3,), is_periodic=True)
    assert {row.name for row in rows if row.available} == set(helpers.IMPLEMENTATIONS)
    assert sum(row.taken for row in rows) == 1


def test_halves(rng):
    """Scores and weighted sums give what attention gives."""
    case = dataclasses.replace(NAMED["torus"], additional=0)
    n = Neighborhood(**case.spec)
    query, key, value, rpb = case.inputs(rng).values()
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


def test_vmap_of_a_gradient(rng):
    """Mapped over a new axis: the same as a batch."""
    case = NAMED["strided"]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    batch = {name: np.stack([x, 2 * x]) for name, x in inputs.items() if name != "rpb"}
    attend = helpers.attend(case, None)

    def gradients(arrays):
        _, pull = jax.vjp(lambda arrays: attend(**arrays, rpb=inputs["rpb"]), arrays)
        return pull(cotangents)[0]

    mapped = jax.jit(jax.vmap(gradients))(batch)
    for i in range(2):
        helpers.assert_alike(
            [x[i] for x in jax.tree.leaves(mapped)], gradients({n: x[i] for n, x in batch.items()})
        )


def test_export(rng):
    """A program for any batch size, with its gradient."""
    n = Neighborhood((5,), dilation=2, is_periodic=True)

    def gradient(q, k, v):
        return jax.grad(lambda *x: jnp.sum(jnp.sin(jax_na.neighborhood_attention(*x, n))), (0, 1, 2))(q, k, v)

    (batch,) = jax.export.symbolic_shape("b")
    types = [jax.ShapeDtypeStruct((batch, 12, 2, 8), np.float32)] * 3
    checks = jax_na.export_safety_checks()
    exported = jax.export.export(jax.jit(gradient), disabled_checks=checks)(*types)
    arrays = rng.standard_normal((3, 4, 12, 2, 8), np.float32)
    helpers.assert_alike(exported.call(*arrays), gradient(*arrays))


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
    padded = layer(x[:, :2])  # along the other axis
    np.testing.assert_allclose(layer(np.roll(x[:, :2], 3, 2)), np.roll(padded, 3, 2), rtol=1e-4, atol=1e-5)
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
        r"region_attention takes no periodic axes, got kernel 3, periodic; give keys continued",
    ),
    "no flag": (lambda: Neighborhood(3, is_periodic=1), "is_periodic must be True or False"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    function, message = ERRORS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        function()
