# SPDX-License-Identifier: Apache-2.0
"""The layers in use: dropout, and a few steps of gradient descent."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_layers import NeighborhoodAttention
from flax_layers.nnx import NeighborhoodAttention as NnxNeighborhoodAttention

from . import helpers

FEATURES = 12
OPTIONS = {"num_heads": 2, "kernel_size": (3, 2), "dilation": (1, 2), "rel_pos_bias": True}
STEPS = 15


def random_inputs(rng):
    return jnp.asarray(rng.standard_normal((2, 5, 6, FEATURES)), jnp.float32)


def regression(rng):
    """Inputs and targets that neighbours know something about."""
    x = random_inputs(rng)
    return x, 0.5 * jnp.roll(x, 1, axis=1) - 0.25 * x


def assert_dropped_half(dropped, clean):
    zero = np.asarray(dropped) == 0
    assert 0.3 < zero.mean() < 0.7
    assert helpers.relative_error(np.asarray(dropped)[~zero], 2 * np.asarray(clean)[~zero]) < 1e-6


def test_dropout_of_linen(rng):
    layer, x = NeighborhoodAttention(**OPTIONS, dropout_rate=0.5), random_inputs(rng)
    variables = layer.init(jax.random.key(0), x, deterministic=True)
    clean = NeighborhoodAttention(**OPTIONS).apply(variables, x)

    def apply(key):
        return layer.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(key)})

    helpers.assert_identical(layer.apply(variables, x, deterministic=True), clean)
    helpers.assert_identical(apply(0), apply(0))
    assert not np.array_equal(apply(0), apply(1))
    assert_dropped_half(apply(0), clean)
    assert_dropped_half(layer.apply(variables, x, deterministic=False, dropout_rng=jax.random.key(5)), clean)


def test_dropout_of_nnx(rng):
    options = {**OPTIONS, "dropout_rate": 0.5}
    layer = NnxNeighborhoodAttention(in_features=FEATURES, **options, rngs=nnx.Rngs(0))
    x = random_inputs(rng)
    clean = layer(x, deterministic=True)
    first, second = layer(x, deterministic=False), layer(x, deterministic=False)
    assert not np.array_equal(first, second)
    assert_dropped_half(first, clean)
    helpers.assert_identical(*(layer(x, deterministic=False, rngs=nnx.Rngs(dropout=3)) for _ in range(2)))
    layer.eval()
    helpers.assert_identical(layer(x), clean)


def assert_learned(losses):
    assert np.all(np.isfinite(losses))
    assert losses[-1] < 0.7 * losses[0], losses


def test_training_of_linen(rng):
    """Gradient descent on a random regression: the loss falls, and every parameter moves."""
    layer, (x, y) = NeighborhoodAttention(**OPTIONS), regression(rng)
    variables = start = jax.jit(layer.init)(jax.random.key(0), x)

    @jax.jit
    def step(variables):
        loss, gradients = jax.value_and_grad(lambda v: jnp.mean((layer.apply(v, x) - y) ** 2))(variables)
        return loss, jax.tree.map(lambda p, g: p - g, variables, gradients)

    losses = []
    for _ in range(STEPS):
        loss, variables = step(variables)
        losses.append(float(loss))
    assert_learned(losses)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), start, variables)
    del moved["params"]["key"]["bias"]  # adds the same to all logits of a query: its gradient is zero
    assert all(jax.tree.leaves(moved)), moved


def test_training_of_nnx(rng):
    layer = NnxNeighborhoodAttention(in_features=FEATURES, **OPTIONS, rngs=nnx.Rngs(0))
    x, y = regression(rng)

    @nnx.jit
    def step(layer):
        loss, gradients = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - y) ** 2))(layer)
        parameters = nnx.state(layer, nnx.Param)
        nnx.update(layer, jax.tree.map(lambda p, g: p - g, parameters, gradients))
        return loss

    assert_learned([float(step(layer)) for _ in range(STEPS)])
