# SPDX-License-Identifier: Apache-2.0
"""Pictures of a run: learning curves, the confusion matrix, and grids of images."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from training.history import History

BLUE, ORANGE, GRAY = "#3b6fb6", "#d9822b", "#999999"
SMOOTHED = 25  # steps of the mean that is drawn over single losses
MOST_NUMBERS = 20  # classes up to which the matrix has numbers and names


def learning_curve(history: History) -> Figure:
    """Loss and accuracy by steps: of batches as they are augmented, and of the held-out images."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    steps, evaluations = history.steps, history.evaluations
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        at, values = (np.array([record[key] for record in steps]) for key in ("step", name))
        ax.plot(at, values, color=BLUE, alpha=0.2, linewidth=0.8)
        ax.plot(*_smoothed(at, values), color=BLUE, label="training")
        held_out = [record[f"held_out_{name}"] for record in evaluations]
        ax.plot(
            [e["step"] for e in evaluations], held_out, "o-", color=ORANGE, markersize=3, label="held out"
        )
        ax.set_xlabel("step")
        ax.set_title(name)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(0, 1.01)
    axes[1].legend(frameon=False, loc="lower right")
    return figure


def _smoothed(at: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of some values up to each, and where they are."""
    width = 1 + min(SMOOTHED, len(values) // 5)
    return at[width - 1 :], np.convolve(values, np.ones(width) / width, "valid")


def loss_curve(history: History) -> Figure:
    """The loss alone, on a logarithmic scale."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    ax = figure.subplots()
    at, values = (np.array([record[key] for record in history.steps]) for key in ("step", "loss"))
    ax.semilogy(at, values, color=BLUE, alpha=0.2, linewidth=0.8)
    ax.semilogy(*_smoothed(at, values), color=BLUE)
    ax.set_xlabel("step")
    ax.set_title("loss")
    ax.grid(alpha=0.3, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def grid(images: np.ndarray, columns: int, title: str) -> Figure:
    """Images `[batch, X, Y, 1]` in 0 .. 1, row by row; the batch is a multiple of `columns`."""
    count, rows, width, _ = images.shape
    tiles = images.reshape(count // columns, columns, rows, width).transpose(0, 2, 1, 3)
    figure = Figure(figsize=(0.6 * columns, 0.6 * count / columns + 0.4), layout="constrained")
    ax = figure.subplots()
    ax.imshow(tiles.reshape(-1, columns * width), cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=9)
    ax.set_axis_off()
    return figure


def confusion(labels: np.ndarray, predictions: np.ndarray, count: int) -> np.ndarray:
    """[classes, classes]: how many images of a class (rows) are taken for a class (columns)."""
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, classes: Sequence[str]) -> Figure:
    """The confusion as shares of a class, with counts where there is room for them."""
    counts = confusion(labels, predictions, len(classes))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5.2, 5.0), layout="constrained")
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ax.set_xlabel("taken for")
    ax.set_ylabel("class")
    accuracy = np.trace(counts) / counts.sum()
    ax.set_title(f"{np.trace(counts)} of {counts.sum()} held-out images are right: {accuracy:.1%}")
    if len(classes) <= MOST_NUMBERS:
        ticks = range(len(classes))
        ax.set_xticks(ticks, classes, rotation=0 if max(map(len, classes)) < 3 else 90)
        ax.set_yticks(ticks, classes)
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                ax.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    return figure
