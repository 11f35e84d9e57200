# SPDX-License-Identifier: Apache-2.0
"""The naive CUDA kernels against the oracle, on the host executor (on the GPU with JAX_NA_KERNELS=device)."""

import dataclasses

import numpy as np
import pytest

from . import cuda_kernels, helpers, oracle
from .cases import NAMED
from .cuda_kernels import NAN, NO_NAN, Kernel, any_seed
from .cuda_problems import UNMERGED, Problem, any_problem, lost_queries, outside, region
from .test_regions import CUTS, OUTSIDE, regions

NAIVE_TOLERANCE = {"float64": 1e-14, "float32": 2e-6, "bfloat16": 4e-3, "float16": 6e-4}


class Naive:
    """qk, av and inverse of a problem with random operands; weights of what no query sees are NaN."""

    def __init__(self, problem, dtype, rng):
        self.problem, self.dtype, self.seed = problem, dtype, any_seed(rng)
        self.inputs = problem.inputs(rng, dtype)
        self.weights_dtype = np.float64 if dtype == "float64" else np.float32
        queries = self.inputs["query"].shape[:-1]
        self.weights = rng.standard_normal((*queries, problem.geometry.window)).astype(self.weights_dtype)
        self.dout = rng.standard_normal((*queries, problem.value_dim)).astype(self.inputs["query"].dtype)

    def padded(self, weights, fill):
        padding = [(0, 0)] * (weights.ndim - 1) + [(0, self.problem.pitch - weights.shape[-1])]
        return np.pad(weights, padding, constant_values=fill).astype(self.weights_dtype)

    def run(self, poison, given):
        """The results of the three kernels, by name; `given` are weights with padding."""
        query, key, value = (self.inputs[name] for name in ("query", "key", "value"))
        calls = {
            "qk": (Kernel.NAIVE_QK, {"x": query, "y": key}, "weights", given.shape, given.dtype),
            "av": (Kernel.NAIVE_AV, {"weights": given, "y": value}, "x", self.dout.shape, value.dtype),
            "inverse": (
                Kernel.NAIVE_INVERSE,
                {"weights": given, "x": self.dout},
                "y",
                value.shape,
                value.dtype,
            ),
        }
        found = {}
        for name, (kernel, operands, result, shape, dtype) in calls.items():
            features = [*operands.values()][-1].shape[-1]  # of x and y
            problem = dataclasses.replace(self.problem, value_dim=features)
            results = {result: cuda_kernels.poisoned(shape, dtype, poison)}
            found[name] = cuda_kernels.run(kernel, problem, self.dtype, operands, results, seed=self.seed)[
                result
            ]
        return found

    def check(self):
        geometry, inputs = self.problem.geometry, self.inputs
        plain = {name: inputs[name] for name in ("query", "key")}
        scores, _ = oracle.neighborhood_qk(geometry, plain, np.zeros(self.weights.shape))
        unseen = np.isneginf(scores)
        given = self.padded(np.where(unseen, np.nan, self.weights), np.nan)
        weighted = {"weights": self.weights, "value": inputs["value"]}
        out, gradients = oracle.neighborhood_av(geometry, weighted, self.dout)
        expected = {
            "qk": self.padded(np.where(unseen, 0, scores), 0),
            "av": out,
            "inverse": gradients["value"],
        }
        helpers.assert_close(self.run(NAN, given), expected, NAIVE_TOLERANCE[self.dtype])


@pytest.mark.parametrize("dtype", NAIVE_TOLERANCE)
@pytest.mark.parametrize("case", UNMERGED, ids=str)
def test_naive(case, dtype, rng):
    Naive(Problem.of(case), dtype, rng).check()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", CUTS)
def test_naive_regions(name, dtype, rng):
    for queries, keys in regions(NAMED[name], CUTS[name]):
        Naive(Problem.of(NAMED[name], region(NAMED[name], queries, keys)), dtype, rng).check()


@pytest.mark.parametrize("reason", OUTSIDE)
def test_naive_windows_outside_the_keys_are_nan(reason, rng):
    naive = Naive(outside(OUTSIDE[reason]), "bfloat16", rng)
    found = naive.run(NO_NAN, naive.padded(naive.weights, 0))
    lost = lost_queries(naive.problem)
    assert np.isnan(found["qk"][:, lost][..., : naive.problem.geometry.window]).any(-1).all()
    assert np.isnan(found["av"][:, lost].astype(np.float32)).all()


@pytest.mark.parametrize("number", range(16))
def test_random_problems_naive(number, rng):
    problem = any_problem(rng)
    print(problem)
    Naive(problem, list(NAIVE_TOLERANCE)[number % 4], rng).check()
