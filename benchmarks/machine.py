# SPDX-License-Identifier: Apache-2.0
"""What a result must say about the machine and the software, and nothing that identifies either."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from typing import Any

CACHES = {"L1 data": "L1d", "L1 instruction": "L1i", "L2": "L2", "L3": "L3"}  # as lscpu calls them
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
    """The processor and the system; caches are all of a kind together."""
    found = dict(line.split(":", 1) for line in _lines("lscpu") if ":" in line)
    info = {name.strip(): value.strip() for name, value in found.items()}
    caches = {name: info.get(f"{short} cache") for name, short in CACHES.items()}
    return {
        "cpu": info.get("Model name") or platform.processor() or platform.machine(),
        "family_model": [info.get("CPU family"), info.get("Model")],
        "architecture": platform.machine(),
        "cpus": cpus(),
        "caches": {name: size for name, size in caches.items() if size is not None},
        "system": platform.system(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def gpu() -> dict[str, str]:
    """The GPU and its driver, as the driver tells."""
    query = f"--query-gpu={','.join(GPU_FIELDS.values())}"
    lines = _lines("nvidia-smi", query, "--format=csv,noheader")
    values = lines[0].split(",") if lines else ["none"] * len(GPU_FIELDS)
    return dict(zip(GPU_FIELDS, map(str.strip, values), strict=True))


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are here."""
    here: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        here.setdefault(distribution.name, distribution.version)  # the first one is imported
    return {name: here[name] for name in packages if name in here}


def command_line(arguments: Sequence[str], script: str) -> str:
    """The command that was given, without folders."""
    short = re.sub(r"[^ =]*/", "", " ".join(arguments))
    return f"python benchmarks/{script} {short}".rstrip()


def _lines(*command: str) -> list[str]:
    """What a command prints, nothing if it cannot run."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError):
        return []
    return done.stdout.splitlines()
