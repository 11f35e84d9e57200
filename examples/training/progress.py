# SPDX-License-Identifier: Apache-2.0
"""Progress bars, with the loss and the time left."""

import statistics
import types
from collections import deque
from collections.abc import Iterable
from typing import Self

import rich.progress
from rich.console import Console

from training.history import Record

SHOWN = 20  # steps whose mean is shown


def means(records: Iterable[Record]) -> tuple[float, float]:
    """Of loss and accuracy."""
    columns = zip(*((record["loss"], record["accuracy"]) for record in records), strict=True)
    loss, accuracy = map(statistics.fmean, columns)
    return loss, accuracy


def _bar_of_steps(console: Console, before: str, after: str) -> rich.progress.Progress:
    """A bar between two texts, formats of the fields of a task; none where the output is no terminal."""
    return rich.progress.Progress(
        rich.progress.TextColumn(before),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(after),
        rich.progress.TextColumn("left"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _say_where_it_goes_on(console: Console, first: int, steps: int) -> None:
    if first:
        console.print(f"goes on from the checkpoint of step {first} of {steps}", highlight=False)


class _Shown:
    """What is shown while it is entered: a context manager."""

    _bar: rich.progress.Progress

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._bar.stop()


class Bar(_Shown):
    """A bar of all steps of a classifier, and a line for every epoch; a context manager.

    Where the output is no terminal there are only the lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _bar_of_steps(
            console,
            "epoch {task.fields[epoch]}",
            "loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}",
        )
        self._recent: deque[Record] = deque(maxlen=SHOWN)
        self._epoch_steps, self._epoch = 1, list[Record]()

    def start(self, first: int, steps: int, epoch_steps: int) -> "Bar":
        """A run that goes from a step to the last one; the time left is that of these."""
        self._epoch_steps = epoch_steps
        self._task = self._bar.add_task("", total=steps, completed=first, epoch=1, loss=0.0, accuracy=0.0)
        _say_where_it_goes_on(self._console, first, steps)
        return self

    def step(self, records: list[Record]) -> None:
        self._recent += records
        self._epoch += records
        loss, accuracy = means(self._recent)
        done = int(records[-1]["step"])
        epoch = 1 + (done - 1) // self._epoch_steps
        self._bar.update(self._task, completed=done, epoch=epoch, loss=loss, accuracy=accuracy)

    def evaluation(self, record: Record) -> None:
        loss, accuracy = means(self._epoch)
        self._epoch.clear()
        self._console.print(
            f"epoch {record['epoch']:3}: loss {loss:.4f}, accuracy {accuracy:.2%}; held out: "
            f"loss {record['held_out_loss']:.4f}, accuracy {record['held_out_accuracy']:.2%}",
            highlight=False,
        )


class LossBar(_Shown):
    """A bar of all steps, with the mean loss of the last ones; a context manager.

    Where the output is no terminal, a line tells the loss now and then.
    """

    LINES = 100  # steps from one line to the next

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = _bar_of_steps(console, "step", "loss {task.fields[loss]:.4f}")
        self._recent: deque[float] = deque(maxlen=SHOWN)

    def start(self, first: int, steps: int) -> None:
        """A run that goes from a step to the last one; the time left is that of these."""
        self._task = self._bar.add_task("", total=steps, completed=first, loss=0.0)
        _say_where_it_goes_on(self._console, first, steps)

    def step(self, record: Record) -> None:
        self._recent.append(record["loss"])
        loss, done = statistics.fmean(self._recent), int(record["step"])
        self._bar.update(self._task, completed=done, loss=loss)
        if self._bar.disable and done % self.LINES == 0:
            self._console.print(f"step {done:5}: loss {loss:.4f}", highlight=False)
