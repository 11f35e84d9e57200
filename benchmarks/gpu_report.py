# SPDX-License-Identifier: Apache-2.0
"""Results on a GPU: tables of times and rates beside what the machine gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import results
from results import Row

from jax_na.tools.problems import BY_NAME, PASSES
from jax_na.tools.report import markdown_table, milliseconds, text_table

COLUMNS = ("method", "direction", "ms", "TFLOP/s", "of matmul", "GB/s", "of floor", "fused", "error", "")
Table = Callable[[Sequence[Sequence[str]], int], str]


def report(document: dict[str, Any], markdown: bool = False) -> str:
    """The whole report."""
    table: Table = markdown_table if markdown else text_table
    parts = ["\n".join(conditions(document))]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.summary(document["results"]):
        groups.setdefault((row["problem"], row["dtype"]), []).append(row)
    for (name, dtype), rows in groups.items():
        title = f"{'### ' if markdown else ''}{name}, {dtype}: {BY_NAME[name].about}"
        parts.append(f"{title}\n\n{table([COLUMNS, *cells(rows, document['ceilings'])], 2)}")
    if document.get("tiles"):
        parts.append(f"Tiles\n\n{table(tile_cells(document['tiles']), 2)}")
    skipped: dict[str, list[str]] = {}
    for s in document["skipped"]:
        skipped.setdefault(f"{s['method']}: {s['reason']}", []).append(s["problem"])
    parts.append("\n".join(f"- {why}: {', '.join(dict.fromkeys(names))}" for why, names in skipped.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def conditions(document: dict[str, Any]) -> list[str]:
    """When, where, with what, and what the machine itself gives."""
    machine, c = document["machine"], document["ceilings"]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    return [
        f"{document['date']}, {machine['gpu']}, driver {machine['driver']}; {versions}",
        f"Ceilings: {c['tflop_per_s']:.0f} TFLOP/s (bfloat16 matrix product of size {c['matmul_size']}), "
        f"{c['gb_per_s']:.0f} GB/s (copy of {c['copy_bytes'] / 1e9:.2g} GB, read and written)",
        document["command"],
    ]


def cells(rows: Sequence[Row], ceilings: dict[str, float]) -> list[list[str]]:
    """One problem: by direction, fastest first; "fused" is how many times longer than the fused kernel."""
    fused = {r["direction"]: r["median_s"] for r in rows if r["method"] == "fused"}
    order = lambda r: (list(PASSES).index(r["direction"]), r["median_s"])  # noqa: E731
    return [_row(r, ceilings, fused.get(r["direction"])) for r in sorted(rows, key=order)]


def floor(r: Row, ceilings: dict[str, float]) -> float:
    """Seconds that the problem takes at least: of its useful FLOPs, or of its bytes."""
    computing = r["rate"] / (ceilings["tflop_per_s"] * 1e12)
    moving = r["byte_rate"] / (ceilings["gb_per_s"] * 1e9)
    return float(max(computing, moving) * r["median_s"])


def _row(r: Row, ceilings: dict[str, float], fused: float | None) -> list[str]:
    tflop_per_s = r["rate"] / 1e12
    return [
        r["method"],
        r["direction"],
        milliseconds(r["median_s"]),
        f"{tflop_per_s:.4g}",
        f"{tflop_per_s / ceilings['tflop_per_s']:.0%}",
        f"{r['byte_rate'] / 1e9:.4g}",
        f"{floor(r, ceilings) / r['median_s']:.0%}" if r["exact"] else "",
        "" if fused is None or r["method"] == "fused" else f"{r['median_s'] / fused:.2f}x",
        "" if r["error"] is None else f"{r['error']:.0e}",
        r["note"] or ("" if r["exact"] else "all tokens: another result"),
    ]


def tile_cells(tiles: Sequence[Row]) -> list[list[str]]:
    """The tiles that were tried, in the planner's order."""
    rows = [["problem", "kernel", "rank by the planner", "tiles", "ms", "over the fastest"]]
    medians = results.medians(tiles)
    for t, median in zip(tiles, medians, strict=True):
        same = [m for other, m in zip(tiles, medians, strict=True) if _same_kernel(t, other)]
        tile = " ".join(map(str, t["tile"])) if isinstance(t["tile"], list) else t["tile"]
        slower = f"{median / min(same):.2f}x"
        rows.append([t["problem"], t["kernel"], str(t["rank"]), tile, milliseconds(median), slower])
    return rows


def _same_kernel(one: Row, other: Row) -> bool:
    return all(one[key] == other[key] for key in ("problem", "dtype", "kernel"))
