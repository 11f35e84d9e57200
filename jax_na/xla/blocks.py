# SPDX-License-Identifier: Apache-2.0
"""The blocked layout of the implementation "xla": query tiles, the key slices they need, masks and bias.

Axis order, for R query heads of each of G kv heads, with the residues D1.. of the dilations (see lines.py):

    queries  [tiles, *batch, D1.., G, R, T1 * .., features]
    keys     [*batch, D1.., G, K1, .., features]
    scores   [*batch, D1.., G, R, T1 * .., U1 * ..]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_na.neighborhood import Shape, known_size
from jax_na.op import Op
from jax_na.xla.lines import Line, Span, cut


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocked form of one call: `batch` leading axes, `heads` query heads and `groups` kv heads."""

    lines: tuple[Line, ...]
    batch: int
    heads: int
    groups: int
    offsets: Array

    @classmethod
    def of(cls, op: Op, query: Shape, key: Shape, offsets: Array) -> Blocks:
        """`query` and `key` are shapes [*batch, *spatial, heads, features]."""
        rank = op.neighborhood.rank
        batch = len(query) - rank - 2
        lines = cut(op, query[batch:-2], key[batch:-2], known_size(query[:batch]) * query[-2])
        return cls(lines, batch, query[-2], key[-2], offsets)

    @property
    def rank(self) -> int:
        return len(self.lines)

    @property
    def tiles(self) -> Shape:
        return tuple(line.tiles for line in self.lines)

    @property
    def tile(self) -> Shape:
        return tuple(line.tile for line in self.lines)

    @property
    def extent(self) -> Shape:
        return tuple(line.extent for line in self.lines)

    # Layout.

    def split_queries(self, x: Array) -> Array:
        """[*batch, *Sq, H, *rest] -> [tiles, *batch, *d, G, R, prod(T), *rest]; zeros complete tiles."""
        b, r = self.batch, self.rank
        x = _pad(x, b, [line.padded[0] for line in self.lines])
        split = [n for line in self.lines for n in (line.tiles, line.tile, line.axis.dilation)]
        x = x.reshape(*x.shape[:b], *split, self.groups, self.heads // self.groups, *x.shape[b + r + 1 :])
        x = x.transpose(self._query_order(x.ndim))
        tail = x.shape[r + b + r + 2 + r :]
        return x.reshape(math.prod(self.tiles), *x.shape[r : r + b + r + 2], math.prod(self.tile), *tail)

    def join_queries(self, x: Array) -> Array:
        """The inverse of split_queries."""
        b, r = self.batch, self.rank
        kept, rest = x.shape[1 : 1 + b + r + 2], x.shape[1 + b + r + 3 :]
        x = x.reshape(*self.tiles, *kept, *self.tile, *rest)
        x = x.transpose(np.argsort(self._query_order(x.ndim)))
        x = x.reshape(*x.shape[:b], *(line.padded[0] for line in self.lines), self.heads, *rest)
        return x[(slice(None),) * b + tuple(slice(line.queries) for line in self.lines)]

    def _query_order(self, ndim: int) -> list[int]:
        """[*batch, (tiles, T, d).., G, R, ..] -> [tiles.., *batch, d.., G, R, T.., ..]"""
        b, r = self.batch, self.rank
        tiles, tile, residue = ([b + 3 * a + i for a in range(r)] for i in range(3))
        heads = b + 3 * r
        return [*tiles, *range(b), *residue, heads, heads + 1, *tile, *range(heads + 2, ndim)]

    def split_keys(self, x: Array) -> Array:
        """[*batch, *Sk, G, E] -> [*batch, *d, G, *K, E], residues in the order of the queries' residues."""
        b, r = self.batch, self.rank
        x = _pad(x, b, [line.padded[1] for line in self.lines])
        split = [n for line in self.lines for n in (line.key_positions, line.axis.dilation)]
        x = x.reshape(*x.shape[:b], *split, *x.shape[b + r :]).transpose(self._key_order())
        return self._turn(x, 1)

    def join_keys(self, x: Array) -> Array:
        """The inverse of split_keys."""
        b = self.batch
        x = self._turn(x, -1).transpose(np.argsort(self._key_order()))
        x = x.reshape(*x.shape[:b], *(line.padded[1] for line in self.lines), *x.shape[-2:])
        return x[(slice(None),) * b + tuple(slice(line.keys) for line in self.lines)]

    def _key_order(self) -> list[int]:
        """[*batch, (K, d).., G, E] -> [*batch, d.., G, K.., E]"""
        b, r = self.batch, self.rank
        position, residue = ([b + 2 * a + i for a in range(r)] for i in range(2))
        return [*range(b), *residue, b + 2 * r, *position, b + 2 * r + 1]

    def _turn(self, x: Array, sign: int) -> Array:
        for a, line in enumerate(self.lines):
            if line.axis.dilation > 1:
                shift = line.key_residue(jnp.int32(0), self.offsets[a, 0], self.offsets[a, 1])
                x = jnp.roll(x, -sign * shift, axis=self.batch + a)
        return x

    # One step.

    def spans(self, tile: Array) -> tuple[Span, ...]:
        index = jnp.unravel_index(tile, self.tiles)
        return tuple(
            line.span(i.astype(jnp.int32), o[0], o[1])
            for line, i, o in zip(self.lines, index, self.offsets, strict=True)
        )

    def take_keys(self, x: Array, spans: tuple[Span, ...]) -> Array:
        """The keys of a tile: [*batch, *d, G, prod(U), E]."""
        head = x.ndim - self.rank - 1
        block = lax.dynamic_slice(x, self._corner(x, spans), (*x.shape[:head], *self.extent, x.shape[-1]))
        return block.reshape(*x.shape[:head], math.prod(self.extent), x.shape[-1])

    def add_keys(self, total: Array, block: Array, spans: tuple[Span, ...]) -> Array:
        """The transpose of take_keys, added to `total`."""
        head, corner = total.ndim - self.rank - 1, self._corner(total, spans)
        shape = (*total.shape[:head], *self.extent, total.shape[-1])
        old = lax.dynamic_slice(total, corner, shape)
        return lax.dynamic_update_slice(total, old + block.reshape(shape), corner)

    def _corner(self, x: Array, spans: tuple[Span, ...]) -> tuple[Array, ...]:
        zero = jnp.int32(0)
        return (zero,) * (x.ndim - self.rank - 1) + tuple(span.key for span in spans) + (zero,)

    def mask(self, spans: tuple[Span, ...]) -> Array:
        """bool [1.. (batch), *d, 1, 1, prod(T), prod(U)]"""
        result = jnp.ones((), bool)
        for a, (span, extent) in enumerate(zip(spans, self.extent, strict=True)):
            key = _count(extent)
            result = result & self._place((span.start[..., None] <= key) & (key < span.stop[..., None]), a)
        return self._flat(result)

    def bias(self, rpb: Array, spans: tuple[Span, ...]) -> Array:
        """rpb [H, 2 * w0 - 1, ..] -> [1.. (batch), *d, G, R, prod(T), prod(U)]"""
        r = self.rank
        for a, (span, line) in enumerate(zip(spans, self.lines, strict=True)):
            entry = span.entry[..., None] + _count(line.extent)
            rpb = jnp.take(rpb, jnp.clip(entry, 0, 2 * line.axis.kernel_size - 2), axis=1 + 3 * a)
        order = [1 + 3 * a for a in range(r)] + [0] + [1 + 3 * a + i for i in (1, 2) for a in range(r)]
        rpb = rpb.transpose(order)
        return self._flat(
            rpb.reshape(*rpb.shape[:r], self.groups, self.heads // self.groups, *rpb.shape[r + 1 :])
        )

    def covered(self) -> Array:
        """bool [1.. (batch), *Sq]: whether the keys hold the whole window of a query."""
        result = jnp.ones((1,) * (self.batch + self.rank), bool)
        for a, (line, offset) in enumerate(zip(self.lines, self.offsets, strict=True)):
            before, after = self.batch + a, self.rank - a - 1
            shape = (1,) * before + (line.queries,) + (1,) * after
            result = result & line.covered(offset[0], offset[1]).reshape(shape)
        return result

    def to_slots(self, scores: Array, spans: tuple[Span, ...]) -> Array:
        """[.., prod(T), prod(U)] -> [.., prod(T), prod(w)]; invisible slots are 0."""

        def key(span: Span, line: Line) -> tuple[Array, Array]:
            index = span.start[..., None] + _count(line.axis.kernel_size)
            return jnp.clip(index, 0, line.extent - 1), index < span.stop[..., None]

        return self._gather(scores, self.extent, spans, key)

    def from_slots(self, weights: Array, spans: tuple[Span, ...]) -> Array:
        """The transpose of to_slots: [.., prod(T), prod(w)] -> [.., prod(T), prod(U)]."""

        def slot(span: Span, line: Line) -> tuple[Array, Array]:
            index = _count(line.extent) - span.start[..., None]
            seen = (index >= 0) & (index < (span.stop - span.start)[..., None])
            return jnp.clip(index, 0, line.axis.kernel_size - 1), seen

        return self._gather(weights, tuple(line.axis.kernel_size for line in self.lines), spans, slot)

    def _gather(
        self,
        x: Array,
        shape: Shape,
        spans: tuple[Span, ...],
        index: Callable[[Span, Line], tuple[Array, Array]],
    ) -> Array:
        """x [.., T, X] -> [.., T, Y] by one gather per axis: y[t, j] = x[t, index(t, j)] where it is seen."""
        lead = x.ndim - 2
        x = x.reshape(*x.shape[:lead], *self.tile, *shape)
        for a, (span, line) in enumerate(zip(spans, self.lines, strict=True)):
            where, seen = (self._place(i, a) for i in index(span, line))
            where, seen = (i.reshape((1,) * (x.ndim - i.ndim) + i.shape) for i in (where, seen))
            gathered = jnp.take_along_axis(x, where, axis=lead + self.rank + a)
            x = jnp.where(seen, gathered, 0)
        return x.reshape(*x.shape[:lead], math.prod(self.tile), math.prod(x.shape[lead + self.rank :]))

    def _place(self, x: Array, a: int) -> Array:
        """[d, T, X] of axis `a` -> [d1.., 1, 1, T1.., X1..] with ones for the other axes."""
        r = self.rank
        shape = [1] * (3 * r + 2)
        shape[a], shape[r + 2 + a], shape[2 * r + 2 + a] = x.shape
        return x.reshape(shape)

    def _flat(self, x: Array) -> Array:
        r = self.rank
        ones = (1,) * self.batch
        return x.reshape(*ones, *x.shape[: r + 2], math.prod(self.tile), math.prod(self.extent))


def _count(size: int) -> Array:
    """0, 1, .. as int32 [1, 1, size], beside residues and query positions."""
    return jnp.arange(size, dtype=jnp.int32)[None, None]


def _pad(x: Array, first: int, sizes: Sequence[int]) -> Array:
    """The axes from `first` on, filled up to `sizes` with zeros."""
    pads = [(0, 0)] * x.ndim
    for a, size in enumerate(sizes):
        pads[first + a] = (0, size - x.shape[first + a])
    return jnp.pad(x, pads) if any(p for _, p in pads) else x


def scan(body: Callable[..., Any], carry: Any, tiles: int, xs: tuple[Array, ...]) -> Any:
    """lax.scan over the tiles whose reverse mode keeps no scores: `body` is run again there."""
    index = jnp.arange(tiles, dtype=jnp.int32)
    return lax.scan(jax.checkpoint(body, prevent_cse=False), carry, (index, *xs))
