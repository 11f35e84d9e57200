# SPDX-License-Identifier: Apache-2.0
"""One step of training, and evaluation, as compiled functions of a state."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from flax_layers import pretrained
from training import mixing, schedule
from training.mesh import Placement
from training.recipe import Recipe

QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class State(NamedTuple):
    """All that a checkpoint holds."""

    step: jax.Array  # steps done
    parameters: Any
    average: Any  # of the parameters; None without one
    optimizer: Any

    @property
    def evaluated(self) -> Any:
        """The parameters that evaluation takes."""
        return self.parameters if self.average is None else self.average


class Metrics(NamedTuple):
    """Of the batch of a step, before it."""

    loss: jax.Array
    accuracy: jax.Array  # share of the images, mixed or not, whose likelier class comes out


class Scores(NamedTuple):
    """Of a batch of evaluation [batch]."""

    loss: Any
    prediction: Any


class Trainer:
    """A model with its recipe.

    Args:
      make: makes the model: images `[batch, X, Y, channels]` to logits `[batch, num_classes]`; parameters and
        the random streams of its dropout are all its state.
      recipe: how it is trained.
      epoch_steps: steps of an epoch.
      seed: of dropout and mixing; every step has its own keys.
      placement: of arrays on devices.
    """

    def __init__(
        self, make: Callable[[], Any], recipe: Recipe, epoch_steps: int, seed: int, placement: Placement
    ) -> None:
        self.recipe, self.placement, self.seed, self._make = recipe, placement, seed, make
        model = nnx.eval_shape(make)
        self.num_classes: int = model.config.num_classes
        parts: Any = nnx.split(model, nnx.Param, nnx.RngState)
        self.graph, _, self.streams = parts
        self.optimizer = schedule.optimizer(recipe, epoch_steps)
        self.rate = schedule.learning_rate(recipe, epoch_steps)
        everywhere = placement.everywhere
        self._train = jax.jit(self._step, donate_argnums=0, out_shardings=everywhere)
        self._evaluate = jax.jit(self._scores, out_shardings=everywhere)

    def start(self, weights: str | None = None, skip: Sequence[str] = ()) -> State:
        """The state before the first step; it is made once, so it is compiled quickly rather than well.

        weights: a file of published weights; skip: names in it that are not read, see `pretrained.load`.
        """
        start = jax.jit(self._start, out_shardings=self.placement.everywhere)
        state: State = start.lower().compile(QUICKLY)()
        if weights is not None:
            model = self.model(state.parameters)
            pretrained.load(model, weights, skip=skip)
            parameters = nnx.state(model, nnx.Param)
            average = None if state.average is None else jax.tree.map(jnp.copy, parameters)
            state = state._replace(parameters=parameters, average=average)
        return state

    def _start(self) -> State:
        parameters = nnx.state(self._make(), nnx.Param)
        average = jax.tree.map(jnp.copy, parameters) if self.recipe.ema else None
        return State(jnp.zeros((), jnp.int32), parameters, average, self.optimizer.init(parameters))

    def template(self) -> State:
        """Shapes, dtypes and devices of a state."""

        def placed(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.placement.everywhere)

        state: State = jax.tree.map(placed, jax.eval_shape(self._start))
        return state

    def train(self, state: State, images: np.ndarray, labels: np.ndarray) -> tuple[State, Metrics]:
        """The state after a step; `state` is used up."""
        after: tuple[State, Metrics] = self._train(state, *self.placement.batch(images, labels))
        return after

    def evaluate(self, state: State, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Losses and predictions, of any number of images."""
        missing = -len(images) % self.placement.images
        images, labels = (np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1)) for x in (images, labels))
        scores = self._evaluate(state.evaluated, *self.placement.batch(images, labels))
        return Scores(*(x[: len(x) - missing] for x in map(np.asarray, scores)))

    def model(self, parameters: Any) -> Any:
        """The model with these parameters and without dropout."""
        streams = reseeded(self.streams, jax.random.key(0))
        model = nnx.merge(self.graph, parameters, streams, copy=True)
        model.eval()
        return model

    def _step(self, state: State, images: jax.Array, labels: jax.Array) -> tuple[State, Metrics]:
        mix_key, drop_key = jax.random.split(jax.random.fold_in(jax.random.key(self.seed), state.step))
        targets = mixing.targets_of(labels, self.num_classes, self.recipe)
        images, targets = mixing.mixed(mix_key, images, targets, self.recipe)
        streams = reseeded(self.streams, drop_key)

        def loss_of(parameters: Any) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(self.graph, parameters, streams, copy=True)
            logits = model(images).astype(jnp.float32)
            return optax.softmax_cross_entropy(logits, targets).mean(), logits

        (loss, logits), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.parameters)
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.parameters)
        parameters = optax.apply_updates(state.parameters, updates)
        accuracy = jnp.mean(logits.argmax(-1) == targets.argmax(-1))
        average = self._averaged(state, parameters)
        return State(state.step + 1, parameters, average, optimizer), Metrics(loss, accuracy)

    def _averaged(self, state: State, parameters: Any) -> Any:
        """The moving average; it forgets faster in the beginning, as it starts from what was not trained."""
        if state.average is None:
            return None
        decay = jnp.minimum(self.recipe.ema, (1 + state.step) / (10 + state.step))
        return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, state.average, parameters)

    def _scores(self, parameters: Any, images: jax.Array, labels: jax.Array) -> Scores:
        logits = self.model(parameters)(images).astype(jnp.float32)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return Scores(loss, logits.argmax(-1))


def reseeded(streams: Any, key: jax.Array) -> Any:
    """Random streams at their beginning, each with a key of its own."""
    numbers = itertools.count()

    def fresh(value: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        number = next(numbers)
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(key, number)
        return jnp.zeros(value.shape, value.dtype)

    return jax.tree.map(fresh, streams)
