# SPDX-License-Identifier: Apache-2.0
"""Which tokens a token attends to, in a trained model. Kernels do not form these weights: the scores are."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import jax_na
from flax_layers.nnx import NeighborhoodAttention

HEADS = 4  # of a layer that are drawn
PICTURES = 5


def attention_map(layer: NeighborhoodAttention, x: jax.Array, position: tuple[int, int]) -> np.ndarray:
    """What every head of a layer attends to.

    Args:
      layer: of two spatial axes.
      x: its input `[X, Y, features]`, at least as large as the window.
      position: of the token that attends.

    Returns:
      `[heads, X, Y]`, with the sum 1 for every head; NaN for tokens that are not seen.
    """
    rpb = None if layer.rpb is None else layer.rpb[...]
    query, key = layer.query(x), layer.key(x)
    scores = jax_na.neighborhood_qk(query, key, layer.neighborhood, scale=layer.score_scale, rpb=rpb)
    weights = jax.nn.softmax(scores[position])
    seen = layer.neighborhood.indices(x.shape[:2])[position]
    attention = np.full((len(weights), x.shape[0] * x.shape[1]), np.nan, np.float32)
    attention[:, seen] = weights
    return attention.reshape(-1, *x.shape[:2])


def last_layers(model: Any, images: np.ndarray) -> list[tuple[NeighborhoodAttention, jax.Array]]:
    """The last attention layer of every level with its input, where that is not smaller than the window."""
    graph, parameters = nnx.split(model)

    @jax.jit
    def inputs_of(parameters: Any, images: jax.Array) -> list[jax.Array]:
        copy = nnx.merge(graph, parameters, copy=True)
        x, inputs = copy.patch_embed(images), []
        for level in levels_of(copy):
            for block in level.blocks:
                last, x = block.norm1(x), block(x)
            inputs.append(last)
            if getattr(level, "downsample", None) is not None:
                x = level.downsample(x)
        return inputs

    layers = [level.blocks[-1].attn for level in levels_of(model)]
    found = zip(layers, inputs_of(parameters, images), strict=True)
    return [(layer, x) for layer, x in found if has_room(layer, x.shape[1:3])]


def levels_of(model: Any) -> Any:
    """Of a model with several; an isotropic one is a level itself."""
    return getattr(model, "levels", [model])


def has_room(layer: NeighborhoodAttention, grid: tuple[int, ...]) -> bool:
    window = layer.neighborhood
    least = [w * d for w, d in zip(window.kernel_size, window.dilation, strict=True)]
    return all(side >= n for side, n in zip(grid, least, strict=True))


def contrasted(image: np.ndarray, grid: tuple[int, int]) -> tuple[int, int]:
    """The token of a grid over an image `[X, Y, channels]` in which the pixels differ most."""
    rows, columns = (side // tokens for side, tokens in zip(image.shape, grid, strict=False))
    patches = image[: rows * grid[0], : columns * grid[1]].reshape(grid[0], rows, grid[1], columns, -1)
    deviations = patches.std((1, 3)).mean(-1)
    row, column = np.unravel_index(np.argmax(deviations), grid)
    return int(row), int(column)


def draw(model: Any, images: np.ndarray) -> Figure | None:
    """Images in rows: the image, and maps of heads of the last layer of every level, over it.

    images: `[batch, X, Y, channels]`, as the model takes them. None if all levels are smaller than their
    windows.
    """
    images = images[:PICTURES]
    layers = last_layers(model, images)
    if not layers:
        return None
    heads = [min(layer.query.out_features[0], HEADS) for layer, _ in layers]
    figure = Figure(figsize=(1.6 * (1 + sum(heads)), 1.75 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), 1 + sum(heads), squeeze=False)
    for row, image in zip(axes, images, strict=True):
        row[0].imshow(shown(image), cmap="gray")
    column = 1
    for number, ((layer, inputs), count) in enumerate(zip(layers, heads, strict=True)):
        for row, image, x in zip(axes, images, inputs, strict=True):
            position = contrasted(image, (x.shape[0], x.shape[1]))
            maps = attention_map(layer, x, position)[:count]
            for ax, attention in zip(row[column : column + count], maps, strict=True):
                overlay(ax, image, attention, position)
        axes[0][column].set_title(f"level {number + 1}, {count} heads", loc="left", fontsize=9)
        column += count
    for ax in axes.flat:
        ax.set_axis_off()
    return figure


def overlay(ax: Any, image: np.ndarray, attention: np.ndarray, position: tuple[int, int]) -> None:
    """The attention of a token over an image, and a mark where the token is."""
    rows, columns = image.shape[:2]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(shown(image), cmap="gray", extent=extent)
    ax.imshow(attention, cmap="magma", alpha=0.7, vmin=0, extent=extent, interpolation="nearest")
    x, y = (
        (i + 0.5) * side / n - 0.5
        for i, side, n in zip(position, (rows, columns), attention.shape, strict=True)
    )
    ax.plot(y, x, "o", color="#4fc3f7", markersize=4)


def shown(image: np.ndarray) -> np.ndarray:
    """With the darkest pixel 0 and the lightest 1; [X, Y] if there is one channel."""
    scaled: np.ndarray = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
    return scaled[..., 0] if image.shape[-1] == 1 else scaled
