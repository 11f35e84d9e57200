# SPDX-License-Identifier: Apache-2.0
"""Results of gpu.py as tables: python benchmarks/gpu_report.py RESULTS.json [--markdown]"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

COLUMNS = ("method", "direction", "ms", "TFLOP/s", "of matmul", "GB/s", "of floor", "fused", "error", "")
Result = dict[str, Any]


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


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def rows(results: Sequence[Result]) -> list[list[str]]:
    """One problem: by direction, fastest first; "fused" is how many times longer than the fused kernel."""
    fused = {r["direction"]: r["median_s"] for r in results if r["method"] == "fused"}
    return [_row(r, fused.get(r["direction"])) for r in sorted(results, key=_order)]


def _order(r: Result) -> tuple[int, float]:
    return ["forward", "backward", "forward+backward"].index(r["direction"]), r["median_s"]


def _row(r: Result, fused: float | None) -> list[str]:
    errors = r.get("errors") or {}
    return [
        r["method"],
        r["direction"],
        milliseconds(r["median_s"]),
        f"{r['tflop_per_s']:.4g}",
        f"{r['of_matmul']:.0%}",
        f"{r['gb_per_s']:.4g}",
        f"{r['of_floor']:.0%}" if r["exact"] else "",
        "" if fused is None or r["method"] == "fused" else f"{r['median_s'] / fused:.2f}x",
        f"{max(errors.values()):.0e}" if errors else "",
        r.get("note", "") or ("" if r["exact"] else "all tokens: another result"),
    ]


def problems(document: dict[str, Any]) -> Iterable[tuple[str, str, list[Result]]]:
    """(spec, dtype, results), in the order in which they were measured."""
    keys = dict.fromkeys((r["spec"], r["dtype"]) for r in document["results"])
    for spec, dtype in keys:
        yield spec, dtype, [r for r in document["results"] if (r["spec"], r["dtype"]) == (spec, dtype)]


def text_table(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 1, len(row) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def markdown_table(cells: Sequence[Sequence[str]]) -> str:
    head, *body = cells
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(document: dict[str, Any], markdown: bool = False) -> str:
    """The whole report."""
    table = markdown_table if markdown else text_table
    parts = ["\n".join(conditions(document))]
    for spec, dtype, results in problems(document):
        title = f"{spec}, {dtype}: {results[0]['about']}"
        parts.append(f"{'### ' if markdown else ''}{title}\n\n{table([COLUMNS, *rows(results)])}")
    if document.get("tiles"):
        parts.append(tiles(document, table))
    skipped: dict[str, list[str]] = {}
    for s in document["skipped"]:
        skipped.setdefault(f"{s['method']}: {s['reason']}", []).append(s["spec"])
    parts.append("\n".join(f"- {why}: {', '.join(dict.fromkeys(specs))}" for why, specs in skipped.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def tiles(document: dict[str, Any], table: Any) -> str:
    """The tiles that were tried, in the planner's order."""
    cells = [["problem", "kernel", "rank by the planner", "tiles", "ms", "over the fastest"]]
    for t in document["tiles"]:
        cells.append(
            [
                t["spec"],
                t["kernel"],
                str(t["rank"]),
                " ".join(map(str, t["tile"])),
                milliseconds(t["median_s"]),
                f"{t['median_s'] / t['fastest_s']:.2f}x",
            ]
        )
    return f"Tiles\n\n{table(cells)}"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)
    print(report(json.loads(options.results.read_text()), options.markdown), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
