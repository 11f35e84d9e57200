# SPDX-License-Identifier: Apache-2.0
"""Keys and additional tokens that do not exist, against attention by definition."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import flax_layers.nnx
import jax_na
from jax_na import Neighborhood

from . import helpers, oracle
from .cases import NAMED, Case

pytestmark = pytest.mark.usefixtures("quick_compile")
EVERY = [*helpers.IMPLEMENTATIONS, None]
NAMES = [
    "plain-1d",
    "all-1d",
    "many-tiles",
    "long-kernel",
    "long-causal",
    "stride-even",
    "all-2d",
    "full-axis",
]
NAMES += [
    "wide-kernel-2d",
    "all-3d",
    "multi-query",
    "head-dim-128",
    "tokens-2d",
    "no-batch",
    "batches",
    "batch-0",
]
CASES = (
    *(NAMED[name] for name in NAMES),
    Case("torus", (8, 9), (3, 5), stride=(2, 1), rpb=True, additional=1, is_periodic=True, heads=2),
)
HALF = [(case, dtype) for case in CASES if case.half for dtype in ("bfloat16", "float16")]
SMALL = Case("small", (6, 8), 3, batch=(2,), heads=4, kv_heads=2, head_dim=8, rpb=True)


def masks_of(case, rng, share=0.4):
    """Which keys, and which additional tokens, exist: all but about this share."""
    shapes = case.shapes()
    masks = {"key_mask": rng.random(shapes["key"][:-2]) >= share}
    if case.additional:
        masks["additional_mask"] = rng.random(shapes["additional_keys"][:-2]) >= share
    return masks


def spoil(inputs, masks, value=np.nan):
    """NaN in all that does not exist."""
    of = {"key": "key_mask", "value": "key_mask"}
    of |= {f"additional_{name}": "additional_mask" for name in ("keys", "values")}
    for name, mask in of.items():
        if name in inputs and mask in masks:
            inputs[name][~masks[mask]] = value


def assert_right(case, implementation, inputs, masks, cotangents):
    """Results and all gradients are the oracle's."""
    function = functools.partial(helpers.attend(case, implementation), **masks)
    found = helpers.evaluate(function, inputs, cotangents)
    assert not any(np.isnan(np.asarray(x, np.float32)).any() for x in jax.tree.leaves(found))
    attention = oracle.Attention(case.geometry, {**inputs, **masks}, case.scale)
    tolerance, gradient_tolerance = helpers.TOLERANCE[inputs["query"].dtype.name]
    helpers.assert_same(helpers.named(found[0]), {"out": attention.out, "lse": attention.lse}, tolerance)
    helpers.assert_same(found[1], attention.gradients(*cotangents), gradient_tolerance)


