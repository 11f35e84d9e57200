# SPDX-License-Identifier: Apache-2.0
"""The kernels of all platforms as rows of one table, read from the bindings: what they take.

A target has passes, and a pass has kernels: for the forward pass of "na_fused_forward" on a GPU these are
"sm90" and "portable". A row of the table is defined beside the code of the kernel (common/call/variant.h).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

from jax_na.kernels import contract, register
from jax_na.kernels.contract import Problem


@functools.cache
def rows(platform: str, target: str) -> tuple[Any, ...]:
    """The kernels of a target, pass after pass."""
    return tuple(register.binding(platform).variants(target))


def passes(platform: str, target: str) -> dict[str, list[Any]]:
    """The kernels of every pass of a target."""
    found: dict[str, list[Any]] = {name: [] for name in contract.targets(platform)[target].passes}
    for row in rows(platform, target):
        found[row.pass_name].append(row)
    return found


def of_targets(platform: str, targets: Iterable[str]) -> list[tuple[str, Any]]:
    """All kernels of some targets, each with its target."""
    return [(target, row) for target in targets for row in rows(platform, target)]


def reason(platform: str, row: Any, problem: Problem) -> str | None:
    """Why a kernel does not take a problem, None if it does.

    Operands that no kernel of its target takes are no reason: they are computed beside the call.
    """
    operands = tuple(name for name in problem.operands if takes(platform, row.target, name))
    query = contract.query(platform, problem._replace(operands=operands))
    return row.obstacle(query) or None


def obstacle(platform: str, target: str, problem: Problem) -> str | None:
    """Why some pass of a target has no kernel for a problem, by its last one; None if all have one."""
    query = contract.query(platform, problem)
    for kernels in passes(platform, target).values():
        reasons = [row.obstacle(query) for row in kernels]
        if all(reasons):
            return str(reasons[-1])
    return None


def takes(platform: str, target: str, operand: str) -> bool:
    """Whether every pass of a target has a kernel that takes an optional operand."""
    every = passes(platform, target).values()
    return all(any(operand in row.takes for row in kernels) for kernels in every)
