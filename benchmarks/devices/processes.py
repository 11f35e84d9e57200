# SPDX-License-Identifier: Apache-2.0
"""The same splits in one process and in several ones, between which the devices of this host are divided."""

from __future__ import annotations

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

import jax_na

Document = dict[str, Any]
SCRIPT = pathlib.Path(__file__).parents[1] / "scaling.py"
QUICK_DEVICES = 8  # parts of a CPU
FORCED = "xla_force_host_platform_device_count"
MEMORY = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Place(NamedTuple):
    """One of several processes: where they meet, which one it is, how many they are, devices of each."""

    address: str = ""
    process: int = 0
    number: int = 1
    devices: int = 0

    @classmethod
    def read(cls, text: str) -> Place:
        """What str gives."""
        address, *numbers = text.split(",")
        return cls(address, *map(int, numbers))

    def __str__(self) -> str:
        return ",".join(map(str, self))


def join(place: Place, quick: bool) -> None:
    """Before JAX has devices: which ones it is to have. One device computes what all are compared with."""
    os.environ.setdefault(MEMORY, "0.9")
    parts = place.devices or QUICK_DEVICES
    if quick and FORCED not in os.environ.get("XLA_FLAGS", "") and jax.config.jax_num_cpu_devices != parts:
        jax.config.update("jax_num_cpu_devices", parts)
    if place.number > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        own = range(place.process * place.devices, (place.process + 1) * place.devices)
        jax.distributed.initialize(place.address, place.number, place.process, local_device_ids=[*own])
        jax_na.share_tuning()


def both(arguments: Sequence[str], number: int, devices: int | None) -> Document:
    """The document of one process, with the rows of several.

    Raises:
        ValueError: if the devices cannot be divided.
        SystemExit: if a process fails.
    """
    count = int(_output([*arguments, "--count"])) if devices is None else devices
    if count % number:
        raise ValueError(f"{count} devices do not divide over {number} processes")
    whole = [*arguments, "--devices", str(count), "--whole", "--child"]
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("one.json", "several.json")]
        _together([[*whole, "--processes", "1", "--output", str(files[0])]])
        address = f"127.0.0.1:{_free_port()}"
        places = [Place(address, i, number, count // number) for i in range(number)]
        _together([[*whole, "--output", str(files[1]), "--place", str(p)] for p in places])
        one, several = (json.loads(file.read_text()) for file in files)
    for name in ("results", "skipped"):
        one[name] += several[name]
    return {**one, "processes": number}


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, str(SCRIPT), *arguments]


def _output(arguments: Sequence[str]) -> str:
    done = subprocess.run(_command(arguments), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def _together(commands: Sequence[Sequence[str]]) -> None:
    """Runs all; if one fails the others, which would wait for it, are ended."""
    environment = dict(os.environ)
    if len(commands) > 1:  # parts of a CPU are divided like GPUs
        environment["XLA_FLAGS"] = re.sub(rf"--{FORCED}=\d+", "", environment.get("XLA_FLAGS", ""))
    options: dict[str, Any] = {"stdout": subprocess.DEVNULL, "env": environment}
    running = [subprocess.Popen(_command(command), **options) for command in commands]
    try:
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                break
            time.sleep(0.2)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
    if failed := [process.returncode for process in running if process.returncode]:
        raise SystemExit(f"scaling.py: a process ended with status {failed[0]}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port
