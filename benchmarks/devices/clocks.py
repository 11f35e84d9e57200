# SPDX-License-Identifier: Apache-2.0
"""Clocks of programs on several devices, which may belong to several processes: all make the same calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jax_na.tools.clock import QueueClock, Sample


def most(value: float) -> float:
    """The largest one of all processes, which wait for each other."""
    if jax.process_count() == 1:
        return value
    return float(np.max(multihost_utils.process_allgather(np.float32(value))))


class MeshClock(QueueClock):
    """Calls that all devices of a mesh queue. The time is that of the process that waits longest."""

    def __init__(self, call: Callable[[], Any], shortest: float) -> None:
        # On parts of a CPU, collectives that are queued may wait for the threads of each other.
        on_cpu = jax.default_backend() == "cpu"
        super().__init__((lambda: jax.block_until_ready(call())) if on_cpu else call, wait, shortest)

    def _calls(self, shortest: float, one: float) -> int:
        return super()._calls(shortest, most(one))

    def sample(self) -> Sample:
        most(0.0)  # begin together
        found = super().sample()
        return found._replace(seconds=most(found.seconds))


def wait(results: Any) -> None:
    """Until all devices of this process are done."""
    jax.block_until_ready(results)
