# SPDX-License-Identifier: Apache-2.0
"""The arguments that say which keys a query sees: a Neighborhood, or its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax_na.axis_values import sequence
from jax_na.neighborhood import Neighborhood

Ints = int | Sequence[int]
Flags = bool | Sequence[bool]


class Window(NamedTuple):
    """The parameters of a neighborhood as they are given: a value for all axes, or one per axis, each."""

    kernel_size: Ints | Neighborhood
    stride: Ints = 1
    dilation: Ints = 1
    is_causal: Flags = False
    is_periodic: Flags = False


def neighborhood_of(window: Window, rank: int | None = None) -> Neighborhood:
    """The Neighborhood that is meant; `rank` says how many axes it has where no parameter does.

    Raises:
        TypeError, ValueError: for parameters that are not legal, of another rank, or of none.
    """
    kernel_size: Any = window.kernel_size
    if isinstance(kernel_size, Neighborhood):
        _require_nothing_besides(window)
        found = kernel_size
    elif rank is None or _has_sequence(window):
        found = Neighborhood(kernel_size, *window[1:])
        _require_sequence(window)
    else:
        found = Neighborhood((kernel_size,) * rank, *window[1:])
    if rank is not None and found.rank != rank:
        raise ValueError(f"{rank} spatial axes are asked for, but there are {found.rank} in {found}")
    return found


def _has_sequence(window: Window) -> bool:
    return any(sequence(value) is not None for value in window)


def _require_sequence(window: Window) -> None:
    """One integer would fit any number of axes, and the axes of an array do not say which are batch axes."""
    if _has_sequence(window):
        return
    k = window.kernel_size
    raise ValueError(
        f"kernel_size {k} does not say how many spatial axes there are; give a tuple, for images ({k}, {k}), "
        "or the function or argument that names the rank: na1d, na2d, na3d, or rank=2 of a layer"
    )


def require_axes(n: Neighborhood, ndim: int) -> None:
    """A query with `ndim` axes has all axes of the neighborhood."""
    if ndim < n.rank + 2:
        raise ValueError(
            f"query has {ndim} axes; [batch..., *spatial, heads, head_dim] with {n.rank} spatial axes "
            f"has at least {n.rank + 2}"
        )


def _require_nothing_besides(window: Window) -> None:
    """A Neighborhood comes alone."""
    for name, default in Window._field_defaults.items():
        value = getattr(window, name)
        if not (isinstance(value, (int, bool)) and value == default):
            raise ValueError(
                f"{name} {value!r} is given beside a Neighborhood, which has its own, "
                f"{getattr(window.kernel_size, name)!r}; make it part of the Neighborhood"
            )


def of_rank(rank: int, window: Window) -> Any:
    """kernel_size as a tuple of `rank` values, or the Neighborhood; those of another rank are an error."""
    kernel_size = window.kernel_size
    if isinstance(kernel_size, Neighborhood):
        if kernel_size.rank != rank:
            raise ValueError(
                f"na{rank}d takes a Neighborhood of rank {rank}, got one of rank {kernel_size.rank} "
                f"({kernel_size})"
            )
        return kernel_size
    for name, value in window._asdict().items():
        values = sequence(value)
        if values is not None and len(values) != rank:
            raise ValueError(
                f"na{rank}d takes one value or {rank} for {name}, got {value} of length {len(values)}"
            )
    return (kernel_size,) * rank if sequence(kernel_size) is None else kernel_size
