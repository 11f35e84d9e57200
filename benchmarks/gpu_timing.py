# SPDX-License-Identifier: Apache-2.0
"""Time on a GPU: calls are enqueued without waiting, and waited for once. Also what the machine can do."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

SAMPLE_SECONDS = 0.05  # a sample enqueues calls until it lasts as long
CEILING_SECONDS = 2.0  # long enough for the clocks to rise
MOST_CALLS = 512  # of one sample
ROUNDS = 7
SHORT_CALL = (
    300e-6  # seconds: below, enqueueing may take longer than computing, and programs make several calls
)
TOGETHER = 16  # calls of such a program, each with a query of its own

Call = Callable[[], Any]  # enqueues one computation and returns its results


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, one entry per round."""

    samples: tuple[float, ...]
    calls: int  # of each sample

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> list[float]:
        if len(self.samples) < 2:
            return [self.samples[0]] * 2
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return [low, high]


def seconds_of(call: Call, wait: Callable[[Any], Any], calls: int) -> float:
    """Of one call, when so many are enqueued."""
    start = time.perf_counter()
    results = None
    for _ in range(calls):
        results = call()
    wait(results)
    return (time.perf_counter() - start) / calls


def time_calls(
    call: Call,
    budget: float,
    wait: Callable[[Any], Any] = jax.block_until_ready,
    sample: float = SAMPLE_SECONDS,
) -> Timing:
    """Medians of several rounds, of fewer if they would last longer than `budget` seconds."""
    wait(call())
    one = min(seconds_of(call, wait, 1) for _ in range(2))
    one = seconds_of(call, wait, min(MOST_CALLS, max(1, math.ceil(sample / 4 / one))))
    calls = min(MOST_CALLS, max(1, math.ceil(sample / one)))
    rounds = max(1, min(ROUNDS, int(budget / (one * calls))))
    return Timing(tuple(seconds_of(call, wait, calls) for _ in range(rounds)), calls)


def time_function(
    function: Callable[..., Any], vary: Callable[[int], Any], others: Sequence[Any], budget: float
) -> Timing:
    """function(vary(i), *others) under jit. Short ones are computed for several i per program.

    For one i there would be one call to compute: the compiler removes repetitions.
    """
    first = vary(0)
    compiled = jax.jit(function).lower(first, *others).compile()
    timing = time_calls(lambda: compiled(first, *others), budget)
    if timing.median > SHORT_CALL:
        return timing
    several = [vary(i) for i in range(TOGETHER)]

    def together(several: Sequence[Any], *others: Any) -> list[Any]:
        return [function(x, *others) for x in several]

    program = jax.jit(together).lower(several, *others).compile()
    whole = time_calls(lambda: program(several, *others), budget)
    return Timing(tuple(s / TOGETHER for s in whole.samples), whole.calls * TOGETHER)


@dataclass(frozen=True)
class Ceilings:
    """What this machine gives: a large bfloat16 matrix product, and a large copy (bytes read and written)."""

    tflop_per_s: float
    gb_per_s: float
    matmul_size: int
    copy_bytes: int

    def floor(self, flops: float, bytes_: float) -> float:
        """Seconds that the problem takes at least."""
        return max(flops / (self.tflop_per_s * 1e12), bytes_ / (self.gb_per_s * 1e9))


def measure_ceilings(matmul_size: int, copy_bytes: int) -> Ceilings:
    """A bfloat16 matrix product of random numbers, and a copy that one addition makes: the best samples."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(k, (matmul_size, matmul_size), jnp.bfloat16) for k in keys)
    dot, add_one = jax.jit(jnp.dot), jax.jit(lambda x: x + 1)
    product = min(time_calls(lambda: dot(a, b), CEILING_SECONDS, sample=CEILING_SECONDS / ROUNDS).samples)
    x = jax.random.normal(keys[0], (copy_bytes // 4,), jnp.float32)
    copy = min(time_calls(lambda: add_one(x), CEILING_SECONDS, sample=CEILING_SECONDS / ROUNDS).samples)
    return Ceilings(2 * matmul_size**3 / product / 1e12, 2 * x.nbytes / copy / 1e9, matmul_size, x.nbytes)
