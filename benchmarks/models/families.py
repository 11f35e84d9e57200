# SPDX-License-Identifier: Apache-2.0
"""What the models differ in, to a benchmark: what they take, and what is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flax_layers.models import diffusion, dinat_s, hdit, nat, stylenat

CLASSES = 10
Shape = tuple[int, ...]
Arrays = tuple[jax.Array, ...]


@dataclasses.dataclass(frozen=True)
class Family:
    """Models of one kind.

    Attributes:
        module: the class.
        inputs: (config, shape of images, generator) to what a model of it is called with.
        loss: (model, *inputs, of training) to one number.
        training: what the loss takes besides inputs; empty for a family that is not trained here.
    """

    module: Any
    inputs: Callable[[Any, Shape, np.random.Generator], Arrays]
    loss: Callable[..., jax.Array]
    training: Callable[[Any, Shape, np.random.Generator], Arrays]


def _normal(random: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(random.standard_normal(shape, np.float32))


def _images(config: Any, shape: Shape, random: np.random.Generator) -> Arrays:
    return (_normal(random, *shape),)


def _labels(config: Any, shape: Shape, random: np.random.Generator) -> Arrays:
    return (jnp.asarray(random.integers(0, CLASSES, shape[0])),)


def _cross_entropy(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits = model(images).astype(jnp.float32)
    found: jax.Array = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return found


def _styles(config: Any, shape: Shape, random: np.random.Generator) -> Arrays:
    return (_normal(random, shape[0], config.style_features),)


def _untrained(*_: Any) -> Any:
    raise NotImplementedError("the generator is not trained here: its discriminator is not in the library")


def _noisy(config: Any, shape: Shape, random: np.random.Generator) -> Arrays:
    sigma = jnp.asarray(random.uniform(0.1, 2.0, shape[0]).astype(np.float32))
    classes = jnp.asarray(random.integers(0, config.num_classes + 1, shape[0]))
    return _normal(random, *shape), sigma, classes


def _noise(config: Any, shape: Shape, random: np.random.Generator) -> Arrays:
    return (_normal(random, *shape),)


def _denoising(
    model: Any, images: jax.Array, sigma: jax.Array, classes: jax.Array, noise: jax.Array
) -> jax.Array:
    sigma_data = model.config.sigma_data
    return diffusion.loss(model, images, sigma, noise, sigma_data=sigma_data, classes=classes).mean()


FAMILIES = {
    "nat": Family(nat.NAT, _images, _cross_entropy, _labels),
    "dinat_s": Family(dinat_s.DiNATs, _images, _cross_entropy, _labels),
    "stylenat": Family(stylenat.StyleNAT, _styles, _untrained, _untrained),
    "hdit": Family(hdit.HDiT, _noisy, _denoising, _noise),
}
