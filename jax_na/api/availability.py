# SPDX-License-Identifier: Apache-2.0
"""The public functions that tell what can run: on this installation, or on a problem."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.export

from jax_na.api import arguments
from jax_na.api.arguments import Precision
from jax_na.api.window import Flags, Ints, Window, neighborhood_of
from jax_na.kernels import contract, devices, register, variants
from jax_na.kernels import precision as precisions
from jax_na.kernels.contract import Problem
from jax_na.kernels.table import ROWS, Row
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import Op


@dataclass(frozen=True)
class Variant:
    """A kernel of an implementation: whether it can do its pass of a target, and why not."""

    target: str
    pass_name: str
    name: str
    available: bool
    reason: str | None

    def __repr__(self) -> str:
        state = "runs here" if self.available else f"not here: {self.reason}"
        return f"<{self.name} for {self.pass_name} of {self.target}: {state}>"


@dataclass(frozen=True)
class Availability:
    """Whether an implementation runs here, and why not; `unfused`: also for neighborhood_qk and _av.

    `variants` are its kernels. Of those that can do a pass, each call takes what costs least.
    """

    name: str
    available: bool
    reason: str | None
    unfused: bool
    about: str
    variants: tuple[Variant, ...] = ()

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
    value: Any = None,
    rpb: Any = None,
    additional_keys: Any = None,
    precision: Precision = None,
    platform: str | None = None,
) -> tuple[Availability, ...]:
    """Which implementations exist and which can run, fastest first, and the same for the kernels of each.

    Args:
        query: the query of a problem, [batch..., *spatial, heads, head_dim] (an array or a
            jax.ShapeDtypeStruct, as the other arrays); without it, the answer is about the installation.
        kernel_size, stride, dilation, is_causal: as in `neighborhood_attention`; checked against `query`.
        value: the value of the problem, if its features are not those of the query.
        rpb, additional_keys: whether there are any makes a difference to kernels.
        precision: as in `neighborhood_attention`.
        platform: "cpu", "cuda", "tpu"; by default that of JAX's default backend.

    Returns:
        A row for each implementation, with `name`, `available`, `reason` (None if it is available),
        `unfused`, `about`, and `variants`: rows for its kernels with `target`, `pass_name`, `name`,
        `available`, `reason`.

    Raises:
        TypeError, ValueError: if the problem itself is not valid.

    Example:
        >>> rows = jax_na.implementations(platform="cpu")
        >>> [row.name for row in rows]
        ['fused', 'gemm', 'naive', 'xla']
        >>> [(kernel.pass_name, kernel.name) for kernel in rows[2].variants]
        [('qk', 'naive'), ('av', 'naive'), ('inverse', 'naive')]
    """
    name = devices.platform_of(platform)
    window = None if kernel_size is None else Window(kernel_size, stride, dilation, is_causal)
    arrays = {"query": query, "value": query if value is None else value}
    optional = {"rpb": rpb, "token_key": additional_keys}
    problem = None if query is None else _problem(window, {**arrays, **optional}, precision)
    return tuple(_availability(row, name, problem) for row in ROWS)


def _problem(window: Window | None, arrays: Mapping[str, Any], precision: Precision) -> Problem:
    query = arrays["query"]
    neighborhood, length = Neighborhood(1), Shape((1,))
    if window is not None:
        neighborhood = neighborhood_of(window)
        length = arguments.spatial(neighborhood, query)
    op = Op(neighborhood, length, precision=precisions.resolve(precision))
    return contract.problem(op, arrays)


def _availability(row: Row, platform: str, problem: Problem | None) -> Availability:
    why = row.obstacle(platform, problem) or row.absence(platform)
    kernels = () if platform not in register.TARGETS else tuple(_variants(row, platform, problem))
    return Availability(row.name, why is None, why, row.unfused, row.about, kernels)


def _variants(row: Row, platform: str, problem: Problem | None) -> Iterator[Variant]:
    """The kernels of an implementation."""
    missing = register.refusal(platform) or row.absence(platform)
    for target, kernel in variants.of_targets(platform, row.targets):
        reason = missing or devices.absence(kernel.capability)
        if problem is not None:
            reason = variants.reason(platform, kernel, problem) or reason
        yield Variant(target, kernel.pass_name, kernel.name, reason is None, reason)
