# SPDX-License-Identifier: Apache-2.0
"""Which tests a run takes without --exhaustive.

A test with several parameters stands for all combinations of their values. A run takes so many of them that
every value of every parameter occurs; which combinations these are follows from the seed, so that another run
tries others. A value that has `features`, a problem, need not occur itself: all its features must, each with
every value of the other parameters that it has anywhere. Tests marked `@pytest.mark.some(n)`, whose parameter
only counts random problems, are run for n successive numbers, of which 0 is none.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest

Values = Mapping[str, object]


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


def successive(count: int, number: int, order: random.Random) -> list[int]:
    """So many numbers below `count`, one after the other, and from 0 again at the end."""
    start = order.randrange(count)
    return sorted((start + i) % count for i in range(min(number, count)))


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
            chosen = successive(len(group), some.args[0], order)
        elif hasattr(group[0], "callspec"):
            chosen = covering([item.callspec.params for item in group], order)
        else:
            chosen = range(len(group))
        kept.update(group[i] for i in chosen)
    return [item for item in items if item in kept]
