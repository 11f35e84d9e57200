# SPDX-License-Identifier: Apache-2.0
"""Arguments with one value for all axes, or one per axis, and whether they fit a grid."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from jax_na.window_rule import LONGEST_AXIS

T = TypeVar("T", int, bool)
MAX_RANK = 3


def sequence(value: object) -> tuple[Any, ...] | None:
    """The values of a tuple, a list or an array of one axis; None for what is a single value."""
    if isinstance(value, (tuple, list)):
        return tuple(value)
    if isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 1:
        return None if isinstance(value, jax.core.Tracer) else tuple(np.asarray(value))
    return None


def given_rank(**parameters: object) -> int | None:
    """The length of whichever parameter is a sequence, None if none is."""
    given = {name: sequence(p) for name, p in parameters.items()}
    ranks = {name: len(p) for name, p in given.items() if p is not None}
    if len(set(ranks.values())) > 1:
        raise ValueError(f"tuples must have one value per axis, but their lengths differ: {ranks}")
    for name, rank in ranks.items():
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(
                f"{name} {parameters[name]} has {rank} values; 1 to {MAX_RANK} axes are supported"
            )
    return next(iter(ranks.values()), None)


def per_axis(name: str, value: object, rank: int, check: Callable[[str, object], T]) -> tuple[T, ...]:
    """One value, or a sequence with one per axis, as a checked tuple."""
    values = sequence(value)
    return tuple(check(name, v) for v in ((value,) * rank if values is None else values))


def require_known(name: str, value: object) -> None:
    """Windows are part of the compiled program."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced, but it must be known when compiling: jax.jit(..., static_argnames={name!r}), "
            "or bind it with functools.partial"
        )


def positive(name: str, value: object) -> int:
    require_known(name, value)
    if isinstance(value, (float, np.floating)) and math.isfinite(value):
        nearest = max(1, round(float(value)))
        raise TypeError(
            f"{name} must be an integer >= 1, got {value!r}; the nearest legal value is {nearest}"
        )
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{name} must be an integer >= 1, got {value!r}")
    if number < 1:
        raise ValueError(f"{name} must be >= 1, got {number}; the nearest legal value is 1")
    return number


def flag(name: str, value: object) -> bool:
    require_known(name, value)
    is_array = isinstance(value, (np.ndarray, jax.Array)) and value.ndim == 0 and value.dtype == bool
    if not (is_array or isinstance(value, (bool, np.bool_))):
        raise TypeError(f"{name} must be True or False (or a tuple of them), got {value!r}")
    return bool(value)


def require_room(axis: int, length: int, kernel_size: int, dilation: int) -> None:
    """Raises ValueError, with legal values, for an axis that is too short for a window, or too long."""
    if length > LONGEST_AXIS:
        raise ValueError(
            f"length {length} of spatial axis {axis} is too large, the largest legal one is {LONGEST_AXIS}; "
            "cut it into parts, each with the keys that its windows reach"
        )
    if kernel_size * dilation <= length:
        return
    legal = []
    if length >= dilation:
        legal.append(f"the largest legal kernel_size with dilation {dilation} is {length // dilation}")
    if length >= kernel_size:
        legal.append(f"the largest legal dilation with kernel_size {kernel_size} is {length // kernel_size}")
    raise ValueError(
        f"kernel_size {kernel_size} * dilation {dilation} = {kernel_size * dilation} exceeds length "
        f"{length} of spatial axis {axis}; {'; '.join(legal) or f'both must be at most {length}'}"
    )


def require_circle(axis: int, length: int, kernel_size: int, stride: int, dilation: int) -> None:
    """Raises ValueError, with the nearest legal lengths, for an axis that cannot be periodic."""
    step = stride * dilation
    if length % step == 0:
        return
    below, above = length // step * step, -(-length // step) * step
    legal = f"{above}" if below < kernel_size * dilation else f"{below} or {above}"
    raise ValueError(
        f"length {length} of periodic axis {axis} must be a multiple of stride {stride} * dilation "
        f"{dilation} = {step}; the nearest is {legal}"
    )


def require_query(shape: Sequence[int], query: Sequence[int]) -> None:
    """Raises ValueError for a query that is not on a grid."""
    if len(query) != len(shape) or not all(0 <= x < n for x, n in zip(query, shape, strict=True)):
        last = tuple(n - 1 for n in shape)
        raise ValueError(f"query {tuple(query)} is not on the grid; the last one is {last}")
