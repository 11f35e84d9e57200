# SPDX-License-Identifier: Apache-2.0
"""The three unfused operations of the CUDA kernels beside the oracle: what naive and GEMM kernels share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from . import cuda_kernels, cuda_tilings, helpers, oracle
from .cuda_kernels import GEMM_PASSES, NAN, Kernel, Mode, any_seed
from .cuda_problems import Problem, dtype_of

Array = np.ndarray


def gemm_kernels(kernel: Kernel, problem: Problem, mode: Mode, rows: int, rng: np.random.Generator) -> str:
    """The GEMM kernel of so many rows with random tiles, of those that it has room for."""
    which = GEMM_PASSES[kernel]
    return cuda_tilings.any_tiling(kernel, which, problem, mode, rows, rng).choice("portable")


class Unfused:
    """qk, av and inverse of a problem with random operands; weights of what no query sees are NaN.

    `weights_dtype` is the type of the weights that are operands.
    """

    def __init__(
        self, problem: Problem, dtype: str, weights_dtype: Any, kernels: tuple[Kernel, ...], rng: Any
    ) -> None:
        self.problem, self.dtype, self.kernels, self.seed = problem, dtype, kernels, any_seed(rng)
        self.inputs = problem.inputs(rng, dtype)
        queries = self.inputs["query"].shape[:-1]
        self.weights = rng.standard_normal((*queries, problem.geometry.window)).astype(weights_dtype)
        self.dout = rng.standard_normal((*queries, problem.value_dim)).astype(dtype_of(dtype))

    def padded(self, weights: Array, fill: float) -> Array:
        padding = [(0, 0)] * (weights.ndim - 1) + [(0, self.problem.pitch - weights.shape[-1])]
        return np.pad(weights, padding, constant_values=fill).astype(weights.dtype)

    def run(
        self, poison: int, given: Array, how: Callable[[Kernel, Problem], Mapping[str, Any]]
    ) -> dict[str, Array]:
        """The results of the three kernels, by name; `given` are weights with padding."""
        query, key, value = (self.inputs[name] for name in ("query", "key", "value"))
        scores = np.float64 if self.dtype == "float64" else np.float32
        calls = {
            "qk": ({"x": query, "y": key}, "weights", given.shape, scores),
            "av": ({"weights": given, "y": value}, "x", self.dout.shape, value.dtype),
            "inverse": ({"weights": given, "x": self.dout}, "y", value.shape, value.dtype),
        }
        found = {}
        for kernel, (name, (operands, result, shape, dtype)) in zip(self.kernels, calls.items(), strict=True):
            features = [*operands.values()][-1].shape[-1]  # of x and y
            problem = dataclasses.replace(self.problem, value_dim=features)
            results = {result: cuda_kernels.poisoned(shape, dtype, poison)}
            options = {"seed": self.seed, **how(kernel, problem)}
            found[name] = cuda_kernels.run(kernel, problem, self.dtype, operands, results, **options)[result]
        return found

    def expected(self) -> tuple[Array, dict[str, Array]]:
        """Which slots hold no key, and the results."""
        geometry, inputs = self.problem.geometry, self.inputs
        plain = {name: inputs[name] for name in ("query", "key")}
        scores, _ = oracle.neighborhood_qk(geometry, plain, np.zeros(self.weights.shape))
        unseen = np.isneginf(scores)
        weighted = {"weights": self.weights, "value": inputs["value"]}
        out, gradients = oracle.neighborhood_av(geometry, weighted, self.dout)
        qk = self.padded(np.where(unseen, 0, scores), 0)
        return unseen, {"qk": qk, "av": out, "inverse": gradients["value"]}

    def check(
        self,
        tolerances: Mapping[str, float],
        how: Callable[[Kernel, Problem], Mapping[str, Any]] = lambda *_: {},
    ) -> None:
        unseen, expected = self.expected()
        given = self.padded(np.where(unseen, np.array(np.nan, self.weights.dtype), self.weights), np.nan)
        found = self.run(NAN, given, how)
        for name, x in expected.items():
            few = max(1.0, 8 / max(1, np.size(x)) ** 0.5)  # errors of few numbers do not average out
            helpers.assert_close({name: found[name]}, {name: x}, tolerances[name] * few)
