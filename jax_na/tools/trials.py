# SPDX-License-Identifier: Apache-2.0
"""What `jax-na profile` and `tune` time: implementations, kernels with their tiles, and peers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from jax_na.kernels import chunks, contract, devices, plan, tuning
from jax_na.tools import flex, peers, profiler, roofline
from jax_na.tools.problems import BACKWARD, FORWARD, Problem
from jax_na.tools.profiler import Prepared
from jax_na.tools.report import Measured, Trial, measure
from jax_na.tools.roofline import COPY, PRODUCT, Ceiling

Trials = dict[str, Trial]  # each is compiled when its turn comes
DIRECTIONS = {"na_fused_forward": FORWARD, "na_fused_backward": BACKWARD}


def all_of(problem: Problem, names: Collection[str]) -> tuple[Trials, dict[str, str]]:
    """The implementations of those names; if there are none, all, with their kernels and peers."""
    programs, missing = implementations(problem)
    if names:
        return _named(programs, names), _named(missing, names)
    kernels = variants(problem) if "fused" in programs else {}
    peers_here, peers_missing = others(problem)
    return {**programs, **kernels, **peers_here}, {**missing, **peers_missing}


def _named(some: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: x for name, x in some.items() if name in names}


def implementations(problem: Problem) -> tuple[Trials, dict[str, str]]:
    """Those of this library, and why others cannot run."""
    rows = profiler.availability(problem)
    programs: Trials = {
        row.name: Trial(problem, functools.partial(profiler.prepare_implementation, problem, row.name))
        for row in rows
        if row.available
    }
    return programs, {row.name: str(row.reason) for row in rows if not row.available}


def others(problem: Problem) -> tuple[Trials, dict[str, str]]:
    """The peers that are here, and why others cannot compute the problem."""
    platform = jax.default_backend()
    prepares: dict[str, Callable[[Problem], Prepared]] = {
        **{peer.name: functools.partial(_peer, peer) for peer in peers.PEERS},
        "FlexAttention": _flex,
    }
    obstacles = {**{peer.name: peer.obstacle for peer in peers.PEERS}, "FlexAttention": flex.obstacle}
    programs, reasons = Trials(), dict[str, str]()
    for name, prepare in prepares.items():
        if reason := obstacles[name](problem, platform):
            reasons[name] = reason
        else:
            programs[name] = Trial(problem, functools.partial(prepare, problem))
    return programs, reasons


def _peer(peer: peers.Peer, problem: Problem) -> Prepared:
    attend, constants = peer.attention(problem)
    return profiler.prepare_attention(problem, attend, constants)


def _flex(problem: Problem) -> Prepared:
    bounds = profiler.neighborhood(problem).bounds(problem.spatial)
    return Prepared(flex.clock(problem, bounds, jax.default_backend()), None)


def _tilings(problem: Problem) -> Iterator[tuple[str, tuning.Choice]]:
    """The fused kernels with their tiles, the cheapest first: a text, and the choice."""
    targets = targets_of(problem)
    for kernels in zip(*(_candidates(problem, target) for target in targets), strict=False):
        yield f"fused {' '.join(kernels)}", {"kernels": dict(zip(targets, kernels, strict=True))}


def variants(problem: Problem) -> Trials:
    """The fused kernels that are not the planner's first choice, each with its cheapest tiles."""
    found: dict[str, tuning.Choice] = {}
    seen: set[str] = set()
    for text, choice in _tilings(problem):
        name = " ".join(kernels.partition(":")[0] for kernels in choice["kernels"].values())
        if name in seen:  # their tilings take turns, so all kernels have had theirs
            break
        seen.add(name)
        found[text] = choice
    return {text: _chosen(problem, choice) for text, choice in itertools.islice(found.items(), 1, None)}


def tiles(problem: Problem, most: int) -> dict[str, dict[str, Trial]]:
    """For every target of the direction its cheapest choices of tiles, timed alone, by the attribute."""
    found = {}
    for target in targets_of(problem):
        alone = replace(problem, direction=DIRECTIONS[target])
        kernels = itertools.islice(_candidates(problem, target), most)
        found[target] = {k: _chosen(alone, {"kernels": {target: k}}) for k in kernels}
    return found


def targets_of(problem: Problem) -> list[str]:
    """The targets of the fused kernels that a problem needs."""
    return list(DIRECTIONS) if problem.needs_gradients else ["na_fused_forward"]


def _candidates(problem: Problem, target: str) -> Sequence[str]:
    platform = devices.platform_of()
    return plan.candidates(platform, target, chunks.first(platform, target, problem_of(problem)))


def problem_of(problem: Problem) -> contract.Problem:
    """As plans and tuning know it."""
    return contract.problem(profiler.op(problem), profiler.types(problem))


def _chosen(problem: Problem, choice: tuning.Choice) -> Trial:
    """The fused kernels with a choice of tiles."""

    def prepared() -> Prepared:
        with tuning.trial(profiler.op(problem), choice, devices.platform_of()):
            return profiler.prepare_implementation(problem, "fused")

    return Trial(problem, prepared)


def measured(problem: Problem, some: Trials, rounds: int) -> tuple[dict[str, Measured], Ceiling]:
    """Times them in turns with what the roofline is made of."""
    limits = {name: Trial(problem, prepare) for name, prepare in roofline.programs(problem).items()}
    found = measure({**some, **limits}, rounds)
    ceiling = roofline.ceiling(*(min(found.pop(name).timing.seconds) for name in (PRODUCT, COPY)))
    return found, ceiling
