# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention over the patches of a photograph: every implementation, forward and backward.

    python examples/photo.py [--output jax_na_photo.png]

The photograph (Eileen Collins, by NASA, in the public domain) comes with scikit-image. It is cut into 64 x 64
patches of 8 x 8 pixels. Every patch attends to the patches around it, most to those like it; the values are
the pixels. So in the output every patch is a mean of similar ones nearby: non-local means, as attention.
Nothing is trained and nothing is downloaded.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from skimage import data

import jax_na

PATCH, HEADS, HEAD_DIM = 8, 4, 32
WINDOW = jax_na.Neighborhood((9, 9))
VARIANCE = 0.003  # of a pixel between two patches that count as similar; pixels are in [0, 1]
CORNER, CENTRE = (0, 0), (38, 24)  # the two queries of the picture
ROUNDS, SECONDS = 5, 1.0  # every computation runs this often, or until it has taken this long
TOLERANCE = 1e-3  # float32, gradients are sums of hundreds of terms of both signs
ORANGE, BLUE = "#ff9a2e", "#5cc8ff"

Arrays = tuple[jax.Array, ...]


@dataclass
class Result:
    """What an implementation computed (the output and three gradients), and the seconds its runs took."""

    arrays: Arrays = ()
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"forward": [], "both": []})


def to_patches(photo: np.ndarray) -> np.ndarray:
    """[rows, columns, 3] pixels to [X, Y, heads, pixels / heads]; a head has two rows of every patch."""
    x, y = photo.shape[0] // PATCH, photo.shape[1] // PATCH
    blocks = photo[: x * PATCH, : y * PATCH].reshape(x, PATCH, y, PATCH, 3)
    return blocks.swapaxes(1, 2).reshape(x, y, HEADS, -1)


def to_photo(patches: np.ndarray) -> np.ndarray:
    """The inverse of `to_patches`."""
    x, y = patches.shape[:2]
    return patches.reshape(x, y, PATCH, PATCH, 3).swapaxes(1, 2).reshape(x * PATCH, y * PATCH, 3)


def project(patches: np.ndarray) -> Arrays:
    """Query, key and value [1, X, Y, heads, features]; <q, k> is -|a - b|^2 / 2 up to a term of the query.

    a and b are the strongest principal components of the two patches in units of VARIANCE, for every head.
    """
    flat = patches.reshape(patches.shape[0] * patches.shape[1], -1)
    centred = flat - flat.mean(0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    a = centred @ directions[:, :-HEAD_DIM:-1] / np.sqrt(flat.shape[1] * VARIANCE)
    query = np.concatenate([a, np.ones_like(a[:, :1])], axis=1)
    key = np.concatenate([a, -0.5 * (a**2).sum(1, keepdims=True)], axis=1)
    query, key = (
        np.repeat(x[:, None], HEADS, 1).reshape(1, *patches.shape[:3], HEAD_DIM) for x in (query, key)
    )
    return jnp.asarray(query), jnp.asarray(key), jnp.asarray(patches[None])


def attend(implementation: str | None, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The attention itself: this line is what the library is for."""
    return jax_na.na2d(query, key, value, WINDOW.kernel_size, scale=1.0, implementation=implementation)


def attend_and_differentiate(implementation: str | None, *inputs: jax.Array) -> Arrays:
    """The output, and the gradients of half its squared norm by query, key and value."""
    out, pullback = jax.vjp(functools.partial(attend, implementation), *inputs)
    return out, *pullback(out)


def run_all(names: list[str], inputs: Arrays, progress: Progress) -> dict[str, Result]:
    """Compiles every implementation, then runs them in turns."""
    task = progress.add_task("", total=len(names) * (ROUNDS + 1))
    passes = {"forward": attend, "both": attend_and_differentiate}
    calls: dict[str, dict[str, Callable[..., Any]]] = {}
    for name in names:
        progress.update(task, description=f"compiling {name:6}", advance=1)
        bound = {what: jax.jit(functools.partial(f, name)) for what, f in passes.items()}
        calls[name] = {what: f.lower(*inputs).compile() for what, f in bound.items()}
    results = {name: Result() for name in names}
    for _ in range(ROUNDS):
        for name, result in results.items():
            progress.update(task, description=f"running {name:6}  ", advance=1)
            for what, seconds in result.seconds.items():
                if sum(seconds) < SECONDS:
                    start = time.perf_counter()
                    output = jax.block_until_ready(calls[name][what](*inputs))
                    seconds.append(time.perf_counter() - start)
                    result.arrays = output if what == "both" else result.arrays
    return results


def compare(results: dict[str, Result], reference: str) -> tuple[Table, float]:
    """A table of timings and of the largest differences from the reference; and the largest of them all."""
    table = Table(
        box=SIMPLE_HEAD, caption=f"median times; largest difference from {reference}, relative to its maximum"
    )
    headings = ("forward", "and backward", "output error", "gradient error")
    table.add_column("implementation")
    for heading in headings:
        table.add_column(heading, justify="right")
    worst = 0.0
    for name, result in results.items():
        pairs = zip(result.arrays, results[reference].arrays, strict=True)
        output, *gradients = (float(jnp.abs(x - y).max() / jnp.abs(y).max()) for x, y in pairs)
        worst = max(worst, output, *gradients)
        times = (f"{statistics.median(seconds) * 1e3:.1f} ms" for seconds in result.seconds.values())
        table.add_row(name, *times, f"{output:.1e}", f"{max(gradients):.1e}")
    return table, worst


def attention_map(query: jax.Array, key: jax.Array, position: tuple[int, int]) -> np.ndarray:
    """[X, Y]: how much the patch at `position` attends to every patch, NaN for those it does not see."""
    scores = jax_na.neighborhood_qk(query[0], key[0], WINDOW)
    return WINDOW.attention_map(query.shape[1:3], position, jax.nn.softmax(scores[position][0]))


def window_box(position: tuple[int, int], shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The pixels of the window of a patch."""
    rows, columns = (b[x] * PATCH for b, x in zip(WINDOW.bounds(shape), position, strict=True))
    return slice(*rows), slice(*columns)


def frame(ax: Axes, box: tuple[slice, slice], color: str) -> None:
    (top, bottom), (left, right) = ((s.start - 0.5, s.stop - 0.5) for s in box)
    size = (right - left, bottom - top)
    ax.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=color, linewidth=2.0, clip_on=False))


