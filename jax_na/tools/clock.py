# SPDX-License-Identifier: Apache-2.0
"""Clocks for calls, and turns between them. Standard library only, so that a Python without JAX can load it.

A sample is one call, or as many as make the clock and a single interruption unimportant.
"""

from __future__ import annotations

import math
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

SHORTEST_SAMPLE = 5e-3  # seconds of calls that are waited for
WARM_BELOW = 50e-3  # seconds: before calls shorter than this, one that is not timed wakes threads and caches
QUEUE_SAMPLE = 50e-3  # seconds of calls that are enqueued
MOST_QUEUED = 512  # calls of one sample
LEAST_SAMPLES = 3
TASKS = pathlib.Path("/proc/self/task")

Now = Callable[[], float]


class Sample(NamedTuple):
    """Seconds of one call, how many were timed together, and the share of the time without a core."""

    seconds: float
    calls: int = 1
    waited: float = 0.0


class Clock(Protocol):
    """Whatever gives samples of one computation."""

    def sample(self) -> Sample:
        """One sample, now."""


@dataclass(frozen=True)
class Timing:
    """The samples of one computation."""

    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> list[float]:
        """Of one computation, sample by sample."""
        return [s.seconds for s in self.samples]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the seconds."""
        return quartiles(self.seconds)


def quartiles(values: list[float]) -> tuple[float, float]:
    """The first and the third quartile."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def waited_for_cores() -> float:
    """Seconds that threads of this process have been ready to run without a core, so far (Linux; else 0).

    It grows during a sample when other work on the machine, or more threads than cores, delayed it.
    """
    total = 0
    for file in TASKS.glob("*/schedstat"):
        try:
            total += int(file.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return total * 1e-9


class WallClock:
    """For calls that return when their results are ready: on a CPU."""

    def __init__(
        self, call: Callable[[], Any], now: Now = time.perf_counter, waited: Now = waited_for_cores
    ) -> None:
        self._call, self._now, self._waited = call, now, waited
        self._estimate = self._seconds(1)

    def sample(self) -> Sample:
        """Times as many calls as the last sample made seem enough."""
        if self._estimate < WARM_BELOW:
            self._call()
        calls = max(1, math.ceil(SHORTEST_SAMPLE / max(self._estimate, 1e-7)))
        before = self._waited()
        self._estimate = self._seconds(calls)
        waited = (self._waited() - before) / max(self._estimate * calls, 1e-9)
        return Sample(self._estimate, calls, waited)

    def _seconds(self, calls: int) -> float:
        start = self._now()
        for _ in range(calls):
            self._call()
        return (self._now() - start) / calls


class QueueClock:
    """For calls that a GPU queues: they are enqueued without waiting, and waited for once.

    `together` is the number of computations that one call makes.
    """

    def __init__(
        self,
        call: Callable[[], Any],
        wait: Callable[[Any], Any],
        shortest: float = QUEUE_SAMPLE,
        together: int = 1,
        now: Now = time.perf_counter,
    ) -> None:
        self._call, self._wait, self._now, self._together = call, wait, now, together
        wait(call())
        one = min(self._seconds(1) for _ in range(2))
        one = self._seconds(self._calls(shortest / 4, one))
        self._number = self._calls(shortest, one)
        self.estimate = one / together  # seconds of one computation

    def sample(self) -> Sample:
        """Times one queue of calls."""
        return Sample(self._seconds(self._number) / self._together, self._number * self._together)

    def _calls(self, shortest: float, one: float) -> int:
        return min(MOST_QUEUED, max(1, math.ceil(shortest / one)))

    def _seconds(self, calls: int) -> float:
        start = self._now()
        results = None
        for _ in range(calls):
            results = self._call()
        self._wait(results)
        return (self._now() - start) / calls


def in_turns(
    clocks: Mapping[str, Callable[[], Sample | None]],
    rounds: int,
    seconds: float = math.inf,
    tick: Callable[[str], None] = lambda name: None,
    now: Now = time.perf_counter,
) -> dict[str, tuple[Sample, ...]]:
    """Rounds of one sample of every clock, so that a slow moment of the machine hits all of them alike.

    Their order changes from round to round: nobody always has the same neighbour. One that has used its
    `seconds` sits out the remaining rounds, after enough samples or one that was longer than that; one that
    gives None is out. `tick` is called with the name before every turn, taken or not.
    """
    shuffle = random.Random(0)
    found: dict[str, list[Sample]] = {name: [] for name in clocks}
    spent, gone = dict.fromkeys(clocks, 0.0), set[str]()
    for _ in range(rounds):
        for name in shuffle.sample(list(clocks), len(clocks)):
            tick(name)
            samples = found[name]
            enough = len(samples) >= LEAST_SAMPLES or (samples and samples[0].seconds > seconds)
            if name in gone or (enough and spent[name] > seconds):
                continue
            start = now()
            sample = clocks[name]()
            spent[name] += now() - start
            if sample is None:
                gone.add(name)
            else:
                samples.append(sample)
    return {name: tuple(samples) for name, samples in found.items()}
