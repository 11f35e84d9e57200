# SPDX-License-Identifier: Apache-2.0
"""A call of a kernel: operands and results by name, the kernel and its tiles by the plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_na.kernels import contract, plan, register
from jax_na.kernels.platforms import CUDA, PLATFORMS
from jax_na.neighborhood import Shape
from jax_na.op import Op


def exists(platform: str, target: str) -> bool:
    """Whether a platform has a target."""
    return target in register.TARGETS.get(platform, ())


def takes(platform: str, target: str, operand: str) -> bool:
    """Whether the kernels of a target take an optional operand."""
    return operand == "rpb" or platform == CUDA


def sums_dtype(platform: str, dtype: Any, target: str = "na_fused_backward") -> Any:
    """Of results that are sums over many tiles: CPU kernels keep them in the memory of the result."""
    return dtype if platform == CUDA or "naive" in target else jnp.float32


def weights_dtype(platform: str, target: str, weights: Any, dtype: Any) -> Any:
    """Of weights that are an operand, given theirs and that of the other operand.

    The CUDA kernels of "gemm" multiply values of one type, so in half precision they move half as much.
    """
    return dtype if platform == CUDA and target.startswith("na_gemm") else weights


def bias_parts(platform: str, table: Shape) -> int:
    """How many partial sums of d_rpb there are: written in parallel, added in a fixed order."""
    _, _, _, elements, parts = PLATFORMS[platform]
    return max(1, min(parts, elements // math.prod(table))) if elements else parts


def call(
    platform: str,
    target: str,
    op: Op,
    operands: Mapping[str, Any],
    results: Mapping[str, tuple[Shape, Any]],
    overwrites: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Calls a kernel. `results` are shapes and dtypes by name.

    `overwrites` are the operands whose memory a result may take, operand -> result.

    XLA cannot split it over devices: a `Primitive` does, around it.
    """
    given = contract.present(operands)
    how = plan.plan(platform, target, op, _sizes(given), "token_key" in given)
    scratch = {} if how.scratch is None else {"scratch": ((how.scratch,), jnp.uint8)}
    types = {name: jax.ShapeDtypeStruct(*x) for name, x in {**results, **scratch}.items()}
    aliases = {list(given).index(o): list(types).index(r) for o, r in (overwrites or {}).items()}
    kernel = jax.ffi.ffi_call(target, list(types.values()), input_output_aliases=aliases)
    attributes = {**_geometry(op), "tile": np.array(how.tile, np.int64), **how.attributes}
    outputs = dict(zip(types, kernel(*given.values(), **attributes, scale=np.float64(op.scale)), strict=True))
    return {name: outputs[name] for name in results}


def _geometry(op: Op) -> dict[str, Any]:
    fields = zip(*op.axes, strict=True)
    names = op.axes[0]._fields
    return {name: np.array(values, np.int64) for name, values in zip(names, fields, strict=True)}


def _sizes(operands: Mapping[str, Array]) -> plan.Sizes:
    """What a plan depends on, of the operands of a call."""
    if "scores" in operands:
        return plan.Sizes(1, 1, 1, operands["scores"].dtype)
    if "query" in operands:
        query, value = operands["query"], operands["value"]
        return plan.Sizes(math.prod(query.shape[:-1]), query.shape[-1], value.shape[-1], query.dtype)
    rows = operands["x"] if "x" in operands else operands["weights"]
    features = operands["y"] if "y" in operands else operands["x"]
    width = features.shape[-1]
    return plan.Sizes(math.prod(rows.shape[:-1]), width, width, features.dtype)
