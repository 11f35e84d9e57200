# SPDX-License-Identifier: Apache-2.0
"""What differs between the kernels of platforms: tiles, scratch space, attributes, dtypes of sums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_na.kernels import cost_cpu as planner
from jax_na.kernels import cost_cuda as cuda_planner
from jax_na.kernels import precision
from jax_na.neighborhood import Shape
from jax_na.op import Op


class Sizes(NamedTuple):
    """What a plan depends on besides the geometry; `queries` counts batch, heads and grid."""

    queries: int
    head_dim: int
    value_dim: int
    dtype: Any


class Plan(NamedTuple):
    """How a kernel is called."""

    tile: Shape
    scratch: int | None = None  # bytes; None if the kernel takes no such buffer
    attributes: Mapping[str, Any] = {}  # beyond those of every kernel


def plan(platform: str, name: str, op: Op, sizes: Sizes, has_tokens: bool = False) -> Plan:
    """The plan for the kernel `name` on a platform, "cpu" or "cuda"."""
    dims = sizes.head_dim, sizes.value_dim
    if platform == "cuda":
        tile = cuda_planner.tile(name, op, jnp.dtype(sizes.dtype).itemsize, *dims, has_tokens)
        exact = {"is_exact": np.int64(precision.is_exact(op.precision))}
        return Plan(tile, attributes=exact if name in cuda_planner.PASSES else {})
    if name == "na_softmax":
        return Plan(op.neighborhood.kernel_size, scratch=1)  # neither is used
    tile = planner.tile(name, op, *dims)
    return Plan(tile, planner.scratch(name, op, tile, *dims, sizes.queries))


def tiles(platform: str, name: str, op: Op, sizes: Sizes) -> tuple[Shape, ...]:
    """Tiles to try, the cheapest first."""
    dims = sizes.head_dim, sizes.value_dim
    if platform == "cuda":
        return cuda_planner.tiles(name, op, jnp.dtype(sizes.dtype).itemsize, *dims)
    return planner.tiles(name, op, *dims)
