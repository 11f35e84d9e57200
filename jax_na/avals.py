# SPDX-License-Identifier: Apache-2.0
"""Types of traced arrays, as the primitives need them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.neighborhood import Shape


def align(*operands: Array) -> list[Array]:
    """The operands, inside shard_map all varying over the same axes, as JAX's own operations take them."""
    varying = [jax.typeof(x).manual_axis_type.varying for x in operands]
    axes = frozenset().union(*varying)
    return [
        x if v == axes else jax.lax.pcast(x, tuple(axes - v), to="varying")
        for x, v in zip(operands, varying, strict=True)
    ]


def like(aval: Any, shape: Shape | None = None, dtype: Any = None) -> Any:
    """The type of a result: that of the operand `aval`, with another shape or dtype."""
    shape = aval.shape if shape is None else shape
    changes: dict[str, Any] = {"shape": shape, "dtype": jnp.dtype(dtype or aval.dtype)}
    if len(shape) != aval.ndim:
        spec = (*aval.sharding.spec, *(None,) * aval.ndim)[: len(shape)]
        changes["sharding"] = aval.sharding.update(spec=jax.sharding.PartitionSpec(*spec))
    return aval.update(**changes)
