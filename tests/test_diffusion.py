# SPDX-License-Identifier: Apache-2.0
"""Training and sampling of denoisers, against closed forms.

For data that are normal with mean m and variance s^2, the best denoiser is
(s^2 x + sigma^2 m) / (s^2 + sigma^2), and the flow without noise takes x - m to
(x - m) sqrt((s^2 + sigma^2) / (s^2 + sigma0^2)).
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from flax_layers.models import diffusion

from . import helpers

MEAN, DATA = 0.3, 0.5


def gaussian(x, sigma):
    return (DATA**2 * x + sigma**2 * MEAN) / (DATA**2 + sigma**2)


def zero(x, sigma):
    return jnp.zeros_like(x)


def flow(x, sigma0, sigma):
    return MEAN + (x - MEAN) * np.sqrt((DATA**2 + sigma**2) / (DATA**2 + sigma0**2))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_convergence(order, rng, x64):
    """Half the steps, 2^order times the error; without the last step, to 0, which has an error of its own."""
    x = jnp.asarray(80 * rng.standard_normal(20))
    errors = []
    for steps in (80, 160):
        sigmas = jnp.asarray(diffusion.karras_sigmas(steps, sigma_min=0.05, sigma_max=80.0)[:-1])
        found = diffusion.sample(gaussian, x, sigmas, order=order)
        errors.append(helpers.relative_error(found, flow(x, 80.0, 0.05)))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.35
    assert errors[1] < 0.05**order


@pytest.mark.parametrize(("order", "eta"), [(2, 0.5), (3, 1.0)])
def test_samples_with_noise_have_the_distribution_of_the_data(order, eta, rng):
    count = 40_000
    x = jnp.asarray(80 * rng.standard_normal(count), jnp.float32)
    sigmas = diffusion.karras_sigmas(60, sigma_min=0.01, sigma_max=80.0)
    key = jax.random.key(rng.integers(2**32))
    found = np.asarray(diffusion.sample(gaussian, x, sigmas, order=order, eta=eta, key=key))
    assert abs(found.mean() - MEAN) < 6 * DATA / math.sqrt(count) + 0.002
    assert abs(found.std() / DATA - 1) < 6 / math.sqrt(2 * count) + 0.01
    # With so much noise on the way, the end has little to do with the beginning.
    assert abs(np.corrcoef(found, x)[0, 1]) < (0.7 if eta < 1 else 0.1)


def test_the_last_step_is_the_denoised_image(rng):
    x = jnp.asarray(rng.standard_normal((2, 3, 3, 1)), jnp.float32)
    found = diffusion.sample(gaussian, 5 * x, jnp.array([5.0, 0.0]), order=3)
    assert helpers.relative_error(found, gaussian(5 * x, 5.0)) < 1e-6


def test_denoiser(rng):
    """Of a network that is right for normal data around 0: F = 0, so the rest must be the best denoiser."""
    x = jnp.asarray(rng.standard_normal((2, 3, 3, 1)), jnp.float32)
    denoise = diffusion.denoiser(zero, sigma_data=DATA)
    sigma = jnp.array([0.2, 7.0])
    expected = DATA**2 * x / (DATA**2 + sigma**2)[:, None, None, None]
    assert helpers.relative_error(denoise(x, sigma), expected) < 1e-6
    assert helpers.relative_error(denoise(x, 7.0)[1], expected[1]) < 1e-6
    seen = diffusion.denoiser(lambda x, sigma: x, sigma_data=DATA)(x, 1e-6)
    assert helpers.relative_error(seen, x) < 1e-4  # without noise nothing is to be done


def test_loss_is_that_of_the_denoised_image(rng):
    """Error of the network's output = error of the denoised image / c_out^2, times the weights."""
    images, noise = (jnp.asarray(rng.standard_normal((3, 4, 4, 2)), jnp.float32) for _ in range(2))
    sigma = jnp.array([0.1, 0.5, 20.0])
    network = lambda x, sigma, bias: jnp.sin(3 * x) + bias  # noqa: E731
    denoised = diffusion.denoiser(network, sigma_data=DATA)(
        images + sigma[:, None, None, None] * noise, sigma, bias=0.2
    )
    error = np.asarray((denoised - images) ** 2).mean((1, 2, 3))
    out = np.asarray(sigma) ** 2 * DATA**2 / (np.asarray(sigma) ** 2 + DATA**2)
    snr = DATA**2 / np.asarray(sigma) ** 2
    for weighting, weights in (
        ("karras", 1.0),
        ("snr", snr / (snr + 1)),
        ("soft-min-snr", snr / (snr + 1) ** 2),
    ):
        found = diffusion.loss(network, images, sigma, noise, sigma_data=DATA, weighting=weighting, bias=0.2)
        assert helpers.relative_error(found, error / out * weights) < 1e-4


