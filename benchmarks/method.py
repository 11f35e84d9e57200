# SPDX-License-Identifier: Apache-2.0
"""What a method of the benchmark is: a way to compute a case, and the words for why it cannot."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from jax_na.tools.clock import Clock, WallClock
from jax_na.tools.problems import Problem

GB = 1 << 30
CPU, GPU = "cpu", "gpu"
LARGEST_ARRAY = {CPU: 1.5 * GB, GPU: 12 * GB}  # a method that needs one larger than this does not run

Array = npt.NDArray[Any]
Call = Callable[[], Sequence[Any]]  # computes a case once, waits, and returns arrays with `nbytes`


@dataclass(frozen=True)
class Case:
    """What is computed and verified, forward or both directions, and where.

    `bounds`: of the windows, int32 [length, 2] per axis. `arrays`, on a CPU: the inputs and the cotangent
    "dout", float32 but rounded to the dtype, and the right results, which no method looks at; on a GPU every
    framework makes its own inputs.
    """

    problem: Problem
    device: str
    bounds: tuple[Array, ...]
    arrays: Mapping[str, Array]
    tries: int = 1  # configurations that a peer with free parameters may try, to be timed at its best
    choice: str = ""  # the configuration to take, instead of trying

    @property
    def results(self) -> tuple[str, ...]:
        """Names of what is verified, in the order in which a call returns it."""
        gradients = tuple(f"d{name}" for name in self.problem.shapes)
        return ("out", *gradients) if self.problem.needs_gradients else ("out",)


class Prepared:
    """A method on a case. The functions of a problem differ by its direction, and compile when called.

    `is_exact`: whether it computes neighborhood attention; else it is that of every token to all. `note` is
    the configuration chosen.
    """

    note = ""

    def __init__(self, case: Case, is_exact: bool = True) -> None:
        self.case, self.is_exact = case, is_exact

    def call(self, problem: Problem) -> Call:
        """What computes the problem once."""
        raise NotImplementedError

    def verify(self) -> dict[str, float]:
        """Relative errors by result."""
        raise NotImplementedError

    def gpu_clock(self, problem: Problem) -> Clock:
        """The clock of the problem on a GPU."""
        raise NotImplementedError

    def clock(self, problem: Problem) -> Clock:
        """The clock of the problem."""
        return WallClock(self.call(problem)) if self.case.device == CPU else self.gpu_clock(problem)

    def errors(self) -> dict[str, float]:
        """Relative errors by result, none of something else."""
        return self.verify() if self.is_exact else {}

    def flops(self, problem: Problem) -> float | None:
        """Those of something else."""
        return None if self.is_exact else problem.dense_flops

    def temporary_bytes(self, problem: Problem) -> int | None:
        """Memory that the compiler plans, if it tells."""
        return None


class Yardstick(Prepared):
    """A function that is not attention: what the machine, or a call, costs at that moment."""

    def __init__(self, case: Case, function: Call, flops: float) -> None:
        super().__init__(case, is_exact=False)
        self.function, self._flops = function, flops
        function()

    def call(self, problem: Problem) -> Call:
        return self.function

    def flops(self, problem: Problem) -> float:
        return self._flops


@dataclass(frozen=True)
class Method:
    """`obstacle` says why a case cannot be run; `prepare` prepares one that can, on one of `devices`."""

    name: str
    about: str
    obstacle: Callable[[Case], str | None]
    prepare: Callable[[Case], Prepared]
    devices: tuple[str, ...] = (CPU, GPU)


def too_large(case: Case, what: str, elements: float, itemsize: int = 4) -> str | None:
    """An obstacle, if an array of this many elements is too large to be worth a try."""
    size = elements * itemsize
    return f"{what} would take {size / GB:.1f} GB" if size > LARGEST_ARRAY[case.device] else None


def no_bias(case: Case) -> str | None:
    """An obstacle of peers, if there is a bias."""
    return "this peer is written without a positional bias" if case.problem.rpb else None


def first_of(*obstacles: str | None) -> str | None:
    """The first that is one."""
    return next((o for o in obstacles if o is not None), None)


def fastest(case: Case, candidates: Mapping[str, Callable[[], Prepared]]) -> Prepared:
    """The best of some configurations of one method, by a short trial of each."""
    names = [case.choice] if case.choice else list(candidates)[: case.tries]
    trials: list[tuple[float, Prepared]] = []
    failure: Exception = ValueError("no configuration to try")
    for name in names:
        try:
            prepared = candidates[name]()
            prepared.note = name
            seconds = _seconds(prepared.call(case.problem)) if len(names) > 1 else 0.0
            trials.append((seconds, prepared))
        except Exception as error:  # a configuration that a compiler refuses is not the method's last word
            failure = error
    if not trials:
        raise failure
    return min(trials, key=lambda trial: trial[0])[1]


def _seconds(call: Call) -> float:
    """The shortest of three calls, after one that compiles."""
    call()
    return min(timeit.repeat(call, number=1, repeat=3))