def draw(photo: np.ndarray, output: np.ndarray, attention: np.ndarray) -> Figure:
    """Two windows on the photograph, the attention inside one of them, and the output."""
    figure = Figure(figsize=(13.2, 4.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    boxes = [window_box(position, attention.shape) for position in (CORNER, CENTRE)]
    patches = [tuple(slice(x * PATCH, (x + 1) * PATCH) for x in position) for position in (CORNER, CENTRE)]
    dark = 0.45 * photo
    for box in boxes:
        dark[box] = photo[box]
    left.imshow(dark)
    for box, patch in zip(boxes, patches, strict=True):
        frame(left, box, BLUE)
        frame(left, patch, ORANGE)
    left.set_title("what two patches see: windows slide inward at borders")

    rows, columns = boxes[1]
    extent = (columns.start - 0.5, columns.stop - 0.5, rows.stop - 0.5, rows.start - 0.5)
    middle.imshow(photo[boxes[1]], extent=extent)
    seen = attention[tuple(slice(s.start // PATCH, s.stop // PATCH) for s in boxes[1])]
    middle.imshow(seen, extent=extent, cmap="magma", alpha=0.72, vmin=0.0)
    for (x, y), weight in np.ndenumerate(seen):
        at = columns.start + (y + 0.5) * PATCH - 0.5, rows.start + (x + 0.5) * PATCH - 0.5
        color = "black" if weight > 0.6 * seen.max() else "white"
        middle.text(*at, f"{100 * weight:.1f}", ha="center", va="center", fontsize=7, color=color)
    frame(middle, patches[1], ORANGE)
    middle.set_title("how much the second attends to each of them, in percent")

    right.imshow(output.clip(0, 1))
    right.set_title("output: every patch a mean of similar ones nearby")
    for ax in (left, middle, right):
        ax.set_axis_off()
        ax.title.set_fontsize(10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--output", default="jax_na_photo.png", help="picture to write (default: %(default)s)"
    )
    options = parser.parse_args()
    console = Console()

    photo = data.astronaut().astype(np.float32) / 255
    inputs = project(to_patches(photo))
    query, key, value = inputs
    flops = WINDOW.flops(query.shape[1:3], HEADS, HEAD_DIM, value.shape[-1])
    console.print(
        f"{query.shape[1]} x {query.shape[2]} patches, {HEADS} heads, each patch sees {WINDOW.size}: "
        f"{flops / 1e9:.2f} GFLOP forward, {jax.default_backend()}",
        highlight=False,
    )
    names = [row.name for row in jax_na.implementations(query, WINDOW.kernel_size) if row.available]
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        results = run_all(names, inputs, progress)
    table, worst = compare(results, "naive" if "naive" in names else "xla")
    console.print(table)

    output = to_photo(np.asarray(results[names[0]].arrays[0][0]))
    draw(photo, output, attention_map(query, key, CENTRE)).savefig(options.output, dpi=110)
    console.print(f"wrote {options.output}")
    if worst > TOLERANCE:
        raise SystemExit(f"the implementations differ by {worst:.1e}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
