# SPDX-License-Identifier: Apache-2.0
"""Measuring a problem: methods in their processes are prepared, verified, and timed in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import check
import numpy as np
from client import Client
from results import YARDSTICK

from jax_na.tools import profiler
from jax_na.tools.clock import Sample, in_turns
from jax_na.tools.problems import BOTH, FORWARD, Problem
from jax_na.tools.report import Tick, progress

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is asked of every method. One that has used its `seconds` sits out the remaining rounds."""

    rounds: int
    seconds: float
    tries: int = 1  # configurations of a peer with free parameters


@dataclass
class Entry:
    """One method in one process, on a problem. `end`: when no more time is left (time.monotonic)."""

    client: Client
    method: str
    problem: Problem
    id: int = 0
    end: float = math.inf
    facts: Row = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    obstacle: str | None = None

    def __post_init__(self) -> None:
        self._started = self.client.starts

    def __str__(self) -> str:
        return label(self.who)

    def ask(self, command: str, **arguments: Any) -> Row:
        """Asks the process, unless there is an obstacle; whatever goes wrong becomes one."""
        if self.obstacle is None and self._started != self.client.starts:
            self.obstacle = "it failed: its process has ended"
        if self.obstacle is not None:
            return {}
        reply = self.client.ask(command, self.end, id=self.id, **arguments)
        if "failed" in reply:
            self.obstacle = f"it failed: {reply['failed']}"
        return reply

    def setup(self, file: str, tries: int = 1, choice: str = "") -> None:
        """Prepares and verifies; an obstacle if either is impossible."""
        problem = {"problem": asdict(self.problem), "bounds": bounds(self.problem)}
        reply = self.ask("setup", method=self.method, file=file, tries=tries, choice=choice, **problem)
        if "cannot" in reply:
            self.obstacle = reply["cannot"]
        if self.obstacle is None:
            self.facts = {name: reply[name] for name in ("setup_s", "note", "errors")}
            self.obstacle = check.wrong(reply["errors"], self.problem.dtype, self.client.role.device)

    def start(self, direction: str) -> None:
        """Compiles a direction."""
        self.problem = replace(self.problem, direction=direction)
        reply = self.ask("start", direction=direction)
        if self.obstacle is None:
            own = reply["flops"]
            flops = profiler.flops(self.problem) if own is None else own
            self.facts |= {"exact": own is None, "flops": flops, "bytes": self.problem.least_bytes}

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


def label(row: Row) -> str:
    """What is measured, in words."""
    words = [row[name] for name in ("problem", "dtype", "direction", "method")]
    return " ".join([*words, f"({row['threads']} threads)" if row["threads"] else ""]).rstrip()


def bounds(problem: Problem) -> list[bytes]:
    """The bounds of the windows, for a process without jax-na."""
    lines = profiler.neighborhood(problem).bounds(problem.spatial)
    return [np.ascontiguousarray(line, np.int32).tobytes() for line in lines]


def measure(
    entries: Sequence[Entry], directions: Sequence[str], plan: Plan, file: str = "", choice: str = ""
) -> list[Row]:
    """Rows of every direction, as far as no obstacle turns up; every method is verified once."""
    rows = []
    whole = FORWARD if {*directions} == {FORWARD} else BOTH
    with progress(len(entries) * (1 + len(directions) * plan.rounds)) as tick:
        for number, entry in enumerate(entries):
            tick(f"{entry}: compiling", 1)
            entry.id, entry.problem = number, replace(entry.problem, direction=whole)
            entry.setup(file, plan.tries, choice)
        for direction in directions:
            _time(entries, direction, plan, tick)
            rows += [entry.row() for entry in entries if entry.obstacle is None]
    for client in {entry.client for entry in entries}:
        client.ask("drop")
    return rows


def _time(entries: Sequence[Entry], direction: str, plan: Plan, tick: Tick) -> None:
    for entry in entries:
        entry.start(direction)
    ready = {str(entry): entry for entry in entries if entry.obstacle is None}
    clocks = {name: entry.sample for name, entry in ready.items()}
    samples = in_turns(clocks, plan.rounds, plan.seconds, lambda name: tick(f"{name}: timing", 1))
    for name, entry in ready.items():
        entry.samples = samples[name]


def weigh(row: Row, clients: Sequence[Client], problem: Problem, file: str) -> Row:
    """The memory of a call of what was timed, measured in another process with as many threads, if any."""
    where = row["framework"], row["threads"]
    weighing = [client for client in clients if client.role.weighs]
    same = [client for client in weighing if (client.role.framework, client.role.threads) == where]
    if not same or row["method"] == YARDSTICK:
        return {"memory": None}
    entry = Entry(same[0], row["method"], problem)
    entry.setup(file, choice=row["note"])
    reply = entry.ask("memory", direction=problem.direction)
    same[0].ask("drop")
    return {"memory": reply if entry.obstacle is None else None}
