# SPDX-License-Identifier: Apache-2.0
"""What holds for every forward kernel of CUDA, and calls that those with whole chunks of features refuse."""

from __future__ import annotations

import dataclasses

import numpy as np

from . import cuda_kernels, cuda_tilings, helpers, oracle
from .cuda_kernels import NO_NAN, any_seed
from .cuda_problems import Problem, lost_queries

PLAIN = Problem((oracle.Axis(40, 7),), head_dim=64, value_dim=64)
REFUSED = {  # calls, and what is said after "it takes"
    "head_dim": (dataclasses.replace(PLAIN, head_dim=20), "a multiple of 8 features per head, not 20"),
    "value_dim": (dataclasses.replace(PLAIN, value_dim=12), "a multiple of 8 features per head, not 12"),
    "tokens": (dataclasses.replace(PLAIN, additional=3), "no additional tokens"),
}


def assert_same_bits(problem: Problem, dtype: str, kernels: str, rng: np.random.Generator) -> None:
    """The order in which warps run leaves no trace."""
    inputs = problem.inputs(rng, dtype)
    first, second = (
        cuda_kernels.forward(problem, dtype, inputs, kernels=kernels, seed=any_seed(rng)) for _ in range(2)
    )
    helpers.assert_identical(first, second)


def assert_lost_queries_are_nan(problem: Problem, kernels: str, rng: np.random.Generator) -> None:
    """Nothing is read out of bounds, and queries whose window is not there have no number for a result."""
    how = {"kernels": kernels, "seed": any_seed(rng), "poison": NO_NAN}
    found = cuda_kernels.forward(problem, "bfloat16", problem.inputs(rng, "bfloat16"), **how)
    for x in found.values():
        assert np.isnan(x[:, lost_queries(problem)].astype(np.float32)).all()


def assert_lost_gradients_are_nan(problem: Problem, kernels: str, rng: np.random.Generator) -> None:
    """The same of their gradients; keys are never read out of bounds, whatever theirs are."""
    inputs = problem.inputs(rng, "bfloat16")
    how = {"seed": any_seed(rng), "poison": NO_NAN}
    portable = cuda_tilings.forward_kernels(problem, ("bfloat16", "default"), 64, rng)
    found = cuda_kernels.forward(problem, "bfloat16", inputs, kernels=portable, **how)
    shape = found["lse"].shape  # nothing that is given says which queries are lost
    given = {name: rng.standard_normal(shape).astype(np.float32) for name in ("lse", "delta")}
    given["dout"] = rng.standard_normal(found["out"].shape).astype(inputs["query"].dtype)
    gradients = cuda_kernels.backward(problem, "bfloat16", inputs, given, kernels=kernels, **how)
    lost = lost_queries(problem)
    assert np.isnan(gradients["query"][:, lost].astype(np.float32)).all()
    if problem.rpb:
        assert np.isnan(gradients["rpb"]).any() == any(lost)


def assert_goes_on(problem: Problem, choice: str, portable: str, rng: np.random.Generator) -> None:
    """Where a kernel is refused, the portable one runs if the call has both."""
    inputs = problem.inputs(rng, "bfloat16")
    both = cuda_kernels.forward(problem, "bfloat16", inputs, kernels=f"{choice}|{portable}")
    alone = cuda_kernels.forward(problem, "bfloat16", inputs, kernels=portable)
    helpers.assert_identical(both, alone)
