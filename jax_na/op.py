# SPDX-License-Identifier: Apache-2.0
"""What every call of attention is about: `Op`, all that is known before it runs, and its arrays as records.

The name of an array in a record says what its axes are (jax_na/mesh/roles.py) and which operand of a kernel
it is (jax_na/kernels/contract.py). What a call does not have is None.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jax_na import periodic
from jax_na.neighborhood import Axis, Neighborhood, Shape

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of the arrays of a call
PITCH = 8  # kernels take rows of weights of a multiple of it: they begin with whole pieces of 16 bytes


@dataclass(frozen=True)
class Op:
    """All that is known about a call before it runs: the one static argument of every primitive."""

    neighborhood: Neighborhood
    length: Shape  # of the whole grid, per axis
    scale: float = 1.0
    implementation: str | None = None
    precision: Any = None  # of products of float32 values, as jax.lax takes it; hashable

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The axes of the whole grid. Their windows are those of `continued` where one is periodic."""
        return self.neighborhood.axes(self.length)

    @functools.cached_property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Per axis how many keys are continued before the grid and after it: none where it has borders."""
        each = zip(self.axes, self.neighborhood.is_periodic, strict=True)
        return tuple(periodic.margins(axis) if is_periodic else (0, 0) for axis, is_periodic in each)

    @functools.cached_property
    def continued(self) -> Op:
        """What kernels compute of this call: periodic axes, continued past both ends, have borders there."""
        n = self.neighborhood
        if not any(n.is_periodic):
            return self
        plain = Neighborhood(n.kernel_size, n.stride, n.dilation, n.is_causal)
        length = tuple(x + sum(added) for x, added in zip(self.length, self.margins, strict=True))
        return dataclasses.replace(self, neighborhood=plain, length=length)

    def first_queries(self, offsets: Any) -> Any:
        """The positions of a region, [rank, 2], in the grid of `continued`."""
        if self.continued is self:
            return offsets
        return offsets + np.array([[before, 0] for before, _ in self.margins], np.int32)

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return self.neighborhood.rank

    @property
    def pitch(self) -> int:
        """Slots of a row of weights, with those that only let rows begin where kernels want them to."""
        return -(-self.neighborhood.size // PITCH) * PITCH


class Inputs(NamedTuple):
    """The arrays that attention is a function of, or something of each of them: a tangent, a gradient."""

    query: Any  # [*batch, *queries, heads, head_dim]
    key: Any  # [*batch, *keys, kv_heads, head_dim]
    value: Any  # [*batch, *keys, kv_heads, value_dim]
    token_key: Any = None  # [*batch, tokens, kv_heads, head_dim]; additional tokens, which every query sees
    token_value: Any = None  # [*batch, tokens, kv_heads, value_dim]
    rpb: Any = None  # [heads, 2 * kernel_size - 1 per axis]


class Present(NamedTuple):
    """What is there of the grid and of the additional tokens: nothing that attention has a derivative by."""

    offsets: Any  # int32 [rank, 2]: the first query and the first key, per axis
    key_mask: Any = None  # bool [*batch, *keys]: which keys exist
    token_mask: Any = None  # bool [*batch, tokens]: which additional tokens


class Results(NamedTuple):
    """What attention computes, or something of both: a tangent, a cotangent."""

    out: Any  # [*batch, *queries, heads, value_dim]
    lse: Any  # [*batch, *queries, heads]


class Saved(NamedTuple):
    """What the backward map has besides the inputs."""

    lse: Any  # [*batch, *queries, heads]
    delta: Any  # the same; rowsum(dO * O) - dLSE
    dout: Any  # [*batch, *queries, heads, value_dim]
