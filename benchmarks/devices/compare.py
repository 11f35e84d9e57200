# SPDX-License-Identifier: Apache-2.0
"""Are results over many devices those of one? On the devices, without bringing arrays together."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

Results = Mapping[str, Sequence[jax.Array]]

TINY = 1e-30  # where all is zero


class Unit(NamedTuple):
    """What errors are relative to, of which the worst one counts.

    Attributes:
        axes: the last ones of a result, over which squares are summed; None for all.
        least: one whose square is below this share of the mean square is compared with that share.
        most: the error above which a result is wrong, by dtype. Both sides are rounded to it, and may add
            what they sum in another order.
    """

    axes: int | None
    least: float
    most: Mapping[str, float]


TOKEN = Unit(2, 1e-2, {"float32": 1e-4, "bfloat16": 3e-2})  # of a layer: all heads and features
PARAMETER = Unit(None, 1e-2, {"float32": 1e-3})  # its gradient; in bfloat16 rounding would hide a fault


def wrong(errors: Mapping[str, float], dtype: str, unit: Unit) -> str | None:
    """Says which error is too large."""
    most = unit.most[dtype]
    for name, error in errors.items():
        if not error <= most:
            return f"it is WRONG: the worst relative error of {name} is {error:.1e}, at most {most:.0e}"
    return None


def errors(found: Results, expected: Results, unit: Unit) -> dict[str, float]:
    """The relative error of the worst unit, by name; `expected` may lie on one device."""
    worst: dict[str, float] = {}
    for name, arrays in found.items():
        there = [placed(x, like.sharding) for x, like in zip(expected[name], arrays, strict=True)]
        worst[name] = float(_everywhere(_worst, arrays, unit.axes, unit.least)(list(arrays), there))
    return worst


def digests(found: Results) -> dict[str, int]:
    """A number for the bits of every result that does not depend on how it is split."""
    return {name: int(_everywhere(_digest, arrays)(list(arrays))) for name, arrays in found.items()}


@functools.cache
def _on_all(function: Any, sharding: NamedSharding, *options: Any) -> Any:
    return jax.jit(lambda *arrays: function(*arrays, *options), out_shardings=sharding)


def _everywhere(function: Any, arrays: Sequence[jax.Array], *options: Any) -> Any:
    """A function whose result every device gets."""
    mesh = arrays[0].sharding.mesh  # type: ignore[attr-defined]
    return _on_all(function, NamedSharding(mesh, PartitionSpec()), *options)


def _worst(
    found: Sequence[jax.Array], expected: Sequence[jax.Array], unit_axes: int | None, share: float
) -> jax.Array:
    squares, differences = [], []
    for x, right in zip(found, expected, strict=True):
        axes = tuple(range(-(x.ndim if unit_axes is None else unit_axes), 0))
        x, right = x.astype(jnp.float32), right.astype(jnp.float32)
        squares.append(jnp.sum(right**2, axes).ravel())
        differences.append(jnp.sum((x - right) ** 2, axes).ravel())
    square, difference = jnp.concatenate(squares), jnp.concatenate(differences)
    least = share * jnp.mean(square) + TINY
    ratio = difference / jnp.maximum(square, least)
    return jnp.sqrt(jnp.max(jnp.where(jnp.isnan(ratio), jnp.inf, ratio)))  # a maximum of parts may drop NaN


def _digest(arrays: Sequence[jax.Array]) -> jax.Array:
    """Sums of bits times odd numbers that tell places apart, modulo 2^32: their order does not matter."""
    total = jnp.zeros((), jnp.uint32)
    for x in arrays:
        bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            place = place * jnp.uint32(2654435761) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        mixed = (place ^ (place >> 15)) * jnp.uint32(2246822519)
        total = total * jnp.uint32(31) + jnp.sum(bits * (mixed | 1), dtype=jnp.uint32)
    return total


def placed(x: jax.Array, sharding: Any) -> jax.Array:
    """An array of one device, on the devices of a mesh; in every process from its own copy."""

    def block(index: Sequence[slice]) -> jax.Array:
        starts = [part.start or 0 for part in index]
        stops = [n if part.stop is None else part.stop for part, n in zip(index, x.shape, strict=True)]
        sizes = tuple(b - a for a, b in zip(starts, stops, strict=True))
        return x if math.prod(sizes) == x.size else _slice(x, starts, sizes)

    return jax.make_array_from_callback(x.shape, sharding, block)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnums=2)
def _slice(x: jax.Array, starts: Sequence[int], sizes: tuple[int, ...]) -> jax.Array:
    return lax.dynamic_slice(x, starts, sizes)
