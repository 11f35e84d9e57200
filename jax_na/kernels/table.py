# SPDX-License-Identifier: Apache-2.0
"""The table of implementations: one row each, the targets that it calls, and whether it can run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jax_na.kernels import chunks, contract, devices, register, tuning
from jax_na.kernels.contract import Problem
from jax_na.kernels.platforms import CUDA, PLATFORMS
from jax_na.op import DTYPES, Op

ATTENTION, UNFUSED = "attention", "unfused"


@dataclass(frozen=True)
class Row:
    """An implementation. `targets` are what it calls on the platforms that have kernels (none: pure JAX)."""

    name: str
    about: str
    targets: tuple[str, ...]
    unfused: bool

    @property
    def composed(self) -> bool:
        """Whether its attention is put together from the unfused operations."""
        return self.unfused and bool(self.targets)

    def obstacle(self, platform: str, problem: Problem | None = None) -> str | None:
        """Why it cannot be compiled for this platform (a name of JAX; "" for others), None if it can."""
        if problem is not None and problem.dtype not in DTYPES:
            return f"it takes {', '.join(DTYPES)}, not {problem.dtype}"
        if not self.targets:
            return None
        if platform not in PLATFORMS:
            return f"it has no kernels for {platform or 'this platform'}"
        if problem is not None and platform in register.TARGETS:
            alone = problem._replace(operands=())  # what kernels do not take is computed beside them
            reasons = [chunks.obstacle(platform, target, alone) for target in self.targets]
            if reason := next(filter(None, reasons), None):
                return reason
        return register.refusal(platform)

    def absence(self, platform: str) -> str | None:
        """Why it cannot run on this machine, although it can be compiled for the platform."""
        if self.targets and platform == CUDA and not devices.cuda_devices():
            return "JAX has no CUDA device here: that needs a GPU, its driver, and jax[cuda13] or jax[cuda12]"
        return None


# Fastest first.
ROWS = (
    Row(
        "fused",
        "softmax and both products in one kernel; nothing is stored per query and key",
        ("na_fused_forward", "na_fused_backward"),
        unfused=False,
    ),
    Row(
        "gemm",
        "small matrix products over query tiles; weights are stored",
        ("na_gemm_qk", "na_gemm_av", "na_gemm_inverse"),
        unfused=True,
    ),
    Row(
        "naive",
        "the definition as loops; weights are stored",
        ("na_naive_qk", "na_naive_av", "na_naive_inverse"),
        unfused=True,
    ),
    Row("xla", "pure JAX, blocked; runs on every platform", (), unfused=True),
)
NAMES = tuple(row.name for row in ROWS)
DEFAULT_ORDER = {ATTENTION: ("fused", "gemm", "xla"), UNFUSED: ("gemm", "naive", "xla")}
MOST_STORED = 1 << 30  # bytes of scores up to which None takes attention that stores them: a few such arrays


def row(name: str) -> Row:
    """The row of an implementation."""
    return ROWS[NAMES.index(name)]


def choose(op: Op, operation: str, platform: str, operands: Mapping[str, Any]) -> str:
    """What to lower to on a platform: the implementation asked for, or for None the fastest that can run.

    `operands` are those of the call by name, at least query and value, or one of y and x.

    Raises:
        ValueError: if the one asked for cannot run.
    """
    name, problem = op.implementation, contract.problem(op, operands)
    if name is None:
        order: tuple[str, ...] = DEFAULT_ORDER[operation]
        tuned = tuning.lookup(op, problem, platform).get(operation) if platform in register.TARGETS else None
        if tuned in order:
            order = (str(tuned), *order)
        able = (n for n in order if row(n).obstacle(platform, problem) is None)
        return next(n for n in able if operation == UNFUSED or reluctance(op, n, operands) is None)
    obstacle = row(name).obstacle(platform, problem)
    if obstacle is not None:
        raise ValueError(
            f"implementation {name!r} cannot run here: {obstacle}; {_others(platform, problem)} can"
        )
    return name


def _others(platform: str, problem: Problem) -> str:
    """The implementations that can run."""
    return ", ".join(repr(r.name) for r in ROWS if r.obstacle(platform, problem) is None)


def reluctance(op: Op, name: str, operands: Mapping[str, Any]) -> str | None:
    """Why None does not take an implementation for attention although it can run, None if it does."""
    if not row(name).composed:
        return None
    scores = math.prod(operands["query"].shape[:-1]) * op.pitch
    if not isinstance(scores, int):
        return "how much memory its weights take is not known when compiling"
    if 4 * scores > MOST_STORED:
        return f"its weights take {4 * scores / 2**30:.1f} GB in float32, more than {MOST_STORED >> 30} GB"
    return None
