# SPDX-License-Identifier: Apache-2.0
"""Which tokens a token attends to, in a trained model. Kernels do not form these weights: the scores are."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from matplotlib.figure import Figure

import jax_na
from flax_layers.nnx import NeighborhoodAttention
from jax_na.tools.plot import shown

HEADS = 4  # of a layer that are drawn
PICTURES = 5


def weights_of(layer: NeighborhoodAttention, x: jax.Array, position: tuple[int, int]) -> jax.Array:
    """How much every head of a layer attends to the keys of a window.

    Args:
      layer: of two spatial axes.
      x: its input `[X, Y, features]`, at least as large as the window.
      position: of the token that attends.

    Returns:
      `[heads, prod(kernel_size)]`, with the sum 1 for every head.
    """
    rpb = None if layer.rpb is None else layer.rpb[...]
    query, key = layer.query(x), layer.key(x)
    scores = jax_na.neighborhood_qk(query, key, layer.neighborhood, scale=layer.score_scale, rpb=rpb)
    return jax.nn.softmax(scores[position])


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
            window = (layer.neighborhood, x.shape[:2], position)
            weights = weights_of(layer, x, position)[:count]
            for ax, of_head in zip(row[column : column + count], weights, strict=True):
                jax_na.plot_attention(*window, of_head, image=image, ax=ax)
        axes[0][column].set_title(f"level {number + 1}, {count} heads", loc="left", fontsize=9)
        column += count
    for ax in axes.flat:
        ax.set_axis_off()
    return figure
