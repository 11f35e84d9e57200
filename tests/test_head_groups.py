# SPDX-License-Identifier: Apache-2.0
"""Layers whose heads have windows of their own, and layers without a window."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jax_na
from flax_layers import NeighborhoodAttention
from flax_layers.nnx import NeighborhoodAttention as NnxNeighborhoodAttention

from . import helpers

FEATURES = 20
PAIR = [((3, 2), 1), ((3, 3), (1, 2))]
# options of the layers, and for every group its heads and those of key and value
LAYERS = {
    "uneven": ({"num_heads": 5, "rel_pos_bias": True}, [((0, 2), (0, 2)), ((2, 5), (2, 5))]),
    "shared heads": ({"num_heads": 4, "num_kv_heads": 2}, [((0, 2), (0, 1)), ((2, 4), (1, 2))]),
    "one shared head": ({"num_heads": 4, "num_kv_heads": 1}, [((0, 2), (0, 1)), ((2, 4), (0, 1))]),
}


def images(rng, *spatial):
    return jnp.asarray(rng.standard_normal((2, *spatial, FEATURES)), jnp.float32)


def with_parameters(rng, x, **options):
    """A linen layer with random parameters, and its twin with the same."""
    layer = NeighborhoodAttention(**options)
    init = functools.partial(layer.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), x)
    variables = jax.tree.map(lambda s: jnp.asarray(0.5 * rng.standard_normal(s.shape), s.dtype), shapes)
    twin = NnxNeighborhoodAttention(in_features=x.shape[-1], rngs=nnx.Rngs(0), **options)
    nnx.update(twin, nnx.State(variables["params"]))
    return layer, variables, twin


@pytest.mark.some(2)
@pytest.mark.parametrize("name", LAYERS)
def test_groups_are_separate_calls(name, rng):
    """Against attention on slices of the heads of hand-made projections, in both frameworks."""
    options, slices = LAYERS[name]
    x = images(rng, 6, 7)
    layer, variables, twin = with_parameters(rng, x, head_groups=PAIR, **options)
    parameters = variables["params"]
    query, key, value = (
        jnp.tensordot(x, parameters[part]["kernel"], 1) + parameters[part]["bias"]
        for part in ("query", "key", "value")
    )
    parts = []
    for i, ((kernel_size, dilation), (own, seen)) in enumerate(zip(PAIR, slices, strict=True)):
        arrays = query[..., slice(*own), :], key[..., slice(*seen), :], value[..., slice(*seen), :]
        rpb = parameters.get(f"rpb_{i}")
        assert (rpb is not None) == options.get("rel_pos_bias", False)
        parts.append(jax_na.na2d(*arrays, kernel_size, dilation=dilation, rpb=rpb))
    out = parameters["out"]
    expected = jnp.einsum("bxyhd,hdf->bxyf", jnp.concatenate(parts, -2), out["kernel"]) + out["bias"]
    assert helpers.relative_error(layer.apply(variables, x), expected) < 2e-6
    assert helpers.relative_error(twin(x), expected) < 2e-6


def test_biases_of_groups(rng):
    """Each has the heads and the window of its group; the last groups have what is left over."""
    groups = [((3, 3), 1), ((2, 3), 2), ((5, 5), 1)]
    layer = NeighborhoodAttention(num_heads=5, head_groups=groups, rel_pos_bias=True, qkv_features=10)
    parameters = jax.eval_shape(layer.init, jax.random.key(0), images(rng, 6, 7))["params"]
    shapes = {name: p.shape for name, p in parameters.items() if name.startswith("rpb")}
    assert shapes == {"rpb_0": (1, 5, 5), "rpb_1": (2, 3, 5), "rpb_2": (2, 9, 9)}


def test_small_inputs_are_padded_to_the_largest_group(rng):
    """Here the second one, 3 * 2 positions along the first axis; the other axis is long enough."""
    x = images(rng, 4, 5)
    layer, variables, _ = with_parameters(rng, x, num_heads=2, rank=2, head_groups=[(3, 1), (3, (2, 1))])
    padded = jnp.pad(x, ((0, 0), (0, 2), (0, 0), (0, 0)))
    expected = layer.apply(variables, padded)[:, :4]
    assert helpers.relative_error(layer.apply(variables, x), expected) < 1e-6


def test_a_layer_with_lists_hashes():
    layer = NeighborhoodAttention(2, head_groups=[[[3, 3], 1], [[3, 3], [1, 2]]])
    assert layer == NeighborhoodAttention(2, head_groups=(((3, 3), 1), ((3, 3), (1, 2))))
    assert hash(layer) == hash(NeighborhoodAttention(2, head_groups=(((3, 3), 1), ((3, 3), (1, 2)))))


@pytest.mark.parametrize("spatial", [(3, 4), (5, 2)])
def test_full_windows(spatial, rng):
    """The same layer on grids of two sizes: a window as large as the grid."""
    x = images(rng, *spatial)
    layer, variables, twin = with_parameters(rng, x, num_heads=2, kernel_size="full", rank=2)
    expected = NeighborhoodAttention(2, spatial).apply(variables, x)
    assert helpers.relative_error(layer.apply(variables, x), expected) < 1e-6
    assert helpers.relative_error(twin(x), expected) < 2e-6


def test_dropout_of_heads(rng):
    """Half of what the heads return is zero, the rest doubled: seen through an output projection of ones."""
    x = images(rng, 4, 5)
    layer, variables, twin = with_parameters(
        rng, x, num_heads=2, kernel_size=(3, 3), heads_dropout_rate=0.5, use_bias=False
    )
    identity = jnp.eye(FEATURES).reshape(2, FEATURES // 2, FEATURES)
    variables["params"]["out"]["kernel"] = twin.out.kernel[...] = identity
    exact = np.asarray(layer.apply(variables, x, deterministic=True))
    helpers.assert_identical(np.asarray(twin(x, deterministic=True)), exact)
    key = jax.random.key(1)
    dropped = layer.apply(variables, x, deterministic=False, dropout_rng=key)
    other = twin(x, deterministic=False, rngs=nnx.Rngs(dropout=1))
    for found in (np.asarray(dropped), np.asarray(other)):
        kept = found != 0
        assert 0.4 < kept.mean() < 0.6
        assert helpers.relative_error(found[kept], 2 * exact[kept]) < 1e-6
    both = NeighborhoodAttention(2, (3, 3), heads_dropout_rate=0.5, dropout_rate=0.5, use_bias=False)
    twice = both.apply(variables, x, deterministic=False, dropout_rng=key)
    assert 0.15 < (np.asarray(twice) != 0).mean() < 0.35  # two masks, not the same one twice


X = np.zeros((2, 6, 6, FEATURES), np.float32)
ERRORS = {
    "both": (
        {"num_heads": 2, "kernel_size": (3, 3), "head_groups": PAIR},
        "kernel_size (3, 3) and dilation 1 are given beside head_groups, whose pairs (kernel_size, dilation)",
    ),
    "dilation beside": (
        {"num_heads": 2, "dilation": 2, "head_groups": PAIR},
        "kernel_size None and dilation 2 are given beside head_groups",
    ),
    "neither": (
        {"num_heads": 2},
        "no window is given: give kernel_size, (7, 7), or head_groups, ",
    ),
    "no pairs": (
        {"num_heads": 2, "head_groups": [3, 5]},
        "head_groups [3, 5] must have a pair (kernel_size, dilation) for every group of heads: ",
    ),
    "more groups than heads": (
        {"num_heads": 1, "head_groups": PAIR},
        "head_groups has 2 groups, but every group needs one of the 1 heads; 1 to 1 groups are possible",
    ),
    "no groups": ({"num_heads": 1, "head_groups": []}, "head_groups [] must have a pair"),
    "rank not known": (
        {"num_heads": 2, "head_groups": [(3, 1), (3, 2)]},
        "kernel_size 3 does not say how many spatial axes there are",
    ),
    "two ranks": (
        {"num_heads": 2, "head_groups": [((3, 3), 1), ((3,), 2)]},
        "2 spatial axes are asked for, but there are 1 in kernel 3",
    ),
    "kv heads shared unevenly": (
        {"num_heads": 6, "num_kv_heads": 2, "qkv_features": 12, "head_groups": [((3, 3), 1)] * 3},
        "head_groups: heads 2 to 3 share kv heads unevenly, as 3 heads each read one of num_kv_heads 2",
    ),
    "bias without a size": (
        {"num_heads": 2, "kernel_size": "full", "rank": 2, "rel_pos_bias": True},
        "rel_pos_bias has the size of a window, and with kernel_size 'full' there is none",
    ),
    "full without a rank": (
        {"num_heads": 2, "kernel_size": "full"},
        "kernel_size 'full' does not say how many spatial axes there are; give rank",
    ),
    "full with a stride": (
        {"num_heads": 2, "kernel_size": "full", "rank": 2, "stride": 2},
        "with kernel_size 'full' all positions see all; stride 2, dilation 1, is_causal False and is_",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    options, message = ERRORS[name]
    options = {"qkv_features": 20, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(NeighborhoodAttention(**options).init, jax.random.key(0), X)
    with pytest.raises(ValueError, match=re.escape(message)):
        NnxNeighborhoodAttention(in_features=FEATURES, rngs=nnx.Rngs(0), **options)
