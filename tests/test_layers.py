# SPDX-License-Identifier: Apache-2.0
"""The linen and the nnx layer: Flax's parameters, the definition's results, and each other's."""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_na
from flax_layers import NeighborhoodAttention
from flax_layers.nnx import NeighborhoodAttention as NnxNeighborhoodAttention
from jax_na import Neighborhood

from . import helpers, oracle
from .cases import Case

FEATURES = 12
SIZES = {"qkv_features": 10, "out_features": 5}
# options of the layers, and the shape of their input
LAYERS = {
    "1d": ({"num_heads": 3, "kernel_size": (3,), "is_causal": True}, (2, 7)),
    "2d": ({"num_heads": 2, "kernel_size": (3, 2), "dilation": (1, 2), "rel_pos_bias": True}, (2, 5, 6)),
    "3d": ({"num_heads": 4, "kernel_size": (2, 2, 3), "stride": (1, 2, 1), "num_kv_heads": 2}, (1, 3, 4, 3)),
    "sizes": ({"num_heads": 2, "kernel_size": (3,), **SIZES, "use_bias": False}, (2, 6)),
    "norm": ({"num_heads": 2, "kernel_size": (3,), "normalize_qk": True, "scale": 1.5}, (2, 6)),
    "padded": ({"num_heads": 2, "kernel_size": (3, 3), "dilation": (2, 1), "rel_pos_bias": True}, (2, 4, 2)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def random_inputs(name, rng):
    return jnp.asarray(rng.standard_normal((*LAYERS[name][1], FEATURES)), jnp.float32)


def linen(name, rng, **changes):
    """A layer and random parameters for it (biases and rpb too, which Flax would start at zero)."""
    layer = NeighborhoodAttention(**{**LAYERS[name][0], **changes})
    shapes = jax.eval_shape(layer.init, jax.random.key(0), random_inputs(name, rng))
    return layer, jax.tree.map(lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes)


def twin(name, variables, **changes):
    """The nnx layer with the same parameters."""
    layer = NnxNeighborhoodAttention(in_features=FEATURES, rngs=nnx.Rngs(0), **{**LAYERS[name][0], **changes})
    nnx.update(layer, nnx.State(variables["params"]))
    return layer


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("changes", [{}, {"use_bias": False}, {"normalize_qk": True}, SIZES], ids=str)
def test_parameters_are_those_of_flax(changes, rng):
    x = random_inputs("1d", rng)
    own = NeighborhoodAttention(num_heads=2, kernel_size=(3,), **changes)
    flax = nn.MultiHeadDotProductAttention(num_heads=2, **changes)
    found, expected = (jax.eval_shape(layer.init, jax.random.key(0), x) for layer in (own, flax))
    assert shapes_of(found) == shapes_of(expected)


def test_positional_bias_is_one_more_parameter(rng):
    x = random_inputs("2d", rng)
    plain = NeighborhoodAttention(num_heads=2, kernel_size=(3, 2))
    layers = plain, dataclasses.replace(plain, rel_pos_bias=True)
    expected, found = (jax.eval_shape(layer.init, jax.random.key(0), x)["params"] for layer in layers)
    rpb = found.pop("rpb")
    assert (rpb.shape, rpb.dtype) == ((2, 5, 3), jnp.float32)
    assert shapes_of(found) == shapes_of(expected)


def test_initial_values_are_those_of_flax(rng):
    x = random_inputs("1d", rng)
    own, flax = (
        NeighborhoodAttention(num_heads=2, kernel_size=(3,)),
        nn.MultiHeadDotProductAttention(num_heads=2),
    )
    helpers.assert_identical(*(layer.init(jax.random.key(1), x) for layer in (own, flax)))


def test_full_window_is_attention_of_flax(rng):
    """Checkpoints swap: with a window as long as the axis, both layers compute the same."""
    x = random_inputs("1d", rng)
    own = NeighborhoodAttention(num_heads=3, kernel_size=(x.shape[1],))
    flax = nn.MultiHeadDotProductAttention(num_heads=3)
    variables = jax.jit(flax.init)(jax.random.key(2), x)
    assert helpers.relative_error(own.apply(variables, x), flax.apply(variables, x)) < 2e-6


def project(x, parameters):
    kernel, bias = np.asarray(parameters["kernel"], np.float64), parameters.get("bias", 0.0)
    return np.tensordot(np.asarray(x, np.float64), kernel, 1) + bias


@pytest.mark.parametrize("name", ["1d", "2d", "3d", "sizes"])
def test_linen_by_definition(name, rng):
    """Projections by hand around the oracle."""
    layer, variables = linen(name, rng)
    x, parameters = random_inputs(name, rng), variables["params"]
    options, shape = LAYERS[name]
    fields = {field.name for field in dataclasses.fields(Case)}
    spec = {key: value for key, value in options.items() if key in fields}
    case = Case(name, shape[1:], **{**spec, "rpb": "rpb" in parameters})
    inputs = {part: project(x, parameters[part]) for part in ("query", "key", "value")}
    if case.rpb:
        inputs["rpb"] = parameters["rpb"]
    heads = oracle.Attention(case.geometry, inputs).out
    kernel = np.asarray(parameters["out"]["kernel"], np.float64)
    expected = np.tensordot(heads, kernel, 2) + parameters["out"].get("bias", 0.0)
    assert helpers.relative_error(layer.apply(variables, x), expected) < 2e-6


@pytest.mark.some(3)
@every_layer
def test_nnx_is_linen(name, rng):
    """The same parameters give the same bits and gradients, in both."""
    layer, variables = linen(name, rng)
    x = random_inputs(name, rng)
    other = twin(name, variables)

    def value(variables, x):
        return jnp.sum(jnp.sin(layer.apply(variables, x)))

    def other_value(other, x):
        return jnp.sum(jnp.sin(other(x)))

    expected, gradients = jax.jit(jax.value_and_grad(value))(variables, x)
    found, other_gradients = nnx.jit(nnx.value_and_grad(other_value))(other, x)
    assert helpers.relative_error(found, expected) < 1e-6
    others = nnx.to_pure_dict(other_gradients)
    assert jax.tree.structure(others) == jax.tree.structure(gradients["params"])
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(gradients["params"]), strict=True):
        assert helpers.relative_error(a, b) < 1e-5


def test_small_inputs_are_padded(rng):
    """An axis shorter than the window: zeros at its end, and what belongs to them is taken off again."""
    layer, variables = linen("padded", rng)
    x = random_inputs("padded", rng)
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)))
    expected = layer.apply(variables, padded)[:, :4, :2]
    out = layer.apply(variables, x)
    assert out.shape == x.shape
    helpers.assert_identical(out, expected)


