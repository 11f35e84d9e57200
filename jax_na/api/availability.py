# SPDX-License-Identifier: Apache-2.0
"""The public functions that tell what can run: on this installation, or on a problem."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.export

from jax_na.api import arguments
from jax_na.api.arguments import Precision
from jax_na.api.window import Flags, Ints, Window, neighborhood_of
from jax_na.kernels import chunks, contract, devices, register, table, variants
from jax_na.kernels import precision as precisions
from jax_na.kernels.contract import Problem
from jax_na.kernels.table import ATTENTION, ROWS, Row
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import DTYPES, Op

Arrays = Mapping[str, Any]


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

    `variants` are its kernels. Of those that can do a pass, each call takes what costs least. `taken` says
    whether `implementation=None` takes it for this problem on this platform, None where no problem is given;
    `note`, how it computes the problem if not as usual, or why None leaves it although it can run.
    """

    name: str
    available: bool
    reason: str | None
    unfused: bool
    about: str
    variants: tuple[Variant, ...] = ()
    taken: bool | None = None
    note: str | None = None

    def __repr__(self) -> str:
        state = "Runs here" if self.available else f"Not here: {self.reason}"
        taken = ", is what None takes" if self.taken else ""
        return f"<{self.name}: {self.about}. {state}{taken}{f'; {self.note}' if self.note else ''}>"


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
    is_periodic: Flags = False,
    value: Any = None,
    rpb: Any = None,
    additional_keys: Any = None,
    key_mask: Any = None,
    precision: Precision = None,
    platform: str | None = None,
) -> tuple[Availability, ...]:
    """Which implementations exist and which can run, fastest first, and the same for the kernels of each.

    Args:
        query: the query of a problem, [batch..., *spatial, heads, head_dim] (an array or a
            jax.ShapeDtypeStruct, as the other arrays); without it, the answer is about the installation.
        kernel_size, stride, dilation, is_causal, is_periodic: as in `neighborhood_attention`; checked against
            `query`.
        value: the value of the problem, if its features are not those of the query.
        rpb, additional_keys, key_mask: whether there are any makes a difference to kernels.
        precision: as in `neighborhood_attention`.
        platform: "cpu", "cuda", "tpu"; by default that of JAX's default backend.

    Returns:
        A row for each implementation, with `name`, `available`, `reason` (None if it is available),
        `unfused`, `about`, `variants` (rows for its kernels with `target`, `pass_name`, `name`, `available`,
        `reason`), `taken` (whether None takes it for attention; None without a query and a kernel_size) and
        `note` (how it computes the problem if not as usual, or why None leaves it although it can run).

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
    if query is None:
        return tuple(_availability(row, name, None) for row in ROWS)
    window = None if kernel_size is None else Window(kernel_size, stride, dilation, is_causal, is_periodic)
    arrays = {"query": query, "value": query if value is None else value}
    op = _op(window, query, precision)
    optional = {"rpb": rpb, "token_key": additional_keys, "key_mask": key_mask}
    problem = contract.problem(op, arrays | optional)
    if window is None:
        problem = problem._replace(sizes=None)  # which axes are spatial is not known
    rows = [_availability(row, name, problem) for row in ROWS]
    if window is None or problem.dtype not in DTYPES:
        return tuple(rows)
    taken = table.choose(op, ATTENTION, name, arrays | optional | {"token_value": additional_keys})
    return tuple(_described(op, row, name, problem, arrays, taken) for row in rows)


def _op(window: Window | None, query: Any, precision: Precision) -> Op:
    neighborhood, length = Neighborhood(1), Shape((1,))
    if window is not None:
        neighborhood = neighborhood_of(window)
        length = arguments.spatial(neighborhood, query)
    return Op(neighborhood, length, precision=precisions.resolve(precision)).continued


def _described(
    op: Op, row: Availability, platform: str, problem: Problem, arrays: Arrays, taken: str
) -> Availability:
    """With what is only known of a whole problem: whether None takes it, and a note."""
    note = None
    if table.row(row.name).obstacle(platform, problem) is None:
        why = table.reluctance(op, row.name, arrays)
        note = _in_chunks(row, platform, problem) if why is None else f"None leaves it: {why}"
    return dataclasses.replace(row, taken=row.name == taken, note=note)


def _in_chunks(row: Availability, platform: str, problem: Problem) -> str | None:
    """Which calls compute the problem, if they are several."""
    targets = dict.fromkeys(kernel.target for kernel in row.variants)
    every = {target: chunks.widths(platform, target, problem) for target in targets}
    parts = [f"{target} {' + '.join(map(str, found))}" for target, found in every.items() if len(found) > 1]
    return f"a call for each chunk of value features: {', '.join(parts)}" if parts else None


def _availability(row: Row, platform: str, problem: Problem | None) -> Availability:
    why = row.obstacle(platform, problem) or row.absence(platform)
    kernels = () if platform not in register.TARGETS else tuple(_variants(row, platform, problem))
    return Availability(row.name, why is None, why, row.unfused, row.about, kernels)


def _variants(row: Row, platform: str, problem: Problem | None) -> Iterator[Variant]:
    """The kernels of an implementation; of chunks of value features, for those of the first."""
    missing = register.refusal(platform) or row.absence(platform)
    for target, kernel in variants.of_targets(platform, row.targets):
        reason = missing or devices.absence(kernel.capability)
        if problem is not None:
            part = chunks.first(platform, target, problem)
            reason = variants.reason(platform, kernel, part) or reason
        yield Variant(target, kernel.pass_name, kernel.name, reason is None, reason)
