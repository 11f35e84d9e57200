# SPDX-License-Identifier: Apache-2.0
"""The option `precision`: what JAX's matrix products take, and what it means to a kernel.

It matters for float32 alone. Tensor cores multiply float32 values rounded to TF32, which has 10 bits of
mantissa; exact products take several passes. CPU kernels are exact whatever it is.
"""

from __future__ import annotations

import contextlib
import difflib
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import DotAlgorithm, DotAlgorithmPreset, Precision

NAMES = ("default", "fastest", "bfloat16", "tensorfloat32", "bfloat16_3x", "high", "highest", "float32")
EXACT_PRESETS = ("BF16_BF16_F32_X6", "BF16_BF16_F32_X9", "TF32_TF32_F32_X3", "F32_F32_F32", "F64_F64_F64")


def resolve(precision: Any) -> Any:
    """The precision as a hashable value that `jax.lax` takes; None stands for JAX's configured default.

    Raises:
        TypeError, ValueError: if it is nothing that `jax.lax.dot` takes.
    """
    if precision is None:
        precision = jax.config.jax_default_matmul_precision
    if precision is None or isinstance(precision, (Precision, DotAlgorithm, DotAlgorithmPreset)):
        return precision
    if isinstance(precision, (tuple, list)):
        if len(precision) != 2:
            raise ValueError(f"precision has {len(precision)} values, {precision!r}; legal are 1 or 2")
        return tuple(map(_of_one_operand, precision))
    if isinstance(precision, str) and precision in DotAlgorithmPreset.__members__:
        return DotAlgorithmPreset[precision]
    return _of_one_operand(precision)


def _of_one_operand(precision: Any) -> Precision:
    if isinstance(precision, Precision):
        return precision
    if not isinstance(precision, str):
        raise TypeError(f"precision must be None, a name or a value of jax.lax.Precision, got {precision!r}")
    with contextlib.suppress(ValueError):
        return Precision(precision)
    close = difflib.get_close_matches(precision, NAMES, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"there is no precision {precision!r}; legal are {', '.join(map(repr, NAMES))}{hint}")


def is_exact(precision: Any) -> bool:
    """Whether it asks for products of float32 values that are exact to float32."""
    if isinstance(precision, DotAlgorithmPreset):
        return precision.name in EXACT_PRESETS
    if isinstance(precision, DotAlgorithm):
        return (
            precision.num_primitive_operations >= 3 or jnp.dtype(precision.lhs_precision_type) == jnp.float32
        )
    both = precision if isinstance(precision, tuple) else (precision,)
    return Precision.HIGHEST in both
