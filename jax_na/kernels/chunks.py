# SPDX-License-Identifier: Apache-2.0
"""Chunks of value features: how a target computes more of them than its kernels have room for.

Attention and its derivatives are linear in the features of the value, and each feature of the result is a
sum over the same weights: so a target can be called once for each chunk of features, always with all of query
and key. Every call computes the scores again. The planner's costs say which chunks are cheapest; how many
features a kernel has room for is a fact of its row in the table.
"""

from __future__ import annotations

import functools
import itertools

from jax_na.kernels import contract, plan, variants
from jax_na.kernels.contract import Problem

STEP = 8  # features: chunks of so many begin at a multiple of 16 bytes, which every kernel likes best


@functools.lru_cache(maxsize=1024)
def widths(platform: str, target: str, problem: Problem) -> tuple[int, ...]:
    """Value features of each call of a target, all of them together those of the problem.

    One width where its kernels take all features at once, or no part of them.
    """
    features = problem.value_dim
    problem = problem._replace(
        operands=tuple(name for name in problem.operands if variants.takes(platform, target, name))
    )
    whole = variants.obstacle(platform, target, problem)
    if whole is None or obstacle(platform, target, problem) is not None:
        return (features,)
    numbers = itertools.count(2)
    fewest = next(n for n in numbers if _is_legal(platform, target, problem, _cut(features, n)))
    every = [_cut(features, n) for n in range(fewest, 2 * fewest + 1)]
    return min(every, key=lambda parts: _cost(platform, target, problem, parts))


def obstacle(platform: str, target: str, problem: Problem) -> str | None:
    """Why some pass of a target has no kernel for a problem, be it for a chunk of value features."""
    if "value" in contract.targets(platform)[target].required:
        problem = _of_width(problem, min(problem.value_dim, STEP))
        # a kernel that takes few features but not all is no reason: it computes chunks
    return variants.obstacle(platform, target, problem)


def first(platform: str, target: str, problem: Problem) -> Problem:
    """The problem of the first call of a target."""
    if "value" not in contract.targets(platform)[target].required:
        return problem
    return _of_width(problem, widths(platform, target, problem)[0])


def _of_width(problem: Problem, features: int) -> Problem:
    return problem._replace(value_dim=features)


def _cut(features: int, number: int) -> tuple[int, ...]:
    """So many equal chunks of whole steps; the last one may be smaller, and there may be fewer."""
    width = -(-features // (number * STEP)) * STEP
    return tuple(min(width, features - start) for start in range(0, features, width))


def _is_legal(platform: str, target: str, problem: Problem, parts: tuple[int, ...]) -> bool:
    return variants.obstacle(platform, target, _of_width(problem, max(parts))) is None


def _cost(platform: str, target: str, problem: Problem, parts: tuple[int, ...]) -> float:
    cost = {width: plan.lowest_cost(platform, target, _of_width(problem, width)) for width in set(parts)}
    return sum(cost[width] for width in parts)
