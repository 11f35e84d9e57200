# SPDX-License-Identifier: Apache-2.0
"""Timing implementations, and tiles, against each other on one problem."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jax_na.api.attention import neighborhood_attention
from jax_na.api.availability import Availability, implementations
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import Op

LEAST_SECONDS = 2e-3  # a sample repeats the call until it is this long, so that the clock does not matter


@dataclass(frozen=True)
class Problem:
    """One attention: the grid, the window, and the sizes of the arrays."""

    neighborhood: Neighborhood
    shape: Shape
    batch: int = 1
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    value_dim: int = 32
    dtype: str = "float32"
    rpb: bool = False
    backward: bool = False

    @property
    def op(self) -> Op:
        return Op(self.neighborhood, self.shape, self.head_dim**-0.5)

    def types(self) -> dict[str, Any]:
        """Shapes and dtypes of query, key, value and, with `rpb`, the bias."""
        grid = (self.batch, *self.shape)
        table = (self.heads, *(2 * w - 1 for w in self.neighborhood.kernel_size))
        return {
            "query": jax.ShapeDtypeStruct((*grid, self.heads, self.head_dim), self.dtype),
            "key": jax.ShapeDtypeStruct((*grid, self.kv_heads, self.head_dim), self.dtype),
            "value": jax.ShapeDtypeStruct((*grid, self.kv_heads, self.value_dim), self.dtype),
        } | ({"rpb": jax.ShapeDtypeStruct(table, "float32")} if self.rpb else {})

    @property
    def flops(self) -> int:
        """Useful FLOPs of the forward pass, with `backward` of both passes."""
        count = functools.partial(
            self.neighborhood.flops, self.shape, self.heads, self.head_dim, self.value_dim, self.batch
        )
        return count() + count(backward=True) if self.backward else count()

    @property
    def weight_bytes(self) -> int:
        """Size of the stored weights, for the implementations that store them."""
        itemsize = max(jnp.dtype(self.dtype).itemsize, 4)
        return self.batch * math.prod(self.shape) * self.heads * self.op.pitch * itemsize

    def availability(self) -> tuple[Availability, ...]:
        """Which implementations can run it here, and why the others cannot."""
        types = self.types()
        return implementations(types["query"], self.neighborhood, value=types["value"], rpb=types.get("rpb"))

    def inputs(self) -> tuple[jax.Array, ...]:
        """query, key, value and, with `rpb`, the bias: random numbers."""
        types = self.types().values()
        keys = jax.random.split(jax.random.key(0), 4)[: len(types)]
        return tuple(jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, types, strict=True))

    def compile(self, implementation: str | None) -> Callable[[], Any]:
        """The compiled computation with its inputs: the output, or the gradients of all inputs."""

        def attend(query: jax.Array, key: jax.Array, value: jax.Array, rpb: Any = None) -> jax.Array:
            out: jax.Array = neighborhood_attention(
                query,
                key,
                value,
                self.neighborhood,
                rpb=rpb,
                implementation=implementation,
            )
            return out

        def gradients(*inputs: jax.Array) -> tuple[jax.Array, ...]:
            out, pullback = jax.vjp(attend, *inputs)
            return (out, *pullback(out))

        inputs = self.inputs()
        compiled = jax.jit(gradients if self.backward else attend).lower(*inputs).compile()
        return lambda: jax.block_until_ready(compiled(*inputs))


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample a round."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def measure(
    calls: Mapping[str, Callable[[], Any]], rounds: int, tick: Callable[[str], None] = lambda name: None
) -> dict[str, Timing]:
    """Times the calls in turns, `rounds` times, so that a slow moment of the machine hits all of them alike.

    `tick` is called with the name before every sample.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            tick(name)
            samples[name].append(_seconds(call, repeats[name]))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _repeats(call: Callable[[], Any]) -> int:
    call()  # first touches of memory
    return max(1, round(LEAST_SECONDS / max(_seconds(call, 1), 1e-7)))


def _seconds(call: Callable[[], Any], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
