# SPDX-License-Identifier: Apache-2.0
"""Tiles of the fused CUDA kernels, to be timed against each other: does what the planner counts predict it?

Only this module of the benchmarks knows what a choice of tiles looks like.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from method import CPU, Case

from jax_na.kernels import contract, plan, tuning
from jax_na.kernels.platforms import CUDA
from jax_na.tools import profiler
from jax_na.tools.problems import BACKWARD, FORWARD, Problem

DIRECTIONS = {"na_fused_forward": FORWARD, "na_fused_backward": BACKWARD}


def trials(problem: Problem, number: int) -> Iterator[dict[str, Any]]:
    """The first `number` choices of the planner for each target, the cheapest first, and as JSON."""
    planned = contract.problem(profiler.op(problem), profiler.types(problem))
    for target, direction in DIRECTIONS.items():
        for rank, kernels in enumerate(plan.candidates(CUDA, target, planned)[:number]):
            choice = json.dumps({"kernels": {target: kernels}})
            yield {"kernel": target, "direction": direction, "rank": rank, "tile": kernels, "choice": choice}


def chosen(case: Case) -> contextlib.AbstractContextManager[None]:
    """In it the choice of a case counts, if there is one."""
    if not case.choice or case.device == CPU:
        return contextlib.nullcontext()
    return tuning.trial(profiler.op(case.problem), json.loads(case.choice), CUDA)
