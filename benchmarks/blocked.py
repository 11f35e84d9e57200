# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention in pure JAX, as one would write it without a library.

Tiles of queries, each with a dense, masked block of the keys that its windows cover.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from method import Array, Case, Prepared, fastest, too_large

from jax_na.tools.profiler import Attend

TILES = {1: ((64,), (128,)), 2: ((4, 4), (8, 8)), 3: ((2, 4, 4), (4, 4, 4))}
LEAST = float(np.finfo(np.float32).min)  # the score of a key that is not seen
CHUNK = 1 << 19  # scores of the tiles computed together where tiles go chunk by chunk: 2 MB


class Tables(NamedTuple):
    """One axis cut into T tiles of t queries, each with u keys."""

    queries: Array  # [T, t] coordinates
    keys: Array  # [T, u] coordinates
    visible: Array  # [T, t, u]
    place: Array  # [length] index of a coordinate in the flattened queries


def cut(bounds: Array, dilation: int, tile: int) -> Tables:
    """The tables of an axis. A tile stays in a dilation group; the last one of it repeats the last query."""
    length = len(bounds)
    groups = [np.arange(g, length, dilation) for g in range(dilation)]
    tile = min(tile, len(groups[0]))
    steps = np.arange(tile)
    q = np.stack([g[np.minimum(i + steps, len(g) - 1)] for g in groups for i in range(0, len(g), tile)])
    start, stop = bounds[q, 0], bounds[q, 1]
    first = start.min(1, keepdims=True)
    width = int(((stop.max(1, keepdims=True) - 1 - first) // dilation).max()) + 1
    keys = first + dilation * np.arange(width)
    visible = (start[..., None] <= keys[:, None]) & (keys[:, None] < stop[..., None])
    place = np.empty(length, np.int64)
    place[q.ravel()[::-1]] = np.arange(q.size)[::-1]
    return Tables(q, np.minimum(keys, length - 1), visible, place)


def split(x: jax.Array, tables: Sequence[jax.Array]) -> jax.Array:
    """[B, *spatial, H, D] to [tiles, B, H, tile, D]."""
    for a, table in enumerate(tables):
        x = jnp.take(x, table, axis=1 + 2 * a)
    axes = range(1, 2 * len(tables) + 1)
    x = x.transpose(*axes[::2], 0, x.ndim - 2, *axes[1::2], x.ndim - 1)
    counts, sizes = zip(*(t.shape for t in tables), strict=True)
    return x.reshape(math.prod(counts), *x.shape[len(counts) : len(counts) + 2], math.prod(sizes), -1)


def join(x: jax.Array, tables: Sequence[jax.Array], places: Sequence[jax.Array]) -> jax.Array:
    """Queries in tiles, back on their grid."""
    n = len(tables)
    counts, sizes = zip(*(t.shape for t in tables), strict=True)
    _, batch, heads, _, features = x.shape
    x = x.reshape(*counts, batch, heads, *sizes, features)
    pairs = itertools.chain.from_iterable((a, n + 2 + a) for a in range(n))
    x = x.transpose(n, *pairs, n + 1, x.ndim - 1)
    x = x.reshape(batch, *(c * s for c, s in zip(counts, sizes, strict=True)), heads, features)
    for a, place in enumerate(places):
        x = jnp.take(x, place, axis=1 + a)
    return x


def _tile(scale: float, q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of the queries of tiles [..., B, H, t, D] to their keys [..., B, G, u, D]."""
    grouped = q.reshape(*k.shape[:-2], -1, *q.shape[-2:])  # [..., B, G, heads of a kv head, t, D]
    s = scale * jnp.einsum("...grtd,...gud->...grtu", grouped, k, preferred_element_type=jnp.float32)
    s = jnp.where(visible[..., None, None, None, :, :], s, LEAST)
    out = jnp.einsum("...grtu,...gud->...grtd", jax.nn.softmax(s).astype(v.dtype), v)
    return out.reshape(q.shape)


def _attend(case: Case, tile: Sequence[int], chunked: bool) -> tuple[Attend, list[Any]]:
    """The function of (query, key, value, *constants), and the constants."""
    problem, rank = case.problem, case.problem.rank
    axes = [cut(b, d, t) for b, d, t in zip(case.bounds, problem.dilation, tile, strict=True)]
    lead = functools.reduce(np.multiply.outer, [a.visible for a in axes])  # [T0, t0, u0, T1, t1, u1, ..]
    lead = lead.transpose(*range(0, 3 * rank, 3), *range(1, 3 * rank, 3), *range(2, 3 * rank, 3))
    visible = lead.reshape(math.prod(lead.shape[:rank]), math.prod(lead.shape[rank : 2 * rank]), -1)
    together = max(1, CHUNK // (problem.batch * problem.heads * visible[0].size))

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array, *tables: jax.Array
    ) -> tuple[jax.Array, None]:
        queries, keys, places = tables[:rank], tables[rank : 2 * rank], tables[2 * rank :]
        tiles = (split(q, queries), split(k, keys), split(v, keys), visible)
        one = functools.partial(_tile, problem.softmax_scale)
        if chunked:
            out = jax.lax.map(lambda x: jax.checkpoint(one)(*x), tiles, batch_size=together)
        else:
            out = one(*tiles)
        return join(out, queries, places), None

    return attend, [visible, *(a.queries for a in axes), *(a.keys for a in axes), *(a.place for a in axes)]


def obstacle(case: Case) -> str | None:
    return too_large(case, "the masks of its tiles", 3.0 * case.problem.tokens * case.problem.window, 1)


def prepared(prepare: Callable[..., Prepared], case: Case) -> Prepared:
    """The best of some tiles, all tiles at once or chunk by chunk."""
    candidates = {
        f"tile {'x'.join(map(str, tile))}{', chunked' if chunked else ''}": functools.partial(
            lambda tile, chunked: prepare(case, *_attend(case, tile, chunked)), tile, chunked
        )
        for chunked in (True, False)
        for tile in TILES[case.problem.rank]
    }
    return fastest(case, candidates)
