# SPDX-License-Identifier: Apache-2.0
"""The arguments that say which keys a query sees: a Neighborhood, or its parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

from jax_na.neighborhood import MAX_RANK, Neighborhood

Ints = int | tuple[int, ...]
Flags = bool | tuple[bool, ...]


class Window(NamedTuple):
    """The parameters of a neighborhood as they are given: a value for all axes, or one per axis, each."""

    kernel_size: Ints | Neighborhood
    stride: Ints = 1
    dilation: Ints = 1
    is_causal: Flags = False


def neighborhood_of(ndim: int, window: Window) -> Neighborhood:
    """The Neighborhood of a query with `ndim` axes; the rank is that of a tuple, else ndim - 3."""
    if isinstance(window.kernel_size, Neighborhood):
        _require_nothing_besides(window)
        found = window.kernel_size
    elif any(isinstance(value, (tuple, list)) for value in window):
        found = Neighborhood(window.kernel_size, *window[1:])
    else:
        kernel_size: Any = (window.kernel_size,) * _spatial_axes(ndim)
        found = Neighborhood(kernel_size, *window[1:])
    if ndim < found.rank + 2:
        raise ValueError(
            f"query has {ndim} axes; [batch..., *spatial, heads, head_dim] with {found.rank} spatial axes "
            f"has at least {found.rank + 2}"
        )
    return found


def _require_nothing_besides(window: Window) -> None:
    """A Neighborhood comes alone."""
    for name, default in Window._field_defaults.items():
        value = getattr(window, name)
        if not (isinstance(value, (int, bool)) and value == default):
            raise ValueError(
                f"{name} {value!r} is given beside a Neighborhood, which has its own, "
                f"{getattr(window.kernel_size, name)!r}; make it part of the Neighborhood"
            )


def _spatial_axes(ndim: int) -> int:
    """How many there are with one batch axis."""
    if not 1 <= ndim - 3 <= MAX_RANK:
        raise ValueError(
            f"query has {ndim} axes; [batch, *spatial, heads, head_dim] has 4 to {MAX_RANK + 3}. With none "
            "or several batch axes make kernel_size a tuple with one value per spatial axis"
        )
    return ndim - 3


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
        if isinstance(value, (tuple, list)) and len(value) != rank:
            raise ValueError(
                f"na{rank}d takes one value or {rank} for {name}, got {value} of length {len(value)}"
            )
    return kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * rank
