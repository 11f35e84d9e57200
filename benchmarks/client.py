# SPDX-License-Identifier: Apache-2.0
"""The driver's end of a worker process."""

from __future__ import annotations

import math
import os
import pathlib
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

import execnet
import memory

import jax_na

FOLDER = pathlib.Path(__file__).parent
# As if a script were run: its own folder is searched first. The current one, perhaps a checkout, is not.
SERVE = """
import sys
sys.path[:] = [channel.receive(), *filter(None, sys.path)]
import worker
worker.serve(channel)
"""
PATHS = re.compile(r"(?:/[\w.+-]+){2,}/?")
LONGEST_REASON = 200
LONGEST_EXIT = 5.0  # seconds
Reply = dict[str, Any]


@dataclass(frozen=True)
class Role:
    """What a process is for. `threads` 0: as many as it likes. `weighs`: it measures memory, not time."""

    framework: str
    device: str = "cpu"
    threads: int = 0
    weighs: bool = False
    python: str = sys.executable
    log: str = os.devnull

    def specification(self) -> str:
        """For execnet."""
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # frameworks share the memory of a GPU
        if self.device == "cpu":
            environment["JAX_PLATFORMS"] = "cpu"
        if self.weighs:
            environment |= memory.ENVIRONMENT
        return "//".join([f"popen//python={self.python}", *(f"env:{k}={v}" for k, v in environment.items())])

    def beginning(self) -> dict[str, Any]:
        """The arguments of worker.begin."""
        package = str(pathlib.Path(jax_na.__file__).parent)
        own = {name: getattr(self, name) for name in ("framework", "device", "threads")}
        return {**own, "package": package, "log": os.path.abspath(self.log)}


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
            hello = self._exchange(self.role.beginning(), None)
        except (OSError, EOFError, execnet.RemoteError) as error:
            hello = {"failed": f"its process does not start: {error}"}
        self.missing: str | None = hello.get("failed")
        self.methods: dict[str, str] = hello.get("methods", {})
        self.versions: dict[str, str] = hello.get("versions", {})

    def ask(self, command: str, end: float = math.inf, **arguments: Any) -> Reply:
        """One command, one reply, which has "failed" if something went wrong.

        The process is started again, and all that it had prepared is lost, if it ends or if there is no reply
        until `end` (time.monotonic).
        """
        seconds = None if end == math.inf else max(0.0, end - time.monotonic())
        try:
            return self._exchange((command, arguments), seconds)
        except self._channel.TimeoutError:
            failure = "no time was left"
        except (OSError, EOFError):
            failure = "the process ended"
        except execnet.RemoteError as error:
            failure = str(error).strip().splitlines()[-1]
        self.start()
        return {"failed": failure}

    def _exchange(self, message: Any, seconds: float | None) -> Reply:
        self._channel.send(message)
        reply: Reply = self._channel.receive(seconds)
        if "failed" in reply:
            reply["failed"] = reason(reply["failed"])
        return reply

    def close(self) -> None:
        """Ends the process."""
        self._group.terminate(LONGEST_EXIT)


def reason(text: str) -> str:
    """The first line of an error, without paths of this machine."""
    lines = text.strip().splitlines() or [""]
    return PATHS.sub("...", lines[0])[:LONGEST_REASON]
