# SPDX-License-Identifier: Apache-2.0
"""The table of implementations: one row each, what it offers, and whether it can run."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from jax_na.api import arguments as checks
from jax_na.kernels import devices, target, tuning
from jax_na.neighborhood import Op

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
        """Why it cannot be compiled for this platform ("cpu", "cuda", ..; "" for others), None if it can.

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
        return target.refusal(platform)

    def absence(self, platform: str) -> str | None:
        """Why it cannot run on this machine, although it can be compiled for the platform."""
        if self.kernels and platform == "cuda" and not devices.cuda_devices():
            return "JAX has no CUDA device here: that needs a GPU, its driver, and jax[cuda13] or jax[cuda12]"
        return None


HALF_AND_SINGLE = ("float32", "bfloat16", "float16")
ALL = checks.DTYPES
MOST_FEATURES = {("fused", "cuda"): 256}

# Fastest first.
ROWS = (
    Row(
        "fused",
        "softmax and both products in one kernel; nothing is stored per query and key",
        HALF_AND_SINGLE,
        ("na_fused_forward", "na_fused_backward"),
        ("cpu", "cuda"),
        unfused=False,
    ),
    Row(
        "gemm",
        "small matrix products over query tiles; weights are stored",
        HALF_AND_SINGLE,
        ("na_gemm_qk", "na_gemm_av", "na_gemm_inverse"),
        ("cpu", "cuda"),
        unfused=True,
    ),
    Row(
        "naive",
        "the definition as loops; weights are stored",
        ALL,
        ("na_naive_qk", "na_naive_av", "na_naive_inverse"),
        ("cpu", "cuda"),
        unfused=True,
    ),
    Row("xla", "pure JAX, blocked; runs on every platform", ALL, (), (), unfused=True),
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
        tuned = tuning.lookup(op, platform).get(operation) if platform in target.TARGETS else None
        if tuned in order:
            order = (tuned, *order)
        return next(n for n in order if row(n).obstacle(platform, *arrays) is None)
    obstacle = row(name).obstacle(platform, *arrays)
    if obstacle is not None:
        raise ValueError(f"implementation {name!r} cannot run here: {obstacle}")
    return name


def check(name: str | None, *arrays: Any, unfused: bool = False) -> None:
    """An implementation asked for by name must exist, offer the operation, and run on some platform."""
    if name is None:
        return
    if name not in NAMES:
        close = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"there is no implementation {name!r}; legal are {_list(NAMES)} and None{hint}")
    if unfused and not row(name).unfused:
        those = _list(r.name for r in ROWS if r.unfused)
        raise ValueError(f"implementation {name!r} never stores weights; {those} have the unfused operations")
    obstacles = [
        row(name).obstacle(platform, *arrays) for platform in dict.fromkeys(["cpu", *target.TARGETS])
    ]
    if all(obstacles):
        those = _list(r.name for r in ROWS if r.obstacle("cpu", *arrays) is None and r.unfused >= unfused)
        raise ValueError(f"implementation {name!r} cannot run: {obstacles[0]}; {those} can")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


@dataclass(frozen=True)
class Availability:
    """Whether an implementation runs here, and why not; `unfused`: also for neighborhood_qk and _av."""

    name: str
    available: bool
    reason: str | None
    unfused: bool
    about: str

    def __repr__(self) -> str:
        return f"<{self.name}: {self.about}. {'Runs here' if self.available else f'Not here: {self.reason}'}>"


def export_safety_checks() -> list[jax.export.DisabledSafetyCheck]:
    """What `jax.export.export(.., disabled_checks=..)` needs to accept the kernels of this library.

    Example:
        >>> program = jax.export.export(jax.jit(f), disabled_checks=jax_na.export_safety_checks())(x)
    """
    kernels = sorted(frozenset().union(*target.TARGETS.values()))
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels]


def implementations(
    query: Any = None,
    kernel_size: int | tuple[int, ...] | None = None,
    *,
    stride: int | tuple[int, ...] = 1,
    dilation: int | tuple[int, ...] = 1,
    is_causal: bool | tuple[bool, ...] = False,
    platform: str | None = None,
) -> tuple[Availability, ...]:
    """Which implementations exist and which can run, fastest first.

    Args:
        query: the query of a problem, [batch..., *spatial, heads, head_dim] (an array or a
            jax.ShapeDtypeStruct); without it, the answer is about the installation.
        kernel_size, stride, dilation, is_causal: as in `neighborhood_attention`; checked against `query`.
        platform: "cpu", "cuda", "tpu"; by default that of JAX's default backend.

    On a GPU of compute capability 9.0 the forward pass of "fused" has a second kernel, for bfloat16 and
    float16, a multiple of 8 features per head (of a batch of volumes 32, 64, 128 or 256), a dilation of up
    to 8, no `rpb`, and windows so large that it is the faster one; else the kernel for every GPU runs.

    Raises:
        TypeError, ValueError: if the problem itself is not valid.

    Example:
        >>> [row.name for row in jax_na.implementations()]
        ['fused', 'gemm', 'naive', 'xla']
    """
    platform = platform or devices.default_platform()
    platform = "cuda" if platform == "gpu" else platform
    if query is not None and kernel_size is not None:
        neighborhood = checks.neighborhood(query.ndim, kernel_size, stride, dilation, is_causal)
        neighborhood.axes(query.shape[-neighborhood.rank - 2 : -2])
    arrays = () if query is None else (query,)
    reasons = [r.obstacle(platform, *arrays) or r.absence(platform) for r in ROWS]
    return tuple(
        Availability(r.name, why is None, why, r.unfused, r.about)
        for r, why in zip(ROWS, reasons, strict=True)
    )
