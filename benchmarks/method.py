# SPDX-License-Identifier: Apache-2.0
"""What a method of the benchmark is: a way to compute a case, and the words for why it cannot."""

from __future__ import annotations

import itertools
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from jax_na.tools.clock import Clock
from jax_na.tools.problems import Problem

GB = 1 << 30
CPU, GPU = "cpu", "gpu"
SGEMM_SIZE = 1024  # of the matrix product that every framework is compared with on a CPU
SGEMM_FLOPS = 2.0 * SGEMM_SIZE**3
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


@dataclass(frozen=True)
class Prepared:
    """A method on a case. The functions of a problem differ by its direction, and compile when called.

    `errors` are relative ones by result, {} if the method computes something else than neighborhood
    attention; then `flops` are its own.
    """

    call: Callable[[Problem], Call]
    clock: Callable[[Problem], Clock]
    errors: Callable[[], dict[str, float]]
    temporary_bytes: Callable[[Problem], int] | None = None  # planned by the compiler
    flops: Callable[[Problem], float] | None = None
    note: str = ""  # the configuration chosen

    def of_everything(self) -> Prepared:
        """The same as attention of every token to all: not verified, and rated by all its FLOPs."""
        return replace(self, errors=dict, flops=lambda problem: problem.dense_flops)


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


def coordinates(problem: Problem) -> Array:
    """[tokens, rank]"""
    return np.stack(np.unravel_index(np.arange(problem.tokens), problem.spatial), -1)


def order(problem: Problem, tile: Sequence[int] | None) -> Array:
    """The tokens in an order in which those of a dilation group and a tile are neighbours."""
    x, d = coordinates(problem), np.array(problem.dilation)
    group, position = x % d, x // d
    sizes = np.array(tile or (max(problem.spatial),) * problem.rank)
    return np.lexsort(np.concatenate([group, position // sizes, position % sizes], 1).T[::-1])


def fastest(case: Case, candidates: Mapping[str, Callable[[], Prepared]]) -> Prepared:
    """The best of some configurations of one method, by a short trial of each."""
    chosen = {note: candidates[note] for note in [case.choice] if note} or candidates
    if len(chosen) == 1 or case.tries == 1:
        note, prepare = next(iter(chosen.items()))
        return replace(prepare(), note=note)
    trials: list[tuple[float, Prepared]] = []
    failure: Exception = ValueError("no configuration to try")
    for note, prepare in itertools.islice(chosen.items(), case.tries):
        try:
            prepared = replace(prepare(), note=note)
            trials.append((_seconds(prepared.call(case.problem)), prepared))
        except Exception as error:  # a configuration that a compiler refuses is not the method's last word
            failure = error
    if not trials:
        raise failure
    return min(trials, key=lambda trial: trial[0])[1]


def _seconds(call: Call) -> float:
    """The shortest of three calls, after one that compiles."""
    call()
    return min(timeit.repeat(call, number=1, repeat=3))
