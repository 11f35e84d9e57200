# SPDX-License-Identifier: Apache-2.0
"""Time and memory of one call, measured from inside the process that makes it."""

from __future__ import annotations

import ctypes
import gc
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

SHORTEST_SAMPLE = (
    5e-3  # seconds: a sample repeats the call until the clock and one interruption do not matter
)
WARM_BELOW = 50e-3  # seconds: before calls shorter than this, one that is not timed wakes threads and caches
MEMORY_CALLS, MEMORY_SECONDS = (
    7,
    2.0,
)  # so many calls to find the peak of memory, or as many as fit in that time
MEMORY_PAUSE = 5e-3  # seconds: buffers are given back by other threads
PROCESS = pathlib.Path("/proc/self")


class Sampler:
    """Samples of one call; remembers how long it takes, to know how often to repeat it."""

    def __init__(self, call: Callable[[], Sequence[Any]]) -> None:
        self._call = call
        self._estimate = self._seconds(1)

    def sample(self) -> dict[str, float]:
        """Seconds per call, the number of calls, and the share of the time that threads waited for a core."""
        if self._estimate < WARM_BELOW:
            self._call()
        repeats = max(1, math.ceil(SHORTEST_SAMPLE / max(self._estimate, 1e-7)))
        before = _waited()
        seconds = self._seconds(repeats)
        waited = (_waited() - before) / (seconds * repeats)
        self._estimate = seconds
        return {"seconds": seconds, "calls": repeats, "waited": waited}

    def _seconds(self, repeats: int) -> float:
        call = self._call
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats


def _waited() -> float:
    """Seconds that threads of this process have been ready to run without a core, so far (Linux; else 0).

    It grows during a sample when other work on the machine, or more threads than cores, delayed it.
    """
    total = 0
    for file in PROCESS.glob("task/*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return total * 1e-9


def peak_memory(call: Callable[[], Sequence[Any]]) -> dict[str, int] | None:
    """Bytes of the results of a call, and by how much resident memory rose while it ran (Linux; else None).

    It is exact in a process whose allocator gives back what is freed (client.MEMORY_ENVIRONMENT); elsewhere
    memory that was freed before is used again without a rise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not (PROCESS / "clear_refs").exists():
        return None
    start = time.perf_counter()
    call()  # code, thread stacks and constants are not the call's
    repeats = min(MEMORY_CALLS, max(1, int(MEMORY_SECONDS / (time.perf_counter() - start))))
    size, rises = 0, []
    for _ in range(repeats):
        gc.collect()
        time.sleep(MEMORY_PAUSE)
        trim(0)
        (PROCESS / "clear_refs").write_text("5")  # the peak starts again from what is resident now
        resident = _status("VmRSS")
        results = call()
        rises.append(_status("VmHWM") - resident)
        size = sum(int(x.nbytes) for x in results)
        del results
    return {"results": size, "rise": max(rises)}


def _status(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
