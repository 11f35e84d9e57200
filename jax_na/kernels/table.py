# SPDX-License-Identifier: Apache-2.0
"""The table of implementations: one row each, what it offers, and whether it can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jax_na.kernels import devices, register, tuning
from jax_na.kernels.platforms import CUDA, PLATFORMS
from jax_na.op import DTYPES, Op

ATTENTION, UNFUSED = "attention", "unfused"


@dataclass(frozen=True)
class Row:
    """An implementation. `kernels` are the targets that it calls on its `platforms` (none: pure JAX)."""

    name: str
    about: str
    dtypes: tuple[str, ...]
    kernels: tuple[str, ...]
    platforms: tuple[str, ...]
    unfused: bool

    @property
    def composed(self) -> bool:
        """Whether its attention is put together from the unfused operations."""
        return self.unfused and bool(self.kernels)

    def obstacle(self, platform: str, *arrays: Any) -> str | None:
        """Why it cannot be compiled for this platform (a name of JAX; "" for others), None if it can.

        `arrays` are operands [.., features] or their types: the query and, if it differs, the value.
        """
        dtypes = {jnp.dtype(x.dtype).name for x in arrays}
        if not dtypes <= set(self.dtypes):
            return f"it takes {', '.join(self.dtypes)}, not {', '.join(dtypes)}"
        if not self.kernels:
            return None
        if platform not in self.platforms:
            return f"it has no kernels for {platform or 'this platform'}"
        most = MOST_FEATURES.get((self.name, platform))
        features = max((x.shape[-1] for x in arrays if x.shape), default=0) if most else 0
        if most and features > most:
            return f"on {platform} it takes up to {most} features per head, not {features}"
        return register.refusal(platform)

    def absence(self, platform: str) -> str | None:
        """Why it cannot run on this machine, although it can be compiled for the platform."""
        if self.kernels and platform == CUDA and not devices.cuda_devices():
            return "JAX has no CUDA device here: that needs a GPU, its driver, and jax[cuda13] or jax[cuda12]"
        return None


HALF_AND_SINGLE = ("float32", "bfloat16", "float16")
MOST_FEATURES = {("fused", CUDA): 256}

# Fastest first.
ROWS = (
    Row(
        "fused",
        "softmax and both products in one kernel; nothing is stored per query and key",
        HALF_AND_SINGLE,
        ("na_fused_forward", "na_fused_backward"),
        tuple(PLATFORMS),
        unfused=False,
    ),
    Row(
        "gemm",
        "small matrix products over query tiles; weights are stored",
        HALF_AND_SINGLE,
        ("na_gemm_qk", "na_gemm_av", "na_gemm_inverse"),
        tuple(PLATFORMS),
        unfused=True,
    ),
    Row(
        "naive",
        "the definition as loops; weights are stored",
        DTYPES,
        ("na_naive_qk", "na_naive_av", "na_naive_inverse"),
        tuple(PLATFORMS),
        unfused=True,
    ),
    Row("xla", "pure JAX, blocked; runs on every platform", DTYPES, (), (), unfused=True),
)
NAMES = tuple(row.name for row in ROWS)
DEFAULT_ORDER = {ATTENTION: ("fused", "xla"), UNFUSED: ("gemm", "naive", "xla")}


def row(name: str) -> Row:
    return ROWS[NAMES.index(name)]


def choose(op: Op, operation: str, platform: str, *arrays: Any) -> str:
    """What to lower to on a platform: the implementation asked for, or for None the fastest that can run.

    `arrays` are those that limit it, as in `Row.obstacle`.

    Raises:
        ValueError: if the one asked for cannot run.
    """
    name = op.implementation
    if name is None:
        order = DEFAULT_ORDER[operation]
        tuned = tuning.lookup(op, platform).get(operation) if platform in register.TARGETS else None
        if tuned in order:
            order = (tuned, *order)
        return next(n for n in order if row(n).obstacle(platform, *arrays) is None)
    obstacle = row(name).obstacle(platform, *arrays)
    if obstacle is not None:
        raise ValueError(f"implementation {name!r} cannot run here: {obstacle}")
    return name
