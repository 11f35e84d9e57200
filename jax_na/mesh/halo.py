# SPDX-License-Identifier: Apache-2.0
"""Halo exchange: what one shard of a spatial axis needs of the others' keys, and how it gets it.

An axis is cut into shards of `local` coordinates; the last ones may be partly or wholly padding. All devices
run one program, so sizes are the largest that any of them needs and only positions differ:

    buffer   [left halo | own keys | right halo]         coordinates own - left onwards
    region   `keys` coordinates from key_start[i] on     inside the grid, holds all windows of the shard

A region of a shard at the border begins or ends inside its buffer. The rest of it is never attended to. The
shards of a periodic axis are a ring: its keys are continued past both ends, by those of the far shards.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jax_na.neighborhood import Axis, Neighborhood, Table

Names = tuple[str, ...]  # mesh axes that one array axis is cut over, the first one outermost


class Hop(NamedTuple):
    """`rows` rows go from each source to its receiver."""

    rows: int
    pairs: tuple[tuple[int, int], ...]


class Halo(NamedTuple):
    """The exchange along one axis; tables have one entry per shard."""

    names: Names
    devices: tuple[int, ...]  # per shard; collectives number devices in the order of the mesh
    ordered: Names  # the names in that order
    length: int
    left: tuple[Hop, ...]  # from the nearest shard on the left to the farthest
    right: tuple[Hop, ...]
    everything: bool  # every shard needs all keys
    keys: int  # coordinates of a region
    query_start: Table  # first coordinate of the queries, shifted inward where the shard has padding
    query_shift: Table  # by how much
    key_start: Table
    key_shift: Table  # from buffer to region: how far rows move to the right


@functools.lru_cache(maxsize=1024)
def halo(axis: Axis, local: int, cut: tuple[tuple[str, int], ...], mesh: Names, before: int = 0) -> Halo:
    """The exchange for an axis cut into shards of `local`; coordinates beyond axis.length are padding.

    `cut` are names and sizes of the mesh axes that it is cut over, the first one outermost; `mesh` are the
    axes of the mesh in its order. Of an axis that is continued past both ends, the shards begin at coordinate
    `before`, and there is no padding.
    """
    names = tuple(name for name, _ in cut)
    ordered, devices = _numbered(cut, mesh)
    own = before + np.arange(len(devices)) * local
    first = np.minimum(own, axis.length - local)
    bounds = Neighborhood(*axis[1:]).bounds(axis[:1])[0]
    cover = np.array([_hull(bounds[x : x + local]) for x in first])
    need = np.array([_hull(bounds[x : x + local]) if x < axis.length else (x, x) for x in own])
    left = _hops(own - need[:, 0], local, 1, devices)
    right = _hops(need[:, 1] - own - local, local, -1, devices)
    everything = bool((need == (0, axis.length)).all())
    keys = axis.length if everything else int((cover[:, 1] - cover[:, 0]).max())
    buffer = own - sum(hop.rows for hop in left)
    # the region closest to the buffer that holds all windows and lies inside the grid
    start = np.clip(buffer, np.maximum(cover[:, 1] - keys, 0), np.minimum(cover[:, 0], axis.length - keys))
    shift = np.clip(own - first, 0, local)
    tables = (np.asarray(t, np.int32) for t in (first, shift, start, buffer - start))
    return Halo(names, devices, ordered, axis.length, left, right, everything, keys, *tables)


def _numbered(cut: tuple[tuple[str, int], ...], mesh: Names) -> tuple[Names, tuple[int, ...]]:
    """The mesh axes of a cut in the order of the mesh; for every shard its device, as collectives count."""
    names, sizes = [name for name, _ in cut], [size for _, size in cut]
    ordered = tuple(name for name in mesh if name in names)
    order = [names.index(name) for name in ordered]
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return ordered, tuple(np.argsort(grid.transpose(order).ravel()).tolist())


def _hull(bounds: Table) -> tuple[int, int]:
    return int(bounds[:, 0].min()), int(bounds[:, 1].max())


def _hops(reach: Table, local: int, direction: int, devices: Sequence[int]) -> tuple[Hop, ...]:
    """Messages to the right (direction 1) or left, one per distance, for windows that reach so far."""
    hops = []
    for distance in range(1, -(-int(reach.max()) // local) + 1):
        rows = np.clip(reach - (distance - 1) * local, 0, local)
        receivers = np.flatnonzero(rows).tolist()
        sources = [(i - direction * distance) % len(devices) for i in receivers]
        pairs = ((devices[source], devices[i]) for source, i in zip(sources, receivers, strict=True))
        hops.append(Hop(int(rows.max()), tuple(pairs)))
    return tuple(hops)


def extend(halo: Halo, arrays: Sequence[Array], dim: int) -> list[Array]:
    """The keys of this shard, `arrays` with axis `dim` cut, extended to those of its region.

    The arrays may differ in their last axis only: they travel in one message. Linear in all of them; the
    transpose sends what belongs to other shards home.
    """
    if not arrays:
        return []
    if dim == arrays[0].ndim - 1:  # a mask
        return [x[..., 0] for x in extend(halo, [x[..., None] for x in arrays], dim)]
    sizes = np.cumsum([x.shape[-1] for x in arrays])[:-1].tolist()

    def together(start: int, stop: int) -> Array:
        return jnp.concatenate([lax.slice_in_dim(x, start, stop, axis=dim) for x in arrays], -1)

    local = arrays[0].shape[dim]
    if halo.everything:
        blocks = lax.all_gather(together(0, local), halo.ordered, axis=dim)
        whole = lax.collapse(blocks[(slice(None),) * dim + (np.asarray(halo.devices),)], dim, dim + 2)
        return jnp.split(lax.slice_in_dim(whole, 0, halo.keys, axis=dim), sizes, -1)

    def receive(hop: Hop, start: int, stop: int) -> list[Array]:
        return jnp.split(lax.ppermute(together(start, stop), halo.ordered, hop.pairs), sizes, -1)

    left = [receive(hop, local - hop.rows, local) for hop in reversed(halo.left)]
    right = [receive(hop, 0, hop.rows) for hop in halo.right]
    shift = jnp.asarray(halo.key_shift)[lax.axis_index(halo.names)]
    parts = zip(*left, arrays, *right, strict=True)
    return [_region(jnp.concatenate(x, dim), dim, halo.keys, shift) for x in parts]


def _region(buffer: Array, dim: int, keys: int, shift: Array) -> Array:
    missing = max(0, keys - buffer.shape[dim])
    padded = jnp.pad(buffer, [(0, missing if d == dim else 0) for d in range(buffer.ndim)])
    return lax.slice_in_dim(jnp.roll(padded, shift, dim), 0, keys, axis=dim)


def starts(halo: Halo) -> Array:
    """int32 [2]: the first query and the first key of this shard's region."""
    table = np.stack([halo.query_start, halo.key_start], 1)
    return jnp.asarray(table)[lax.axis_index(halo.names)]


def align_queries(halo: Halo, x: Array, dim: int, sign: int = 1) -> Array:
    """Moves the real queries of a shard behind its padding, where the kernel expects them; sign -1: back."""
    if not halo.query_shift.any():
        return x
    return jnp.roll(x, sign * jnp.asarray(halo.query_shift)[lax.axis_index(halo.names)], dim)


def is_real(halo: Halo, local: int) -> Array:
    """bool [local]: which coordinates of this shard are not padding."""
    return lax.axis_index(halo.names) * local + jnp.arange(local) < halo.length
