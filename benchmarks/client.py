# SPDX-License-Identifier: Apache-2.0
"""The driver's end of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import subprocess
from typing import IO, Any

SCRIPT = pathlib.Path(__file__).with_name("worker.py")
PATHS = re.compile(r"(?:/[\w.+-]+){2,}/?")
LONGEST_REASON = 200


# glibc gives every block of this size back to the system when it is freed: slow, so never where time counts
MEMORY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


class WorkerDied(RuntimeError):
    """The process has ended without a reply: out of memory, or a crash."""


class Client:
    """A worker: the process, and what it said about itself. `missing` says why it offers nothing.

    `weighs`: whether the process is one to measure memory in, and not time.
    """

    def __init__(self, framework: str, threads: int, python: str, log: IO[str], weighs: bool = False) -> None:
        self.framework, self.threads, self.weighs = framework, threads, weighs
        self._environment = {**os.environ, **(MEMORY_ENVIRONMENT if weighs else {})}
        self._command = [python, str(SCRIPT), framework, str(threads)]
        self._log = log
        self.start()

    def start(self) -> None:
        """Starts the process, or starts it again."""
        self.close()
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        try:
            self._process = subprocess.Popen(self._command, text=True, env=self._environment, **streams)
            hello = self._reply()
        except (OSError, WorkerDied) as error:
            hello = {"missing": f"its process does not start: {reason(str(error))}"}
        self.missing: str | None = hello.get("missing")
        self.methods: dict[str, str] = hello.get("methods", {})
        self.versions: dict[str, str] = hello.get("versions", {})
        self.instruction_set: str | None = hello.get("isa")

    def ask(self, cmd: str, **arguments: Any) -> dict[str, Any]:
        """One command, one reply.

        Raises:
            WorkerDied: if there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"cmd": cmd, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(f"the process ended with {self._process.wait()}") from None
        reply = self._reply()
        if "failed" in reply:
            reply["failed"] = reason(reply["failed"])
        return reply

    def _reply(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDied(f"the process ended with {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        process = getattr(self, "_process", None)
        if process is None:
            return
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def reason(text: str) -> str:
    """The first line of an error, without paths of this machine."""
    lines = text.strip().splitlines() or [""]
    return PATHS.sub("...", lines[0])[:LONGEST_REASON]
