# SPDX-License-Identifier: Apache-2.0
"""What the axes of an array mean, by its name in a record: which of them may be split over devices, and how.

A role names the leading axes of an array; those behind them, such as features, every device needs whole. The
first array of every record is [*batch, *spatial, heads, ...]: it tells how many batch axes there are.
"""

from __future__ import annotations

from typing import Any

import jax

Role = tuple[str, ...]

QUERIES: Role = ("batch", "queries", "heads")
KEYS: Role = (
    "batch",
    "keys",
    "heads",
)  # extended by a halo where the grid is split; one head may serve all
TOKENS: Role = ("batch", "whole", "heads")
KEY_MASK: Role = ("batch", "keys")
TOKEN_MASK: Role = ("batch", "whole")
BIAS: Role = ("heads",)
OFFSETS: Role = ("offsets",)  # no axis; each device needs the position of its own region

ROLES: dict[str, Role] = {
    "query": QUERIES,
    "key": KEYS,
    "value": KEYS,
    "token_key": TOKENS,
    "token_value": TOKENS,
    "key_mask": KEY_MASK,
    "token_mask": TOKEN_MASK,
    "rpb": BIAS,
    "offsets": OFFSETS,
    "out": QUERIES,
    "lse": QUERIES,
    "scores": QUERIES,
    "weights": QUERIES,
    "x": QUERIES,  # of the trilinear form
    "y": KEYS,
}


def of(record: Any) -> list[Role]:
    """The role of every array of a record (a NamedTuple of arrays, records, None), in their order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(record)
    return [ROLES[path[-1].name] for path, _ in paths]


def factors(role: Role, ndim: int, batch: int, rank: int) -> list[str | None]:
    """What each axis of an array is: "b0".. (batch), "x0".. (grid), "h" (heads), None if it must be whole."""
    grid: list[str | None] = [f"x{i}" for i in range(rank)]
    meaning: dict[str, list[str | None]] = {
        "batch": [f"b{i}" for i in range(batch)],
        "queries": grid,
        "keys": grid,
        "heads": ["h"],
        "whole": [None],
        "offsets": [],
    }
    named = [factor for axes in role for factor in meaning[axes]]
    return named + [None] * (ndim - len(named))
