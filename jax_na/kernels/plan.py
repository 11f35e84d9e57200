# SPDX-License-Identifier: Apache-2.0
"""What differs between the kernels of platforms: tiles, scratch space, attributes, dtypes of sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jax_na.kernels import cost_cpu as planner
from jax_na.kernels import cost_cuda as cuda_planner
from jax_na.kernels import precision
from jax_na.neighborhood import Op, Shape


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


def plan(platform: str, name: str, op: Op, sizes: Sizes) -> Plan:
    """The plan for the kernel `name` on a platform, "cpu" or "cuda"."""
    dims = sizes.head_dim, sizes.value_dim
    if platform == "cuda":
        tile = cuda_planner.tile(name, op, jnp.dtype(sizes.dtype).itemsize, *dims)
        exact = {"is_exact": np.int64(precision.is_exact(op.precision))}
        return Plan(tile, attributes=exact if name in cuda_planner.PASSES else {})
    tile = planner.tile(name, op, *dims)
    return Plan(tile, planner.scratch(name, op, tile, *dims, sizes.queries))


def tiles(platform: str, name: str, op: Op, sizes: Sizes) -> tuple[Shape, ...]:
    """Tiles to try, the cheapest first."""
    dims = sizes.head_dim, sizes.value_dim
    if platform == "cuda":
        return cuda_planner.tiles(name, op, jnp.dtype(sizes.dtype).itemsize, *dims)
    return planner.tiles(name, op, *dims)


def sums_dtype(platform: str, dtype: Any) -> Any:
    """Of results that are sums over many tiles: CPU kernels keep them in the memory of the result."""
    return dtype if platform == "cuda" else jnp.float32


def takes_tokens(platform: str) -> bool:
    """Whether the fused kernels take additional tokens; else those are merged outside."""
    return platform == "cuda"


def weights_dtype(platform: str, name: str, weights: Any, dtype: Any) -> Any:
    """Of weights that are an operand of `name`, given theirs and that of the other operand.

    The CUDA kernels of "gemm" multiply values of one type, so in half precision they move half as much.
    """
    return dtype if platform == "cuda" and name.startswith("na_gemm") else weights


def bias_parts(platform: str, table: Shape) -> int:
    """How many partial sums of d_rpb there are: written in parallel, added in a fixed order."""
    return max(1, min(64, 2**22 // math.prod(table))) if platform == "cuda" else 16
