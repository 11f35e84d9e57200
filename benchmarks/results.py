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

from jax_na.tools.clock import quartiles
from jax_na.tools.report import milliseconds

if TYPE_CHECKING:
    import polars as pl

KEYS = ("problem", "dtype", "direction", "threads", "method")
YARDSTICK = "sgemm"
YARDSTICKS = (YARDSTICK, "torch-sgemm")
LOADED = 0.2  # share of the time of a call that a thread waited for a core, above which the time is doubtful

Row = dict[str, Any]


def read(file: pathlib.Path) -> dict[str, Any]:
    """A results file."""
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def samples(document: dict[str, Any]) -> pl.DataFrame:
    """One row per sample, with the versions and the machine; none of files that have no samples."""
    import polars as pl  # machines that measure need not have it

    lists = ("seconds", "calls", "waited")
    rows = [
        {
            **{key: r[key] for key in ("framework", *KEYS)},
            "round": number,
            **dict(zip(lists, values, strict=True)),
        }
        for r in document["results"]
        if "seconds" in r
        for number, values in enumerate(zip(*(r[name] for name in lists), strict=True))
    ]
    where = document["machine"]
    versions = [pl.lit(version).alias(name) for name, version in document["versions"].items()]
    return pl.DataFrame(rows).with_columns(pl.lit(where.get("gpu", where["cpu"])).alias("machine"), *versions)


def summary(rows: Iterable[Row]) -> list[Row]:
    """One row per method on a problem; "rate" is in FLOP/s, "of_sgemm" over that of a matrix product."""
    found = [_summary(row) for row in rows]
    sgemm = {_place(row): row["rate"] for row in found if row["method"] == YARDSTICK}
    for row in found:
        beside = sgemm.get(_place(row))
        row["of_sgemm"] = None if beside is None else row["rate"] / beside
    return found


def _place(row: Row) -> tuple[Any, ...]:
    """What the methods of the same rounds have in common."""
    return tuple(row[name] for name in KEYS[:-1])


def _summary(row: Row) -> Row:
    if "seconds" in row:
        low, high = quartiles(row["seconds"])
        waited = statistics.median(row["waited"])
    else:
        (low, high), waited = row["quartiles_s"], row["waited"]
    [median] = medians([row])
    return {
        **{name: row[name] for name in ("framework", *KEYS)},
        "median_s": median,
        "low_s": low,
        "high_s": high,
        "is_loaded": waited > LOADED * row["threads"],
        "rate": row["flops"] / median,
        "byte_rate": row["bytes"] / median,
        "exact": row["exact"],
        "extra_bytes": extra_bytes(row.get("memory") or {}),
        "error": max(row["errors"].values(), default=None),
        "note": row["note"],
    }


def medians(rows: Iterable[Row]) -> list[float]:
    """The medians of the seconds."""
    return [row["median_s"] if "median_s" in row else statistics.median(row["seconds"]) for row in rows]


def extra_bytes(memory: dict[str, int]) -> int | None:
    """Peak memory besides inputs and results: planned by the compiler or seen, whichever is more."""
    seen = max(0, memory["rise"] - memory["results"]) if "rise" in memory else None
    found = [b for b in (seen, memory.get("temporary")) if b is not None]
    return max(found, default=None)


def cpu_cells(rows: Sequence[Row]) -> list[list[str]]:
    """One problem on a CPU, fastest first within a number of threads, yardsticks last."""
    head = ["method", "threads", "median ms", "quartiles ms", "GFLOP/s", "of SGEMM", "extra MB", "error", ""]
    order = lambda r: (r["threads"], r["method"] in YARDSTICKS, r["median_s"])  # noqa: E731
    return [head, *map(_cpu_row, sorted(summary(rows), key=order))]


def _cpu_row(r: Row) -> list[str]:
    fraction, error, extra = r["of_sgemm"], r["error"], r["extra_bytes"]
    return [
        r["method"],
        str(r["threads"]),
        milliseconds(r["median_s"]),
        f"{milliseconds(r['low_s'])} - {milliseconds(r['high_s'])}",
        f"{r['rate'] / 1e9:.3g}",
        "" if fraction is None else f"{fraction:.0%}",
        "" if extra is None else f"{extra / 1e6:.2f}",
        "not NA" if error is None else f"{error:.0e}",
        " ".join([r["note"], "(waited for cores)" if r["is_loaded"] else ""]).strip(),
    ]


def reasons(skipped: Iterable[Row]) -> dict[str, list[str]]:
    """The methods by the reason for which they were not measured."""
    found: dict[str, list[str]] = {}
    for s in skipped:
        methods = found.setdefault(s["reason"], [])
        if s["method"] not in methods:
            methods.append(s["method"])
    return found
