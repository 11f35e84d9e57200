# SPDX-License-Identifier: Apache-2.0
"""Measuring one case: every method in every process compiled, verified, and timed in turns."""

from __future__ import annotations

import pathlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any

from client import Client, WorkerDied
from method import SGEMM_SIZE
from specs import Spec

FORWARD, BOTH = "forward", "forward+backward"
YARDSTICKS = ("sgemm", "torch-sgemm")  # measured with every case
TOLERANCE = {"float32": 2e-4, "bfloat16": 4e-2}  # relative error of a tensor above which a method is wrong
PASSES = {FORWARD: 1.0, BOTH: 3.5}  # useful FLOPs, in forward passes
LEAST_SAMPLES = 3


@dataclass(frozen=True)
class Plan:
    """What is asked of every case."""

    methods: tuple[str, ...]  # patterns of names
    rounds: int
    seconds: float  # a method that has used this much on a case sits out the remaining rounds
    tries: int

    def wants(self, method: str) -> bool:
        return method in YARDSTICKS or any(fnmatch(method, pattern) for pattern in self.methods)


@dataclass(frozen=True)
class Problem:
    """A case as the driver sees it: names, and the file with its arrays."""

    spec: Spec
    dtype: str
    direction: str
    flops: float  # useful ones, of all passes
    file: pathlib.Path

    @property
    def key(self) -> dict[str, str]:
        return {"spec": self.spec.name, "dtype": self.dtype, "direction": self.direction}


@dataclass
class Entry:
    """One method in one process."""

    client: Client
    method: str
    id: int
    facts: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, float]] = field(default_factory=list)
    spent: float = 0.0
    obstacle: str | None = None

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Asks the process; whatever goes wrong becomes the obstacle."""
        start = time.perf_counter()
        try:
            reply = self.client.ask(command, id=self.id, **arguments)
        except WorkerDied as error:
            reply = {"failed": str(error)}
        self.spent += time.perf_counter() - start
        if "failed" in reply:
            self.obstacle = f"it failed: {reply['failed']}"
        return reply

    def sits_out(self, seconds: float) -> bool:
        enough = len(self.samples) >= LEAST_SAMPLES or (self.samples and self.samples[0]["seconds"] > seconds)
        return self.obstacle is not None or bool(enough and self.spent > seconds)


Tick = Callable[[str, int], None]  # what is going on, and steps done


def measure(
    problem: Problem, clients: Sequence[Client], plan: Plan, tick: Tick
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of a case, and the methods that have none with the reason."""
    entries = []
    timed = [c for c in clients if not c.weighs]
    for client in timed:
        for method in filter(plan.wants, client.methods):
            tick(f"compiling {method}, {client.threads} threads", 0)
            entries.append(_setup(Entry(client, method, len(entries)), problem, plan))
            tick("", 1 if entries[-1].obstacle is None else 1 + plan.rounds)
    _rounds([e for e in entries if e.obstacle is None], plan, tick)
    for client in timed:
        _drop(client)
    for client in clients:
        if client.weighs:
            _weigh(client, entries, problem, tick)
    done = [e for e in entries if e.samples and e.obstacle is None]
    rates = {e.client.threads: _rate(e) for e in done if e.method == YARDSTICKS[0]}
    results = [_result(e, problem, rates.get(e.client.threads)) for e in done]
    skipped = [{**problem.key, **_who(e), "reason": e.obstacle} for e in entries if e.obstacle is not None]
    return results, skipped


def _setup(entry: Entry, problem: Problem, plan: Plan) -> Entry:
    """Compiles and verifies; an obstacle if either is impossible."""
    reply = _compile(entry, problem, plan.tries)
    entry.facts = {"setup_s": reply.get("first"), "note": reply.get("note", "")}
    entry.spent = 0.0
    errors = reply.get("errors")
    if "cannot" in reply:
        entry.obstacle = reply["cannot"]
    elif errors:
        worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else float("inf"))
        entry.facts["error"] = errors[worst]
        if not errors[worst] <= TOLERANCE[problem.dtype]:  # NaN is wrong too
            entry.obstacle = f"it is WRONG: the relative error of {worst} is {errors[worst]:.1e}"
    return entry


def _compile(entry: Entry, problem: Problem, tries: int, choice: str = "") -> dict[str, Any]:
    return entry.ask(
        "setup",
        method=entry.method,
        spec=problem.spec.name,
        dtype=problem.dtype,
        backward=problem.direction == BOTH,
        file=str(problem.file),
        tries=tries,
        choice=choice,
    )


def _weigh(client: Client, entries: Sequence[Entry], problem: Problem, tick: Tick) -> None:
    """Adds the memory of the methods that were timed with as many threads."""
    for e in entries:
        same = (e.client.framework, e.client.threads) == (client.framework, client.threads)
        if same and e.obstacle is None and e.method not in YARDSTICKS:
            tick(f"memory of {e.method}", 0)
            twin = Entry(client, e.method, 0)
            _compile(twin, problem, 1, e.facts["note"])
            reply = twin.ask("memory") if twin.obstacle is None else {}
            e.facts["memory"] = reply if twin.obstacle is None else None
            _drop(client)


def _rounds(entries: Sequence[Entry], plan: Plan, tick: Tick) -> None:
    """Rounds of one sample of every method, in changing order: nobody always has the same neighbour."""
    shuffle = random.Random(0).sample
    for number in range(plan.rounds):
        for e in shuffle(entries, len(entries)):
            if not e.sits_out(plan.seconds):
                tick(f"round {number + 1}: {e.method}, {e.client.threads} threads", 0)
                reply = e.ask("sample")
                if e.obstacle is None:
                    e.samples.append(reply)
            tick("", 1)


def _drop(client: Client) -> None:
    try:
        client.ask("drop")
    except WorkerDied:
        client.start()


def _who(e: Entry) -> dict[str, Any]:
    return {"framework": e.client.framework, "method": e.method, "threads": e.client.threads}


def _rate(e: Entry) -> float:
    return 2 * SGEMM_SIZE**3 / 1e9 / statistics.median(s["seconds"] for s in e.samples)


def _result(e: Entry, problem: Problem, sgemm: float | None) -> dict[str, Any]:
    seconds = [s["seconds"] for s in e.samples]
    median = statistics.median(seconds)
    low, _, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [median] * 3
    )
    rate = _rate(e) if e.method in YARDSTICKS else problem.flops / 1e9 / median
    return {
        **problem.key,
        **_who(e),
        "median_s": median,
        "quartiles_s": [low, high],
        "samples": len(seconds),
        "calls_per_sample": e.samples[-1]["calls"],
        "waited": statistics.median(s["waited"] for s in e.samples),
        "gflop_per_s": rate,
        "of_sgemm": None if sgemm is None else rate / sgemm,
        **e.facts,
    }
