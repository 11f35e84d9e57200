# SPDX-License-Identifier: Apache-2.0
"""One training step of a model on a mesh: parameters everywhere, batch and rows of the images split."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import compare
import jax
import jax.numpy as jnp
import numpy as np
from cases import Case as Model
from cases import build
from families import FAMILIES
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from splits import Split
from throughput import Calls, inputs, training_step

TRAIN = "train"
VARIATION = 0.02


@dataclasses.dataclass(frozen=True)
class Training:
    """A step of AdamW."""

    model: Model
    has_grown: bool = False
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
    def checked(self) -> Training | None:
        """In float32. Nothing of a batch that has grown: one device has no room for it."""
        return None if self.has_grown else Training(dataclasses.replace(self.model, dtype="float32"))

    def grown(self, split: Split) -> Training:
        batch, *image = self.model.shape
        return Training(dataclasses.replace(self.model, shape=(batch * split.batch, *image)), True)

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
def _built(model: Model) -> nnx.Module:
    return build(model)


class TrainingJob:
    """A step as a program of all devices of a mesh."""

    def __init__(self, model: Model, mesh: Mesh) -> None:
        self._everywhere, self._mesh = NamedSharding(mesh, P()), mesh
        self._model = model
        of_any_batch = _built(dataclasses.replace(model, shape=()))
        loss = FAMILIES[model.family].loss
        self._step, state = training_step(of_any_batch, loss, out_shardings=self._everywhere)
        leaves, tree = jax.tree.flatten(state)
        self._tree: Any = tree
        self._keys = {i for i, x in enumerate(leaves) if _is_key(x)}
        self._host = [np.asarray(jax.random.key_data(x) if _is_key(x) else x) for x in leaves]
        self._vary(np.random.default_rng(0), len(jax.tree.leaves(state[0])))

    def _vary(self, random: np.random.Generator, number: int) -> None:
        """No parameter stays zero: behind one that is, all gradients would be."""
        for i, x in enumerate(self._host[:number]):
            if np.issubdtype(x.dtype, np.floating):
                self._host[i] = x + VARIATION * random.standard_normal(x.shape).astype(x.dtype)

    def _state(self) -> Any:
        """Everywhere the same."""

        def whole(leaves: list[Any]) -> Any:
            wrapped = [jax.random.wrap_key_data(x) if i in self._keys else x for i, x in enumerate(leaves)]
            return self._tree.unflatten(wrapped)

        return jax.jit(whole, out_shardings=self._everywhere)(self._host)

    def _arrays(self) -> tuple[jax.Array, ...]:
        found = []
        for x in inputs(self._model):
            rows = ("x0",) if x.ndim > 1 else ()
            found.append(compare.placed(x, NamedSharding(self._mesh, P("batch", *rows))))
        return tuple(found)

    def lower(self) -> jax.stages.Lowered:
        exact = self._model.dtype == "float32"
        with jax.default_matmul_precision("highest" if exact else None):
            lowered: jax.stages.Lowered = self._step.lower(self._state(), *self._arrays())
        return lowered

    def call(self, program: Any) -> Callable[[], Any]:
        return Calls(program, self._state(), self._arrays(), trains=True)

    def results(self, program: Any) -> dict[str, list[jax.Array]]:
        """The first moments after one step: a tenth of the gradients."""
        paths, _ = jax.tree_util.tree_flatten_with_path(self.call(program)())
        return {"gradients": [x for path, x in paths if "'mu'" in jax.tree_util.keystr(path)]}


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
