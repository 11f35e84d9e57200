# SPDX-License-Identifier: Apache-2.0
"""Targets, and images of a batch mixed with each other: MixUp (1710.09412) and CutMix (1905.04899).

One share for a batch; every image is mixed with that of the same place from the end.
"""

import jax
import jax.numpy as jnp
import optax

from training.recipe import Recipe

Batch = tuple[jax.Array, jax.Array]


def targets_of(labels: jax.Array, num_classes: int, recipe: Recipe) -> jax.Array:
    """Probabilities [batch, num_classes] from classes [batch]."""
    targets: jax.Array = optax.smooth_labels(jax.nn.one_hot(labels, num_classes), recipe.label_smoothing)
    return targets


def mixed(key: jax.Array, images: jax.Array, targets: jax.Array, recipe: Recipe) -> Batch:
    """Images [batch, X, Y, channels] and targets [batch, classes], mixed as the recipe says."""
    choice, mix_key, cut_key = jax.random.split(key, 3)
    if recipe.mixup and recipe.cutmix:
        is_cut = jax.random.bernoulli(choice)
        cut, mix = cutmix(cut_key, images, targets, recipe), mixup(mix_key, images, targets, recipe)
        return jnp.where(is_cut, cut[0], mix[0]), jnp.where(is_cut, cut[1], mix[1])
    if recipe.cutmix:
        return cutmix(cut_key, images, targets, recipe)
    return mixup(mix_key, images, targets, recipe) if recipe.mixup else (images, targets)


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, recipe: Recipe) -> Batch:
    """share * x + (1 - share) * y of both."""
    share = jax.random.beta(key, recipe.mixup, recipe.mixup)
    images, targets = (share * x + (1 - share) * x[::-1] for x in (images, targets))
    return images, targets


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, recipe: Recipe) -> Batch:
    """A box of the other image in every image; targets by what is left of the area.

    The box has the proportions of the image and a center anywhere in it; what lies outside is cut off.
    """
    share_key, *center_keys = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(share_key, recipe.cutmix, recipe.cutmix))
    insides, lengths = [], images.shape[1:3]
    for center_key, length in zip(center_keys, lengths, strict=True):
        center = jax.random.randint(center_key, (), 0, length)
        insides.append(jnp.abs(jnp.arange(length) - center + 0.5) < side * length / 2)
    inside = insides[0][:, None] & insides[1]
    cut = jnp.where(inside[..., None], images[::-1], images)
    share = 1 - jnp.mean(inside, dtype=targets.dtype)
    return cut, share * targets + (1 - share) * targets[::-1]
