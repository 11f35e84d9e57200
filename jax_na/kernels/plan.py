# SPDX-License-Identifier: Apache-2.0
"""The choice of the kernels and tiles of a call: by a count of the work they cause, or as it was measured.

The attribute `kernels` of a call says what was chosen: the passes of the target in order, separated by ";",
for each the kernels in order of preference, separated by "|", with their tiles:
"sm90:8x16,8x16|portable:8x8,8x8". The first that can run does. The last one runs on every device of the
platform, so that a compiled program does.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax_na.kernels import contract, cost_cpu, cost_cuda, devices, register, tuning, variants
from jax_na.kernels.contract import Problem
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.kernels.work import Work
from jax_na.op import Op

COSTS: dict[str, Any] = {CPU: cost_cpu, CUDA: cost_cuda}
FEW_QUERIES = 4  # of a batch entry: there is a kernel for them


class Priced(NamedTuple):
    """One tiling of a kernel and what it costs."""

    cost: float
    choice: str  # the kernel with its tiles, as in the attribute `kernels`
    name: str  # of the kernel
    capability: str | None  # of the GPUs that it is for, None for all devices of the platform


Ranked = tuple[tuple[Priced, ...], ...]  # the kernels of a pass, and their tilings, the cheapest first


def plan(platform: str, target: str, op: Op, problem: Problem) -> str:
    """The attribute `kernels` of a call: as it was measured (`jax-na tune`), else the cheapest."""
    problem = _of_any_size(problem)
    if problem.sizes is not None:  # what was measured is about whole grids
        return cheapest(platform, target, problem)
    measured = tuning.lookup(op, problem, platform).get("kernels", {}).get(target)
    if measured is None:
        return cheapest(platform, target, problem)
    if not is_legal(platform, target, problem, measured):
        tuning.ignore(target, measured, op)
        return cheapest(platform, target, problem)
    return measured


def _of_any_size(problem: Problem) -> Problem:
    """Without its sizes: they decide nothing, unless the queries are few."""
    queries = problem.sizes.queries if problem.sizes is not None else ()
    are_few = queries and math.prod(queries) <= FEW_QUERIES
    return problem._replace(sizes=contract.Sizes(queries=queries) if are_few else None)


@functools.lru_cache(maxsize=1024)
def cheapest(platform: str, target: str, problem: Problem) -> str:
    """The attribute `kernels` that costs least."""
    return ";".join(_attribute(ranked[0][0], ranked) for ranked in rankings(platform, target, problem))


def lowest_cost(platform: str, target: str, problem: Problem) -> float:
    """What all passes of a call cost with the kernels that cost least, in the unit of its platform."""
    return sum(ranked[0][0].cost for ranked in rankings(platform, target, problem))


def candidates(platform: str, target: str, problem: Problem) -> tuple[str, ...]:
    """Values of the attribute `kernels` to measure, the cheapest first.

    Where a pass has several kernels that run on the devices here, their tilings take turns.
    """
    tried = [_candidates(ranked) for ranked in rankings(platform, target, problem)]
    return tuple(dict.fromkeys(";".join(choices) for choices in zip(*tried, strict=False)))


def works(platform: str, target: str, problem: Problem, most: int) -> list[tuple[str, str, Work]]:
    """(pass, choice, what it does) of every kernel of a target that has tiles, at most so many of each.

    The cheapest first, by pass and kernel.
    """
    found = []
    problem = problem._replace(sizes=None)
    for pass_name, kernels in variants.passes(platform, target).items():
        for row in kernels:
            tilings = {tiling.choice: tiling for tiling in row.tilings(contract.query(platform, problem))}
            for priced in _priced(platform, row, problem)[:most]:
                work = COSTS[platform].work(pass_name, row.name, problem, tilings[priced.choice])
                found.append((pass_name, priced.choice, work))
    return found


def is_legal(platform: str, target: str, problem: Problem, kernels: str) -> bool:
    """Whether the attribute `kernels` has choices for every pass, all of which exist for this problem."""
    given = [text.split("|") for text in kernels.split(";")]
    legal = [
        {tiling.choice for tilings in ranked for tiling in tilings}
        for ranked in rankings(platform, target, problem)
    ]
    return len(given) == len(legal) and all(map(set.issuperset, legal, given))


def rankings(platform: str, target: str, problem: Problem) -> tuple[Ranked, ...]:
    """All kernels that take a problem, by passes.

    Raises:
        ValueError: if a pass has none.
    """
    every = variants.passes(platform, target).values()
    problem = _of_any_size(problem)
    return tuple(_ranked(platform, tuple(kernels), problem) for kernels in every)


def require_room(platform: str, target: str, problem: Problem, kernels: str) -> None:
    """Raises an error if the arrays of a call are too large for the kernels that its plan has.

    Raises:
        ValueError: if some pass has none that can run.
    """
    query = contract.query(platform, problem)
    for chosen in _chosen(platform, target, kernels):
        reasons = {choice: row.tile_obstacle(query, choice) for choice, row in chosen.items()}
        if all(reasons.values()):
            said = "; ".join(f"{choice}: {reason}" for choice, reason in reasons.items())
            raise ValueError(f"{target} cannot run: {said}")


@functools.lru_cache(maxsize=1024)
def _ranked(platform: str, kernels: tuple[Any, ...], problem: Problem) -> Ranked:
    priced = [_priced(platform, row, problem) for row in kernels]
    found = sorted((tilings for tilings in priced if tilings), key=lambda tilings: tilings[0].cost)
    if not found:
        query = contract.query(platform, problem)
        reasons = [f"{row.name}: {row.obstacle(query) or 'no tiles of it fit'}" for row in kernels]
        raise ValueError(f"no kernel of {kernels[0].target} takes this problem; {'; '.join(reasons)}")
    return tuple(found)


def _priced(platform: str, row: Any, problem: Problem) -> tuple[Priced, ...]:
    """The tilings of a kernel, the cheapest first; equals in the order of the binding."""
    found = []
    for tiling in row.tilings(contract.query(platform, problem)):
        cost = COSTS[platform].cost(row.pass_name, row.name, problem, tiling)
        found.append(Priced(cost, tiling.choice, row.name, row.capability))
    return tuple(sorted(found, key=lambda priced: priced.cost))


def _attribute(tiling: Priced, ranked: Ranked) -> str:
    """The choices of a pass that lead to a tiling, on the devices here.

    Cheaper kernels for other devices stand before it, and one for all devices behind it if it is not.
    """
    best = [tilings[0] for tilings in ranked]
    cheaper = itertools.takewhile(lambda priced: priced.capability is not None, best)
    others = [priced for priced in cheaper if priced.name != tiling.name]
    choices = [priced.choice for priced in others if not _runs_here(priced)]
    choices.append(tiling.choice)
    if tiling.capability is not None:
        choices += [priced.choice for priced in best if priced.capability is None][:1]
    return "|".join(choices)


def _candidates(ranked: Ranked) -> list[str]:
    here = [tilings for tilings in ranked if _runs_here(tilings[0])]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*here))
    return [_attribute(tiling, ranked) for tiling in turns if tiling is not None]


def _runs_here(tiling: Priced) -> bool:
    return devices.absence(tiling.capability) is None


def workers() -> int:
    """CPUs available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def scratch_bytes(platform: str, target: str, problem: Problem, kernels: str, work: Any) -> int:
    """Bytes of scratch space for a call that does so many FLOPs (symbolic if that is not known)."""
    query = contract.query(platform, problem._replace(sizes=None))
    is_small = isinstance(work, int) and work < register.binding(platform).SMALLEST_SHARED_WORK
    passes = _chosen(platform, target, kernels)
    each = [row.scratch_bytes(query, choice) for chosen in passes for choice, row in chosen.items()]
    return max(1, int(max(each)) * (1 if is_small else workers()))


def _chosen(platform: str, target: str, kernels: str) -> Iterable[dict[str, Any]]:
    """For every pass the choices in the attribute `kernels`, each with its row."""
    every: Iterable[Sequence[Any]] = variants.passes(platform, target).values()
    for choices, found in zip(kernels.split(";"), every, strict=True):
        by_name = {row.name: row for row in found}
        yield {choice: by_name[choice.partition(":")[0]] for choice in choices.split("|")}
