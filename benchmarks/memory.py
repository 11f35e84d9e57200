# SPDX-License-Identifier: Apache-2.0
"""Memory of one call, measured from inside the process that makes it (Linux)."""

from __future__ import annotations

import ctypes
import gc
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

CALLS, SECONDS = 7, 2.0  # so many calls to find the peak, or as many as fit in that time
PAUSE = 5e-3  # seconds: buffers are given back by other threads
PROCESS = pathlib.Path("/proc/self")

# glibc gives every block of this size back to the system when it is freed: slow, so never where time counts.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(call: Callable[[], Sequence[Any]]) -> dict[str, int]:
    """Bytes of the results of a call, and by how much resident memory rose while it ran ({} if unknown).

    It is exact in a process whose allocator gives back what is freed (ENVIRONMENT); elsewhere memory that
    was freed before is used again without a rise.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not (PROCESS / "clear_refs").exists():
        return {}
    start = time.perf_counter()
    call()  # code, thread stacks and constants are not the call's
    repeats = min(CALLS, max(1, int(SECONDS / (time.perf_counter() - start))))
    sizes, rises = zip(*(_once(call, trim) for _ in range(repeats)), strict=True)
    return {"results": sizes[0], "rise": max(rises)}


def _once(call: Callable[[], Sequence[Any]], trim: Callable[[int], Any]) -> tuple[int, int]:
    gc.collect()
    time.sleep(PAUSE)
    trim(0)
    (PROCESS / "clear_refs").write_text("5")  # the peak starts again from what is resident now
    resident = _status("VmRSS")
    results = call()
    return sum(int(x.nbytes) for x in results), _status("VmHWM") - resident


def _status(field: str) -> int:
    lines = (PROCESS / "status").read_text().splitlines()
    line = next(line for line in lines if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024
