# SPDX-License-Identifier: Apache-2.0
"""What a machine can do, measured by a matrix product and a copy, and the least time of a problem on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jax_na.tools import profiler
from jax_na.tools.problems import Problem
from jax_na.tools.profiler import Prepared, Program

PRODUCT, COPY = "matrix product", "copy"
SIDES = {"cpu": 1024}  # of the matrices
LARGE_SIDE = 8192  # on other devices
COPIED = 1 << 28  # bytes, more than caches hold


class Ceiling(NamedTuple):
    """FLOPs per second of a large matrix product, and bytes per second of a large copy."""

    flops: float
    bytes: float

    def seconds(self, problem: Problem) -> float:
        """The least time: all useful FLOPs at that rate, or every array read and written once."""
        return max(profiler.flops(problem) / self.flops, problem.least_bytes / self.bytes)


# Of data sheets: dense products of bfloat16, and the memory.
DEVICES = {
    "a100": Ceiling(312e12, 2.04e12),
    "h100": Ceiling(989e12, 3.35e12),
    "h200": Ceiling(989e12, 4.8e12),
}


def programs(problem: Problem) -> dict[str, Callable[[], Prepared]]:
    """Compile the product and the copy. The product has the dtype in which the kernels multiply."""
    platform = jax.default_backend()
    side = SIDES.get(platform, LARGE_SIDE)
    single = platform == "cpu" and jnp.dtype(problem.dtype).itemsize < 4  # as the kernels for CPUs do
    dtype = "float32" if single else problem.dtype

    def product() -> Prepared:
        x = jax.random.normal(jax.random.key(0), (side, side), dtype)
        return profiler.prepare(Program(jnp.dot, lambda i: x + i, (x,)), platform)

    def copy() -> Prepared:
        x = jnp.ones(COPIED // 4, jnp.float32)
        return profiler.prepare(Program(lambda x: x + 1, lambda i: x + i, ()), platform)

    return {PRODUCT: product, COPY: copy}


def ceiling(product_seconds: float, copy_seconds: float) -> Ceiling:
    """From the times of both, on the default platform."""
    side = SIDES.get(jax.default_backend(), LARGE_SIDE)
    return Ceiling(2 * side**3 / product_seconds, 2 * COPIED / copy_seconds)
