# SPDX-License-Identifier: Apache-2.0
"""One training step of a model on a mesh: parameters everywhere, batch and rows of the images split."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import compare
import jax
import jax.numpy as jnp
from cases import Case as Model
from cases import build
from families import FAMILIES
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from splits import Split
from throughput import Calls, inputs, optimized, step_of

TRAIN = "train"
COMPARED = 16  # images
VARIATION = 0.02  # of vectors


@dataclasses.dataclass(frozen=True)
class Training:
    """A step of AdamW."""

    model: Model
    unit = compare.PARAMETER
    amount_unit = "image"
    direction = TRAIN

    @property
    def name(self) -> str:
        return self.model.variant

    @property
    def dtype(self) -> str:
        return self.model.dtype

    @property
    def amount(self) -> float:
        return float(self.model.shape[0])

    @property
    def checked(self) -> Training:
        """In float32, as rounding could hide a fault; of a batch for which one device has room then."""
        batch, *image = self.model.shape
        shape = (min(batch, COMPARED), *image)
        return Training(dataclasses.replace(self.model, shape=shape, dtype="float32"))

    def grown(self, split: Split) -> Training:
        batch, *image = self.model.shape
        return Training(dataclasses.replace(self.model, shape=(batch * split.batch, *image)))

    def obstacle(self, split: Split) -> str | None:
        if self.model.shape[0] % split.batch:
            return f"batch of {self.model.shape[0]} does not divide over {split.batch} devices"
        return None

    def halo_bytes(self, split: Split) -> None:
        """Models also exchange the borders of convolutions and gradients."""

    def columns(self) -> dict[str, Any]:
        return {"shape": self.model.shape}

    def job(self, mesh: Mesh) -> TrainingJob:
        return TrainingJob(self.model, mesh)


@functools.cache
def _abstract(model: Model) -> tuple[Any, Any]:
    """The definition and the types of the state: nothing is computed."""
    found: tuple[Any, Any] = nnx.split(nnx.eval_shape(lambda: optimized(build(model))))
    return found


class TrainingJob:
    """A step as a program of all devices of a mesh."""

    def __init__(self, model: Model, mesh: Mesh) -> None:
        self._everywhere, self._mesh = NamedSharding(mesh, P()), mesh
        self._model = model
        definition, self._types = _abstract(dataclasses.replace(model, shape=()))
        step = step_of(definition, FAMILIES[model.family].loss)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=self._everywhere)
        self._make = jax.jit(lambda: started(self._types), out_shardings=self._everywhere)

    def _arrays(self) -> tuple[jax.Array, ...]:
        found = []
        for x in inputs(self._model):
            rows = ("x0",) if x.ndim > 1 else ()
            found.append(compare.placed(x, NamedSharding(self._mesh, P("batch", *rows))))
        return tuple(found)

    def lower(self) -> jax.stages.Lowered:
        exact = self._model.dtype == "float32"
        with jax.default_matmul_precision("highest" if exact else None):
            lowered: jax.stages.Lowered = self._step.lower(self._make.eval_shape(), *self._arrays())
        return lowered

    def call(self, program: Any) -> Callable[[], Any]:
        return Calls(program, self._make(), self._arrays(), trains=True)

    def results(self, program: Any) -> dict[str, list[jax.Array]]:
        """The first moments after one step: a tenth of the gradients."""
        paths, _ = jax.tree_util.tree_flatten_with_path(self.call(program)())
        return {"gradients": [x for path, x in paths if "'mu'" in jax.tree_util.keystr(path)]}


def started(types: Any) -> Any:
    """Random parameters, slices of one vector, and a new optimizer.

    No parameter is zero, as some are when a model is new: behind one that is, all gradients would be.
    """
    flat, tree = jax.tree_util.tree_flatten_with_path(types)
    named = [(jax.tree_util.keystr(path), x) for path, x in flat]
    sizes = [math.prod(x.shape) if _is_parameter(path, x) else 0 for path, x in named]
    values = jax.random.normal(jax.random.key(1), (sum(sizes),), jnp.float32)
    leaves, start = [], 0
    for (path, x), size in zip(named, sizes, strict=True):
        leaves.append(_leaf(path, x, values[start : start + size]))
        start += size
    return jax.tree.unflatten(tree, leaves)


def _is_parameter(path: str, like: Any) -> bool:
    """Whether it is a number of the model, not of the optimizer."""
    return path.startswith("[0]") and jnp.issubdtype(like.dtype, jnp.floating)


def _leaf(path: str, like: Any, values: jax.Array) -> jax.Array:
    """As large as the inputs of a matrix make it, or about one for the scales of norms."""
    if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not values.size:
        return jnp.zeros(like.shape, like.dtype)
    if len(like.shape) > 1:
        factor, mean = math.prod(like.shape[:-1]) ** -0.5, 0.0
    else:
        factor, mean = VARIATION, float("scale" in path)
    found: jax.Array = mean + factor * values.reshape(like.shape)
    return found.astype(like.dtype)