@pytest.mark.some(16)
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_results_and_gradients(case, implementation, rng):
    """Whatever is masked may be NaN; with half of a grid, whole windows are masked."""
    inputs, cotangents, masks = case.inputs(rng), case.cotangents(rng), masks_of(case, rng)
    mask = masks["key_mask"]
    mask[..., : mask.shape[-1] // 2] = False
    spoil(inputs, masks)
    assert_right(case, implementation, inputs, masks, cotangents)


@pytest.mark.some(2)
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize(("case", "dtype"), HALF, ids=str)
def test_half_precision(case, dtype, implementation, rng):
    dtype = jnp.dtype(dtype)
    inputs, cotangents, masks = case.inputs(rng, dtype), case.cotangents(rng, dtype), masks_of(case, rng)
    if case.rpb:
        inputs["rpb"] = inputs["rpb"].astype(np.float32)
    assert_right(case, implementation, inputs, masks, cotangents)


@pytest.mark.parametrize("implementation", EVERY)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_and_nothing(share, implementation, rng):
    """With all keys it is attention without a mask; without any, 0 and -inf."""
    case = dataclasses.replace(SMALL, additional=2)
    inputs, cotangents, masks = case.inputs(rng), case.cotangents(rng), masks_of(case, rng, share)
    assert_right(case, implementation, inputs, masks, cotangents)
    if share == 1.0:
        out, lse = helpers.attend(case, implementation)(**inputs, **masks)
        assert not np.asarray(out).any()
        assert np.all(np.asarray(lse) == -np.inf)


@pytest.mark.some(3)
@pytest.mark.parametrize("implementation", EVERY)
def test_a_padded_image(implementation, rng):
    """Attention of an image is that of a larger one in whose middle it lies, where windows do not slide."""
    q = rng.standard_normal((2, 5, 4, 4, 8)).astype(np.float32)
    k, v = rng.standard_normal((2, 2, 5, 4, 2, 8)).astype(np.float32)
    around = [(0, 0), (4, 4), (3, 3), (0, 0), (0, 0)]
    large = (np.pad(x, around) for x in (q, k, v))
    mask = np.pad(np.ones((5, 4), bool), around[1:3])
    attend = jax_na.neighborhood_attention
    out = attend(*large, (9, 7), key_mask=mask, implementation=implementation)[:, 4:-4, 3:-3]
    dense = jax.nn.dot_product_attention(*(x.reshape(2, 20, -1, 8) for x in (q, k, v)))
    helpers.assert_alike(out, dense.reshape(out.shape))


@pytest.mark.parametrize("implementation", ["gemm", "naive", "xla", None])
def test_unfused(implementation, rng):
    """Slots of masked keys hold -inf, and weights of them nothing."""
    case = dataclasses.replace(NAMED["all-2d"], batch=(2,))
    inputs, masks = case.inputs(rng), masks_of(case, rng)
    options = {"implementation": implementation, **case.spec}
    query, key, value, rpb = (inputs[name] for name in ("query", "key", "value", "rpb"))
    scores = jax_na.neighborhood_qk(query, key, scale=None, rpb=rpb, **masks, **options)
    attention = oracle.Attention(case.geometry, {**inputs, **masks}, case.scale)
    weights = jax.nn.softmax(scores, where=scores > -np.inf)
    out = jax_na.neighborhood_av(weights, value, **options)
    assert helpers.relative_error(out, attention.out) < 2e-6
    seen = attention.geometry.to_slots(attention.seen.astype(float), 0.0)
    assert np.array_equal(np.asarray(scores) > -np.inf, seen.swapaxes(1, 2).reshape(scores.shape) > 0)


@pytest.mark.some(3)
@pytest.mark.parametrize("implementation", EVERY)
def test_region(implementation, rng):
    """The mask lies on the keys that are given."""
    q, k, v = rng.standard_normal((3, 2, 30, 4, 8)).astype(np.float32)
    mask = rng.random((2, 30)) > 0.4
    attend = jax_na.neighborhood_attention
    whole = attend(q, k, v, (7,), key_mask=mask, implementation=implementation)
    part = jax_na.region_attention(
        q[:, 10:20],
        k[:, 5:25],
        v[:, 5:25],
        (7,),
        length=30,
        query_start=10,
        key_start=5,
        key_mask=mask[:, 5:25],
        implementation=implementation,
    )
    helpers.assert_alike(part, whole[:, 10:20])


@pytest.mark.some(3)
@pytest.mark.parametrize("implementation", EVERY)
def test_vmap(implementation, rng):
    """Over the mask alone, with a bias each, and over everything."""
    q, k, v = rng.standard_normal((3, 5, 9, 7, 2, 8)).astype(np.float32)
    rpb, mask = rng.standard_normal((5, 2, 5, 5)).astype(np.float32), rng.random((5, 9, 7)) > 0.4

    def one(q, k, v, rpb, mask):
        attend = jax_na.na2d
        return attend(q, k, v, 3, rpb=rpb, key_mask=mask, implementation=implementation)

    for axes in ((None, None, None, None, 0), (0, 0, 0, None, None), (None, 0, 0, 0, None), (0,) * 5):
        given = [x if a == 0 else x[1] for x, a in zip((q, k, v, rpb, mask), axes, strict=True)]
        every = [one(*(x[i] if a == 0 else x for x, a in zip(given, axes, strict=True))) for i in range(5)]
        helpers.assert_alike(jax.jit(jax.vmap(one, axes))(*given), np.stack(every))


@pytest.mark.some(3)
@pytest.mark.parametrize("implementation", EVERY)
def test_second_order(implementation, rng):
    """The derivative of a gradient is that of attention with a bias for every pair."""
    q, k, v = rng.standard_normal((3, 12, 2, 4)).astype(np.float32)
    mask = np.arange(12) % 3 > 0  # every query sees a key

    def sparse(q, k, v):
        return jax_na.na1d(q, k, v, 5, key_mask=mask, implementation=implementation)

    def dense(q, k, v):
        pairs = Neighborhood((5,)).mask((12,)) & mask
        scores = jnp.where(pairs, jnp.einsum("qhd,khd->hqk", q, k) / 2, -jnp.inf)
        weights = jax.nn.softmax(scores, where=pairs)
        return jnp.einsum("hqk,khd->qhd", weights, v)

    def second(attend):
        gradient = jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2))
        return jax.jvp(gradient, (q, k, v), (k, v, q))[1]

    helpers.assert_alike(second(sparse), second(dense), 1e-5)


