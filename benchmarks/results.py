# SPDX-License-Identifier: Apache-2.0
"""Results files as tables: one row per sample, and one per method on a problem.

A results file has the conditions of a run and "results", one object per method on a problem, with lists of
"seconds" and "waited". Files from before 2026-11-26 have kept "median_s", "quartiles_s" and the number of
"samples" instead.
"""

from __future__ import annotations

import json
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jax_na.tools.clock import Sample, quartiles

if TYPE_CHECKING:
    import polars as pl

KEYS = ("problem", "dtype", "direction", "threads", "method")
YARDSTICK = "sgemm"
LOADED = 0.2  # share of the time of a call that a thread waited for a core, above which the time is doubtful

Row = dict[str, Any]


def read(file: pathlib.Path) -> dict[str, Any]:
    """A results file."""
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def versions(document: dict[str, Any]) -> str:
    """Of everything that took part."""
    return ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))


def samples(document: dict[str, Any]) -> pl.DataFrame:
    """One row per sample, with the versions and the machine; none of files that have no samples."""
    import polars as pl  # machines that measure need not have it

    measured = [row for row in document["results"] if "seconds" in row]
    columns = ["framework", *KEYS, *Sample._fields]
    frame = pl.DataFrame([{name: row[name] for name in columns} for row in measured], schema=columns)
    rounds = pl.int_ranges(pl.col("seconds").list.len()).alias("round")
    where = document["machine"]
    facts = {"machine": where.get("gpu", where["cpu"]), **document["versions"]}
    literals = [pl.lit(value).alias(name) for name, value in facts.items()]
    return frame.with_columns(rounds).explode("round", *Sample._fields).with_columns(literals)


def summary(rows: Iterable[Row]) -> list[Row]:
    """One row per method on a problem; "rate" is in FLOP/s, "of_sgemm" over that of a matrix product."""
    found = [_summary(row) for row in rows]
    sgemm = {_place(row): row["rate"] for row in found if row["method"] == YARDSTICK}
    for row in found:
        product = sgemm.get(_place(row))
        row["of_sgemm"] = None if product is None else row["rate"] / product
    return found


def _place(row: Row) -> tuple[Any, ...]:
    """What the methods of the same rounds have in common."""
    return tuple(row[name] for name in KEYS[:-1])


def _summary(row: Row) -> Row:
    [median] = medians([row])
    (low, high), waited = _spread(row)
    return {
        **{name: row[name] for name in ("framework", *KEYS, "exact", "note")},
        **{"median_s": median, "low_s": low, "high_s": high},
        "is_loaded": waited > LOADED * row["threads"],
        "rate": row["flops"] / median,
        "byte_rate": row["bytes"] / median,
        "extra_bytes": extra_bytes(row.get("memory") or {}),
        "error": max(row["errors"].values(), default=None),
    }


def _spread(row: Row) -> tuple[Sequence[float], float]:
    """The quartiles of the seconds, and the middle one of the shares without a core."""
    if "seconds" in row:
        return quartiles(row["seconds"]), statistics.median(row["waited"])
    return row["quartiles_s"], row["waited"]


def medians(rows: Iterable[Row]) -> list[float]:
    """The medians of the seconds."""
    return [row["median_s"] if "median_s" in row else statistics.median(row["seconds"]) for row in rows]


def extra_bytes(memory: dict[str, int]) -> int | None:
    """Peak memory besides inputs and results: planned by the compiler or seen, whichever is more."""
    seen = max(0, memory["rise"] - memory["results"]) if "rise" in memory else None
    found = [b for b in (seen, memory.get("temporary")) if b is not None]
    return max(found, default=None)