def test_loss_of_zeros_is_one(rng):
    """At every noise level, on data that are normal around 0."""
    images, noise = (rng.standard_normal((3, 100, 100, 1)) for _ in range(2))
    sigma = jnp.array([1e-2, 0.5, 50.0])
    loss = functools.partial(diffusion.loss, zero, sigma_data=DATA, weighting="karras")
    found = loss(jnp.asarray(DATA * images, jnp.float32), sigma, jnp.asarray(noise, jnp.float32))
    assert np.all(np.abs(np.asarray(found) - 1) < 6 * math.sqrt(2 / 10_000))


def test_noise_levels(rng, x64):
    t = jnp.asarray(rng.uniform(size=50))
    ends = jnp.array([0.0, 1.0])
    levels = functools.partial(diffusion.cosine_interpolated, sigma_data=DATA)
    levels = jax.jit(levels, static_argnames="side")
    assert helpers.relative_error(levels(ends, side=256), [1e3, 1e-3]) < 1e-6
    # At the reference side it is the cosine schedule: the angle of sigma / sigma_data is uniform.
    angle = np.arctan(levels(t, side=32) / DATA)
    first, last = math.atan(1e3 / DATA), math.atan(1e-3 / DATA)
    assert helpers.relative_error(angle, first + (last - first) * np.asarray(t)) < 1e-9
    # Larger images get more noise.
    more = np.asarray(levels(t, side=256)) / np.asarray(levels(t, side=32))
    assert more.min() >= 1 - 1e-9
    assert more.max() < 8
    found = np.asarray(diffusion.log_normal(t, mean=-1.2, std=1.2))
    quantiles = scipy.stats.norm.cdf((np.log(found) + 1.2) / 1.2)
    assert helpers.relative_error(quantiles, t) < 1e-9


def test_stratified(rng):
    found = np.sort(diffusion.stratified(jax.random.key(rng.integers(2**32)), 20))
    assert np.all(np.floor(20 * found) == np.arange(20))
    assert np.std(20 * found - np.arange(20)) > 0.05


def test_karras_sigmas():
    found = np.asarray(diffusion.karras_sigmas(5, sigma_min=0.01, sigma_max=80.0), np.float64)
    assert found[-1] == 0
    roots = found[:-1] ** (1 / 7)
    assert helpers.relative_error(roots, np.linspace(80 ** (1 / 7), 0.01 ** (1 / 7), 5)) < 1e-6


def test_guidance(rng):
    """u + scale (c - u), evaluated in one batch; a scale of 1 is the class alone."""
    x = jnp.asarray(rng.standard_normal((2, 3, 3, 1)), jnp.float32)
    calls = []

    def denoise(x, sigma, classes):
        calls.append(classes)
        return x * classes[:, None, None, None] + sigma[:, None, None, None]

    classes = jnp.array([1, 4])
    found = diffusion.guided(denoise, classes, 10, 3.0)(x, jnp.array(2.0))
    expected = 10 * x + 2 + 3 * (classes[:, None, None, None] - 10) * x
    assert helpers.relative_error(found, expected) < 1e-6
    assert [list(map(int, labels)) for labels in calls] == [[10, 10, 1, 4]]


def test_dropped_classes(rng):
    classes = jnp.asarray(rng.integers(0, 10, 5000))
    dropped = np.asarray(diffusion.drop_classes(jax.random.key(rng.integers(2**32)), classes, 10, 0.2))
    assert np.all((dropped == 10) | (dropped == classes))
    assert abs((dropped == 10).mean() - 0.2) < 0.04


ERRORS = {
    "order": ({"order": 4}, "order must be 1, 2 or 3, got 4"),
    "key": ({"eta": 1.0}, "eta 1.0 adds noise, which needs a key: key=jax.random.key(0)"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_sampling(name):
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        diffusion.sample(gaussian, jnp.zeros(3), jnp.array([1.0, 0.0]), **options)


def test_error_of_a_weighting():
    with pytest.raises(ValueError, match="weighting 'min-snr' is none of 'karras', 'snr', 'soft-min-snr'"):
        diffusion.weight(jnp.ones(1), 0.5, "min-snr")
