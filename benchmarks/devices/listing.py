# SPDX-License-Identifier: Apache-2.0
"""What is measured on how many devices, the most important first."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from layers import Layer
from splits import STRONG, WEAK, Case, Split, Work, counts, of_others, of_space

from jax_na.tools.problems import BOTH, BY_NAME, FORWARD, Problem, problem

FLUX, HUNYUAN, NAT, LTX = "flux-256-w80", "hunyuan-30x48x80", "nat-s1-56-b128", "ltx-79x192x192-w11"
LARGE, SMALL = (FLUX, HUNYUAN), (NAT, LTX)
QUICK_2D, QUICK_3D = "quick-32x16-w5", "quick-4x8x16-w3"
TRAINED = {"nat": "nat_mini-train-bfloat16-default", "hdit": "imagenet_256-train-bfloat16-default"}
ORDER = (
    (LARGE, STRONG, of_space),
    (LARGE, WEAK, of_space),
    (LARGE, STRONG, of_others),
    (SMALL, STRONG, of_space),
    (SMALL, STRONG, of_others),
)
THEN = (  # after the training steps
    (LARGE, WEAK, of_others),
    (SMALL, WEAK, of_space),
    (SMALL, WEAK, of_others),
)
QUICK = (
    ((QUICK_2D,), STRONG, of_space),
    ((QUICK_2D,), STRONG, of_others),
    ((QUICK_3D,), STRONG, of_space),
    ((QUICK_2D,), WEAK, of_space),
    ((QUICK_2D,), WEAK, of_others),
)


@dataclass(frozen=True)
class Measured:
    """A problem, and the two axes of its grid that are cut: the first one in most parts."""

    problem: Problem
    axes: tuple[int, int]
    directions: Sequence[str] = (FORWARD, BOTH)

    def cases(self, scaling: str, splits: Any, devices: int) -> Iterator[Case]:
        """Direction by direction, all numbers of devices; but only all devices where not space grows."""
        numbers = [devices] if scaling == WEAK and splits is not of_space else counts(devices)
        for direction in self.directions:
            base = Layer(replace(self.problem, direction=direction))
            for number in numbers:
                yield from _possible(base, scaling, splits(self.axes, self.problem.rank, number))


def _problems() -> Iterator[Measured]:
    yield Measured(BY_NAME[FLUX], (0, 1))
    yield Measured(BY_NAME[HUNYUAN], (2, 1))
    yield Measured(BY_NAME[NAT], (0, 1))
    yield Measured(
        problem(LTX, "LTX-2.5 decoder, stage 5", (1, 79, 192, 192), (4, 64), 11, scale=1.0), (1, 2)
    )
    yield Measured(problem(QUICK_2D, "", (1, 32, 16), (8, 8), 5), (0, 1), (BOTH,))
    yield Measured(problem(QUICK_3D, "", (2, 4, 8, 16), (2, 8), 3), (2, 1), (FORWARD,))


PROBLEMS = {m.problem.name: m for m in _problems()}


def _possible(base: Work, scaling: str, splits: Iterator[Split]) -> Iterator[Case]:
    """Not those that do not divide, or that one device has no room to be compared with."""
    for split in splits:
        case = Case(base, split, scaling)
        if case.work.obstacle(split) is None:
            yield case


def cases(devices: int, dtype: str, quick: bool) -> list[Case]:
    """Every case once, those of a group one after the other."""
    training = list(_training(devices, quick))
    found = [*_layers(QUICK if quick else ORDER, devices, dtype), *training]
    if not quick:
        found += _layers(THEN, devices, dtype)
        found += [case for n in counts(devices)[:-1] for case in _training(n, quick)]
    return list(dict.fromkeys(found))


def _layers(order: Any, devices: int, dtype: str) -> Iterator[Case]:
    for names, scaling, splits in order:
        for name in names:
            measured = PROBLEMS[name]
            typed = replace(measured, problem=replace(measured.problem, dtype=dtype))
            yield from typed.cases(scaling, splits, devices)


def _training(devices: int, quick: bool) -> Iterator[Case]:
    """Nothing where the extra train is missing."""
    if not all(map(importlib.util.find_spec, ("flax", "optax"))):
        return
    from training_steps import Training

    for model in _models(quick):
        strong = [Split(batch=devices, space=(1,)), Split(batch=devices // 2, space=(2,))]
        yield from _possible(Training(model), STRONG, iter(strong[: 1 + (devices % 2 == 0)]))
        if not quick:
            yield from _possible(Training(model), WEAK, iter(strong[:1]))


def _models(quick: bool) -> list[Any]:
    import cases as models

    if quick:
        dtypes = {"nat": "float32", "hdit": "bfloat16"}
        tiny = [case for case in models.quick_cases() if case.trains]
        return [replace(c, shape=(8, *c.shape[1:]), dtype=dtypes[c.family]) for c in tiny]
    every = {case.name: case for case in models.cases()}
    return [every[name] for name in TRAINED.values()]


def alone(case: Case) -> Split:
    """One device, for the same work."""
    return Split(space=(1,) * len(case.split.space))
