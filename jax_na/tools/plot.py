# SPDX-License-Identifier: Apache-2.0
"""Pictures of a window: which keys one query sees and attends to, drawn with matplotlib or as text."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jax_na.axis_values import require_query
from jax_na.neighborhood import Axis, Neighborhood, by

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What a cell is to the query. It sees all from KEY on; it could never see cells of other dilation groups.
OUTSIDE, GROUP, KEY, SHARER, QUERY = range(5)
LABELS = ("other key", "same dilation group", "key the query sees", "query with the same window", "query")
COLORS = ("#eef1f5", "#d3dce8", "#4a86cf", "#f6c690", "#f08a24")
UNICODE = "·∘■▣◆"
ASCII = ".o#+Q"


def window_cells(neighborhood: Neighborhood, shape: Sequence[int], query: Sequence[int]) -> np.ndarray:
    """int8 [*shape]: what every cell of the grid is to the query, OUTSIDE to QUERY.

    Raises:
        ValueError: if the window does not fit the grid or the query is not on it.
    """
    bounds = neighborhood.bounds(shape)
    require_query(shape, query)
    axes = zip(query, bounds, neighborhood.axes(shape), strict=True)
    lines = zip(*(_on_axis(*axis) for axis in axes), strict=True)
    group, seen, sharer = (functools.reduce(np.logical_and.outer, parts) for parts in lines)
    cells = np.full(group.shape, OUTSIDE, np.int8)
    if max(neighborhood.dilation) > 1:
        cells[group] = GROUP
    cells[seen] = KEY
    cells[sharer] = SHARER
    cells[tuple(query)] = QUERY
    return cells


def _on_axis(x: int, bounds: np.ndarray, axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every cell of an axis: in the group of x, seen by x, sharing its window."""
    cell, (start, stop) = np.arange(axis.length), bounds[x]
    group = cell % axis.dilation == x % axis.dilation
    seen = group & ((cell - start) % axis.length < stop - start)  # on the way around, if the axis is periodic
    sharer = seen & (bounds == bounds[x]).all(1) & ((cell == x) | (axis.stride > 1))
    return group, seen, sharer


def text_window(
    neighborhood: Neighborhood, shape: Sequence[int], query: Sequence[int], *, symbols: str = UNICODE
) -> str:
    """The window of one query as text: one row per line; a 3-D grid as one block per index of the first axis.

    Example:
        >>> print(text_window(jax_na.Neighborhood((3, 3)), (4, 6), (0, 2), symbols=ASCII))
        . # Q # . .
        . # # # . .
        . # # # . .
        . . . . . .
    """
    cells = window_cells(neighborhood, shape, query)
    rows = cells.reshape(-1, cells.shape[-1])
    lines = [" ".join(symbols[c] for c in row) for row in rows]
    if cells.ndim < 3:
        return "\n".join(lines)
    n = cells.shape[1]
    return "\n\n".join("\n".join([f"[{i}]", *lines[i * n : (i + 1) * n]]) for i in range(len(cells)))


