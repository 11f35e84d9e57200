# SPDX-License-Identifier: Apache-2.0
"""Heads of a layer: how many there are, and which of them look through which window."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax_na
from jax_na.api.window import Window, neighborhood_of
from jax_na.axis_values import sequence

PerAxis = int | Sequence[int]
PerAxisFlag = bool | Sequence[bool]
KernelSize = PerAxis | jax_na.Neighborhood | Literal["full"]
HeadGroups = Sequence[tuple[PerAxis, PerAxis]]


class Heads(NamedTuple):
    """Sizes of the projections: the query has [num, head_dim], key and value have [kv, head_dim]."""

    num: int
    kv: int
    head_dim: int


def head_sizes(qkv_features: int, num_heads: int, num_kv_heads: int | None) -> Heads:
    """Checks that the features split into heads, and the heads into groups that share a kv head."""
    kv = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads < 1 or kv < 1:
        raise ValueError(f"num_heads and num_kv_heads must be >= 1, got {num_heads} and {kv}")
    if qkv_features < 1 or qkv_features % num_heads:
        nearest = max(round(qkv_features / num_heads), 1) * num_heads
        raise ValueError(
            f"qkv_features {qkv_features} do not split into {num_heads} heads; the nearest is {nearest}"
        )
    if num_heads % kv:
        nearest = min((n for n in range(1, num_heads + 1) if num_heads % n == 0), key=lambda n: abs(n - kv))
        raise ValueError(
            f"num_kv_heads {kv} does not divide num_heads {num_heads}; the nearest that does is {nearest}"
        )
    return Heads(num_heads, kv, qkv_features // num_heads)


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring heads with one window: query heads from `start` to `stop`, and the kv heads they read.

    Without a neighborhood every query sees the whole grid, whatever its size.
    """

    start: int
    stop: int
    kv_start: int
    kv_stop: int
    rank: int
    neighborhood: jax_na.Neighborhood | None
    bias_name: str

    def on(self, spatial: tuple[int, ...]) -> jax_na.Neighborhood:
        """The neighborhood on a grid."""
        return jax_na.Neighborhood(spatial) if self.neighborhood is None else self.neighborhood

    @property
    def bias_shape(self) -> tuple[int, ...]:
        """[heads, 2 * kernel_size - 1 for every axis]."""
        if self.neighborhood is None:
            raise ValueError(
                "rel_pos_bias has the size of a window, and with kernel_size 'full' there is none; give the "
                "size of the grid as kernel_size"
            )
        return (self.stop - self.start, *(2 * w - 1 for w in self.neighborhood.kernel_size))


@dataclasses.dataclass(frozen=True)
class Windows:
    """What a layer was told about windows; `groups` checks it and divides the heads."""

    kernel_size: KernelSize | None
    stride: PerAxis
    dilation: PerAxis
    is_causal: PerAxisFlag
    is_periodic: PerAxisFlag
    rank: int | None
    head_groups: HeadGroups | None

    def __post_init__(self) -> None:
        for name in Window._fields:
            object.__setattr__(self, name, hashable(getattr(self, name)))

    def groups(self, heads: Heads) -> tuple[Group, ...]:
        """One group of all heads, or those of `head_groups` in order; the last ones get what is left over."""
        if self.head_groups is None:
            rank, neighborhood = self._full() if self.kernel_size == "full" else self._one()
            return (Group(0, heads.num, 0, heads.kv, rank, neighborhood, "rpb"),)
        neighborhoods = self._several(heads)
        size, left = divmod(heads.num, len(neighborhoods))
        groups: list[Group] = []
        start = 0
        for i, neighborhood in enumerate(neighborhoods):
            stop = start + size + (i >= len(neighborhoods) - left)
            kv = kv_heads(heads, start, stop)
            groups.append(Group(start, stop, *kv, neighborhood.rank, neighborhood, f"rpb_{i}"))
            start = stop
        return tuple(groups)

    def _one(self) -> tuple[int, jax_na.Neighborhood]:
        if self.kernel_size is None:
            raise ValueError(
                "no window is given: give kernel_size, (7, 7), or head_groups, [((7, 7), 1), ((7, 7), 4)]"
            )
        neighborhood = neighborhood_of(self._window(self.kernel_size, self.dilation), self.rank)
        return neighborhood.rank, neighborhood

    def _full(self) -> tuple[int, None]:
        if self.rank is None:
            raise ValueError("kernel_size 'full' does not say how many spatial axes there are; give rank")
        if (self.stride, self.dilation, self.is_causal, self.is_periodic) != (1, 1, False, False):
            raise ValueError(
                f"with kernel_size 'full' all positions see all; stride {self.stride}, dilation "
                f"{self.dilation}, is_causal {self.is_causal} and is_periodic {self.is_periodic} must be "
                "left at 1, 1, False and False"
            )
        return self.rank, None

    def _window(self, kernel_size: Any, dilation: Any) -> Window:
        return Window(kernel_size, self.stride, dilation, self.is_causal, self.is_periodic)

    def _several(self, heads: Heads) -> list[jax_na.Neighborhood]:
        """The windows of the groups, of one rank: that of whichever value is a tuple."""
        if (self.kernel_size, self.dilation) != (None, 1):
            raise ValueError(
                f"kernel_size {self.kernel_size} and dilation {self.dilation} are given beside head_groups, "
                "whose pairs (kernel_size, dilation) say both for every group; leave them out"
            )
        pairs = checked_pairs(self.head_groups)
        if not 1 <= len(pairs) <= heads.num:
            raise ValueError(
                f"head_groups has {len(pairs)} groups, but every group needs one of the {heads.num} heads; "
                f"1 to {heads.num} groups are possible"
            )
        shared = (self.stride, self.is_causal, self.is_periodic)
        values = (*shared, *(value for pair in pairs for value in pair))
        ranks = [len(found) for value in values if (found := sequence(value)) is not None]
        rank = self.rank or (ranks[0] if ranks else None)
        return [neighborhood_of(self._window(kernel, dilation), rank) for kernel, dilation in pairs]


def hashable(value: Any) -> Any:
    """A list or an array as a tuple: layers hash."""
    found = sequence(value)
    return value if found is None else found


def checked_pairs(head_groups: Any) -> tuple[tuple[Any, Any], ...]:
    """Pairs (kernel_size, dilation), as tuples."""
    pairs = [sequence(pair) for pair in sequence(head_groups) or (None,)]
    if not all(pair is not None and len(pair) == 2 for pair in pairs):
        raise ValueError(
            f"head_groups {head_groups!r} must have a pair (kernel_size, dilation) for every group of heads: "
            "[((7, 7), 1), ((7, 7), 4)]"
        )
    return tuple((hashable(pair[0]), hashable(pair[1])) for pair in pairs if pair)


def kv_heads(heads: Heads, start: int, stop: int) -> tuple[int, int]:
    """The kv heads of the query heads from `start` to `stop`, which must share them evenly."""
    shared = heads.num // heads.kv
    first, last = start // shared, (stop - 1) // shared + 1
    if last - first > 1 and (start % shared or stop % shared):
        raise ValueError(
            f"head_groups: heads {start} to {stop - 1} share kv heads unevenly, as {shared} heads each read "
            f"one of num_kv_heads {heads.kv}; take num_kv_heads {heads.num}, or groups that begin and end "
            f"at multiples of {shared} or lie inside of one"
        )
    return first, last
