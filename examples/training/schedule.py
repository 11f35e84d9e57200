# SPDX-License-Identifier: Apache-2.0
"""The learning rate, and the optimizer that takes it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from training.recipe import Recipe

DECAYED = ("kernel", "rpb")


def learning_rate(recipe: Recipe, epoch_steps: int) -> Callable[[Any], jax.Array]:
    """The rate of every step, counted from 0.

    The warm-up does not move the schedule: it runs from the first step to the last of `epochs`, and where the
    warm-up ends the rate is what the schedule has come to.
    """
    steps, warmup = recipe.epochs * epoch_steps, recipe.warmup_epochs * epoch_steps
    high, low = recipe.learning_rate, recipe.final_learning_rate

    def at(step: Any) -> jax.Array:
        done = jnp.clip(step / steps, 0, 1)
        left = (1 + jnp.cos(jnp.pi * done)) / 2 if recipe.schedule == "cosine" else 1 - done
        growing = recipe.warmup_learning_rate + (high - recipe.warmup_learning_rate) * step / max(warmup, 1)
        return jnp.where(step < warmup, growing, low + (high - low) * left)

    return at


def is_decayed(parameters: Any) -> Any:
    """Kernels and positional biases are; a tree of bool."""

    def decayed(path: tuple[Any, ...], _: Any) -> bool:
        return any(name in jax.tree_util.keystr(path) for name in DECAYED)

    return jax.tree.map_with_path(decayed, parameters)


def optimizer(recipe: Recipe, epoch_steps: int) -> optax.GradientTransformation:
    """AdamW after a clip of the gradient's norm."""
    first, second = recipe.betas
    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(
            learning_rate(recipe, epoch_steps),
            b1=first,
            b2=second,
            eps=recipe.epsilon,
            weight_decay=recipe.weight_decay,
            mask=is_decayed,
        ),
    )
