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
from jax_na.kernels.platforms import PLATFORMS
from jax_na.neighborhood import Shape
from jax_na.op import Op

Types = Mapping[str, tuple[Shape, Any]]  # of arrays by name: shapes and dtypes


def exists(platform: str, target: str) -> bool:
    """Whether a platform has a target."""
    return target in register.TARGETS.get(platform, ())


def call(
    platform: str,
    target: str,
    op: Op,
    operands: Mapping[str, Any],
    results: Types,
    overwrites: Mapping[str, str] | None = None,
) -> dict[str, Array]:
    """Calls a kernel; returns the results asked for, with these shapes and dtypes.

    The dtypes that the kernel takes and gives may be others. Of a gradient that it gives as partial sums,
    this returns the sum. `overwrites` are the operands whose memory a result may take, operand -> result.

    XLA cannot split the call over devices: a `Primitive` does, around it.
    """
    given = contract.present(platform, target, operands)
    problem = contract.problem(op, given)
    kernels = plan.plan(platform, target, op, problem)
    plan.require_room(platform, target, problem, kernels)
    types = _types(platform, target, problem, given, results)
    if "scratch" in types:
        size = plan.scratch_bytes(platform, target, problem, kernels, _work(op, given))
        types["scratch"] = jax.ShapeDtypeStruct((size,), jnp.uint8)
    aliases = {list(given).index(o): list(types).index(r) for o, r in (overwrites or {}).items()}
    run = jax.ffi.ffi_call(target, list(types.values()), input_output_aliases=aliases)
    mask = contract.mask(platform, given)
    outputs = run(*given.values(), **_attributes(op, problem.is_exact, mask, kernels))
    return _named(dict(zip(types, outputs, strict=True)), results)


def _attributes(op: Op, is_exact: bool, operands: int, kernels: str) -> dict[str, Any]:
    """What every kernel is told, see common/call/attributes.h."""
    columns = zip(*op.axes, strict=True)
    names = op.axes[0]._fields
    geometry = {name: np.array(values, np.int64) for name, values in zip(names, columns, strict=True)}
    numbers = {"scale": np.float64(op.scale), "is_exact": np.int64(is_exact), "operands": np.int64(operands)}
    return {**geometry, **numbers, "kernels": kernels}


def _types(
    platform: str, target: str, problem: contract.Problem, given: Mapping[str, Array], results: Types
) -> dict[str, Any]:
    """The types of all results of the call, in order; that of scratch is not known yet."""
    dtype = contract.dtype_of(given)
    found: dict[str, Any] = {}
    for name in contract.results(platform, target, given):
        shape = results[name][0] if name in results else ()
        if name == "drpb":
            sizes = problem.sizes or contract.Sizes()
            queries = sizes.batch * math.prod(sizes.queries)
            shape = (PLATFORMS[platform].bias_parts(shape, queries), *shape)
        found[name] = jax.ShapeDtypeStruct(shape, contract.element(platform, target, name, dtype))
    return found


def _named(outputs: Mapping[str, Array], results: Types) -> dict[str, Array]:
    """The results asked for, of those of the call."""
    found = {}
    for name, (shape, dtype) in results.items():
        x = outputs[name]
        x = x if x.ndim == len(shape) else x.sum(0)  # of partial sums, in a fixed order
        found[name] = x.astype(dtype)
    return found


def _work(op: Op, operands: Mapping[str, Any]) -> Any:
    """FLOPs of a call, roughly; symbolic if its batch is."""
    rows = operands["query"] if "query" in operands else operands["x" if "x" in operands else "weights"]
    value = operands["value"] if "value" in operands else operands["y" if "y" in operands else "x"]
    features = (rows if "query" in operands else value).shape[-1] + value.shape[-1]
    return 2 * math.prod(rows.shape[:-1]) * op.neighborhood.size * features
