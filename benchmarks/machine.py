# SPDX-License-Identifier: Apache-2.0
"""What a result must say about the machine and the software, and nothing that identifies either."""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Sequence
from typing import Any

CPU = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """The processor and the system."""
    info = _cpuinfo()
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "family_model": [info.get("cpu family"), info.get("model")],
        "architecture": platform.machine(),
        "cpus": cpus(),
        "caches": _caches(),
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def _cpuinfo() -> dict[str, str]:
    file = pathlib.Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    first = file.read_text().split("\n\n")[0]
    return {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }


def _caches() -> dict[str, str]:
    """Sizes by level, like {"L1 data": "32K"}."""
    found = {}
    for folder in sorted(CPU.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level}" if kind == "Unified" else f"L{level} {kind.lower()}"] = size
    return found


def command_line(arguments: Sequence[str], script: str = "run.py") -> str:
    """The command that was given, without folders."""

    def short(argument: str) -> str:
        name, equals, value = argument.rpartition("=")
        return name + equals + (pathlib.Path(value).name if os.sep in value else value)

    return " ".join(["python", f"benchmarks/{script}", *map(short, arguments)])
