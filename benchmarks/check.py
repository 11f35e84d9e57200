# SPDX-License-Identifier: Apache-2.0
"""Are results right? Whole tensors against a reference, or a few tokens against the definition in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from method import CPU, GPU, Array

from jax_na.tools.problems import Problem

# Arrays of one batch element and key head: [*spatial, heads of the group, features]; "rpb" [heads, *entries].
Planes = Mapping[str, Array]
QUERIES, KEYS = 10, 5  # random ones, besides the corners
OF_KEYS = ("key", "value", "dkey", "dvalue")

# Relative errors above which a method is wrong: of whole tensors on a CPU, of sampled tokens on a GPU.
TOLERANCE = {
    CPU: {"float32": 2e-4, "bfloat16": 4e-2},
    GPU: {"float32": 5e-3, "bfloat16": 1e-2, "float16": 2e-3},  # of out; gradients may have twice that
}


def wrong(found: Mapping[str, float], dtype: str, device: str) -> str | None:
    """Says which error is too large; NaN is."""
    for name, error in found.items():
        twice = device == GPU and name.startswith("d")
        if not error <= TOLERANCE[device][dtype] * (2 if twice else 1):
            return f"it is WRONG: the relative error of {name} is {error:.1e}"
    return None


def relative(found: Array, right: Array) -> float:
    """||found - right|| / ||right||."""
    return float(np.linalg.norm(found - right) / max(np.linalg.norm(right), 1e-30))


def whole(found: Mapping[str, Array], right: Mapping[str, Array]) -> dict[str, float]:
    """The errors of whole tensors."""
    return {name: relative(x, right[name]) for name, x in found.items()}


def sampled(
    problem: Problem, bounds: Sequence[Array], planes_of: Callable[[int, int], Planes]
) -> dict[str, float]:
    """The largest errors over some groups of heads; `planes_of` gives those of (batch element, key head)."""
    worst: dict[str, float] = {}
    for batch, kv_head in groups(problem):
        for name, error in Sample(problem, bounds, planes_of(batch, kv_head)).errors().items():
            worst[name] = max(worst.get(name, 0.0), error) if error == error else math.nan
    return worst


def groups(problem: Problem, number: int = 2) -> list[tuple[int, int]]:
    """(batch element, key head) pairs to look at: the last, where an index would overflow, and the first."""
    every = list(itertools.product(range(problem.batch), range(problem.kv_heads)))
    return [every[-1], *every[:1]][: min(number, len(every))]


def heads(problem: Problem, name: str, kv_head: int) -> slice:
    """Those heads of an array that share a key head."""
    size = 1 if name in OF_KEYS else problem.group_size
    return slice(kv_head * size, (kv_head + 1) * size)


def tokens(problem: Problem, number: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The first and the last token, and random ones."""
    corners = [(0,) * problem.rank, tuple(n - 1 for n in problem.spatial)]
    return corners + [tuple(int(rng.integers(n)) for n in problem.spatial) for _ in range(number)]


class Sample:
    """Reference values of one group of heads; `bounds` are the windows per axis, int [length, 2]."""

    def __init__(self, problem: Problem, bounds: Sequence[Array], planes: Planes) -> None:
        self.problem, self.bounds = problem, bounds
        self.planes = {name: np.asarray(x, np.float32) for name, x in planes.items()}
        self.rpb = self.planes.pop("rpb", None)

    def keys_of(self, query: Sequence[int]) -> tuple[Array, ...]:
        """Per axis, the coordinates that a query sees."""
        axes = zip(self.bounds, query, self.problem.dilation, strict=True)
        return tuple(np.arange(bounds[x, 0], bounds[x, 1], d) for bounds, x, d in axes)

    def queries_of(self, key: Sequence[int]) -> tuple[Array, ...]:
        """Per axis, the coordinates that see a key."""
        found = []
        for bounds, k, d in zip(self.bounds, key, self.problem.dilation, strict=True):
            x = np.arange(len(bounds))
            found.append(np.flatnonzero((bounds[:, 0] <= k) & (k < bounds[:, 1]) & (x % d == k % d)))
        return tuple(found)

    def rows(self, name: str, coordinates: Sequence[Array], head: int) -> Array:
        """[tokens, features] in float64."""
        x = self.planes[name][np.ix_(*coordinates)][..., head, :]
        return np.asarray(x.reshape(-1, x.shape[-1]), np.float64)

    def row(self, name: str, token: tuple[int, ...], head: int) -> Array:
        """[features] in float64."""
        return np.asarray(self.planes[name][token][head], np.float64)

    def bias(self, query: tuple[int, ...], keys: Sequence[Array], head: int) -> Array:
        """What is added to the scores of a query, by key."""
        assert self.rpb is not None
        p = self.problem
        axes = zip(keys, query, p.dilation, p.kernel_size, strict=True)
        entries = np.ix_(*((k - x) // d + w - 1 for k, x, d, w in axes))
        return np.asarray(self.rpb[head][entries].reshape(-1), np.float64)

    def attention(self, token: tuple[int, ...], head: int) -> dict[str, Array]:
        """out, lse and, with "dout" among the planes, dquery of one query."""
        where, scale = self.keys_of(token), self.problem.softmax_scale
        keys, values = self.rows("key", where, 0), self.rows("value", where, 0)
        scores: Array = scale * keys @ self.row("query", token, head)
        if self.rpb is not None:
            scores += self.bias(token, where, head)
        lse = scores.max() + math.log(np.exp(scores - scores.max()).sum())
        weights = np.exp(scores - lse)
        found = {"out": weights @ values, "lse": np.array([lse])}
        if "dout" in self.planes:
            dweights = (values - found["out"]) @ self.row("dout", token, head)
            found["dquery"] = scale * (weights * dweights) @ keys
        return found

    def key_gradients(self, token: tuple[int, ...]) -> dict[str, Array]:
        """dkey and dvalue of one key, given out and lse of the queries that see it."""
        where, scale = self.queries_of(token), self.problem.softmax_scale
        key, value = self.row("key", token, 0), self.row("value", token, 0)
        dkey, dvalue = np.zeros_like(key), np.zeros_like(value)
        for head in range(self.planes["query"].shape[-2]):
            query, out, dout, lse = (self.rows(n, where, head) for n in ("query", "out", "dout", "lse"))
            weights = np.exp(scale * query @ key - lse[:, 0])
            dkey += scale * (weights * (dout * (value - out)).sum(-1)) @ query
            dvalue += weights @ dout
        return {"dkey": dkey, "dvalue": dvalue}

    def pairs(self, seed: int = 0) -> Iterator[tuple[str, Array, Array]]:
        """What was found and what is right, by name: of some queries and, without a bias, of some keys."""
        rng = np.random.default_rng(seed)
        heads = min(2, self.planes["query"].shape[-2])
        for token, head in itertools.product(tokens(self.problem, QUERIES, rng), range(heads)):
            right = self.attention(token, head)
            yield from ((n, self.row(n, token, head), x) for n, x in right.items() if n in self.planes)
        if self.rpb is None and {"dkey", "lse"} <= set(self.planes):
            for token in tokens(self.problem, KEYS, rng):
                right = self.key_gradients(token)
                yield from ((name, self.row(name, token, 0), x) for name, x in right.items())

    def errors(self) -> dict[str, float]:
        """The relative error of whatever is among the planes, over all tokens looked at."""
        found: dict[str, list[Array]] = {}
        for name, *pair in self.pairs():
            found.setdefault(name, []).append(np.stack(pair))
        return {name: relative(*np.concatenate(pairs, axis=1)) for name, pairs in found.items()}
