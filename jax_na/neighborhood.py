# SPDX-License-Identifier: Apache-2.0
"""Which keys a query sees: the parameters of a neighborhood and the geometry that follows from them.

The window rule itself, along one axis, is `window_rule.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jax_na import window_rule
from jax_na.axis_values import (
    flag,
    given_rank,
    per_axis,
    positive,
    require_circle,
    require_query,
    require_room,
)

Table = NDArray[Any]
Shape = tuple[int, ...]


def known_size(shape: Sequence[int]) -> int:
    """Number of elements, at least 1; the symbolic sizes of jax.export count as 1."""
    return max(1, math.prod(n for n in shape if isinstance(n, int)))


class Axis(NamedTuple):
    """One axis of length `length` with its parameters, as `window_rule` and the binding take it."""

    length: int
    kernel_size: int
    stride: int
    dilation: int
    is_causal: bool


@functools.lru_cache(maxsize=1024)
def windows(axis: Axis) -> Table:
    """int32 [length, 2]: start and stop of every coordinate's window, in positions of its group."""
    return _read_only(window_rule.windows(*axis))


@functools.lru_cache(maxsize=1024)
def inverse_windows(axis: Axis) -> Table:
    """int32 [length, 2]: start and stop of the query positions that see every key coordinate."""
    return _read_only(window_rule.inverse_windows(*axis))


def _read_only(table: Table) -> Table:
    table.flags.writeable = False
    return table


