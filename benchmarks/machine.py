# SPDX-License-Identifier: Apache-2.0
"""What a result must say about the machine and the software, and nothing that identifies either."""

from __future__ import annotations

import os
import pathlib
import platform
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from client import Client

CACHES = pathlib.Path("/sys/devices/system/cpu/cpu0/cache")
CPUINFO = pathlib.Path("/proc/cpuinfo")
GPU_FIELDS = {
    "gpu": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "compute_capability": "compute_cap",
    "power_limit": "power.limit",
    "most_sm_clock": "clocks.max.sm",
}


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


def gpu() -> dict[str, str]:
    """The GPU and its driver, as the driver tells."""
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS.values())}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {"gpu": "none", "driver": "none"}
    return dict(zip(GPU_FIELDS, (value.strip() for value in line.split(",")), strict=True))


def versions(clients: Sequence[Client]) -> dict[str, str]:
    """Of Python, and of what the processes have."""
    found = {"python": platform.python_version()}
    for client in clients:
        found |= client.versions
    return found


def command_line(arguments: Sequence[str], script: str) -> str:
    """The command that was given, without folders."""

    def short(argument: str) -> str:
        name, equals, value = argument.rpartition("=")
        return name + equals + (pathlib.Path(value).name if os.sep in value else value)

    return " ".join(["python", f"benchmarks/{script}", *map(short, arguments)])


def _cpuinfo() -> dict[str, str]:
    if not CPUINFO.exists():
        return {}
    first = CPUINFO.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, str]:
    """Sizes by level, like {"L1 data": "32K"}."""
    found = {}
    for folder in sorted(CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found[f"L{level}" if kind == "Unified" else f"L{level} {kind.lower()}"] = size
    return found
