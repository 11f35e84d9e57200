# SPDX-License-Identifier: Apache-2.0
"""Attention in which only what is seen counts: numpy, float64, dense.

A score of -inf is a key that is not seen. What a query does not see is left out of every sum, whatever it
holds; what it sees counts, NaN and infinities included. A query without keys has an output of 0, a
log-sum-exp of -inf and no part in any gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import helpers
from .cuda_problems import Problem

Array = np.ndarray
PLANTED = (np.nan, np.inf, -np.inf)


def _rows(x: Array, heads: int) -> Array:
    """[batch, *grid, heads, features] -> [batch, heads, tokens, features], shared heads repeated."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1, *x.shape[-2:]).swapaxes(1, 2)
    return np.repeat(flat, heads // flat.shape[1], axis=1)


def _sums(seen: Array, weights: Array, features: Array) -> Array:
    """Of weights [batch, heads, n, m] times features [batch, heads, m, d], over the columns that are seen."""
    found = np.zeros((*seen.shape[:3], features.shape[-1]))
    for batch, head, row in np.ndindex(*seen.shape[:3]):
        here = seen[batch, head, row]
        found[batch, head, row] = weights[batch, head, row, here] @ features[batch, head, here]
    return found


class Seen:
    """out and lse of a problem, and from their cotangents the gradients of all that is on the grid."""

    @np.errstate(invalid="ignore", over="ignore", divide="ignore")
    def __init__(self, problem: Problem, inputs: Mapping[str, Array]) -> None:
        self.problem, self.inputs = problem, inputs
        heads, mask = problem.heads, problem.geometry.mask
        self.query = _rows(inputs["query"], heads)
        self.key, self.value = (_rows(inputs[name], heads) for name in ("key", "value"))
        self.on_grid = self.key.shape[2]
        if problem.additional:
            tokens = (_rows(inputs[f"additional_{name}"], heads) for name in ("keys", "values"))
            self.key, self.value = (
                np.concatenate(pair, 2) for pair in zip((self.key, self.value), tokens, strict=True)
            )
            mask = np.pad(mask, ((0, 0), (0, problem.additional)), constant_values=True)
        scores = problem.softmax_scale * self.query @ self.key.swapaxes(-1, -2)
        if problem.rpb:
            table = np.asarray(inputs["rpb"], np.float64).reshape(heads, -1)
            scores[..., : self.on_grid] += table[:, problem.geometry.displacement]
        self.seen = mask & (scores != -np.inf)
        scores = np.where(self.seen, scores, -np.inf)
        top = scores.max(-1, keepdims=True)
        top = np.where(top == -np.inf, 0, top)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        self.weights = weights / np.where(total == 0, 1, total)
        self.out = self._of_queries(self.weights, self.value)
        self.lse = self._grid(top + np.log(total), "query")[..., 0]

    def _of_queries(self, weights: Array, features: Array) -> Array:
        """For every query, the sum over the keys that it sees of weight times features of the key."""
        return self._grid(_sums(self.seen, weights, features), "query")

    def _of_keys(self, weights: Array, features: Array, name: str) -> Array:
        """For every key on the grid, the sum over the queries that see it, of all heads that share it."""
        rows = _sums(self.seen.swapaxes(-1, -2), weights.swapaxes(-1, -2), features)
        shared = rows.reshape(len(rows), self.problem.kv_heads, -1, *rows.shape[2:]).sum(2)
        return self._grid(shared[:, :, : self.on_grid], name)

    def _grid(self, rows: Array, like: str) -> Array:
        x = self.inputs[like]
        return rows.swapaxes(1, 2).reshape(*x.shape[:-2], -1, rows.shape[-1])

    def delta(self, dout: Array, dlse: Array) -> Array:
        """sum(dout * out) - dlse, as a backward kernel is given it."""
        return (np.asarray(dout, np.float64) * self.out).sum(-1) - dlse

    @np.errstate(invalid="ignore", over="ignore")
    def gradients(self, dout: Array, dlse: Array) -> dict[str, Array]:
        rows = _rows(dout, self.problem.heads)
        delta = _rows(self.delta(dout, dlse)[..., None], self.problem.heads)
        dscores = self.weights * (rows @ self.value.swapaxes(-1, -2) - delta)  # of the pairs that are seen
        of_scores = self.problem.softmax_scale * dscores
        found = {
            "query": self._of_queries(of_scores, self.key),
            "key": self._of_keys(of_scores, self.query, "key"),
            "value": self._of_keys(self.weights, rows, "value"),
        }
        return found | ({"rpb": self._of_bias(dscores)} if self.problem.rpb else {})

    def _of_bias(self, dscores: Array) -> Array:
        heads = self.problem.heads
        table = np.zeros((heads, self.inputs["rpb"][0].size))
        for head in range(heads):
            for batch in range(len(dscores)):
                seen = self.seen[batch, head][:, : self.on_grid]
                entries = self.problem.geometry.displacement[seen]
                np.add.at(table[head], entries, dscores[batch, head][:, : self.on_grid][seen])
        return table.reshape(self.inputs["rpb"].shape)


def plant(x: Array, rng: np.random.Generator, share: float = 0.04, values: Sequence[float] = PLANTED) -> None:
    """Makes a feature of so many tokens one of these values, which are not finite."""
    rows = x.reshape(-1, x.shape[-1])
    for row in np.flatnonzero(rng.random(len(rows)) < share):
        rows[row, rng.integers(x.shape[-1])] = values[rng.integers(len(values))]


def assert_same(found: Mapping[str, Array], expected: Mapping[str, Array], limit: float) -> None:
    """What is finite in the reference agrees, what is not is not finite either, -inf is -inf in a lse."""
    for name, x in expected.items():
        given, finite = np.asarray(found[name], np.float64), np.isfinite(x)
        assert np.array_equal(np.isfinite(given), finite), f"{name} is finite where it should not be, or not"
        assert name != "lse" or np.array_equal(np.isneginf(given), np.isneginf(x))
        close = {name: np.where(finite, given, 0)}
        helpers.assert_close(close, {name: np.where(finite, x, 0)}, limit)
