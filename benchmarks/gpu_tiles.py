# SPDX-License-Identifier: Apache-2.0
"""Times tiles of the fused CUDA kernels against each other: is what the planner counts what they cost?"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from typing import Any

import gpu_methods as g
from specs import Spec

from jax_na.kernels import cost_cuda as cuda_planner
from jax_na.kernels import tuning
from jax_na.neighborhood import Shape
from jax_na.op import Op

KERNELS = {"na_fused_forward": g.FORWARD, "na_fused_backward": g.BACKWARD}


def candidates(ranking: tuple[Shape, ...], number: int, keys_stay: bool) -> list[Shape]:
    """The best tile of every kernel, and up to `number` of all those that the planner likes best."""

    def rows(pair: Shape) -> int:
        middle = len(pair) // 2
        return math.prod(pair[middle:] if keys_stay else pair[:middle])

    best = {rows(pair): pair for pair in reversed(ranking)}
    chosen = dict.fromkeys([*best.values(), *ranking[: max(0, number - len(best))]])
    return sorted(chosen, key=ranking.index)


def trials(name: str, op: Op, problem: g.Problem, number: int) -> Iterator[tuple[str, int, Shape]]:
    """(kernel, place in the planner's ranking, attribute `tile`); of two kernels one changes at a time."""
    head_dim = problem.spec.head_dim
    rankings = cuda_planner.rankings(name, op, g.ITEMSIZE[problem.dtype], head_dim, head_dim)
    for i, (ranking, which) in enumerate(zip(rankings, cuda_planner.PASSES[name], strict=True)):
        others = [r[0] for r in rankings]
        if which == "forward":
            others[1] = (0,) * len(ranking[0])  # or the other kernel would run
        for pair in candidates(ranking, number, which == "backward_keys"):
            if any(pair):
                yield (
                    f"{name}, {which}",
                    ranking.index(pair),
                    (*itertools.chain(*others[:i], pair, *others[i + 1 :]),),
                )


def sweep(session: Any, spec: Spec, dtype: str) -> None:
    """Adds to the document the times of the tiles of a problem, until the time is over."""
    problem = g.Problem(spec, dtype)
    method = next(m for m in g.METHODS if m.name == "fused")
    reason = method.obstacle(problem)
    if reason is not None:
        print(f"{spec} {dtype}: no tiles, {reason}", file=sys.stderr)
        return
    op = Op(problem.neighborhood, spec.spatial, spec.softmax_scale, "fused")
    found: list[dict[str, Any]] = []
    for name, direction in KERNELS.items():
        for kernel, rank, tile in trials(name, op, problem, session.options.tiles):
            if session.is_over:
                break
            with tuning.trial(op, {"tiles": {name: list(tile)}}, "cuda"):
                timing = g.measure(problem, method, direction, session.options.seconds / 4)
            facts = {"kernel": kernel, "rank": rank, "tile": list(tile), "median_s": timing.median}
            found.append({"spec": spec.name, "dtype": dtype, **facts})
            print(f"{spec} {kernel} {tile}: {timing.median * 1e3:.4g} ms", file=sys.stderr)
    for t in found:
        t["fastest_s"] = min(other["median_s"] for other in found if other["kernel"] == t["kernel"])
    session.document["tiles"] += found
