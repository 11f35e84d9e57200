# SPDX-License-Identifier: Apache-2.0
"""Which tests a run takes without --exhaustive.

A test with several parameters stands for all combinations of their values. A run takes so many of them that
every value of every parameter occurs; which combinations these are follows from the seed, so that another run
tries others. A value that has `features`, a problem, need not occur itself: all its features must, each with
every value of the other parameters that it has anywhere. Of a test marked `@pytest.mark.some(n)`, because it
is slow or its parameter only counts random problems, n combinations are run, drawn by the seed; 0 is none.

CUDA kernels are compiled for the executor in two of their four arithmetics, and tests of the others left out.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest

Values = Mapping[str, object]


def arithmetics(seed: int) -> str:
    """Those that the executor's kernels are compiled for: two of four, which is half of the time."""
    return "BF16," + random.Random(seed).choice(("F16", "TF32", "ExactF32"))


def marks_of(row: Values) -> set[tuple[str, ...]]:
    """What a row shows that a choice of rows must show."""
    values = {(name, repr(value)) for name, value in row.items() if not hasattr(value, "features")}
    features = {f for value in row.values() for f in getattr(value, "features", ())}
    return values | {(feature, *value) for feature in features for value in (values or {()})}


def covering(rows: Sequence[Values], order: random.Random) -> list[int]:
    """Numbers of few rows that show together what all of them show."""
    marks = [marks_of(row) for row in rows]
    missing = set().union(*marks)
    candidates = order.sample(range(len(rows)), len(rows))
    chosen = []
    while missing:
        best = max(candidates, key=lambda i: len(marks[i] & missing))
        missing -= marks[best]
        chosen.append(best)
    return sorted(chosen)


def by_function(items: Iterable[pytest.Item]) -> dict[Hashable, list[pytest.Item]]:
    groups: dict[Hashable, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return groups


def thinned(items: Sequence[pytest.Item], seed: int) -> list[pytest.Item]:
    """Those of the collected tests that are run, in their order."""
    kept: set[pytest.Item] = set()
    for name, group in by_function(items).items():
        order = random.Random(f"{seed} {name}")
        some = group[0].get_closest_marker("some")
        if some is not None:
            chosen = sorted(order.sample(range(len(group)), min(some.args[0], len(group))))
        elif hasattr(group[0], "callspec"):
            chosen = covering([item.callspec.params for item in group], order)
        else:
            chosen = range(len(group))
        kept.update(group[i] for i in chosen)
    return [item for item in items if item in kept]