@pytest.mark.parametrize(
    "window", [{"kernel_size": 2, "rank": 2}, {"kernel_size": Neighborhood((2, 2))}, {"kernel_size": [2, 2]}]
)
def test_the_rank_is_that_of_the_layer(window, rng):
    """Whatever the number of batch axes, and under vmap."""
    layer = NeighborhoodAttention(num_heads=2, **window)
    x = jnp.asarray(rng.standard_normal((2, 3, 4, FEATURES)), jnp.float32)
    variables = layer.init(jax.random.key(0), x)
    out = layer.apply(variables, x)
    helpers.assert_identical(NeighborhoodAttention(2, (2, 2)).apply(variables, x), out)
    helpers.assert_identical(layer.apply(variables, x[None])[0], out)
    assert helpers.relative_error(layer.apply(variables, x[0]), out[0]) < 1e-6
    assert helpers.relative_error(jax.vmap(lambda image: layer.apply(variables, image))(x), out) < 1e-6
    twin = NnxNeighborhoodAttention(2, FEATURES, **window, rngs=nnx.Rngs(0))
    assert helpers.relative_error(jax.vmap(twin)(x), twin(x)) < 1e-6


def turned(query, key):
    """Rotary embeddings of a sequence, with one angle."""

    def turn(x):
        angle = 0.3 * jnp.arange(x.shape[1], dtype=jnp.float32)[None, :, None, None]
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate(
            [a * jnp.cos(angle) - b * jnp.sin(angle), a * jnp.sin(angle) + b * jnp.cos(angle)], -1
        )

    return turn(query), turn(key)


