# SPDX-License-Identifier: Apache-2.0
"""What devices send each other at most: a ring of messages, large ones and tiny ones."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from clocks import MeshClock
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jax_na.mesh.traffic import Link

HOPS = 16  # one after the other in a program, so that starting it counts little
TINY = 1 << 10  # bytes
SAMPLES, SHORTEST = 5, 20e-3


def measured(devices: Sequence[jax.Device], size: int) -> Link:
    """Every device sends `size` bytes to the next one: the bandwidth; and the latency of almost nothing."""
    latency = _hop(devices, TINY)
    return Link(size / max(_hop(devices, size) - latency, 1e-9), latency)


def _hop(devices: Sequence[jax.Device], size: int) -> float:
    """Seconds of one message."""
    mesh = Mesh(devices, ("ring",), axis_types=(AxisType.Auto,))
    pairs = [(i, (i + 1) % len(devices)) for i in range(len(devices))]

    def around(x: jax.Array) -> jax.Array:
        for _ in range(HOPS):
            x = lax.ppermute(x, "ring", pairs)
        return x

    blocks = NamedSharding(mesh, P("ring"))
    shape = (len(devices), size // 4)
    x = jax.jit(lambda: jnp.ones(shape, jnp.float32), out_shardings=blocks)()
    program = jax.jit(jax.shard_map(around, mesh=mesh, in_specs=P("ring"), out_specs=P("ring")))
    clock = MeshClock(lambda: program(x), SHORTEST)
    return min(clock.sample().seconds for _ in range(SAMPLES)) / HOPS
