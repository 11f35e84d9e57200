# SPDX-License-Identifier: Apache-2.0
"""A small HDiT and its recipe: steps of training, and samples, as compiled functions of a state."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flax_layers.models import diffusion
from flax_layers.models.hdit import HDiT, HDiTConfig, Level, Mapping, param_groups
from training import data
from training.step import QUICKLY, reseeded

# 14 x 14 tokens in windows of 7 x 7, and 7 x 7 that all see each other.
DIGITS = HDiTConfig(
    levels=(Level(1, 64, kernel_size=7, head_dim=32), Level(2, 128, kernel_size="full", head_dim=32)),
    mapping=Mapping(64, 1),
    patch_size=2,
    channels=1,
    num_classes=10,
    sigma_data=0.6162,
    sigma_max=80.0,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a denoiser is trained; what is not here is as published.

    Attributes:
      steps: of training.
      batch_size: images of a step.
      learning_rate: of AdamW, constant after `warmup_steps`; a third of it for the mapping network.
      betas: of AdamW.
      weight_decay: of the matrices.
      clip_norm: the largest norm of a gradient.
      ema_power: the moving average, of which samples are drawn, has the decay 1 - (1 + step)^-ema_power.
      no_class: the share of the images whose class is not told.
    """

    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 3e-3
    warmup_steps: int = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    ema_power: float = 0.75
    no_class: float = 0.1


class State(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # steps done
    parameters: Any
    average: Any  # of the parameters
    optimizer: Any
    constants: Any  # projections of the noise level, drawn once


class Trainer:
    """A model with its recipe.

    Args:
      config: the model; its images are squares of `side` pixels.
      recipe: how it is trained.
      seed: of parameters, noise, noise levels and classes left out; every step has its own keys.
    """

    def __init__(self, config: HDiTConfig, recipe: Recipe, side: int, seed: int) -> None:
        self.config, self.recipe, self.side, self.seed = config, recipe, side, seed
        model = nnx.eval_shape(self._make)
        parts: Any = nnx.split(model, nnx.Param, nnx.RngState, ...)
        self.graph, _, self.streams, _ = parts
        self.optimizer = _optimizer(recipe, model)
        self.train: Callable[..., tuple[State, jax.Array]] = jax.jit(self._step, donate_argnums=0)
        self._draw = jax.jit(self._sampled, static_argnames=("steps", "guidance"))

    def _make(self) -> HDiT:
        return HDiT(self.config, rngs=nnx.Rngs(self.seed))

    def start(self) -> State:
        """The state before the first step; it is made once, so it is compiled quickly rather than well."""
        state: State = jax.jit(self._start).lower().compile(QUICKLY)()
        return state

    def _start(self) -> State:
        parts: Any = nnx.split(self._make(), nnx.Param, nnx.RngState, ...)
        _, parameters, _, constants = parts
        average = jax.tree.map(jnp.copy, parameters)
        return State(
            jnp.zeros((), jnp.int32), parameters, average, self.optimizer.init(parameters), constants
        )

    def template(self) -> State:
        """Shapes and dtypes of a state."""
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])

        def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)

        state: State = jax.tree.map(placed, jax.eval_shape(self._start))
        return state

    def _step(self, state: State, images: jax.Array, classes: jax.Array) -> tuple[State, jax.Array]:
        """The state after a step, and the loss before it; images in -1 .. 1."""
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        noise_key, level_key, class_key, drop_key = jax.random.split(key, 4)
        noise = jax.random.normal(noise_key, images.shape)
        sigma = diffusion.cosine_interpolated(
            diffusion.stratified(level_key, len(images)), side=self.side, sigma_data=self.config.sigma_data
        )
        classes = diffusion.drop_classes(class_key, classes, self.config.num_classes, self.recipe.no_class)
        streams = reseeded(self.streams, drop_key)

        def mean_loss(parameters: Any) -> jax.Array:
            model: Any = nnx.merge(self.graph, parameters, streams, state.constants, copy=True)
            sigma_data = self.config.sigma_data
            return diffusion.loss(model, images, sigma, noise, sigma_data=sigma_data, classes=classes).mean()

        loss, gradients = jax.value_and_grad(mean_loss)(state.parameters)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        decay = jnp.minimum(0.9999, 1 - (1.0 + state.step) ** -self.recipe.ema_power)
        average = jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, parameters)
        return State(state.step + 1, parameters, average, optimizer, state.constants), loss

    def draw(
        self, state: State, classes: np.ndarray, seed: int = 0, *, steps: int = 20, guidance: float = 3.0
    ) -> np.ndarray:
        """Images of classes, in 0 .. 1; the noise they begin with follows from the seed alone."""
        images = self._draw(
            state.average, state.constants, classes, jax.random.key(seed), steps=steps, guidance=guidance
        )
        return np.asarray(images)

    def _sampled(
        self,
        parameters: Any,
        constants: Any,
        classes: jax.Array,
        key: jax.Array,
        *,
        steps: int,
        guidance: float,
    ) -> jax.Array:
        streams = reseeded(self.streams, key)
        model: Any = nnx.merge(self.graph, parameters, streams, constants, copy=True)
        model.eval()
        config = self.config
        denoise = diffusion.denoiser(model, sigma_data=config.sigma_data)
        denoise = diffusion.guided(denoise, classes, config.num_classes, guidance)
        sigmas = diffusion.karras_sigmas(steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max)
        noise = config.sigma_max * jax.random.normal(
            key, (len(classes), self.side, self.side, config.channels)
        )
        return jnp.clip((diffusion.sample(denoise, noise, sigmas) + 1) / 2, 0, 1)


def _optimizer(recipe: Recipe, model: HDiT) -> optax.GradientTransformation:
    """AdamW in four groups of parameters, after a clip of the gradient's norm."""

    def adam(rate: float, weight_decay: float) -> optax.GradientTransformation:
        first, second = recipe.betas
        growing = optax.linear_schedule(0.0, rate, recipe.warmup_steps)
        return optax.adamw(growing, first, second, weight_decay=weight_decay)

    rate, decay = recipe.learning_rate, recipe.weight_decay
    groups = {
        "decayed": adam(rate, decay),
        "plain": adam(rate, 0.0),
        "mapping_decayed": adam(rate / 3, decay),
        "mapping_plain": adam(rate / 3, 0.0),
    }
    clip = optax.clip_by_global_norm(recipe.clip_norm)
    return optax.chain(clip, optax.multi_transform(groups, param_groups(model)))


def batches(images: data.Images, batch_size: int, seed: int, step: int) -> Any:
    """Those of a step and all that follow: `[batch, X, Y, 1]` in -1 .. 1, and classes."""

    def scaled(batch: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        pixels, classes = batch
        return 2 * pixels[..., None] - 1, classes

    source: Any = grain.MapDataset.source(images).seed(seed).shuffle()
    source = source.batch(batch_size, drop_remainder=True).map(scaled).repeat()
    return iter(source[step:].to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
