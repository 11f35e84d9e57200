# SPDX-License-Identifier: Apache-2.0
"""The arrays of the kernels by name, and what is known of a call when it is compiled.

The order of arrays, their element types and what can be left out are facts of common/call/operands.h.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from jax_na.kernels import precision, register
from jax_na.neighborhood import Axis, Shape
from jax_na.op import Op

AT_QUERIES = ("query", "x", "weights", "scores")  # operands with the axes of queries
AT_KEYS = ("key", "value", "y")  # with those of keys
OPTIONAL = ("rpb", "token_key", "token_value", "key_mask")


class Sizes(NamedTuple):
    """Of the arrays of a call; 0 and () for those that are not known. Plans do not depend on them."""

    batch: int = 0
    heads: int = 0
    kv_heads: int = 0
    queries: Shape = ()  # per axis
    keys: Shape = ()


class Problem(NamedTuple):
    """What the choice of a kernel depends on."""

    axes: tuple[Axis, ...]
    dtype: str
    head_dim: int = 0  # unused by the unfused operations
    value_dim: int = 0
    is_exact: bool = False
    operands: tuple[str, ...] = ()  # of the optional ones, those that the call has
    sizes: Sizes | None = None  # for the limits of kernels


def problem(op: Op, operands: Mapping[str, Any]) -> Problem:
    """The problem of a call with these operands, arrays or their types, by name."""
    head_dim = _features(operands, "query")
    value_dim = _features(operands, "value", "y", "x")
    present = tuple(name for name in OPTIONAL if operands.get(name) is not None)
    dtype = jnp.dtype(dtype_of(operands)).name
    is_exact = precision.is_exact(op.precision)
    return Problem(op.axes, dtype, head_dim, value_dim, is_exact, present, _sizes(op, operands))


def _sizes(op: Op, operands: Mapping[str, Any]) -> Sizes | None:
    """The sizes that the arrays show, None for arrays that lack some of their axes."""
    queries, keys = (
        next((operands[name].shape for name in names if operands.get(name) is not None), None)
        for names in (AT_QUERIES, AT_KEYS)
    )
    shape = keys if queries is None else queries
    if shape is None or len(shape) < op.rank + 2:
        return None
    batch = math.prod(shape[: -op.rank - 2])
    sizes = Sizes(batch if isinstance(batch, int) else 0)
    if queries is not None:
        sizes = sizes._replace(heads=queries[-2], queries=tuple(queries[-op.rank - 2 : -2]))
    if keys is not None:
        sizes = sizes._replace(kv_heads=keys[-2], keys=tuple(keys[-op.rank - 2 : -2]))
    return sizes


def _features(operands: Mapping[str, Any], *names: str) -> int:
    """The last axis of the first of these operands that is there, 0 if there is none."""
    for name in names:
        if name in operands and operands[name].shape:
            return int(operands[name].shape[-1])
    return 0


@functools.lru_cache(maxsize=1024)
def query(platform: str, problem: Problem) -> Any:
    """The problem as the binding of a platform takes it."""
    return register.binding(platform).Query(**problem._asdict())


@functools.cache
def targets(platform: str) -> Mapping[str, Any]:
    """The signature of every target of a platform."""
    signatures: Mapping[str, Any] = register.binding(platform).targets()
    return signatures


def present(platform: str, target: str, operands: Mapping[str, Any]) -> dict[str, Any]:
    """The operands that a call has, in the order in which it passes them, with the dtypes that it takes.

    Raises:
        TypeError: if a target does not take one, or lacks one that it needs.
    """
    signature = targets(platform)[target]
    known = [*signature.required, *signature.optional]
    given = {name: x for name, x in operands.items() if x is not None}
    wrong = sorted({*given} - {*known} | {*signature.required} - {*given})
    if wrong:
        raise TypeError(f"{target} takes {', '.join(known)}; what is too much or missing: {', '.join(wrong)}")
    order = register.binding(platform).OPERANDS
    dtype = dtype_of(given)
    return {
        name: given[name].astype(element(platform, target, name, dtype)) for name in order if name in given
    }


def dtype_of(operands: Mapping[str, Any]) -> Any:
    """The dtype of a call, to which those of its arrays are relative."""
    return next(operands[name].dtype for name in ("query", "y", "x", "scores") if name in operands)


def results(platform: str, target: str, operands: Iterable[str]) -> list[str]:
    """The results of a call with these operands, in order."""
    absent = set() if "rpb" in operands else {"drpb"}
    return [name for name in targets(platform)[target].results if name not in absent]


def element(platform: str, target: str, array: str, dtype: Any) -> Any:
    """The dtype of an operand or a result, in a call of this dtype."""
    name = targets(platform)[target].elements[array]
    relative = {"input": dtype, "accumulator": jnp.promote_types(dtype, jnp.float32)}
    return jnp.dtype(relative.get(name, name))


def mask(platform: str, operands: Iterable[str]) -> int:
    """The attribute `operands` of a call: bit i says whether operand i is there."""
    order = register.binding(platform).OPERANDS
    return sum(1 << order.index(name) for name in operands)
