# SPDX-License-Identifier: Apache-2.0
"""What the fused kernels would do for a problem, without a device: counts, and the least time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jax_na.kernels import chunks, contract, installation, plan, register
from jax_na.tools import profiler
from jax_na.tools.problems import BACKWARD, FORWARD, Problem
from jax_na.tools.roofline import Ceiling

TARGETS = {FORWARD: ("na_fused_forward",), BACKWARD: ("na_fused_backward",)}
BOTH_TARGETS = ("na_fused_forward", "na_fused_backward")
# Products of a pair with the features of keys, and of values: scores, weighted sums, and their gradients.
PRODUCTS = {"forward": (1, 1), "backward": (3, 2), "backward_query": (2, 1), "backward_key": (2, 2)}


class Row(NamedTuple):
    """A kernel with its tiles in one pass, over batch and heads.

    `useful` is the share of the pairs that it computes which windows have, `unmasked` that which needs no
    mask; `seconds` the least time of its products and of the arrays, None without a ceiling.
    """

    pass_name: str
    choice: str
    tiles: int
    useful: float
    unmasked: float | None
    flops: float
    bytes: float
    seconds: float | None


def rows(problem: Problem, platform: str, ceiling: Ceiling | None, most: int) -> list[Row]:
    """At most so many tilings of every kernel in every pass of the direction, the cheapest first.

    Raises:
        ValueError: if the kernels for that platform are not installed, or none takes the problem.
    """
    if platform not in register.TARGETS:
        missing = installation.NOT_BUILT.get(platform, f"there are no kernels for {platform}")
        raise ValueError(f"the kernels tell what tiles they have, and {missing}")
    op = profiler.op(problem)
    found = []
    for target in TARGETS.get(problem.direction, BOTH_TARGETS):
        planned = contract.problem(op, profiler.types(problem))
        first = chunks.first(platform, target, planned)
        for pass_name, choice, work in plan.works(platform, target, first, most):
            found.append(_row(problem, ceiling, pass_name, choice, work))
    return found


def _row(problem: Problem, ceiling: Ceiling | None, pass_name: str, choice: str, work: Any) -> Row:
    p, heads = problem, problem.batch * problem.heads
    products = PRODUCTS[pass_name]
    flops = 2.0 * heads * work.pairs * (products[0] * p.head_dim + products[1] * p.value_dim)
    per_token = (p.head_dim + p.value_dim) * jnp.dtype(p.dtype).itemsize
    moved = float(heads * (work.streamed + p.tokens) * per_token)
    seconds = None if ceiling is None else max(flops / ceiling.flops, p.least_bytes / ceiling.bytes)
    useful = profiler.neighborhood(p).flops(p.spatial, 1, 1, 1) / 4
    return Row(
        pass_name,
        choice,
        heads * work.tiles,
        useful / work.pairs,
        work.unmasked,
        flops,
        moved,
        seconds,
    )


def cells(found: Sequence[Row]) -> list[list[str]]:
    """A table of them."""
    head = ["pass", "kernel", "tiles", "useful", "no mask", "GFLOP", "MB", "least ms"]
    body = [
        [
            row.pass_name,
            row.choice,
            f"{row.tiles}",
            f"{row.useful:.1%}",
            "" if row.unmasked is None else f"{row.unmasked:.1%}",
            f"{row.flops / 1e9:.3g}",
            f"{row.bytes / 1e6:.3g}",
            "" if row.seconds is None else f"{row.seconds * 1e3:.3g}",
        ]
        for row in found
    ]
    return [head, *body]
