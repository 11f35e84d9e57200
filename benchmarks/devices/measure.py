# SPDX-License-Identifier: Apache-2.0
"""Measuring cases: compiled, compared with one device, and timed in turns with that one."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import compare
import jax
from clocks import MeshClock
from listing import alone
from splits import Case, Split, Work

from jax_na.mesh import communication
from jax_na.tools.clock import Sample, in_turns

Row = dict[str, Any]
COMPILERS = 8  # programs compiled at once
BASE = "alone"  # the name of the base among clocks


@dataclass(frozen=True)
class Plan:
    """The devices, how often and how long a case is timed, and where progress is told."""

    devices: tuple[jax.Device, ...]
    rounds: int
    seconds: float
    say: Callable[[str], None]


class Entry:
    """A work on a mesh. One device is that of this process."""

    def __init__(self, work: Work, split: Split, devices: Sequence[jax.Device]) -> None:
        own = [d for d in devices if d.process_index == jax.process_index()]
        self.job = work.job(split.mesh(own if split.devices == 1 else devices))
        self._lowered = self.job.lower()
        self.program: Any = None
        self.compile_s = 0.0

    def compile(self) -> None:
        """Once."""
        if self.program is None:
            start = time.perf_counter()
            self.program = self._lowered.compile()
            self.compile_s = time.perf_counter() - start

    def results(self) -> compare.Results:
        """Of the first call."""
        found: compare.Results = self.job.results(self.program)
        return found

    def communication(self) -> Row:
        """What the compiled program sends: numbers and bytes by kind, and what the busiest device gets."""
        found = communication.collectives(self.program)
        numbers = Counter(c.kind for c in found)
        sizes = {kind: sum(c.size for c in found if c.kind == kind) for kind in numbers}
        received = max(communication.received(found).values(), default=0)
        return {"collectives": numbers, "sizes": sizes, "received_bytes": received}


class Bench:
    """Keeps programs that have been compiled, and the last results of one device."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._entries: dict[tuple[Work, Split], Entry] = {}
        self._expected: tuple[Work, compare.Results] | None = None

    def entry(self, work: Work, split: Split) -> Entry:
        """The program of a work on some devices, once."""
        key = work, split
        if key not in self._entries:
            self._entries[key] = Entry(work, split, self.plan.devices)
        return self._entries[key]

    def measure(self, cases: Sequence[Case]) -> tuple[list[Row], list[Row]]:
        """Rows of cases with one base, and of those that could not be measured or are wrong."""
        base = cases[0].base, alone(cases[0])
        reasons: dict[Case, str] = {}
        entries = self._compiled(cases, reasons)
        facts = {}
        for case, entry in entries.items():
            with failing([case], reasons):
                self.plan.say(f"{case.name}: compared with one device")
                facts[case] = self._compared(case, entry)
                if wrong := facts[case].pop("wrong"):
                    reasons[case] = wrong
        self._expected = None
        right = {case: entry for case, entry in entries.items() if case not in reasons}
        rows = []
        with failing(list(right), reasons):
            named = {case.name: entry for case, entry in right.items()}
            samples = self._timed({BASE: self.entry(*base), **named}) if right else {}
            rows = [{**row(c, e), **facts[c], **times(samples, c.name)} for c, e in right.items()]
        return rows, [{"case": case.name, "reason": reason} for case, reason in reasons.items()]

    def _compiled(self, cases: Sequence[Case], reasons: dict[Case, str]) -> dict[Case, Entry]:
        """Some at once; but several processes do that together, one program after the other."""
        compiling: dict[Entry, Future[None]] = {}
        needed: dict[Case, list[Entry]] = {}
        with ThreadPoolExecutor(COMPILERS if jax.process_count() == 1 else 1) as pool:
            for case in cases:
                with failing([case], reasons):
                    self.plan.say(f"{case.name}: compiling")
                    needed[case] = [self.entry(*program) for program in programs(case)]
                    for entry in needed[case]:
                        if entry not in compiling:
                            compiling[entry] = pool.submit(entry.compile)
            for case, entries in needed.items():
                with failing([case], reasons):
                    for entry in entries:
                        compiling[entry].result()
        return {case: entries[0] for case, entries in needed.items() if case not in reasons}

    def _compared(self, case: Case, entry: Entry) -> Row:
        """The errors, whether one is too large, and a number for the bits."""
        found, work = entry.results(), case.work.checked
        digests = compare.digests(found)
        found = found if work == case.work else self.entry(work, case.split).results()
        errors = compare.errors(found, self._of_one(work, case), work.unit)
        wrong = compare.wrong(errors, work.dtype, work.unit)
        return {"errors": errors, "digests": digests, "wrong": wrong}

    def _of_one(self, work: Work, case: Case) -> compare.Results:
        """The results of one device."""
        if self._expected is None or self._expected[0] != work:
            self._expected = None  # room for the next ones
            self._expected = work, self.entry(work, alone(case)).results()
        return self._expected[1]

    def _timed(self, entries: dict[str, Entry]) -> dict[str, tuple[Sample, ...]]:
        """Samples of all, in turns; every process takes as many."""
        length = self.plan.seconds / self.plan.rounds
        clocks = {name: MeshClock(entry.job.call(entry.program), length) for name, entry in entries.items()}
        return in_turns({name: clock.sample for name, clock in clocks.items()}, self.plan.rounds)


def programs(case: Case) -> list[tuple[Work, Split]]:
    """What is timed, first the case itself; what it is compared with."""
    checked, one = case.work.checked, alone(case)
    return [(case.work, case.split), (case.base, one), (checked, case.split), (checked, one)]


@contextlib.contextmanager
def failing(cases: Sequence[Case], reasons: dict[Case, str]) -> Iterator[None]:
    """Turns an error into a reason; but where other processes would wait for this one, it ends."""
    try:
        yield
    except Exception as error:
        if jax.process_count() > 1:
            raise
        reasons |= dict.fromkeys(cases, f"it failed: {type(error).__name__}: {error}".splitlines()[0][:300])


def row(case: Case, entry: Entry) -> Row:
    """What is known of a case without its times."""
    names = {"case": case.name, "work": case.base.name, "direction": case.base.direction}
    return {
        **names,
        **{"dtype": case.work.dtype, "scaling": case.scaling, "split": str(case.split)},
        **{"devices": case.split.devices, "processes": jax.process_count()},
        **case.work.columns(),
        **{"amount": case.work.amount, "amount_alone": case.base.amount, "unit": case.work.amount_unit},
        "halo_bytes": case.work.halo_bytes(case.split),
        **entry.communication(),
        "compile_s": entry.compile_s,
    }


def times(samples: dict[str, tuple[Sample, ...]], name: str) -> Row:
    """Seconds of every sample, and those of the base on one device in the same rounds."""
    found = [s.seconds for s in samples[name]]
    return {"seconds": found, "alone_seconds": [s.seconds for s in samples[BASE]]}
