# SPDX-License-Identifier: Apache-2.0
"""Results of run.py as tables, ratios and a picture: python benchmarks/report.py RESULTS.json

Of a GPU there is one table for every problem, of a CPU the page of docs/benchmarks.md; --text prints for both
what run.py does.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import results
from results import Row

from jax_na.tools.problems import BY_NAME, PASSES
from jax_na.tools.report import markdown_table, milliseconds, text_table

START, END = "<!-- results: written by report.py -->", "<!-- end of results -->"
Document = dict[str, Any]
Table = Callable[[Sequence[Sequence[str]], int], str]


def tables(document: Document, markdown: bool = False) -> str:
    """A table for every problem, the tiles that were tried, and why methods are missing."""
    table: Table = markdown_table if markdown else text_table
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in results.summary(document["results"]):
        groups.setdefault((row["problem"], row["dtype"]), []).append(row)
    parts = [conditions(document)]
    for (name, dtype), rows in groups.items():
        title = f"{'### ' if markdown else ''}{name}, {dtype}: {BY_NAME[name].about}"
        parts.append(f"{title}\n\n{table(cells(rows, document.get('ceilings')), 2)}")
    if document.get("tiles"):
        parts.append(f"Tiles\n\n{table(tile_cells(document['tiles']), 2)}")
    return "\n\n".join([*parts, *reasons(document["skipped"])]) + "\n"


def conditions(document: Document) -> str:
    """When, where, with what, and what a GPU itself gives."""
    machine, c = document["machine"], document.get("ceilings")
    processor = f"{machine['gpu']}, driver {machine['driver']}" if c else machine["cpu"]
    lines = [f"{document['date']}, {processor}; {results.versions(document)}"]
    if c:
        lines.append(
            f"Ceilings: {c['tflop_per_s']:.0f} TFLOP/s (bfloat16 matrix product of size {c['matmul_size']}), "
            f"{c['gb_per_s']:.0f} GB/s (copy of {c['copy_bytes'] / 1e9:.2g} GB, read and written)"
        )
    return "\n".join([*lines, document["command"]])


def reasons(skipped: Sequence[Row]) -> list[str]:
    """The methods that were not measured by the reason, as a list; nothing if there are none."""
    found: dict[str, dict[str, None]] = {}
    for row in skipped:
        found.setdefault(f"- {row['method']}: {row['reason']}", {})[row["problem"]] = None
    lines = [f"{why}: {', '.join(problems)}" for why, problems in found.items()]
    return ["\n".join(lines)] if lines else []


# One problem: a column is a function of a row and of what a GPU gives; one that is empty is left out


def cells(rows: Sequence[Row], ceilings: dict[str, float] | None) -> list[list[str]]:
    """Fastest first by direction and threads; "fused" is how many times longer than the fused kernel."""
    fused = {_place(row): row["median_s"] for row in rows if row["method"] == "fused"}
    known = [
        row | _against_ceilings(row, ceilings) | {"fused_s": fused.get(_place(row))}
        for row in sorted(rows, key=lambda row: (*_place(row), row["median_s"]))
    ]
    columns = [[name, *map(text, known)] for name, text in COLUMNS.items()]
    return [list(line) for line in zip(*(c for c in columns if any(c[1:])), strict=True)]


def _place(row: Row) -> tuple[int, int]:
    return row["threads"], list(PASSES).index(row["direction"])


def _against_ceilings(row: Row, ceilings: dict[str, float] | None) -> Row:
    """The share of the rate of a matrix product, and of the time that FLOPs or bytes take at least."""
    if ceilings is None:
        return {"of_matmul": row["of_sgemm"], "of_floor": None}
    computing = row["rate"] / (ceilings["tflop_per_s"] * 1e12)
    moving = row["byte_rate"] / (ceilings["gb_per_s"] * 1e9)
    return {"of_matmul": computing, "of_floor": max(computing, moving) if row["exact"] else None}


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _note(row: Row) -> str:
    other = "" if row["exact"] else "another result"
    return ", ".join(filter(None, [row["note"] or other, "waited for cores" if row["is_loaded"] else ""]))


COLUMNS: dict[str, Callable[[Row], str]] = {
    "method": lambda r: r["method"],
    "direction": lambda r: r["direction"],
    "threads": lambda r: str(r["threads"] or ""),
    "ms": lambda r: milliseconds(r["median_s"]),
    "quartiles": lambda r: f"{milliseconds(r['low_s'])} - {milliseconds(r['high_s'])}",
    "FLOP/s": lambda r: f"{r['rate'] / 1e12:.3g} T" if r["rate"] > 1e12 else f"{r['rate'] / 1e9:.3g} G",
    "of matmul": lambda r: _share(r["of_matmul"]),
    "of floor": lambda r: _share(r["of_floor"]),
    "fused": lambda r: "" if r["fused_s"] is None else f"{r['median_s'] / r['fused_s']:.2f}x",
    "extra MB": lambda r: "" if r["extra_bytes"] is None else f"{r['extra_bytes'] / 1e6:.2f}",
    "error": lambda r: "" if r["error"] is None else f"{r['error']:.0e}",
    "note": _note,
}


def tile_cells(tiles: Sequence[Row]) -> list[list[str]]:
    """The tiles that were tried, in the planner's order."""
    kernels: dict[tuple[str, ...], list[tuple[Row, float]]] = {}
    for row, median in zip(tiles, results.medians(tiles), strict=True):
        kernel = tuple(row[key] for key in ("problem", "dtype", "kernel"))
        kernels.setdefault(kernel, []).append((row, median))
    cells = [["problem", "dtype", "kernel", "rank by the planner", "tiles", "ms", "over the fastest"]]
    for kernel, tried in kernels.items():
        best = min(median for _, median in tried)
        for row, median in tried:
            times = [milliseconds(median), f"{median / best:.2f}x"]
            cells.append([*kernel, str(row["rank"]), str(row["tile"]), *times])
    return cells


def whole(document: Document) -> str:
    """The whole report, as Markdown."""
    import page

    is_gpu = "ceilings" in document
    return tables(document, markdown=True) if is_gpu else page.report(page.Results(document))


def replaced(text: str, by: str) -> str:
    """A page with other results."""
    before, after = text.split(START)[0], text.split(END)[1]
    return f"{before}{START}\n\n{by}\n{END}{after}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("results", type=pathlib.Path)
    p.add_argument("--text", action="store_true", help="text instead of Markdown")
    p.add_argument("--chart", type=pathlib.Path, metavar="PNG", help="draw this picture; needs matplotlib")
    p.add_argument("--docs", type=pathlib.Path, metavar="MD", help="replace the results in this page")
    p.add_argument("--samples", type=pathlib.Path, metavar="CSV", help="write one row for every sample")
    return p


def main(arguments: Sequence[str]) -> int:
    """Runs the command."""
    options = parser().parse_args(arguments)
    document = results.read(options.results)
    text = tables(document) if options.text else whole(document)
    if options.docs is None:
        print(text, end="")
    else:
        options.docs.write_text(replaced(options.docs.read_text(), text))
    if options.samples is not None:
        results.samples(document).write_csv(options.samples)
    if options.chart is not None:
        import chart

        chart.draw(document, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
