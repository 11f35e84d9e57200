# SPDX-License-Identifier: Apache-2.0
"""A trained classifier of digits, from the folder of its run."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from training.augment import enlarged
from training.checkpoint import Checkpoints
from training.mesh import Placement
from training.recipe import DIGITS, MODELS, Experiment
from training.step import Trainer


def restore(folder: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Digits `[batch, X, Y, 1]` in 0 .. 1 to their classes `[batch]`, by the last checkpoint of a run.

    Raises:
      ValueError: the folder has no run of `train_classifier.py` on digits, or one without a checkpoint.
    """
    file = folder / "run.json"
    if not file.exists():
        raise ValueError(f"{folder} has no run: train one by train_classifier.py --output {folder}")
    settings = json.loads(file.read_text())
    if settings.get("data") != "digits" or "embed_dim" not in settings:
        raise ValueError(f"{folder} has a run on {settings.get('data')}, not a classifier of digits")
    experiment = _experiment(settings)

    def make() -> nnx.Module:
        return MODELS[type(experiment.model)](experiment.model, rngs=nnx.Rngs(0))

    trainer = Trainer(make, experiment.recipe, 1, settings["seed"], Placement())
    with Checkpoints(folder / "checkpoints") as checkpoints:
        if checkpoints.last is None:
            raise ValueError(f"{folder} has no checkpoint yet: let train_classifier.py run on")
        state = checkpoints.restore(checkpoints.last, trainer.template())
    model, resized = trainer.model(state.evaluated), enlarged(experiment.recipe)
    graph, variables = nnx.split(model)
    predict = jax.jit(lambda variables, images: nnx.merge(graph, variables)(images).argmax(-1))

    def classify(images: np.ndarray) -> np.ndarray:
        images, _ = resized((images[..., 0], np.zeros(len(images), int)))
        return np.asarray(predict(variables, images))

    return classify


def _experiment(settings: dict[str, Any]) -> Experiment:
    """Of the settings of a run; JSON has lists where configurations have tuples."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    legal = {**vars(DIGITS.model), **vars(DIGITS.recipe)}
    return DIGITS.replaced(f"{name}={tuples(settings[name])!r}" for name in legal if name in settings)
