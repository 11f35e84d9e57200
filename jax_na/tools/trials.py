# SPDX-License-Identifier: Apache-2.0
"""What `jax-na profile` and `tune` time: implementations, kernels with their tiles, and peers."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax

from jax_na.kernels import chunks, contract, devices, plan, tuning
from jax_na.tools import peers, profiler, roofline
from jax_na.tools.problems import Problem
from jax_na.tools.profiler import Prepared
from jax_na.tools.report import Measured, measure
from jax_na.tools.roofline import COPY, PRODUCT, Ceiling

Programs = dict[str, Callable[[], Prepared]]  # each is compiled when its turn comes


def all_of(problem: Problem, names: Collection[str]) -> tuple[Programs, dict[str, str]]:
    """The implementations of those names; if there are none, all, with their kernels and peers."""
    programs, missing = implementations(problem)
    if names:
        return _named(programs, names), _named(missing, names)
    kernels = variants(problem) if "fused" in programs else {}
    peers_here, peers_missing = others(problem)
    return {**programs, **kernels, **peers_here}, {**missing, **peers_missing}


def _named(some: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: x for name, x in some.items() if name in names}


def implementations(problem: Problem) -> tuple[Programs, dict[str, str]]:
    """Those of this library, and why others cannot run."""
    rows = profiler.availability(problem)
    programs: Programs = {
        row.name: functools.partial(profiler.prepare_implementation, problem, row.name)
        for row in rows
        if row.available
    }
    return programs, {row.name: str(row.reason) for row in rows if not row.available}


def others(problem: Problem) -> tuple[Programs, dict[str, str]]:
    """The peers that are here, and why others cannot compute the problem."""
    platform = jax.default_backend()
    reasons = {peer.name: peer.obstacle(problem, platform) for peer in peers.PEERS}
    programs: Programs = {
        peer.name: functools.partial(_peer, problem, peer)
        for peer in peers.PEERS
        if reasons[peer.name] is None
    }
    return programs, {name: reason for name, reason in reasons.items() if reason is not None}


def _peer(problem: Problem, peer: peers.Peer) -> Prepared:
    attend, constants = peer.attention(problem)
    return profiler.prepare_attention(problem, attend, constants)


def tilings(problem: Problem) -> Iterator[tuple[str, tuning.Choice]]:
    """The fused kernels with their tiles, the cheapest first: a text, and the choice."""
    platform = devices.platform_of()
    targets = ["na_fused_forward", "na_fused_backward"] if problem.needs_gradients else ["na_fused_forward"]
    planned = contract.problem(profiler.op(problem), profiler.types(problem))
    tried = [plan.candidates(platform, t, chunks.first(platform, t, planned)) for t in targets]
    for kernels in zip(*tried, strict=False):
        yield f"fused {' '.join(kernels)}", {"kernels": dict(zip(targets, kernels, strict=True))}


def variants(problem: Problem) -> Programs:
    """The fused kernels that are not the planner's first choice, each with its cheapest tiles."""
    found: dict[str, tuning.Choice] = {}
    seen: set[str] = set()
    for text, choice in tilings(problem):
        name = " ".join(kernels.partition(":")[0] for kernels in choice["kernels"].values())
        if name in seen:  # their tilings take turns, so all kernels have had theirs
            break
        seen.add(name)
        found[text] = choice
    return {text: chosen(problem, choice) for text, choice in itertools.islice(found.items(), 1, None)}


def chosen(problem: Problem, choice: tuning.Choice) -> Callable[[], Prepared]:
    """The fused kernels with a choice of tiles."""

    def prepared() -> Prepared:
        with tuning.trial(profiler.op(problem), choice, devices.platform_of()):
            return profiler.prepare_implementation(problem, "fused")

    return prepared


def measured(
    problem: Problem, programs: Mapping[str, Any], rounds: int
) -> tuple[dict[str, Measured], Ceiling]:
    """Times them in turns with what the roofline is made of."""
    found = measure({**programs, **roofline.programs(problem)}, rounds)
    ceiling = roofline.ceiling(*(min(found.pop(name).timing.seconds) for name in (PRODUCT, COPY)))
    return found, ceiling
