# SPDX-License-Identifier: Apache-2.0
"""Measuring a problem: every method in every process prepared, verified, and timed in turns."""

from __future__ import annotations

import datetime
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from typing import Any

import check
import machine
import numpy as np
from client import Client, WorkerDied

from jax_na.tools import profiler
from jax_na.tools.clock import Sample, in_turns
from jax_na.tools.problems import BOTH, FORWARD, Problem

YARDSTICKS = ("sgemm", "torch-sgemm")  # measured with every problem of a CPU
Row = dict[str, Any]
Tick = Callable[[str, int], None]  # what is going on, and steps done


@dataclass(frozen=True)
class Plan:
    """What is asked of every problem. A method that has used its `seconds` sits out the remaining rounds."""

    methods: tuple[str, ...]  # patterns of names
    rounds: int
    seconds: float
    tries: int = 1

    def wants(self, method: str) -> bool:
        """Whether a method of a CPU is to be measured."""
        return method in YARDSTICKS or any(fnmatch(method, pattern) for pattern in self.methods)


@dataclass
class Entry:
    """One method in one process, on a problem. `end`: when no more time is left (time.monotonic)."""

    client: Client
    method: str
    problem: Problem
    id: int = 0
    end: float | None = None
    facts: Row = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    obstacle: str | None = None

    def __post_init__(self) -> None:
        self._started = self.client.starts

    def ask(self, command: str, **arguments: Any) -> Row:
        """Asks the process; whatever goes wrong becomes the obstacle."""
        seconds = None if self.end is None else max(0.0, self.end - time.monotonic())
        if self._started != self.client.starts:
            reply = {"failed": "its process has ended"}
        else:
            try:
                reply = self.client.ask(command, seconds, id=self.id, **arguments)
            except WorkerDied as error:
                reply = {"failed": str(error)}
        if "failed" in reply:
            self.obstacle = f"it failed: {reply['failed']}"
        return reply

    def setup(self, file: pathlib.Path | None, gradients: bool, tries: int = 1, choice: str = "") -> Entry:
        """Prepares and verifies; an obstacle if either is impossible, nothing if there was one before."""
        if self.obstacle is not None:
            return self
        device = self.client.role.device
        reply = self.ask(
            "setup",
            method=self.method,
            problem=asdict(self.problem),
            bounds=bounds(self.problem),
            file="" if file is None else str(file),
            gradients=gradients,
            tries=tries,
            choice=choice,
        )
        if "cannot" in reply:
            self.obstacle = reply["cannot"]
        elif self.obstacle is None:
            self.facts = {name: reply[name] for name in ("setup_s", "note", "errors")}
            self.obstacle = check.wrong(reply["errors"], self.problem.dtype, device)
        return self

    def start(self, direction: str) -> None:
        """Compiles a direction, if nothing went wrong before."""
        if self.obstacle is not None:
            return
        self.problem = replace(self.problem, direction=direction)
        reply = self.ask("start", direction=direction)
        if self.obstacle is None:
            own = reply["flops"]
            exact = {"exact": own is None, "flops": profiler.flops(self.problem) if own is None else own}
            self.facts |= {**exact, "bytes": self.problem.least_bytes}

    def sample(self) -> Sample | None:
        """One sample, None if that failed."""
        reply = self.ask("sample")
        return Sample(**reply) if self.obstacle is None else None

    @property
    def who(self) -> Row:
        """The columns by which a row is found."""
        p, role = self.problem, self.client.role
        key = {"problem": p.name, "dtype": p.dtype, "direction": p.direction}
        return {**key, "framework": role.framework, "method": self.method, "threads": role.threads}

    def row(self) -> Row:
        """The measurement; ratios are the report's business."""
        columns = {name: [getattr(s, name) for s in self.samples] for name in Sample._fields}
        return {**self.who, **columns, **self.facts}

    def skipped(self) -> Row:
        """Why there is no measurement."""
        return {**self.who, "reason": self.obstacle}