def test_norm_position_and_cosine_scale(rng):
    """Hooks, in their order, against the same by hand on the projections of a layer without them."""
    options = {"num_heads": 2, "kernel_size": (3,)}
    hooks = {"cosine_scale": 4.0, "position": turned}
    layer = NeighborhoodAttention(**options, **hooks, normalize_qk=functools.partial(nn.RMSNorm, epsilon=0.1))
    x = random_inputs("1d", rng)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), shapes)
    parameters = variables["params"]
    assert parameters["scale"].shape == (2,)
    assert parameters["query_ln"]["scale"].shape == (FEATURES // 2,)
    query, key, value = (project(x, parameters[name]) for name in ("query", "key", "value"))

    def normalized(x, name):
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * np.asarray(parameters[name]["scale"])
        return x / np.sqrt((x**2).sum(-1, keepdims=True) + 1e-6)

    query, key = normalized(query, "query_ln"), normalized(key, "key_ln")
    query = query * np.asarray(parameters["scale"])[:, None]
    query, key, value = (jnp.asarray(x, jnp.float32) for x in (*turned(query, key), value))
    out = jax_na.na1d(query, key, value, 3, scale=1.0)
    expected = np.einsum("bxhd,hdf->bxf", out, parameters["out"]["kernel"]) + parameters["out"]["bias"]
    assert helpers.relative_error(layer.apply(variables, x), expected) < 1e-5

    norm = functools.partial(nnx.RMSNorm, epsilon=0.1)
    other = NnxNeighborhoodAttention(
        in_features=FEATURES, **options, **hooks, normalize_qk=norm, rngs=nnx.Rngs(0)
    )
    nnx.update(other, nnx.State(parameters))
    assert helpers.relative_error(other(x), expected) < 1e-5


@pytest.mark.parametrize("hook", ["norm", "position", "cosine_scale"])
def test_hooks_keep_the_dtype(hook, rng):
    """Flax's norms and angles in float32 do not make a bfloat16 layer one of float32, or an error."""
    norms = (functools.partial(nn.RMSNorm, epsilon=0.1), functools.partial(nnx.RMSNorm, epsilon=0.1))
    hooks = [{"normalize_qk": norm} if hook == "norm" else {} for norm in norms]
    more = {"position": {"position": turned}, "cosine_scale": {"cosine_scale": 4.0}}.get(hook, {})
    x = random_inputs("1d", rng).astype(jnp.bfloat16)
    layer = NeighborhoodAttention(2, (3,), dtype=jnp.bfloat16, **hooks[0], **more)
    variables = layer.init(jax.random.key(0), x)
    other = NnxNeighborhoodAttention(
        2, FEATURES, (3,), dtype=jnp.bfloat16, **hooks[1], **more, rngs=nnx.Rngs(0)
    )
    nnx.update(other, nnx.State(variables["params"]))
    out = layer.apply(variables, x)
    assert out.dtype == other(x).dtype == jnp.bfloat16
    exact = dataclasses.replace(layer, dtype=jnp.float32).apply(variables, x.astype(jnp.float32))
    assert helpers.relative_error(out, exact) < 2e-2
    assert helpers.relative_error(other(x), exact) < 2e-2


def test_initial_cosine_scale(rng):
    layer = NeighborhoodAttention(2, (3,), cosine_scale=10.0)
    parameters = layer.init(jax.random.key(0), random_inputs("1d", rng))["params"]
    other = NnxNeighborhoodAttention(2, FEATURES, (3,), cosine_scale=10.0, rngs=nnx.Rngs(0))
    for scale in (parameters["scale"], other.scale[...]):
        helpers.assert_identical(scale, np.full(2, 10, np.float32))


def test_attention_fn_of_the_layers_of_flax(rng):
    """The same parameters in Flax's layers give what ours give."""
    x = random_inputs("2d", rng)
    window = jax_na.attention_fn((3, 2), dilation=(1, 2))
    ours = NeighborhoodAttention(2, (3, 2), dilation=(1, 2))
    variables = jax.tree.map(
        lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype),
        jax.eval_shape(ours.init, jax.random.key(0), x),
    )
    expected = ours.apply(variables, x)
    helpers.assert_identical(
        nn.MultiHeadDotProductAttention(2, attention_fn=window).apply(variables, x), expected
    )
    other = nnx.MultiHeadAttention(2, FEATURES, decode=False, attention_fn=window, rngs=nnx.Rngs(0))
    nnx.update(other, nnx.State(variables["params"]))
    assert helpers.relative_error(other(x), expected) < 1e-6


def refused_by_attention_fn():
    q = np.zeros((1, 6, 2, 4), np.float32)
    window = jax_na.attention_fn((3,))
    yield "mask", lambda: window(q, q, q, mask=np.ones((1, 1, 6, 6), bool))
    yield "bias", lambda: window(q, q, q, bias=np.zeros((1, 1, 6, 6)))
    yield "dropout_rate", lambda: window(q, q, q, dropout_rate=0.1)
    yield "sow_weights", lambda: window(q, q, q, module=nn.Dense(1))
    yield "is_causal", lambda: window(q, q, q, is_causal=True)


@pytest.mark.parametrize(("name", "call"), list(refused_by_attention_fn()))
def test_what_attention_fn_refuses(name, call):
    with pytest.raises(ValueError, match=f"takes no {name}: "):
        call()


def test_a_layer_is_a_static_argument(rng):
    """With a list too: it is hashable."""
    layer = NeighborhoodAttention(2, kernel_size=[2, 2], dilation=np.array([1, 2]))
    x = rng.standard_normal((1, 4, 5, FEATURES)).astype(np.float32)
    init = jax.jit(lambda layer, x: layer.init(jax.random.key(0), x), static_argnums=0)
    assert layer == NeighborhoodAttention(2, kernel_size=(2, 2), dilation=(1, 2))
    assert layer.apply(init(layer, x), x).shape == x.shape


