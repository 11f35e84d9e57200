# SPDX-License-Identifier: Apache-2.0
"""The shapes of interest, once. Small, and together they cover every parameter and every border."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from . import oracle

PerAxis = Any  # one value or one value per axis


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem; `grid` are its spatial axes. Every name follows the public API."""

    name: str
    grid: tuple[int, ...]
    kernel_size: PerAxis
    stride: PerAxis = 1
    dilation: PerAxis = 1
    is_causal: PerAxis = False
    batch: tuple[int, ...] = (1,)
    heads: int = 1
    kv_heads: int | None = None
    head_dim: int = 8
    value_dim: int | None = None
    rpb: bool = False
    additional: int = 0
    scale: float | None = None
    half: bool = False  # also run in bfloat16 and float16
    is_periodic: PerAxis = False

    def __str__(self) -> str:
        return self.name

    def per_axis(self, name: str) -> tuple[Any, ...]:
        value = getattr(self, name)
        return value if isinstance(value, tuple) else (value,) * len(self.grid)

    @property
    def axes(self) -> tuple[oracle.Axis, ...]:
        names = ("kernel_size", "stride", "dilation", "is_causal", "is_periodic")
        rows = zip(self.grid, *map(self.per_axis, names), strict=True)
        return tuple(oracle.Axis(*row, is_periodic=is_periodic) for *row, is_periodic in rows)

    @property
    def geometry(self) -> oracle.Geometry:
        return oracle.Geometry(self.axes)

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments of a Neighborhood."""
        names = ["kernel_size", "stride", "dilation", "is_causal"]
        if any(self.per_axis("is_periodic")):
            names.append("is_periodic")
        return {name: self.per_axis(name) for name in names}

    @property
    def features(self) -> set[str]:
        """What is special about it."""
        heads, dims = (
            (self.heads, self.kv_heads or self.heads),
            (self.head_dim, self.value_dim or self.head_dim),
        )
        return {f"rank {len(self.grid)}", f"batch axes {min(len(self.batch), 2)}"} | {
            feature
            for feature, is_there in {
                "stride": any(axis.stride > 1 for axis in self.axes),
                "dilation": any(axis.dilation > 1 for axis in self.axes),
                "causal": any(axis.is_causal for axis in self.axes),
                "even window": any(axis.kernel_size % 2 == 0 for axis in self.axes),
                "whole axis": any(axis.kernel_size == axis.length for axis in self.axes),
                "long window": any(axis.kernel_size > 64 for axis in self.axes),
                "bias": self.rpb,
                "tokens": self.additional > 0,
                "shared heads": heads[0] > heads[1],
                "value features": dims[0] != dims[1],
                "features of no lane": dims[0] % 4 > 0,
                "many features": dims[0] > 32,
                "scale": self.scale is not None,
                "no batch entry": 0 in self.batch,
            }.items()
            if is_there
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        kv_heads, value_dim = self.kv_heads or self.heads, self.value_dim or self.head_dim
        shapes = {
            "query": (*self.batch, *self.grid, self.heads, self.head_dim),
            "key": (*self.batch, *self.grid, kv_heads, self.head_dim),
            "value": (*self.batch, *self.grid, kv_heads, value_dim),
        }
        if self.rpb:
            shapes["rpb"] = (self.heads, *(2 * w - 1 for w in self.per_axis("kernel_size")))
        if self.additional:
            shapes["additional_keys"] = (*self.batch, self.additional, kv_heads, self.head_dim)
            shapes["additional_values"] = (*self.batch, self.additional, kv_heads, value_dim)
        return shapes

    def inputs(self, rng: np.random.Generator, dtype: DTypeLike = np.float32) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal(shape).astype(dtype) for name, shape in self.shapes().items()}

    def cotangents(
        self, rng: np.random.Generator, dtype: DTypeLike = np.float32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Standard normal cotangents of out and of the log-sum-exp."""
        shapes = self.shapes()
        out_shape = (*shapes["query"][:-1], shapes["value"][-1])
        lse_dtype = np.float64 if np.dtype(dtype) == np.float64 else np.float32
        return rng.standard_normal(out_shape).astype(dtype), rng.standard_normal(out_shape[:-1]).astype(
            lse_dtype
        )