def bounds(problem: Problem) -> list[bytes]:
    """Of the windows, for a process without jax-na."""
    lines = profiler.neighborhood(problem).bounds(problem.spatial)
    return [np.ascontiguousarray(line, np.int32).tobytes() for line in lines]


def measure(
    problem: Problem, file: pathlib.Path, clients: Sequence[Client], plan: Plan, tick: Tick
) -> tuple[list[Row], list[Row]]:
    """All methods on a CPU: rows of those measured, and the others with the reason."""
    entries: list[Entry] = []
    timed = [c for c in clients if not c.role.weighs]
    for client in timed:
        for method in filter(plan.wants, client.methods):
            tick(f"compiling {method}, {client.role.threads} threads", 1)
            entry = Entry(client, method, problem, len(entries))
            entry.setup(file, problem.needs_gradients, plan.tries).start(problem.direction)
            entries.append(entry)
    names = {f"{e.method}, {e.client.role.threads} threads": e for e in entries if e.obstacle is None}
    clocks = {name: e.sample for name, e in names.items()}
    samples = in_turns(clocks, plan.rounds, plan.seconds, lambda name: tick(f"timing {name}", 1))
    for name, entry in names.items():
        entry.samples = samples[name]
    tick("", plan.rounds * (len(entries) - len(names)))
    for client in timed:
        _drop(client)
    for client in clients:
        if client.role.weighs:
            _weigh(client, entries, file, tick)
    done = [e for e in entries if e.samples and e.obstacle is None]
    return [e.row() for e in done], [e.skipped() for e in entries if e.obstacle is not None]


def _weigh(client: Client, entries: Sequence[Entry], file: pathlib.Path, tick: Tick) -> None:
    """Adds the memory of the methods that were timed with as many threads, measured in another process."""
    where = client.role.framework, client.role.threads
    for e in entries:
        same = (e.client.role.framework, e.client.role.threads) == where
        if same and e.obstacle is None and e.method not in YARDSTICKS:
            tick(f"memory of {e.method}", 0)
            twin = Entry(client, e.method, e.problem)
            twin.setup(file, e.problem.needs_gradients, choice=e.facts["note"])
            reply = twin.ask("memory") if twin.obstacle is None else {}
            e.facts["memory"] = reply if twin.obstacle is None else None
            _drop(client)


def _drop(client: Client) -> None:
    try:
        client.ask("drop")
    except WorkerDied:  # it has been started again
        return


def measure_on_gpu(entry: Entry, directions: Sequence[str], plan: Plan, choice: str = "") -> list[Row]:
    """One method, verified once, then timed in every direction; if an obstacle turns up, rows before it."""
    rows = []
    gradients = set(directions) != {FORWARD}
    entry.problem = replace(entry.problem, direction=BOTH if gradients else FORWARD)
    entry.setup(None, gradients, choice=choice)
    for direction in directions:
        entry.start(direction)
        if entry.obstacle is None:
            samples = in_turns({entry.method: entry.sample}, plan.rounds, plan.seconds)
            entry.samples = samples[entry.method]
        if entry.obstacle is None:
            rows.append(entry.row())
    _drop(entry.client)
    return rows


class Document:
    """The results of a run, written after every problem."""

    def __init__(
        self, script: str, arguments: Sequence[str], clients: Sequence[Client], **facts: Any
    ) -> None:
        self.content: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": machine.command_line(arguments, script),
            "machine": machine.describe(),
            "versions": machine.versions(clients),
            "about": {name: about for client in clients for name, about in client.methods.items()},
            **facts,
            "results": [],
            "skipped": [],
        }

    def add(self, rows: Sequence[Row], skipped: Sequence[Row] = (), to: str = "results") -> None:
        """Appends rows."""
        self.content[to] += rows
        self.content["skipped"] += skipped

    def write(self, file: pathlib.Path | None) -> None:
        """Replaces the file, if there is to be one: an interruption leaves the last complete one."""
        if file is not None:
            part = file.with_suffix(".part")
            part.write_text(json.dumps(self.content, indent=1) + "\n")
            part.replace(file)
