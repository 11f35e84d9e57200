# SPDX-License-Identifier: Apache-2.0
"""One axis of the implementation "xla" cut into tiles, and the choice of the tiles.

Along an axis with dilation d, the local coordinate x (counted from the region's first query or key) is
residue x % d, position x // d. The residues are the groups of the dilation, and all of them are computed
together. A tile is T query positions of every residue; its keys are a slice of U positions that holds all
their windows.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_na.neighborhood import Axis, Shape, windows
from jax_na.op import Op

MAX_SCORES = 1 << 20  # scores of one step: 4 MB of float32
STEP_COST = 1 << 14  # what starting a step costs, in scores


class Span(NamedTuple):
    """One tile along one axis, in positions relative to its key slice. d residues, T query positions."""

    key: Array  # [] first key position of the slice
    start: Array  # [d, T] windows
    stop: Array  # [d, T] equal to start for the queries that only fill up the last tile
    entry: Array  # [d, T] index into the positional bias of the slice's first key


@dataclass(frozen=True)
class Line:
    """One axis with `queries` and `keys` coordinates present, cut into tiles."""

    axis: Axis
    queries: int
    keys: int
    tile: int

    @property
    def tiles(self) -> int:
        return -(-self.queries // (self.tile * self.axis.dilation))

    @property
    def key_positions(self) -> int:
        return -(-self.keys // self.axis.dilation)

    @property
    def padded(self) -> tuple[int, int]:
        """Queries and keys with those that fill up the last tile and the shorter residues."""
        d = self.axis.dilation
        return self.tiles * self.tile * d, self.key_positions * d

    @functools.cached_property
    def extent(self) -> int:
        """U: the most key positions that the windows of a tile touch, wherever the region lies."""
        length, _, _, d, _ = self.axis
        x, step = np.arange(length), self.tile * d
        start, stop = windows(self.axis).T
        first = _over_residues(np.minimum, start * d + x % d, d)  # first key of the queries x .. x + d - 1
        last = _over_residues(np.maximum, ((stop - 1) * d + x % d)[::-1], d)[::-1]  # last of x - d + 1 .. x
        if self.queries == self.keys == length:  # the whole grid: tiles start at multiples of `step`
            begin = x[::step]
            touched = last[np.minimum(begin + step, length) - 1] // d - first[begin] // d + 1
        else:  # anywhere; so may the slice, at any residue
            touched = (last[np.minimum(x + step, length) - 1] - first) // d + min(d, 2)
        return min(int(touched.max()), self.key_positions)

    def span(self, tile: Array, q0: Array, k0: Array) -> Span:
        """The geometry of one tile of the region whose first query is q0 and whose first key is k0."""
        length, kernel_size, _, d, _ = self.axis
        residue = jnp.arange(d, dtype=jnp.int32)[:, None]
        local = (tile * self.tile + jnp.arange(self.tile, dtype=jnp.int32))[None] * d + residue
        present = local < self.queries
        table = jnp.asarray(windows(self.axis))[jnp.clip(q0 + local, 0, length - 1)]
        origin = (k0 + self.key_residue(residue, q0, k0)) // d  # position of local key position 0
        start, stop = table[..., 0] - origin, table[..., 1] - origin
        first = jnp.min(jnp.where(present, start, self.keys))
        key = jnp.clip(first, 0, self.key_positions - self.extent)
        entry = key + origin - (q0 + local) // d + kernel_size - 1
        return Span(key, start - key, jnp.where(present, stop, start) - key, entry)

    def covered(self, q0: Array, k0: Array) -> Array:
        """bool [queries]: whether a query is on the axis, and all the keys of its window are there."""
        length, _, _, d, _ = self.axis
        x = q0 + jnp.arange(self.queries, dtype=jnp.int32)
        start, stop = jnp.asarray(windows(self.axis))[jnp.clip(x, 0, length - 1)].T
        first, last = (position * d + x % d - k0 for position in (start, stop - 1))
        present: Array = (x >= 0) & (x < length) & (first >= 0) & (last < self.keys)
        return present

    def key_residue(self, residue: Array, q0: Array, k0: Array) -> Array:
        """The local residue of the keys in the same group as the queries of local residue `residue`."""
        return (residue + q0 - k0) % self.axis.dilation


def _over_residues(pick: np.ufunc, x: np.ndarray, d: int) -> Any:
    """pick(x[i], .., x[i + d - 1]) for every i, cut at the end."""
    padded = np.concatenate([x, np.full(d - 1, x[-1])])
    return pick.reduce(np.lib.stride_tricks.sliding_window_view(padded, d), axis=-1)


@functools.lru_cache(maxsize=256)
def cut(op: Op, queries: Shape, keys: Shape, blocks: int) -> tuple[Line, ...]:
    """The tiles with the fewest steps and scores outside the windows; `blocks` is batch times heads."""

    every = itertools.product(*map(_candidates, op.axes, queries, keys))
    return min(every, key=functools.partial(_cost, blocks))


def _candidates(axis: Axis, queries: int, keys: int) -> list[Line]:
    """The axis cut into tiles of every power of two, and not cut."""
    positions = -(-queries // axis.dilation)
    sizes = {min(1 << i, positions) for i in range(positions.bit_length() + 1)}
    return [Line(axis, queries, keys, size) for size in sorted(sizes)]


def _cost(blocks: int, lines: tuple[Line, ...]) -> tuple[bool, int]:
    scores = blocks * math.prod(line.axis.dilation * line.tile * line.extent for line in lines)
    if scores > MAX_SCORES:
        return True, scores  # too many; if all have too many, the fewest
    return False, math.prod(line.tiles for line in lines) * (scores + STEP_COST)
