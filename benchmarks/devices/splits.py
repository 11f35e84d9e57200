# SPDX-License-Identifier: Apache-2.0
"""How a problem is split over devices: along its batch, its heads, and the axes of its grid."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from compare import Unit
from jax.sharding import AxisType, Mesh

STRONG, WEAK = "strong", "weak"  # the same problem on more devices; one that grows with them


@dataclass(frozen=True)
class Split:
    """Over how many devices batch, heads and the axes of the grid are cut; none by default."""

    batch: int = 1
    heads: int = 1
    space: tuple[int, ...] = ()

    def __str__(self) -> str:
        words = [f"{name}{n}" for name, n in (("batch", self.batch), ("heads", self.heads)) if n > 1]
        if math.prod(self.space) > 1:
            words.append("space" + "x".join(map(str, self.space)))
        return "-".join(words) or "alone"

    @property
    def devices(self) -> int:
        """How many it takes."""
        return self.batch * self.heads * math.prod(self.space)

    @property
    def is_space(self) -> bool:
        """Whether nothing but the grid is cut."""
        return self.batch == self.heads == 1

    def mesh(self, devices: Sequence[jax.Device]) -> Mesh:
        """A mesh of the first ones of these, with axes "batch", "heads", "x0", "x1", .."""
        names = ("batch", "heads", *axis_names(len(self.space)))
        grid = np.array(devices[: self.devices]).reshape(self.batch, self.heads, *self.space)
        return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def axis_names(rank: int) -> tuple[str, ...]:
    """The mesh axes of the axes of a grid."""
    return tuple(f"x{a}" for a in range(rank))


class Job(Protocol):
    """A program for a mesh, and what it is called with."""

    def lower(self) -> jax.stages.Lowered:
        """The program, to be compiled."""

    def call(self, program: Any) -> Any:
        """Makes arrays, and gives what enqueues the compiled program on them."""

    def results(self, program: Any) -> dict[str, list[jax.Array]]:
        """What a first call computes and can be compared, by name."""


class Work(Protocol):
    """Something to compute that can be split: a layer, or a training step."""

    @property
    def name(self) -> str:
        """What it is called in results."""

    @property
    def dtype(self) -> str:
        """Of the computation."""

    @property
    def direction(self) -> str:
        """Of the passes, or "train"."""

    @property
    def amount(self) -> float:
        """How much there is to compute."""

    @property
    def amount_unit(self) -> str:
        """What is counted: "FLOP" or "image"."""

    @property
    def checked(self) -> Work:
        """What is compared with one device: itself, or something alike."""

    @property
    def unit(self) -> Unit:
        """What errors are relative to."""

    def grown(self, split: Split) -> Work:
        """As much for every device as this has in all."""

    def obstacle(self, split: Split) -> str | None:
        """Why it cannot be split so."""

    def halo_bytes(self, split: Split) -> float | None:
        """Bytes that the busiest device gets by the formula of docs/scaling.md, if it says them."""

    def columns(self) -> dict[str, Any]:
        """Sizes, for a row of results."""

    def job(self, mesh: Mesh) -> Job:
        """The program on a mesh."""


@dataclass(frozen=True)
class Case:
    """One work on some devices. Of weak scaling, `base` is what a device has."""

    base: Work  # that can be hashed
    split: Split
    scaling: str = STRONG
    work: Work = field(init=False)

    def __post_init__(self) -> None:
        work = self.base.grown(self.split) if self.scaling == WEAK else self.base
        object.__setattr__(self, "work", work)

    @property
    def name(self) -> str:
        """For example flux-256-w80-forward-strong-space4x1."""
        return f"{self.base.name}-{self.base.direction}-{self.scaling}-{self.split}"

    @property
    def group(self) -> tuple[Work, str, bool]:
        """What is timed in turns has this in common."""
        return self.base, self.scaling, self.split.is_space


def counts(devices: int) -> list[int]:
    """Powers of two, and all."""
    powers = [1 << i for i in range(1, devices.bit_length()) if 1 << i < devices]
    return [*powers, devices]


def of_space(axes: Sequence[int], rank: int, devices: int) -> Iterator[Split]:
    """The first of two axes cut over all devices; the second over two, and the first over the others."""
    yield Split(space=_cut(axes, rank, (devices, 1)))
    if devices >= 4 and devices % 2 == 0:
        yield Split(space=_cut(axes, rank, (devices // 2, 2)))


def of_others(axes: Sequence[int], rank: int, devices: int) -> Iterator[Split]:
    """Heads, batch, and each two of heads, batch and space."""
    yield Split(heads=devices, space=_cut(axes, rank, (1, 1)))
    yield Split(batch=devices, space=_cut(axes, rank, (1, 1)))
    if devices >= 4 and devices % 2 == 0:
        half = devices // 2
        yield Split(heads=2, space=_cut(axes, rank, (half, 1)))
        yield Split(batch=2, space=_cut(axes, rank, (half, 1)))
        yield Split(batch=2, heads=half, space=_cut(axes, rank, (1, 1)))


def _cut(axes: Sequence[int], rank: int, parts: Sequence[int]) -> tuple[int, ...]:
    of = dict(zip(axes, parts, strict=False))
    return tuple(of.get(a, 1) for a in range(rank))