@dataclass(frozen=True, init=False)
class Neighborhood:
    """The keys that every query of a grid attends to.

    Along each axis, `dilation` splits the coordinates into interleaved groups; inside its group a query sees
    the `kernel_size` nearest keys, shifted inward at the borders. `stride` neighbouring queries share the
    window of the one in their middle; with `is_causal` the window ends at the query. On an axis that
    `is_periodic` there are no borders: windows go around. The neighborhood is the product of the windows of
    the axes. (Hassani et al., Generalized Neighborhood Attention, 2025.)

    Args:
        kernel_size, stride, dilation: integers >= 1, one or a tuple per axis; `stride <= kernel_size`.
        is_causal, is_periodic: bool or a tuple of them; no axis is both. The length of a periodic axis is a
            multiple of stride * dilation.

    The rank is the length of whichever argument is a tuple, and 1 if none is. All attributes are tuples.

    Raises:
        TypeError, ValueError: for an argument that is not of these, with the nearest legal value.

    Example:
        >>> jax_na.Neighborhood((3, 3), dilation=(1, 2)).indices((4, 6))[0, 0].tolist()
        [0, 2, 4, 6, 8, 10, 12, 14, 16]
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]
    is_periodic: tuple[bool, ...]

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        dilation: int | Sequence[int] = 1,
        is_causal: bool | Sequence[bool] = False,
        is_periodic: bool | Sequence[bool] = False,
    ) -> None:
        sizes = {"kernel_size": kernel_size, "stride": stride, "dilation": dilation}
        flags = {"is_causal": is_causal, "is_periodic": is_periodic}
        rank = given_rank(**sizes, **flags) or 1
        for name, size in sizes.items():
            object.__setattr__(self, name, per_axis(name, size, rank, positive))
        for name, given in flags.items():
            object.__setattr__(self, name, per_axis(name, given, rank, flag))
        for axis, (s, w) in enumerate(zip(self.stride, self.kernel_size, strict=True)):
            if s > w:
                raise ValueError(
                    f"stride {s} exceeds kernel_size {w} on axis {axis}; the largest legal one is {w}"
                )
        for axis, both in enumerate(zip(self.is_causal, self.is_periodic, strict=True)):
            if all(both):
                raise ValueError(
                    f"axis {axis} is causal and periodic: around a circle every token comes after every "
                    "other; set one of is_causal and is_periodic to False there"
                )

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel_size)

    @property
    def size(self) -> int:
        """Number of slots of a window: the product of `kernel_size`."""
        return math.prod(self.kernel_size)

    def axes(self, shape: Sequence[int]) -> tuple[Axis, ...]:
        """The axes of a grid of this shape.

        Raises:
            ValueError: if the rank differs, a window does not fit, an axis has more than 2^28 tokens, or a
                periodic one is no multiple of stride * dilation; has the nearest legal values.
        """
        if len(shape) != self.rank:
            raise ValueError(f"shape {tuple(shape)} has {len(shape)} axes, the neighborhood has {self.rank}")
        for a, (n, w, d) in enumerate(zip(shape, self.kernel_size, self.dilation, strict=True)):
            require_room(a, n, w, d)
            if self.is_periodic[a]:
                require_circle(a, n, w, self.stride[a], d)
        return tuple(map(Axis, shape, self.kernel_size, self.stride, self.dilation, self.is_causal))

    def bounds(self, shape: Sequence[int]) -> tuple[Table, ...]:
        """Per axis an int32 array [length, 2]: along it, x sees the keys `range(start, stop, dilation)`.

        On a periodic axis these are to be taken modulo the length: they may begin below 0 or end beyond it.

        Example:
            >>> jax_na.Neighborhood(3).bounds((5,))[0].tolist()
            [[0, 3], [0, 3], [1, 4], [2, 5], [2, 5]]
        """

        def coordinates(axis: Axis, is_periodic: bool) -> Table:
            d = axis.dilation
            group = np.arange(axis.length, dtype=np.int32) % d
            start, stop = (window_rule.periodic_windows(*axis[:-1]) if is_periodic else windows(axis)).T
            return np.stack([start * d + group, (stop - 1) * d + group + 1], axis=1)

        return tuple(map(coordinates, self.axes(shape), self.is_periodic))

    def keys_of(self, shape: Sequence[int], region: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        """Per axis (start, stop) of the keys that the queries of a region see; `region` has those of queries.

        On a periodic axis they are to be taken modulo the length, and may be more than once around.

        Raises:
            ValueError: if the region is empty or reaches beyond the grid.

        Example:
            >>> jax_na.Neighborhood((3, 3)).keys_of((8, 8), [(0, 4), (4, 8)])
            ((0, 5), (3, 8))
        """
        if len(region) != self.rank:
            raise ValueError(f"region {region} has {len(region)} axes, the neighborhood has {self.rank}")
        bounds = self.bounds(shape)
        for a, ((start, stop), length) in enumerate(zip(region, shape, strict=True)):
            if not 0 <= start < stop <= length:
                raise ValueError(
                    f"region [{start}, {stop}) is not inside [0, {length}) of axis {a}, or empty"
                )
        seen = [b[start:stop] for b, (start, stop) in zip(bounds, region, strict=True)]
        return tuple((int(b[:, 0].min()), int(b[:, 1].max())) for b in seen)

    def mask(self, shape: Sequence[int]) -> Table:
        """bool [*shape, *shape]: whether a query (leading axes) sees a key (trailing axes)."""

        def visible(bounds: Table, d: int) -> Any:
            length, (start, stop) = len(bounds), bounds.T[..., None]
            distance = (np.arange(length) - start) % length  # on the way around
            return (distance < stop - start) & (distance % d == 0)

        result: Table = np.ones((), bool)
        for a, (bounds, d) in enumerate(zip(self.bounds(shape), self.dilation, strict=True)):
            result = result & _place(visible(bounds, d), a, self.rank)
        return result

    def indices(self, shape: Sequence[int]) -> Table:
        """int32 [*shape, prod(kernel_size)]: the row-major flat index of the key in every slot.

        Slots are row-major over the axes; causal slots past the query hold -1.
        """
        flat = np.zeros((1,) * (2 * self.rank), np.int32)
        seen = np.ones((1,) * (2 * self.rank), bool)
        for a, (bounds, w, d) in enumerate(
            zip(self.bounds(shape), self.kernel_size, self.dilation, strict=True)
        ):
            key = bounds[:, :1] + d * np.arange(w, dtype=np.int32)
            flat = flat * np.int32(shape[a]) + _place(key % np.int32(shape[a]), a, self.rank)
            seen = seen & _place(key < bounds[:, 1:], a, self.rank)
        return np.where(seen, flat, np.int32(-1)).reshape(*shape, self.size)

    def attention_map(self, shape: Sequence[int], query: Sequence[int], weights: Any) -> Table:
        """The weights of a query's slots where their keys are: float32 [..., *shape], NaN where it sees none.

        Args:
            shape: of the grid.
            query: its coordinates.
            weights: [..., prod(kernel_size)], such as `jax.nn.softmax(neighborhood_qk(...))[query]`, which
                has leading axes of heads.

        Raises:
            ValueError: if the window does not fit the grid, the query is not on it, or the number of weights
                is another one.

        Example:
            >>> jax_na.Neighborhood(3).attention_map((5,), (4,), [0.2, 0.3, 0.5]).tolist()
            [nan, nan, 0.20000000298023224, 0.30000001192092896, 0.5]
        """
        bounds = self.bounds(shape)
        require_query(shape, query)
        weights = np.asarray(weights, np.float32)
        if weights.ndim < 1 or weights.shape[-1] != self.size:
            raise ValueError(f"weights have shape {weights.shape}; a window of {self} has {self.size} slots")
        found = np.full((*weights.shape[:-1], *shape), np.nan, np.float32)
        lines = zip(query, bounds, self.kernel_size, self.dilation, shape, strict=True)
        keys, seen = zip(*(_slots(x, b, w, d, n) for x, b, w, d, n in lines), strict=True)
        slots = np.ix_(*(np.flatnonzero(s) for s in seen))
        places = np.ix_(*(k[s] for k, s in zip(keys, seen, strict=True)))
        found[..., *places] = weights.reshape(*weights.shape[:-1], *self.kernel_size)[..., *slots]
        return found

    def flops(
        self,
        shape: Sequence[int],
        heads: int,
        head_dim: int,
        value_dim: int | None = None,
        batch: int = 1,
        backward: bool = False,
        additional_tokens: int = 0,
    ) -> int:
        """Useful FLOPs of one forward pass, or of one backward pass (2.5 times as many).

        2 * batch * heads * (head_dim + value_dim) * sum over the queries of the number of keys they see;
        all see the additional tokens.
        """
        pairs = math.prod(int(np.diff(windows(axis)).sum()) for axis in self.axes(shape))
        pairs += math.prod(shape) * additional_tokens
        products = batch * heads * pairs * (head_dim + (head_dim if value_dim is None else value_dim))
        return products * (5 if backward else 2)

    def __str__(self) -> str:
        """The kernel size, and whatever differs from its default: "kernel 7x7, dilation 2x2"."""
        parts = [f"kernel {by(self.kernel_size)}"]
        if set(self.stride) != {1}:
            parts.append(f"stride {by(self.stride)}")
        if set(self.dilation) != {1}:
            parts.append(f"dilation {by(self.dilation)}")
        if any(self.is_causal):
            axes = [str(a) for a, causal in enumerate(self.is_causal) if causal]
            parts.append("causal" if all(self.is_causal) else f"causal in axis {', '.join(axes)}")
        if any(self.is_periodic):
            axes = [str(a) for a, around in enumerate(self.is_periodic) if around]
            parts.append("periodic" if all(self.is_periodic) else f"periodic in axis {', '.join(axes)}")
        return ", ".join(parts)


def _slots(x: int, bounds: Table, kernel_size: int, dilation: int, length: int) -> tuple[Table, Table]:
    """Of a query's slots along an axis: coordinates of their keys, and whether there is one."""
    key = bounds[x, 0] + dilation * np.arange(kernel_size)
    return key % length, key < bounds[x, 1]


def by(values: Iterable[int], separator: str = "x") -> str:
    """Sizes as text: 7x7."""
    return separator.join(map(str, values))


def _place(line: Table, axis: int, rank: int) -> Table:
    """[n, m] to 2 * rank axes: n becomes axis `axis`, m becomes axis `rank + axis`."""
    shape = [1] * (2 * rank)
    shape[axis], shape[rank + axis] = line.shape
    return line.reshape(shape)