def test_other_keys_and_values(rng):
    layer, variables = linen("1d", rng)
    q, k, v = (random_inputs("1d", rng) for _ in range(3))
    out = layer.apply(variables, q, k, v)
    other = twin("1d", variables)
    helpers.assert_identical(layer.apply(variables, q, k), layer.apply(variables, q, k, k))
    helpers.assert_identical(layer.apply(variables, q), layer.apply(variables, q, q, q))
    assert helpers.relative_error(other(q, k, v), out) < 1e-6
    assert helpers.relative_error(layer.apply(variables, q, k), out) > 0.1


@pytest.mark.some(3)
@every_layer
def test_dtypes(name, rng):
    """bfloat16 computation with float32 parameters: bfloat16 out, close to the float32 result."""
    layer, variables = linen(name, rng)
    x = random_inputs(name, rng)
    half = linen(name, rng, dtype=jnp.bfloat16)[0]
    assert {p.dtype for p in jax.tree.leaves(half.init(jax.random.key(0), x))} == {jnp.dtype(jnp.float32)}
    out = half.apply(variables, x)
    assert out.dtype == jnp.bfloat16
    assert helpers.relative_error(out, layer.apply(variables, x)) < 3e-2
    other = twin(name, variables, dtype=jnp.bfloat16)(x)
    assert other.dtype == jnp.bfloat16
    assert helpers.relative_error(other, out) < 1e-2


def test_half_parameters(rng):
    """Parameters in bfloat16, except the positional bias, which is float32 at least."""
    layer, _ = linen("2d", rng, param_dtype=jnp.bfloat16)
    parameters = dict(layer.init(jax.random.key(0), random_inputs("2d", rng))["params"])
    assert parameters.pop("rpb").dtype == jnp.float32
    assert {p.dtype for p in jax.tree.leaves(parameters)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
def test_implementation_of_a_layer(implementation, rng):
    layer, variables = linen("2d", rng)
    chosen = linen("2d", rng, implementation=implementation)[0]
    x = random_inputs("2d", rng)
    assert helpers.relative_error(chosen.apply(variables, x), layer.apply(variables, x)) < 2e-6


X = np.zeros((2, 6, FEATURES), np.float32)
ERRORS = {
    "features do not split": (
        {"num_heads": 5, "kernel_size": (3,)},
        (X,),
        "qkv_features 12 do not split into 5 heads; the nearest is 10",
    ),
    "kv heads do not divide": (
        {"num_heads": 4, "num_kv_heads": 3, "kernel_size": (3,)},
        (X,),
        "num_kv_heads 3 does not divide num_heads 4; the nearest that does is 2",
    ),
    "no heads": ({"num_heads": 0, "kernel_size": (3,)}, (X,), "must be >= 1, got 0 and 0"),
    "two scales": (
        {"num_heads": 2, "kernel_size": (3,), "scale": 1.0, "cosine_scale": 10.0},
        (X,),
        "scale 1.0 and cosine_scale 10.0 are both given; give one of them",
    ),
    "another shape by position": (
        {"num_heads": 2, "kernel_size": (3,), "position": lambda q, k: (q[..., :2], k)},
        (X,),
        "position returns shapes ((2, 6, 2, 2), (2, 6, 2, 6)); query and key have ((2, 6, 2, 6), ",
    ),
    "rank not known": ({"num_heads": 2, "kernel_size": 3}, (X,), "kernel_size 3 does not say how many "),
    "two ranks": (
        {"num_heads": 2, "kernel_size": (3, 3), "rank": 1},
        (X,),
        "1 spatial axes are asked for, but there are 2 in kernel 3x3",
    ),
    "rank too high": (
        {"num_heads": 2, "kernel_size": 3, "rank": 4},
        (X,),
        "kernel_size (3, 3, 3, 3) has 4 values; 1 to 3 axes are supported",
    ),
    "too few axes": (
        {"num_heads": 2, "kernel_size": (3, 3)},
        (X[0],),
        "inputs_q (6, 12) must be [batch..., *spatial, features] with 2 spatial axes: at least 3 axes",
    ),
    "values without keys": (
        {"num_heads": 2, "kernel_size": (3,)},
        (X, None, X),
        "inputs_v was given without inputs_k",
    ),
    "another grid": (
        {"num_heads": 2, "kernel_size": (3,)},
        (X, X[:, :5]),
        "inputs_k (2, 5, 12) and inputs_q (2, 6, 12) must agree in all axes but the last",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, inputs, message = ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(NeighborhoodAttention(**options).init, jax.random.key(0), *inputs)
    with pytest.raises(ValueError, match=re.escape(message)):
        NnxNeighborhoodAttention(in_features=FEATURES, rngs=nnx.Rngs(0), **options)(*inputs)


def test_errors_of_nnx_alone():
    layer = NnxNeighborhoodAttention(2, 10, (3,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="inputs_q has 12 features, the layer has 10"):
        layer(X)
