# SPDX-License-Identifier: Apache-2.0
"""What a method of the benchmark is: a way to compute a case, and the words for why it cannot."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from specs import Spec

GB = 1 << 30
SGEMM_SIZE = 1024  # of the matrix product that every framework is compared with
LARGEST_ARRAY = 1.5 * GB  # a method that needs one larger than this does not run


@dataclass(frozen=True)
class Case:
    """What is computed: a spec in a dtype, forward or forward and backward.

    `arrays`: the inputs by name and the cotangent "dout", float32 but rounded to the dtype; per axis the
    bounds of the windows, "bounds0" ..., int32 [length, 2]; the right results, which no method looks at.
    """

    spec: Spec
    dtype: str
    backward: bool
    arrays: Mapping[str, np.ndarray]
    tries: int  # configurations that a peer with free parameters may try, to be timed at its best
    choice: str = ""  # the configuration to take, instead of trying

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.spec.shapes)

    @property
    def results(self) -> tuple[str, ...]:
        """Names of the results, in the order in which Prepared.call returns them."""
        return ("out", *(f"d{name}" for name in self.inputs)) if self.backward else ("out",)

    @property
    def bounds(self) -> list[np.ndarray]:
        return [self.arrays[f"bounds{a}"] for a in range(self.spec.rank)]


class Prepared(NamedTuple):
    """A case, compiled. `call` computes it once, waits, and returns the results: arrays with `nbytes`.

    `to_numpy` brings the results into the layout of jax-na, as float32; None if they are something else.
    `temporary_bytes`: planned by the compiler, besides inputs and results; None if it does not say.
    """

    call: Callable[[], Sequence[Any]]
    to_numpy: Callable[[Sequence[Any]], list[np.ndarray]] | None
    temporary_bytes: Callable[[], int] | None = None
    note: str = ""  # the configuration chosen


@dataclass(frozen=True)
class Method:
    """`obstacle` says why a case cannot be run; `prepare` compiles one that can."""

    name: str
    about: str
    obstacle: Callable[[Case], str | None]
    prepare: Callable[[Case], Prepared]


def too_large(what: str, elements: float, itemsize: int = 4) -> str | None:
    """An obstacle, if an array of this many elements is too large to be worth a try."""
    size = elements * itemsize
    return f"{what} would take {size / GB:.1f} GB" if size > LARGEST_ARRAY else None


def all_pairs(case: Case, what: str) -> str | None:
    """An obstacle, if one number for every pair of query and key is too large."""
    return too_large(what, float(case.spec.batch) * case.spec.heads * case.spec.tokens**2)


def no_bias(case: Case) -> str | None:
    return "this peer is written without a positional bias" if case.spec.rpb else None


def first_of(*obstacles: str | None) -> str | None:
    return next((o for o in obstacles if o is not None), None)


def fastest(case: Case, candidates: Mapping[str, Callable[[], Prepared]]) -> Prepared:
    """The best of some configurations of one method, by a short trial of each."""
    trials: list[tuple[float, Prepared]] = []
    failure: Exception = ValueError("no configuration to try")
    chosen = {note: candidates[note] for note in [case.choice] if note} or candidates
    for note, prepare in itertools.islice(chosen.items(), case.tries):
        try:
            prepared = prepare()._replace(note=note)
            prepared.call()
            trials.append((min(_seconds(prepared.call) for _ in range(3)), prepared))
        except Exception as error:  # a configuration that a compiler refuses is not the method's last word
            failure = error
    if not trials:
        raise failure
    return min(trials, key=lambda trial: trial[0])[1]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