def plot_window(
    neighborhood: Neighborhood, shape: Sequence[int], query: Sequence[int], *, ax: Axes | None = None
) -> Axes:
    """Draws which keys one query sees.

    Args:
        neighborhood: the window's parameters.
        shape: size of the grid, 1 to 3 axes; a 3-D grid is drawn as slices along its first axis.
        query: coordinates of the query.
        ax: matplotlib axes to draw on; a new figure if None.

    Returns:
        The axes. `ax.figure.savefig("window.png")` writes the picture.

    Raises:
        ImportError: without matplotlib.
        ValueError: if the window does not fit the grid or the query is not on it.

    Example:
        >>> ax = jax_na.plot_window(jax_na.Neighborhood((7, 7), dilation=2), (16, 16), (0, 0))
    """
    cells = window_cells(neighborhood, shape, query)
    slices = cells.reshape(-1, *cells.shape[-2:]) if cells.ndim > 1 else cells[None, None]
    columns = math.ceil(math.sqrt(len(slices)))
    ax = _new_axes(slices.shape, columns) if ax is None else ax
    for i, picture in enumerate(slices):
        corner = (i // columns) * (picture.shape[0] + 1.6), (i % columns) * (picture.shape[1] + 1)
        _draw_slice(ax, picture, corner)
        if len(slices) > 1:
            ax.text(corner[1] - 0.5, corner[0] - 0.6, f"{i}", va="bottom", fontsize=8, color="#56606e")
    _decorate(ax, neighborhood, shape, query, np.unique(cells))
    return ax


def plot_attention(
    neighborhood: Neighborhood,
    shape: Sequence[int],
    query: Sequence[int],
    weights: Any,
    *,
    image: Any = None,
    ax: Axes | None = None,
) -> Axes:
    """Draws how much one query attends to each of its keys, over an image.

    Args:
        neighborhood: the window's parameters.
        shape: size of the grid, two axes.
        query: coordinates of the query.
        weights: [prod(kernel_size)], those of its slots in one head.
        image: [rows, columns] or [rows, columns, channels of 1, 3 or 4] in any range, over which the grid
            lies; its size need not be that of the grid. None for the weights alone.
        ax: matplotlib axes to draw on; new ones if None.

    Returns:
        The axes.

    Raises:
        ImportError: without matplotlib.
        ValueError: for a grid that has not two axes, for weights of several heads, and as
            `Neighborhood.attention_map`.

    Example:
        >>> q, k = jax.random.normal(jax.random.key(0), (2, 14, 14, 4, 32))
        >>> weights = jax.nn.softmax(jax_na.neighborhood_qk(q, k, (7, 7), scale=None))
        >>> query, head = (5, 9), 2
        >>> ax = jax_na.plot_attention(jax_na.Neighborhood((7, 7)), (14, 14), query, weights[query][head])
    """
    if len(shape) != 2:
        raise ValueError(f"a grid of two axes can be drawn over an image, got shape {tuple(shape)}")
    if np.ndim(weights) != 1:
        raise ValueError(f"weights of one head have one axis, got shape {np.shape(weights)}")
    attention = neighborhood.attention_map(shape, query, weights)
    ax = _new_axes((1, *shape), 1) if ax is None else ax
    rows, columns = shape if image is None else np.shape(image)[:2]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    if image is not None:
        ax.imshow(shown(np.asarray(image)), cmap="gray", extent=extent)
    opacity = 1.0 if image is None else 0.7
    ax.imshow(attention, cmap="magma", alpha=opacity, vmin=0, extent=extent, interpolation="nearest")
    row, column = ((x + 0.5) * n / m - 0.5 for x, n, m in zip(query, (rows, columns), shape, strict=True))
    ax.plot(column, row, "o", color="#4fc3f7", markersize=4)
    ax.set_axis_off()
    return ax


def shown(image: np.ndarray) -> np.ndarray:
    """With the darkest value 0 and the lightest 1; [rows, columns] if there is one channel."""
    image = image.astype(np.float64)
    scaled: np.ndarray = (image - image.min()) / max(float(np.ptp(image)), 1e-6)
    return scaled[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else scaled


def _new_axes(shape: tuple[int, ...], columns: int) -> Axes:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "jax-na[cli]"') from error
    slices, rows, width = shape
    aspect = rows * math.ceil(slices / columns) / (width * columns)
    ax: Axes
    _, ax = plt.subplots(figsize=(6.0, min(6.0 * aspect + 1.2, 12.0)), layout="constrained")
    return ax


def _draw_slice(ax: Axes, cells: np.ndarray, corner: tuple[float, float]) -> None:
    from matplotlib.colors import ListedColormap

    y, x = (np.arange(n + 1) + start - 0.5 for n, start in zip(cells.shape, corner, strict=True))
    lines = 1.0 if max(cells.shape) <= 64 else 0.0
    edges = "white" if lines else "none"
    colors = ListedColormap(COLORS)
    ax.pcolormesh(x, y, cells, cmap=colors, vmin=OUTSIDE, vmax=QUERY, edgecolors=edges, linewidth=lines)


def _decorate(
    ax: Axes, neighborhood: Neighborhood, shape: Sequence[int], query: Sequence[int], present: np.ndarray
) -> None:
    from matplotlib.patches import Patch

    ax.set_aspect("equal")
    ax.invert_yaxis()
    ax.set_axis_off()
    ax.set_title(
        f"{neighborhood}\nquery {by(query, ', ')} of {by(shape)}",
        fontsize=10,
        pad=6 if len(shape) < 3 else 18,
    )
    handles = [Patch(facecolor=COLORS[c], edgecolor="#b8c2cf", label=LABELS[c]) for c in present[::-1]]
    ax.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=min(len(handles), 4),
        frameon=False,
        fontsize=9,
        handlelength=1.0,
        columnspacing=1.2,
    )
