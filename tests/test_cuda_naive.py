# SPDX-License-Identifier: Apache-2.0
"""The naive CUDA kernels against the oracle, on the host executor (on the GPU with JAX_NA_KERNELS=device)."""

import numpy as np
import pytest

from .cases import NAMED
from .cuda_kernels import NO_NAN, Kernel
from .cuda_problems import UNMERGED, Problem, any_problem, lost_queries, outside, region
from .cuda_unfused import Unfused
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = pytest.mark.some(4)  # the rest is for --exhaustive: the executor is slow

NAIVE_TOLERANCE = {"float64": 1e-14, "float32": 2e-6, "bfloat16": 4e-3, "float16": 6e-4}


class Naive(Unfused):
    def __init__(self, problem, dtype, rng):
        weights = np.float64 if dtype == "float64" else np.float32
        kernels = (Kernel.NAIVE_QK, Kernel.NAIVE_AV, Kernel.NAIVE_INVERSE)
        super().__init__(problem, dtype, weights, kernels, rng)

    def check(self):
        super().check(dict.fromkeys(("qk", "av", "inverse"), NAIVE_TOLERANCE[self.dtype]))


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
    found = naive.run(NO_NAN, naive.padded(naive.weights, 0), lambda *_: {})
    lost = lost_queries(naive.problem)
    assert np.isnan(found["qk"][:, lost][..., : naive.problem.geometry.window]).any(-1).all()
    assert np.isnan(found["av"][:, lost].astype(np.float32)).all()


@pytest.mark.some(2)
@pytest.mark.parametrize("number", range(16))
def test_random_problems_naive(number, rng):
    problem = any_problem(rng)
    print(problem)
    Naive(problem, list(NAIVE_TOLERANCE)[number % 4], rng).check()
