# SPDX-License-Identifier: Apache-2.0
"""Problems of the CUDA kernels: a case, a region of one, a random one."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import ml_dtypes
import numpy as np

from . import oracle
from .cases import CASES, Case

Array = np.ndarray
Tile = tuple[int, ...]
UNMERGED = tuple(case for case in CASES if not case.additional)  # unfused kernels know no additional tokens
LONGEST = {1: 90, 2: 12, 3: 5}  # axes of random problems, by their number


def dtype_of(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


@dataclasses.dataclass(frozen=True)
class Problem:
    """One call: axes (with the queries and keys present), and the sizes of arrays."""

    axes: tuple[oracle.Axis, ...]
    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 8
    value_dim: int = 8
    rpb: bool = False
    scale: float | None = None
    additional: int = 0
    key_mask: bool = False

    @classmethod
    def of(cls, case: Case, axes: Sequence[oracle.Axis] | None = None) -> Problem:
        """A case, on its whole grid or on a region of it."""
        shapes = case.shapes()
        return cls(
            tuple(axes or case.axes),
            math.prod(case.batch),
            case.heads,
            shapes["key"][-2],
            case.head_dim,
            shapes["value"][-1],
            case.rpb,
            case.scale,
            case.additional,
        )

    @property
    def geometry(self) -> oracle.Geometry:
        return oracle.Geometry(self.axes)

    @property
    def softmax_scale(self) -> float:
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def pitch(self) -> int:
        return -(-self.geometry.window // 8) * 8

    @property
    def offsets(self) -> Array:
        return np.array([(a.query_start, a.key_start) for a in self.axes], np.int32)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the inputs and of the results, by name."""
        queries = (self.batch, *self.geometry.query_shape, self.heads)
        keys = (self.batch, *self.geometry.key_shape, self.kv_heads)
        table = (self.heads, *(2 * a.kernel_size - 1 for a in self.axes))
        shapes = {"query": (*queries, self.head_dim), "key": (*keys, self.head_dim)}
        shapes |= {"value": (*keys, self.value_dim), "out": (*queries, self.value_dim), "lse": queries}
        if self.additional:
            tokens = (self.batch, self.additional, self.kv_heads)
            shapes |= {
                "additional_keys": (*tokens, self.head_dim),
                "additional_values": (*tokens, self.value_dim),
            }
        if self.key_mask:
            shapes["key_mask"] = keys[:-1]
        return shapes | ({"rpb": table} if self.rpb else {})

    def inputs(self, rng: np.random.Generator, dtype: str) -> dict[str, Array]:
        """Standard normal numbers; the bias is float32. Two thirds of the keys exist."""
        shapes = self.shapes()
        mask = shapes.pop("key_mask", None)
        drawn = {name: shape for name, shape in shapes.items() if name not in ("out", "lse")}
        types = {name: np.float32 if name == "rpb" else dtype_of(dtype) for name in drawn}
        inputs = {name: rng.standard_normal(shape).astype(types[name]) for name, shape in drawn.items()}
        if mask is not None:
            inputs["key_mask"] = (rng.random(mask) < 2 / 3).astype(np.uint8)
        return inputs


def region(case: Case, queries: Sequence[range], keys: Sequence[range]) -> tuple[oracle.Axis, ...]:
    """The axes of a case where only these coordinates are present."""
    return tuple(
        dataclasses.replace(a, query_start=q.start, num_queries=len(q), key_start=k.start, num_keys=len(k))
        for a, q, k in zip(case.axes, queries, keys, strict=True)
    )


def boxes_visited(axes: Sequence[oracle.Axis], row_tile: Tile, column_tile: Tile, keys_stay: bool) -> int:
    """Boxes of columns that cover what the tiles of rows see, over all tiles: no schedule does with fewer.

    Rows are queries, or keys where `keys_stay`.
    """
    return math.prod(
        sum(-(-extent // c) for extent in _extents(axis, keys_stay, r))
        for axis, r, c in zip(axes, row_tile, column_tile, strict=True)
    )


def _extents(axis: oracle.Axis, keys_stay: bool, tile: int) -> Iterator[int]:
    """Along one axis, columns from the first to the last that a tile of rows sees, for every tile."""
    mask = oracle.axis_mask(axis)
    rows, columns = np.array(axis.queries), np.array(axis.keys)
    if keys_stay:
        mask, rows, columns = mask.T, columns, rows
    for group in range(axis.dilation):
        here = mask[rows % axis.dilation == group][:, columns % axis.dilation == group]
        for first in range(0, len(here), tile):
            seen = np.flatnonzero(here[first : first + tile].any(0))
            yield int(seen[-1]) + 1 - int(seen[0]) if len(seen) else 0


def outside(starts: dict[str, int]) -> Problem:
    """4 queries and 6 keys of an axis of 12, some of whose windows lie outside of these keys."""
    axis = oracle.Axis(12, 3, num_queries=4, num_keys=6, **starts)
    return Problem((axis,), heads=2, head_dim=16, value_dim=16)


def lost_queries(problem: Problem) -> list[bool]:
    """Of the one axis: which queries do not exist, or have a window that is not among the keys present."""
    axis = problem.axes[0]
    if axis.keys.start < 0 or axis.keys.stop > axis.length:
        return [True] * len(axis.queries)
    exists = [0 <= x < axis.length for x in axis.queries]
    return [
        not e or any(k is not None and k not in axis.keys for k in oracle.slots(axis, x))
        for e, x in zip(exists, axis.queries, strict=True)
    ]


def any_axis(rng: np.random.Generator, longest: int) -> oracle.Axis:
    """Every legal combination of a short axis, long windows as likely as short ones."""
    length = int(rng.integers(1, longest + 1))
    dilation = int(rng.integers(1, length + 1)) if rng.random() < 0.3 else 1
    kernel_size = int(rng.integers(1, length // dilation + 1))
    stride = int(rng.integers(1, kernel_size + 1)) if rng.random() < 0.5 else 1
    return oracle.Axis(length, kernel_size, stride, dilation, bool(rng.random() < 0.3))


def any_problem(rng: np.random.Generator) -> Problem:
    """A random problem with windows of more than one key."""
    rank, kv_heads = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    axes: tuple[oracle.Axis, ...] = ()
    while all(axis.kernel_size == 1 for axis in axes):
        axes = tuple(any_axis(rng, LONGEST[rank]) for _ in range(rank))
    dims = [int(rng.choice([8, 16, 24, 32, 64, 72, int(rng.integers(1, 140))])) for _ in range(2)]
    bias = rng.random() < 0.4
    scale = float(rng.choice([0.7, -0.3])) if rng.random() < 0.2 else None
    batch, heads = int(rng.integers(1, 3)), kv_heads * int(rng.integers(1, 3))
    additional = int(rng.integers(1, 80)) if rng.random() < 0.2 else 0
    return Problem(axes, batch, heads, kv_heads, *dims, bias, scale, additional)


def boxes(tokens: int, rank: int) -> list[Tile]:
    """All boxes of so many tokens whose extents are powers of two."""
    sizes = [1 << i for i in range(tokens.bit_length())]
    return [t for t in itertools.product(sizes, repeat=rank) if math.prod(t) == tokens]
