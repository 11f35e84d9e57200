# SPDX-License-Identifier: Apache-2.0
"""A run from its first step, or from its last checkpoint, to its end."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from training import data
from training.checkpoint import Checkpoints
from training.history import History, Record
from training.recipe import Recipe
from training.step import Metrics, State, Trainer

FETCHED = 10  # steps whose metrics are fetched from the device, and written, at once


class Progress(Protocol):
    """What watches a run."""

    def step(self, records: list[Record]) -> None:
        """Steps are done."""

    def evaluation(self, record: Record) -> None:
        """An epoch is done."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where and of what a run is.

    Attributes:
      trainer: the model and its recipe.
      start: makes the state before the first step.
      split: the images.
      folder: of checkpoints and of the learning curve, `history.jsonl`.
      seed: of order and augmentation.
      checkpoint_steps: a checkpoint every so many steps; there is one at the end of every epoch besides.
      workers: processes that load images; 0 for threads.
    """

    trainer: Trainer
    start: Callable[[], State]
    split: data.Split
    folder: pathlib.Path
    seed: int
    checkpoint_steps: int
    workers: int = 0

    @property
    def recipe(self) -> Recipe:
        return self.trainer.recipe


def steps_of(recipe: Recipe, epoch_steps: int) -> int:
    return (recipe.epochs + recipe.cooldown_epochs) * epoch_steps


def train(run: Run, watch: Callable[[int, int, int], Progress]) -> tuple[State, History]:
    """Trains to the end.

    Args:
      run: what is trained; if its folder has checkpoints, from the last one on.
      watch: called with the first step, the number of all, and that of an epoch.

    Returns:
      The state at the end, and the whole learning curve.
    """
    batches = data.Batches(run.split.train, run.recipe, run.seed)
    steps = steps_of(run.recipe, batches.epoch_steps)
    with Checkpoints(run.folder / "checkpoints") as checkpoints:
        start = checkpoints.last or 0
        state = checkpoints.restore(start, run.trainer.template()) if start else run.start()
        recorder = Recorder(run, start, watch(start, steps, batches.epoch_steps))
        if start < steps:
            source = batches.since(start, run.workers)
            for step in range(start + 1, steps + 1):
                state, metrics = run.trainer.train(state, *next(source))
                ends_epoch = step % batches.epoch_steps == 0
                is_kept = ends_epoch or step % run.checkpoint_steps == 0
                recorder.step(step, metrics, is_kept)
                if ends_epoch:
                    recorder.epoch(step, step // batches.epoch_steps, state)
                if is_kept:
                    checkpoints.save(step, state)
    return state, recorder.history


class Recorder:
    """Writes the learning curve of a run that goes on from the step `start`, and shows it."""

    def __init__(self, run: Run, start: int, progress: Progress) -> None:
        self.run, self.progress = run, progress
        self.history = History(run.folder / "history.jsonl", start)
        self._pending: list[tuple[int, Metrics]] = []

    def step(self, step: int, metrics: Metrics, at_once: bool) -> None:
        """Metrics are fetched from the device some steps later, or at once, so that it need not wait."""
        self._pending.append((step, metrics))
        if at_once or len(self._pending) == FETCHED:
            records = [self._record(*item) for item in self._pending]
            self._pending.clear()
            self.history.add(records)
            self.progress.step(records)

    def epoch(self, step: int, epoch: int, state: State) -> None:
        """Evaluates the state at the end of an epoch."""
        loss, _, correct = evaluate(self.run, state)
        record = {
            "step": step,
            "epoch": epoch,
            "held_out_loss": float(loss),
            "held_out_accuracy": float(correct.mean()),
        }
        self.history.add([record])
        self.progress.evaluation(record)

    def _record(self, step: int, metrics: Metrics) -> Record:
        return {
            "step": step,
            "loss": float(metrics.loss),
            "accuracy": float(metrics.accuracy),
            "rate": float(self.run.trainer.rate(step - 1)),
        }


def evaluate(run: Run, state: State) -> tuple[Any, np.ndarray, np.ndarray]:
    """(mean loss, predictions, whether they are correct) of the held-out images, in their order."""
    losses, predictions = [], []
    for images, labels in data.held_out_batches(run.split.held_out, run.recipe):
        scores = run.trainer.evaluate(state, images, labels)
        losses.append(scores.loss)
        predictions.append(scores.prediction)
    predicted = np.concatenate(predictions)
    return np.concatenate(losses).mean(), predicted, predicted == run.split.held_out.labels