SPECS = [
    ("x", None, None),
    (None, "x", None),
    (None, "x", "y"),
    (None, None, ("y", "x"), None),
    (None, None, "x", "y"),
]


def on_mesh(rng, spec, kind):
    """Arrays of a problem that lie on a mesh, cut by this spec."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    shapes = [(4, 16, 24, 4, 8), *[(4, 16, 24, 2, 8)] * 2]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    arrays.append(rng.random((4, 16, 24)) > 0.4)
    specs = [spec] * 3 + [spec[:3]]
    put = zip(arrays, specs, strict=True)
    return mesh, [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*s))) for x, s in put]


def gradients(attend):
    def loss(q, k, v, mask):
        out, lse = attend(q, k, v, mask)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -jnp.inf, lse, 0) ** 2)

    return jax.value_and_grad(loss, argnums=(0, 1, 2))


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.some(4)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize(("is_periodic", "implementation"), [(False, None), (True, "gemm")])
def test_sharded(implementation, is_periodic, spec, kind, rng):
    """The mask of halos travels with them, and nothing is gathered."""
    n = Neighborhood((5, 7), is_periodic=is_periodic)

    def attend(q, k, v, mask):
        options = {"return_lse": True, "implementation": implementation}
        return jax_na.neighborhood_attention(q, k, v, n, key_mask=mask, **options)

    mesh, placed = on_mesh(rng, spec, kind)
    both = gradients(attend)
    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(*placed).compile()
    assert "all-gather" not in program.as_text()
    helpers.assert_alike(program(*placed), jax.jit(both)(*map(np.asarray, placed)))


@pytest.mark.some(2)
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_sharded_function(spec, rng):
    """Inside shard_map every device has the mask of its block."""
    n = Neighborhood((5, 7))
    mesh, placed = on_mesh(rng, spec, AxisType.Auto)

    def block(q, k, v, mask):
        names = spec[1:3]
        attend = jax_na.sharded_neighborhood_attention
        return attend(q, k, v, n, axis_names=names, key_mask=mask, return_lse=True)

    specs = (jax.P(*spec),) * 3 + (jax.P(*spec[:3]),)
    outcome = (jax.P(*spec), jax.P(*spec[:4]))
    blocks = jax.shard_map(block, mesh=mesh, in_specs=specs, out_specs=outcome)

    def whole(q, k, v, mask):
        return jax_na.neighborhood_attention(q, k, v, n, key_mask=mask, return_lse=True)

    expected = jax.jit(gradients(whole))(*map(np.asarray, placed))
    helpers.assert_alike(jax.jit(gradients(blocks))(*placed), expected)


def linen_layer(x, **options):
    layer = flax_layers.NeighborhoodAttention(num_heads=4, **options)
    variables = layer.init(jax.random.key(0), x)
    return functools.partial(layer.apply, variables)


def nnx_layer(x, **options):
    return flax_layers.nnx.NeighborhoodAttention(4, x.shape[-1], rngs=nnx.Rngs(0), **options)


def test_exported(rng):
    """With a symbolic batch, and a mask for all of it."""
    (batch,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 9, 2, 8), np.float32)

    def attend(x, mask):
        return jax_na.na1d(x, x, x, 3, key_mask=mask)

    program = jax.export.export(jax.jit(attend), disabled_checks=jax_na.export_safety_checks())
    exported = program(x, jax.ShapeDtypeStruct((9,), bool))
    q, mask = rng.standard_normal((3, 9, 2, 8)).astype(np.float32), np.arange(9) % 3 > 0
    helpers.assert_alike(exported.call(q, mask), attend(q, mask))


@pytest.mark.parametrize("make", [linen_layer, nnx_layer])
@pytest.mark.parametrize("size", [9, 4])
def test_layers(make, size, rng):
    """What is masked reaches no output; of a grid shorter than the window nobody sees the padding."""
    x = rng.standard_normal((2, size, 16)).astype(np.float32)
    mask = rng.random((2, size)) > 0.4
    apply = make(x, kernel_size=(5,), rel_pos_bias=True, bias_init=nn.initializers.normal())
    spoiled = np.where(mask[..., None], x, 1e3)
    found = apply(x, spoiled, key_mask=mask)
    helpers.assert_alike(found, apply(x, x, key_mask=mask))
    assert helpers.relative_error(found, apply(x, x)) > 1e-2
    if size < 5:
        everything = apply(x, x, key_mask=np.ones(size, bool))
        assert helpers.relative_error(everything, apply(x, x)) > 1e-2  # which sees the padding


def test_attention_fn(rng):
    """A layer of Flax, of which some positions do not exist."""
    x, mask = rng.standard_normal((2, 9, 16)).astype(np.float32), np.arange(9) % 4 > 0
    attend = jax_na.attention_fn((5,), key_mask=mask)
    layer = nnx.MultiHeadAttention(4, 16, decode=False, attention_fn=attend, rngs=nnx.Rngs(0))
    spoiled = np.where(mask[:, None], x, 1e3)
    helpers.assert_alike(layer(x, spoiled, spoiled), layer(x, x, x))


X = np.zeros((2, 9, 4, 8), np.float32)
WRONG = {
    "numbers": (
        TypeError,
        {"key_mask": np.ones((2, 9))},
        "array of bool, True where a key exists, got float64",
    ),
    "no array": (TypeError, {"key_mask": True}, "key_mask must be an array of bool"),
    "heads": (
        ValueError,
        {"key_mask": np.ones((2, 9, 4), bool)},
        "key_mask has shape (2, 9, 4); [batch..., *spatial] of the key is (2, 9), batch axes can be left out",
    ),
    "other keys": (ValueError, {"key_mask": np.ones(8, bool)}, "of the key is (2, 9)"),
    "no tokens": (
        ValueError,
        {"additional_mask": np.ones((2, 3), bool)},
        "additional_mask without additional_keys",
    ),
    "other tokens": (
        ValueError,
        {"additional_keys": X[:, :3], "additional_values": X[:, :3], "additional_mask": np.ones(2, bool)},
        "additional_mask has shape (2,); [batch..., tokens] is (2, 3)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name):
    kind, given, message = WRONG[name]
    with pytest.raises(kind, match=re.escape(message)):
        jax_na.na1d(X, X, X, 3, **given)
