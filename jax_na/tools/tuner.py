# SPDX-License-Identifier: Apache-2.0
"""What `jax-na tune` does: the planner's best tiles of every pass and the implementations, measured."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from jax_na.kernels import devices, tuning
from jax_na.kernels.table import ATTENTION, DEFAULT_ORDER
from jax_na.tools import profiler, trials
from jax_na.tools.problems import Problem
from jax_na.tools.report import Measured
from jax_na.tools.roofline import Ceiling


class Tuned(NamedTuple):
    """What was measured, and what is the fastest."""

    found: dict[str, Measured]
    ceiling: Ceiling
    choice: tuning.Choice


def to_measure(problem: Problem, most: int) -> tuple[trials.Trials, dict[str, dict[str, str]]]:
    """All that is timed; and for every target the names of its choices of tiles, with the attributes.

    Raises:
        ValueError: there are no tiles to choose from.
    """
    every, missing = trials.implementations(problem)
    if "fused" in missing:
        raise ValueError(
            f"there is nothing to tune: the fused kernel cannot run this problem, {missing['fused']}"
        )
    order = DEFAULT_ORDER[ATTENTION]
    chosen = {name: trial for name, trial in every.items() if name in order and name != "fused"}
    names = {}
    for target, tiles in trials.tiles(problem, most).items():
        names[target] = {f"{target.removeprefix('na_').replace('_', ' ')} {k}": k for k in tiles}
        chosen |= dict(zip(names[target], tiles.values(), strict=True))
    return chosen, names


def tune(problem: Problem, most: int, rounds: int) -> Tuned:
    """Measures, forward and backward each, and chooses."""
    every, names = to_measure(problem, most)
    tuning.own_file()  # to miss it now, not after the measurement
    found, ceiling = trials.measured(problem, every, rounds)
    seconds = {name: measured.timing.median for name, measured in found.items()}
    best = {target: min(choices, key=lambda name: seconds[name]) for target, choices in names.items()}
    tiled = {*itertools.chain.from_iterable(names.values())}
    whole = {name: value for name, value in seconds.items() if name not in tiled}
    whole["fused"] = sum(seconds[name] for name in best.values())
    kernels = {target: names[target][name] for target, name in best.items()}
    return Tuned(found, ceiling, {"attention": min(whole, key=lambda name: whole[name]), "kernels": kernels})


def store(problem: Problem, choice: tuning.Choice) -> str:
    """Into the file, which is returned."""
    platform = devices.platform_of()
    return str(tuning.store(profiler.op(problem), trials.problem_of(problem), choice, platform))
