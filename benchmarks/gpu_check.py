# SPDX-License-Identifier: Apache-2.0
"""Are results right? A few queries and keys of a problem of any size, from the definition in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from specs import Spec

Array = np.ndarray[Any, Any]
Planes = Mapping[
    str, Array
]  # arrays of one batch element and key head: [*spatial, heads of the group, features]
QUERIES, KEYS = 10, 5  # random ones, besides the corners
TOLERANCE = {"float32": 5e-3, "bfloat16": 1e-2, "float16": 2e-3}  # of out; gradients may have twice that


def groups(spec: Spec, number: int = 2) -> list[tuple[int, int]]:
    """(batch element, key head) pairs to look at: the last, where an index would overflow, and the first."""
    every = list(itertools.product(range(spec.batch), range(spec.kv_heads)))
    return [every[-1], *every[:1]][: min(number, len(every))]


def tokens(spec: Spec, number: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The first and the last token, and random ones."""
    corners = [(0,) * spec.rank, tuple(n - 1 for n in spec.spatial)]
    return corners + [tuple(int(rng.integers(n)) for n in spec.spatial) for _ in range(number)]


class Sample:
    """Reference values of one group of heads; `bounds` are the windows per axis, int [length, 2]."""

    def __init__(self, spec: Spec, bounds: Sequence[Array], planes: Planes, rpb: Array | None = None) -> None:
        self.spec, self.bounds, self.rpb = spec, bounds, rpb
        self.planes = {name: np.asarray(x, np.float32) for name, x in planes.items()}

    def keys_of(self, query: Sequence[int]) -> tuple[Array, ...]:
        """Per axis, the coordinates that a query sees."""
        axes = zip(self.bounds, query, self.spec.dilation, strict=True)
        return tuple(np.arange(*bounds[x], d) for bounds, x, d in axes)

    def queries_of(self, key: Sequence[int]) -> tuple[Array, ...]:
        """Per axis, the coordinates that see a key."""
        found = []
        for bounds, k, d in zip(self.bounds, key, self.spec.dilation, strict=True):
            x = np.arange(len(bounds))
            found.append(np.flatnonzero((bounds[:, 0] <= k) & (k < bounds[:, 1]) & (x % d == k % d)))
        return tuple(found)

    def rows(self, name: str, coordinates: Sequence[Array], head: int) -> Array:
        """[tokens, features] in float64."""
        x = self.planes[name][np.ix_(*coordinates)][..., head, :]
        return x.reshape(-1, x.shape[-1]).astype(np.float64)

    def row(self, name: str, token: tuple[int, ...], head: int) -> Array:
        return self.planes[name][token][head].astype(np.float64)

    def attention(self, token: tuple[int, ...], head: int) -> dict[str, Array]:
        """out, lse and, with "dout" among the planes, dquery of one query."""
        where = self.keys_of(token)
        keys, values = self.rows("key", where, 0), self.rows("value", where, 0)
        scores = self.spec.softmax_scale * keys @ self.row("query", token, head)
        if self.rpb is not None:
            entries = [
                (k - x) // d + w - 1
                for k, x, d, w in zip(where, token, self.spec.dilation, self.spec.kernel_size, strict=True)
            ]
            scores += self.rpb[head][np.ix_(*entries)].reshape(-1)
        lse = scores.max() + math.log(np.exp(scores - scores.max()).sum())
        weights = np.exp(scores - lse)
        out = weights @ values
        found = {"out": out, "lse": np.array([lse])}
        if "dout" in self.planes:
            dweights = values @ self.row("dout", token, head)
            dscores = weights * (dweights - self.row("dout", token, head) @ out)
            found["dquery"] = self.spec.softmax_scale * dscores @ keys
        return found

    def key_gradients(self, token: tuple[int, ...]) -> dict[str, Array]:
        """dkey and dvalue of one key, given out and lse of the queries that see it."""
        where, scale = self.queries_of(token), self.spec.softmax_scale
        dkey = dvalue = np.zeros(())
        for head in range(self.planes["query"].shape[-2]):
            query, dout = self.rows("query", where, head), self.rows("dout", where, head)
            lse, out = self.rows("lse", where, head)[:, 0], self.rows("out", where, head)
            weights = np.exp(scale * query @ self.row("key", token, 0) - lse)
            dscores = weights * (dout @ self.row("value", token, 0) - (dout * out).sum(-1))
            dkey, dvalue = dkey + scale * dscores @ query, dvalue + weights @ dout
        return {"dkey": dkey, "dvalue": dvalue}


def errors(sample: Sample, seed: int = 0) -> dict[str, float]:
    """Of what is among the planes, ||x - reference|| / ||reference|| over all tokens looked at."""
    rng = np.random.default_rng(seed)
    pairs: dict[str, list[tuple[Array, Array]]] = {}
    heads = sample.planes["query"].shape[-2]
    for token, head in itertools.product(tokens(sample.spec, QUERIES, rng), range(min(heads, 2))):
        for name, x in sample.attention(token, head).items():
            if name in sample.planes:
                pairs.setdefault(name, []).append((sample.row(name, token, head), x))
    if sample.rpb is None and {"dkey", "lse"} <= set(sample.planes):
        for token in tokens(sample.spec, KEYS, rng):
            for name, x in sample.key_gradients(token).items():
                pairs.setdefault(name, []).append((sample.row(name, token, 0), x))
    return {name: _relative(rows) for name, rows in pairs.items()}


def _relative(pairs: Sequence[tuple[Array, Array]]) -> float:
    found, right = (np.concatenate(x) for x in zip(*pairs, strict=True))
    return float(np.linalg.norm(found - right) / max(np.linalg.norm(right), 1e-30))


def wrong(found: Mapping[str, float], dtype: str) -> str | None:
    """Says which error is too large; NaN is."""
    for name, error in found.items():
        if not error <= TOLERANCE[dtype] * (2 if name.startswith("d") else 1):
            return f"it is WRONG: the relative error of {name} is {error:.1e}"
    return None
