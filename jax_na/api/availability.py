# SPDX-License-Identifier: Apache-2.0
"""The public functions that tell what can run: on this installation, or on a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.export

from jax_na.api import arguments
from jax_na.api.arguments import Flags, Ints, Window
from jax_na.kernels import devices, register
from jax_na.kernels.table import ROWS
from jax_na.neighborhood import Neighborhood


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
        >>> q = jax.ShapeDtypeStruct((1, 20, 4, 32), "float32")
        >>> attend = jax.jit(lambda q: jax_na.na1d(q, q, q, kernel_size=7))
        >>> program = jax.export.export(attend, disabled_checks=jax_na.export_safety_checks())(q)
        >>> program.out_avals
        (ShapedArray(float32[1,20,4,32]),)
    """
    kernels = sorted(frozenset().union(*register.TARGETS.values()))
    return [jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels]


def implementations(
    query: Any = None,
    kernel_size: Ints | Neighborhood | None = None,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    platform: str | None = None,
) -> tuple[Availability, ...]:
    """Which implementations exist and which can run, fastest first.

    Args:
        query: the query of a problem, [batch..., *spatial, heads, head_dim] (an array or a
            jax.ShapeDtypeStruct); without it, the answer is about the installation.
        kernel_size, stride, dilation, is_causal: as in `neighborhood_attention`; checked against `query`.
        platform: "cpu", "cuda", "tpu"; by default that of JAX's default backend.

    Raises:
        TypeError, ValueError: if the problem itself is not valid.

    Example:
        >>> [row.name for row in jax_na.implementations()]
        ['fused', 'gemm', 'naive', 'xla']
    """
    platform = devices.platform_of(platform)
    if query is not None and kernel_size is not None:
        window = Window(kernel_size, stride, dilation, is_causal)
        neighborhood = arguments.neighborhood(query.ndim, window)
        neighborhood.axes(arguments.spatial(neighborhood, query))
    arrays = () if query is None else (query,)
    reasons = [row.obstacle(platform, *arrays) or row.absence(platform) for row in ROWS]
    return tuple(
        Availability(row.name, why is None, why, row.unfused, row.about)
        for row, why in zip(ROWS, reasons, strict=True)
    )
