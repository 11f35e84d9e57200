# SPDX-License-Identifier: Apache-2.0
"""Training and sampling of denoisers (https://arxiv.org/abs/2206.00364), as pure functions.

A network `F(x, sigma)` sees noisy images `x = image + sigma * noise`, scaled to unit variance, and gives what
`denoiser` makes a clean image of. `loss` trains it at noise levels drawn by `cosine_interpolated` or
`log_normal`, `sample` draws images with it.

Example:
  >>> images, key = jnp.ones((8, 4, 4, 1)), jax.random.key(0)
  >>> network = lambda x, sigma: jnp.zeros_like(x)
  >>> sigma = cosine_interpolated(stratified(key, 8), side=4, sigma_data=0.5)
  >>> noise = jax.random.normal(key, images.shape)
  >>> loss(network, images, sigma, noise, sigma_data=0.5).shape
  (8,)
  >>> sigmas = karras_sigmas(10, sigma_min=0.01, sigma_max=80.0)
  >>> sample(denoiser(network, sigma_data=0.5), 80.0 * noise, sigmas).shape
  (8, 4, 4, 1)
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "cosine_interpolated",
    "denoiser",
    "drop_classes",
    "guided",
    "karras_sigmas",
    "log_normal",
    "loss",
    "sample",
    "stratified",
]

Network = Callable[..., jax.Array]
Weighting = Literal["soft-min-snr", "karras", "snr"]


class Scalings(NamedTuple):
    """denoised = skip * x + out * F(into * x): at every noise level, F sees and gives unit variance."""

    skip: jax.Array
    out: jax.Array
    into: jax.Array


def scalings(sigma: jax.Array, sigma_data: float, ndim: int) -> Scalings:
    """For images of `ndim` axes, of which the first are those of sigma."""
    sigma = sigma.reshape(*sigma.shape, *(1,) * (ndim - sigma.ndim))
    variance = sigma**2 + sigma_data**2
    root = jax.lax.rsqrt(variance)
    return Scalings(sigma_data**2 / variance, sigma * sigma_data * root, root)


def denoiser(network: Network, *, sigma_data: float) -> Network:
    """The denoiser of a network: `(x, sigma, **conditions)` to clean images of the shape of x.

    x is `[batch..., X, Y, channels]`, sigma one number or `[batch...]`; conditions go to the network.
    """

    def denoise(x: jax.Array, sigma: jax.Array, **conditions: Any) -> jax.Array:
        sigma = jnp.asarray(sigma, x.dtype)
        scale = scalings(sigma, sigma_data, x.ndim)
        return scale.skip * x + scale.out * network(scale.into * x, sigma, **conditions).astype(x.dtype)

    return denoise


def loss(
    network: Network,
    images: jax.Array,
    sigma: jax.Array,
    noise: jax.Array,
    *,
    sigma_data: float,
    weighting: Weighting = "soft-min-snr",
    **conditions: Any,
) -> jax.Array:
    """The squared error of the network's own output, for every image.

    Args:
      network: `(x, sigma, **conditions)` to the shape of x, an `HDiT` for one.
      images: `[batch, X, Y, channels]`, with standard deviation `sigma_data`.
      sigma: how much noise each image gets, `[batch]`.
      noise: standard normal, of the shape of images.
      sigma_data: standard deviation of the data.
      weighting: factor of the loss by noise level: "karras" 1, "snr" s^2 / (sigma^2 + s^2), "soft-min-snr"
        (sigma s)^2 / (sigma^2 + s^2)^2, with s for sigma_data.
      conditions: passed on to the network.

    Returns:
      `[batch]`: means over the pixels, weighted. A network of zeros has 1 before the weighting on data that
      are normal with variance sigma_data^2.
    """
    scale = scalings(sigma, sigma_data, images.ndim)
    x = images + sigma.reshape(scale.skip.shape) * noise
    target = (images - scale.skip * x) / scale.out
    error = network(scale.into * x, sigma, **conditions).astype(target.dtype) - target
    return weight(sigma, sigma_data, weighting) * jnp.mean(error**2, range(sigma.ndim, images.ndim))


def weight(sigma: jax.Array, sigma_data: float, weighting: Weighting) -> jax.Array:
    """The factor of the loss."""
    share = sigma_data**2 / (sigma**2 + sigma_data**2)  # of the image in the variance of x
    weights = {"karras": jnp.ones_like(sigma), "snr": share, "soft-min-snr": share * (1 - share)}
    if weighting not in weights:
        raise ValueError(f"weighting {weighting!r} is none of {', '.join(map(repr, weights))}")
    return weights[weighting]


# Noise levels


def stratified(key: jax.Array, count: int) -> jax.Array:
    """`[count]` numbers in [0, 1), one in each of as many equal parts: more even than independent ones."""
    return (jnp.arange(count) + jax.random.uniform(key, (count,))) / count


def cosine_interpolated(
    t: jax.Array,
    *,
    side: int,
    sigma_data: float,
    sigma_min: float = 1e-3,
    sigma_max: float = 1e3,
    reference_side: int = 32,
) -> jax.Array:
    """Noise levels for t in [0, 1], from `sigma_max` to `sigma_min`, for training on images of a side.

    Their logarithm goes from the cosine schedule of images of `reference_side`, moved to images of `side`, to
    the one of `side` itself: large images need more noise to lose their large features. Published trainings
    take a sigma_min of at most 1e-3, and a sigma_max of at least 1e3.
    """

    def cosine(ratio: float) -> jax.Array:
        first, last = (math.atan(ratio * sigma / sigma_data) for sigma in (sigma_max, sigma_min))
        return sigma_data * jnp.tan(first + (last - first) * t) / ratio

    return cosine(reference_side / side) ** (1 - t) * cosine(1.0) ** t


def log_normal(t: jax.Array, *, mean: float = -1.2, std: float = 1.2) -> jax.Array:
    """Noise levels for t in (0, 1) whose logarithm is normal, as older denoisers were trained."""
    return jnp.exp(mean + std * jax.scipy.special.ndtri(t))


def drop_classes(key: jax.Array, classes: jax.Array, num_classes: int, rate: float = 0.1) -> jax.Array:
    """Labels of which a share becomes `num_classes`, none, so that the model learns guidance."""
    return jnp.where(jax.random.bernoulli(key, rate, classes.shape), num_classes, classes)


# Sampling


def karras_sigmas(steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0) -> jax.Array:
    """`[steps + 1]`: from sigma_max to sigma_min, evenly spaced in their root of order rho, and 0."""
    roots = jnp.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps)
    return jnp.append(roots**rho, 0.0)


def guided(denoise: Network, classes: jax.Array, num_classes: int, scale: float) -> Network:
    """A denoiser that is led towards classes: u + scale * (c - u), with c given the classes and u given none.

    Evaluates both in one batch. A scale of 1 is the denoiser given the classes.
    """
    labels = jnp.concatenate([jnp.full_like(classes, num_classes), classes])

    def lead(x: jax.Array, sigma: jax.Array) -> jax.Array:
        sigma = jnp.broadcast_to(sigma, classes.shape)
        both = denoise(jnp.concatenate([x, x]), jnp.concatenate([sigma, sigma]), classes=labels)
        without, given = jnp.split(both, 2)
        return without + scale * (given - without)

    return lead


class _History(NamedTuple):
    """x, the denoised images of the last two steps, and how long these steps were in log sigma."""

    x: jax.Array
    denoised: tuple[jax.Array, jax.Array]
    steps: tuple[jax.Array, jax.Array]


def sample(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    sigmas: jax.Array,
    *,
    order: int = 2,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Images from noise, by the multistep solvers DPM++ SDE (https://arxiv.org/abs/2211.01095).

    Order 2 is k-diffusion's "DPM++ 2M SDE" ("heun"). Order 3 is "DPM++ 3M SDE" with a correction: the
    published code halves a term, and is of order 2.

    Args:
      denoise: `(x, sigma)` to clean images, sigma being one number; called once a step.
      x: noise with standard deviation `sigmas[0]`, `[batch, X, Y, channels]`.
      sigmas: falling noise levels, `[steps + 1]`, as of `karras_sigmas`; the last may be 0.
      order: 1, 2 or 3: how many denoised images a step extrapolates from. Usual are 2 with eta 0, and 3 with
        eta 1.
      eta: noise that every step adds; 0 solves the probability flow without noise, 1 the whole SDE. The noise
        differs with the number of steps.
      key: of that noise; needed if eta > 0.

    Returns:
      Images of the shape of x.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order must be 1, 2 or 3, got {order}")
    if eta and key is None:
        raise ValueError(f"eta {eta} adds noise, which needs a key: key=jax.random.key(0)")
    sigmas = jnp.asarray(sigmas, x.dtype)

    def noise(i: jax.Array) -> jax.Array | float:
        return 0.0 if key is None else jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)

    def step(history: _History, i: jax.Array) -> tuple[_History, None]:
        denoised = denoise(history.x, sigmas[i])
        known = jnp.minimum(i + 1, order)
        return _advance(history, denoised, (sigmas[i], sigmas[i + 1]), known, eta, noise(i)), None

    one = jnp.ones((), x.dtype)
    history, _ = jax.lax.scan(step, _History(x, (x, x), (one, one)), jnp.arange(len(sigmas) - 1))
    return history.x


def _advance(
    history: _History,
    denoised: jax.Array,
    interval: tuple[jax.Array, jax.Array],
    known: jax.Array,
    eta: float,
    noise: jax.Array | float,
) -> _History:
    """One step from a noise level to the next, with H = (1 + eta) log(sigma / next):

    x <- e^-H x + (1 - e^-H) denoised + correction + next sqrt(1 - e^(-2 eta h)) noise

    The last step, to noise 0, is x <- denoised.
    """
    sigma, following = interval
    is_last = following == 0
    step = jnp.where(is_last, 1.0, jnp.log(sigma / jnp.where(is_last, sigma, following)))
    span = (1 + eta) * step
    x = jnp.exp(-span) * history.x - jnp.expm1(-span) * denoised
    x += _correction(history, denoised, step, span, known)
    x += following * jnp.sqrt(-jnp.expm1(-2 * eta * step)) * noise
    x = jnp.where(is_last, denoised, x)
    return _History(x, (denoised, history.denoised[0]), (step, history.steps[0]))


def _correction(
    history: _History, denoised: jax.Array, step: jax.Array, span: jax.Array, known: jax.Array
) -> jax.Array:
    """What denoised images of earlier steps add: by none of them, one, or two; `known` counts all there are.

    With r0, r1 the lengths of the last steps in the one to take, a = (y - y1) / r0 and b = (y1 - y2) / r1:
    phi2 a, or phi2 (a + r0 c) - 2 phi3 c with c = (a - b) / (r0 + r1). Without the factor 2, as in the
    published code of DPM++ 3M, the solver would be of order 2.
    """
    phi2 = 1 + jnp.expm1(-span) / span
    phi3 = phi2 / span - 0.5
    (last, before), (first, second) = history.denoised, (length / step for length in history.steps)
    slope = (denoised - last) / first
    curve = (slope - (last - before) / second) / (first + second)
    linear = phi2 * slope
    parts = [jnp.zeros_like(linear), linear, linear + (phi2 * first - 2 * phi3) * curve]
    return jax.lax.select_n(known - 1, *parts)
