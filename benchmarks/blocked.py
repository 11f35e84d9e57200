# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention in pure JAX, as one would write it without a library.

Tiles of queries, each with a dense, masked block of copies of the keys that its windows cover.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from method import Array, Case, Prepared, fastest, too_large

from jax_na.tools import profiler
from jax_na.tools.flex import order
from jax_na.tools.profiler import Attend

TILES = {1: ((64,), (128,)), 2: ((4, 4), (8, 8)), 3: ((2, 4, 4), (4, 4, 4))}
LEAST = float(np.finfo(np.float32).min)  # the score of a key that is not seen
CHUNK = 1 << 19  # scores of the tiles computed together where tiles go chunk by chunk: 2 MB


def cut(case: Case, tile: Sequence[int]) -> tuple[Array, Array, Array]:
    """T tiles of t queries [T, t], the u keys of each [T, u], and which query sees which [T, t, u]."""
    problem, size = case.problem, math.prod(tile)
    index = profiler.neighborhood(problem).indices(problem.spatial).reshape(problem.tokens, -1)
    queries = np.resize(order(problem, tile), (-(-problem.tokens // size), size))
    seen = index[queries]  # [T, t, window]; -1 is no key
    blocks = [np.unique(keys) for keys in seen]
    most = max(map(len, blocks))
    keys = np.stack([np.pad(block, (0, most - len(block)), mode="edge") for block in blocks])
    visible = np.zeros((*queries.shape, most), bool)
    for found, block, mask in zip(seen, keys, visible, strict=True):
        np.put_along_axis(mask, np.searchsorted(block, found), found >= 0, axis=1)
    return queries, np.maximum(keys, 0), visible


def attend_tile(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """Attention of scaled [B, heads, t or u, features] with a mask [t, u]."""
    grouped = query.reshape(*key.shape[:2], -1, *query.shape[2:])
    scores = jnp.einsum("bgrtd,bgud->bgrtu", grouped, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.where(visible, scores, LEAST)).astype(value.dtype)
    return jnp.einsum("bgrtu,bgud->bgrtd", weights, value).reshape(*query.shape[:3], -1)


def _copies(x: jax.Array, tokens: jax.Array) -> jax.Array:
    """[B, *spatial, heads, features] to [T, B, heads, tokens, features]."""
    rows = x.reshape(x.shape[0], -1, *x.shape[-2:])
    return rows[:, tokens].transpose(1, 0, 3, 2, 4)


def _attend(case: Case, tile: Sequence[int], chunked: bool) -> tuple[Attend, list[Any]]:
    """The function of (query, key, value, *constants), and the constants."""
    p, tables = case.problem, cut(case, tile)
    place = np.empty(p.tokens, np.int64)
    place[tables[0].ravel()] = np.arange(tables[0].size)
    together = max(1, CHUNK // (p.batch * p.heads * tables[2][0].size))
    one: Any = jax.checkpoint(lambda tile: attend_tile(*tile))
    run = functools.partial(jax.lax.map, one, batch_size=together) if chunked else jax.vmap(one)

    def attend(*operands: jax.Array) -> tuple[jax.Array, None]:
        q, k, v, place, queries, keys, visible = operands
        tiles = (_copies(q * p.softmax_scale, queries), _copies(k, keys), _copies(v, keys), visible)
        out = run(tiles).transpose(1, 0, 3, 2, 4)
        return out.reshape(p.batch, -1, *out.shape[-2:])[:, place].reshape(p.out_shape), None

    return attend, [place, *tables]


def obstacle(case: Case) -> str | None:
    return too_large(case, "the masks of its tiles", 3.0 * case.problem.tokens * case.problem.window, 1)


def prepared(prepare: Callable[..., Prepared], case: Case) -> Prepared:
    """The best of some tiles, all tiles at once or chunk by chunk."""
    candidates = {}
    for chunked in (True, False):
        for tile in TILES[case.problem.rank]:
            name = f"tile {'x'.join(map(str, tile))}{', chunked' if chunked else ''}"
            attend = functools.partial(_attend, case, tile, chunked)
            candidates[name] = lambda attend=attend: prepare(case, *attend())
    return fastest(case, candidates)
