# SPDX-License-Identifier: Apache-2.0
"""Tiles of the fused CUDA kernels, to be timed against each other: does what the planner counts predict it?

Only this module of the benchmarks knows what a choice of tiles looks like.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from method import Prepared

from jax_na.kernels import cost_cuda, tuning
from jax_na.tools import profiler
from jax_na.tools.clock import Clock
from jax_na.tools.problems import BACKWARD, FORWARD, ITEMSIZE, Problem

DIRECTIONS = {"na_fused_forward": FORWARD, "na_fused_backward": BACKWARD}


@dataclass(frozen=True)
class Trial:
    """Tiles to try: of which kernel, their place in the planner's ranking, and the choice as JSON."""

    kernel: str
    direction: str
    rank: int
    tile: list[int]
    choice: str


def trials(problem: Problem, number: int) -> Iterator[Trial]:
    """The best tile of every kernel, and up to `number` that the planner likes best."""
    op = profiler.op(problem)
    for name, direction in DIRECTIONS.items():
        rankings = cost_cuda.rankings(name, op, ITEMSIZE[problem.dtype], problem.head_dim, problem.value_dim)
        for kernel, rank, tile in _one_changed(name, rankings, number):
            choice = json.dumps({"tiles": {name: list(tile)}})
            yield Trial(f"{name}, {kernel}", direction, rank, list(tile), choice)


def _one_changed(
    name: str, rankings: tuple[tuple[tuple[int, ...], ...], ...], number: int
) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """(kernel, rank, attribute `tile`): of the kernels of a target one changes its tiles at a time."""
    for i, (ranking, kernel) in enumerate(zip(rankings, cost_cuda.PASSES[name], strict=True)):
        others = [r[0] for r in rankings]
        if kernel == "forward":
            others[1] = (0,) * len(ranking[0])  # or the other kernel would run
        for pair in _candidates(ranking, number, kernel == "backward_keys"):
            if any(pair):
                tile = itertools.chain(*others[:i], pair, *others[i + 1 :])
                yield kernel, ranking.index(pair), tuple(tile)


def _candidates(ranking: tuple[tuple[int, ...], ...], number: int, keys_stay: bool) -> list[tuple[int, ...]]:
    """The best of every size of the tile that stays, and up to `number` of the first."""

    def rows(pair: tuple[int, ...]) -> int:
        middle = len(pair) // 2
        return math.prod(pair[middle:] if keys_stay else pair[:middle])

    best = {rows(pair): pair for pair in reversed(ranking)}
    chosen = dict.fromkeys([*best.values(), *ranking[: max(0, number - len(best))]])
    return sorted(chosen, key=ranking.index)


def with_choice(problem: Problem, choice: str, prepared: Prepared) -> Prepared:
    """The same method, compiled with a choice of tiles."""

    def clock(direction: Problem) -> Clock:
        with tuning.trial(profiler.op(problem), json.loads(choice), "cuda"):
            return prepared.clock(direction)

    return replace(prepared, clock=clock, note=choice)
