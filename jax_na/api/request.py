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
from jax_na.op import Inputs, Op

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


class Request(NamedTuple):
    """A call whose arguments are right."""

    op: Op
    inputs: Inputs  # where there is no query, the weights are in its place


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
    tokens = arguments.tokens(extras[1:], n, queries, last)
    scale = arguments.scale(options.scale, queries.shape[-1])
    op = Op(n, length, scale, options.implementation, precisions.resolve(options.precision))
    limits = {"query": queries, "value": last} if len(arrays) == 3 else {"y": last}
    require_implementation(options.implementation, contract.problem(op.continued, limits), len(arrays) < 3)
    return Request(op, Inputs(queries, arrays.get("key"), arrays.get("value"), tokens[0], tokens[1], rpb))


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