CASES = (
    Case("plain-1d", (9,), 3, batch=(2,), heads=2, half=True),
    Case("even-kernel", (10,), 4, head_dim=5),
    Case("kernel-1", (6,), 1, heads=2, head_dim=3),
    Case("length-1", (1,), 1),
    Case("full-window", (7,), 7, stride=2, head_dim=16),
    Case("causal-1d", (21,), 5, is_causal=True, head_dim=40),
    Case("all-1d", (23,), 4, stride=3, dilation=3, is_causal=True, rpb=True, heads=2, half=True),
    Case("blocked", (14,), 4, stride=4, head_dim=17, value_dim=5),
    Case("stride-even", (19,), 5, stride=2, rpb=True),
    Case("ragged-dilation", (19,), 3, dilation=5, heads=2),
    Case("many-tiles", (100,), 6, stride=2, dilation=3, head_dim=32),
    Case("long-kernel", (170,), 129, head_dim=3, rpb=True),
    Case("long-causal", (150,), 75, stride=7, dilation=2, is_causal=True, value_dim=16),
    Case("plain-2d", (7, 6), (3, 3), batch=(2,), heads=2, head_dim=16),
    Case("asymmetric-2d", (6, 17), (5, 2), stride=(1, 2), rpb=True, heads=2, head_dim=24),
    Case("mixed-2d", (9, 8), (4, 3), stride=(2, 1), dilation=(2, 1), is_causal=(True, False), heads=2),
    Case("all-2d", (13, 7), (4, 3), (3, 1), (2, 2), (True, False), heads=2, rpb=True, half=True),
    Case("wide-kernel-2d", (18, 17), (13, 11), head_dim=8, value_dim=3, heads=2, rpb=True),
    Case("length-1-axis", (1, 9), (1, 5), dilation=(1, 1), rpb=True, head_dim=1),
    Case("full-axis", (5, 8), (5, 3), stride=(5, 2), head_dim=8),
    Case("causal-2d", (6, 11), (3, 4), is_causal=(False, True), heads=2, batch=(2,)),
    Case("plain-3d", (4, 5, 6), (3, 3, 3), head_dim=8, rpb=True, half=True),
    Case("all-3d", (5, 6, 7), (2, 3, 3), (2, 1, 3), (2, 1, 2), (True, False, True), heads=2, rpb=True),
    Case("full-3d", (3, 2, 4), (3, 2, 4), is_causal=(True, False, False), head_dim=4),
    Case("grouped-heads", (12,), 5, heads=4, kv_heads=2, batch=(2,), half=True),
    Case("multi-query", (6, 5), (3, 3), heads=3, kv_heads=1, rpb=True, head_dim=3, value_dim=40),
    Case("head-dim-1", (11,), 3, head_dim=1, value_dim=17, heads=2),
    Case("head-dim-64", (6, 6), (3, 3), head_dim=64, dilation=(2, 1)),
    Case("head-dim-128", (20,), 5, head_dim=128, value_dim=72, half=True),
    Case("tokens", (9,), 3, additional=2, batch=(2,), heads=2),
    Case("tokens-2d", (5, 6), (3, 2), additional=17, heads=4, kv_heads=2, value_dim=5, rpb=True),
    Case("no-batch", (8, 4), (3, 3), batch=(), heads=2),
    Case("batches", (7,), 3, batch=(2, 1, 3), heads=2, additional=3),
    Case("batch-0", (7,), 3, batch=(0,), rpb=True),
    Case("scale-0", (8,), 3, scale=0.0),
    Case("scale", (8, 5), (3, 5), scale=1.7, heads=2, is_causal=(False, True)),
)
HALF = tuple(case for case in CASES if case.half)
NAMED = {case.name: case for case in CASES}
