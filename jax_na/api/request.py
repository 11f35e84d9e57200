# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a public function to a call: one static `Op`, and arrays that are known to fit it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from jax import Array

from jax_na.api import arguments
from jax_na.api.window import Window, neighborhood_of, require_axes
from jax_na.kernels import contract, register, table
from jax_na.kernels import precision as precisions
from jax_na.kernels.contract import Problem
from jax_na.kernels.platforms import CPU
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import Inputs, Op, Present

Arrays = Mapping[str, Array]


class Options(NamedTuple):
    """How to compute, as it is given."""

    scale: float | None = 1.0
    implementation: str | None = None
    precision: arguments.Precision = None


class Extras(NamedTuple):
    """What attention may have besides query, key and value, as it is given."""

    rpb: Any = None
    additional_keys: Any = None
    additional_values: Any = None
    key_mask: Any = None
    additional_mask: Any = None


class Request(NamedTuple):
    """A call whose arguments are right."""

    op: Op
    inputs: Inputs  # where there is no query, the weights are in its place
    key_mask: Array | None = None
    token_mask: Array | None = None

    def at(self, offsets: Array) -> Present:
        """What is present, where the region begins there."""
        return Present(offsets, self.key_mask, self.token_mask)


def whole_grid(n: Neighborhood, arrays: Arrays) -> Shape:
    """The lengths of a grid that all arrays hold."""
    arguments.require_same_axes(n, arrays)
    return arguments.spatial(n, next(iter(arrays.values())))


def request(
    arrays: Arrays,
    window: Window,
    options: Options,
    extras: Extras = Extras(),  # noqa: B008, it is a constant
    grid: Callable[[Neighborhood, Arrays], Shape] = whole_grid,
) -> Request:
    """The call of a public function, if all its arguments are right.

    Args:
        arrays: query, key and value, or two of them, or weights and value: arrays of one dtype.
        window, options, extras: the other arguments, as they are given.
        grid: gives the lengths of the whole grid, or raises an error if the arrays do not fit together on it.

    Raises:
        TypeError, ValueError: for the first argument that is wrong.
    """
    queries, *_, last = arrays.values()
    n = neighborhood_of(window)
    require_axes(n, queries.ndim)
    length = grid(n, arrays)
    n.axes(length)  # raises an error if windows do not fit
    arguments.require_features(arrays)
    rpb = arguments.rpb(extras.rpb, n, queries.shape[-2])
    tokens = arguments.tokens(extras[1:3], n, queries, last)
    masks = _masks(extras, arrays, queries.shape[: queries.ndim - n.rank - 2])
    scale = arguments.scale(options.scale, queries.shape[-1])
    op = Op(n, length, scale, options.implementation, precisions.resolve(options.precision))
    limits = {"query": queries, "value": last} if len(arrays) == 3 else {"y": last}
    require_implementation(options.implementation, contract.problem(op.continued, limits), len(arrays) < 3)
    inputs = Inputs(queries, arrays.get("key"), arrays.get("value"), tokens[0], tokens[1], rpb)
    return Request(op, inputs, *masks)


def _masks(extras: Extras, arrays: Arrays, batch: Shape) -> tuple[Array | None, Array | None]:
    """Which keys and which additional tokens exist; None where all of them do."""
    key_mask = extras.key_mask
    if key_mask is not None:
        legal = arrays["key"].shape[:-2]
        key_mask = arguments.mask("key_mask", key_mask, legal, "[batch..., *spatial] of the key")
    if extras.additional_mask is None:
        return key_mask, None
    if extras.additional_keys is None:
        raise ValueError("additional_mask without additional_keys; it says which of them exist")
    count = extras.additional_keys.shape[-3]
    legal = (*batch, count)
    mask = arguments.mask("additional_mask", extras.additional_mask, legal, "[batch..., tokens]")
    return key_mask, mask if count else None


def require_implementation(name: str | None, problem: Problem, unfused: bool) -> None:
    """An implementation asked for by name must exist, offer the operation, and run on some platform."""
    if name is None:
        return
    if name not in table.NAMES:
        close = difflib.get_close_matches(str(name), table.NAMES, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        legal = f"{_list(table.NAMES)} and None"
        raise ValueError(f"there is no implementation {name!r}; legal are {legal}{hint}")
    rows = [row for row in table.ROWS if row.unfused or not unfused]
    row = table.row(name)
    if row not in rows:
        those = _list([row.name for row in rows])
        raise ValueError(f"implementation {name!r} never stores weights; {those} have the unfused operations")
    obstacles = [row.obstacle(platform, problem) for platform in dict.fromkeys([CPU, *register.TARGETS])]
    if all(obstacles):
        those = _list([row.name for row in rows if row.obstacle(CPU, problem) is None])
        raise ValueError(f"implementation {name!r} cannot run: {obstacles[0]}; {those} can")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
