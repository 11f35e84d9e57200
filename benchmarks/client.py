# SPDX-License-Identifier: Apache-2.0
"""The driver's end of a worker process."""

from __future__ import annotations

import json
import os
import pathlib
import re
import sys
from dataclasses import dataclass
from typing import Any

import execnet
import memory

import jax_na

FOLDER = pathlib.Path(__file__).parent
SERVE = "import sys; sys.path.insert(0, channel.receive()); import worker; worker.serve(channel)"
PATHS = re.compile(r"(?:/[\w.+-]+){2,}/?")
LONGEST_REASON = 200
LONGEST_EXIT = 5.0  # seconds


class WorkerDied(RuntimeError):
    """The process has ended without a reply: out of memory, or a crash. Or it was ended: no time was left."""


@dataclass(frozen=True)
class Role:
    """What a process is for. `threads` 0: as many as it likes. `weighs`: it measures memory, not time."""

    framework: str
    device: str = "cpu"
    threads: int = 0
    weighs: bool = False
    python: str = sys.executable
    platform: str = ""  # of JAX; "" for its own choice
    log: str = os.devnull

    def specification(self) -> str:
        """For execnet."""
        options = [f"popen//python={self.python}"]
        options += [f"env:{k}={v}" for k, v in memory.ENVIRONMENT.items() if self.weighs]
        return "//".join(options)

    def beginning(self) -> dict[str, Any]:
        """The arguments of worker.begin."""
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # frameworks share the memory of a GPU
        if self.platform:
            environment["JAX_PLATFORMS"] = self.platform
        return {
            "framework": self.framework,
            "device": self.device,
            "threads": self.threads,
            "folder": str(pathlib.Path(jax_na.__file__).parent),
            "log": os.path.abspath(self.log),
            "environment": environment,
        }


class Client:
    """A worker: the process, and what it said about itself. `missing` says why it offers nothing."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.starts = 0
        self._group = execnet.Group()
        self.start()

    def start(self) -> None:
        """Starts the process, or starts it again."""
        self.close()
        self.starts += 1
        try:
            gateway = self._group.makegateway(self.role.specification())
            self._channel = gateway.remote_exec(SERVE)
            self._channel.send(str(FOLDER))
            self._channel.send(self.role.beginning())
            hello = self._reply(None)
        except (OSError, EOFError, WorkerDied) as error:
            hello = {"failed": f"its process does not start: {error}"}
        failed: str | None = hello.get("failed")
        self.missing = None if failed is None else reason(failed)
        self.methods: dict[str, str] = hello.get("methods", {})
        self.versions: dict[str, str] = hello.get("versions", {})
        self.instruction_set: str | None = hello.get("isa")

    def ask(self, command: str, seconds: float | None = None, **arguments: Any) -> dict[str, Any]:
        """One command, one reply; the process is started again if there is none, or not within `seconds`.

        Raises:
            WorkerDied: if that happens. All that it had prepared is lost.
        """
        try:
            self._channel.send((command, arguments))
            reply = self._reply(seconds)
        except (OSError, WorkerDied) as error:
            self.start()
            raise WorkerDied(str(error)) from None
        if "failed" in reply:
            reply["failed"] = reason(reply["failed"])
        return reply

    def _reply(self, seconds: float | None) -> dict[str, Any]:
        try:
            return dict(json.loads(self._channel.receive(seconds)))
        except EOFError:
            raise WorkerDied("the process ended") from None
        except execnet.RemoteError as error:
            raise WorkerDied(str(error).strip().splitlines()[-1]) from None
        except self._channel.TimeoutError:
            raise WorkerDied("no time was left") from None

    def close(self) -> None:
        """Ends the process."""
        self._group.terminate(LONGEST_EXIT)


def reason(text: str) -> str:
    """The first line of an error, without paths of this machine."""
    lines = text.strip().splitlines() or [""]
    return PATHS.sub("...", lines[0])[:LONGEST_REASON]
