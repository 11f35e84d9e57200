# SPDX-License-Identifier: Apache-2.0
"""The picture of scaling: what was measured and what docs/scaling.md predicts, over the number of devices."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from splits import STRONG, WEAK

Row = dict[str, Any]
# What is cut: colour and marker.
SERIES = {
    "space, one axis": ("#c1121f", "o"),
    "space, two axes": ("#f4a261", "s"),
    "heads": ("#2a6f97", "D"),
    "batch": ("#6a4c93", "^"),
    "heads and space": ("#588157", "v"),
    "batch and space": ("#8d99ae", "P"),
    "batch and heads": ("#bc6c25", "X"),
}


def series(row: Row) -> str:
    """The name of what is cut."""
    parts = row["split"].split("-")
    names = [name for name in ("batch", "heads") if any(p.startswith(name) for p in parts)]
    space = [p.removeprefix("space").split("x") for p in parts if p.startswith("space")]
    if names or not space:
        return " and ".join(names + ["space"] * len(space))
    return "space, two axes" if sum(int(n) > 1 for n in space[0]) > 1 else "space, one axis"


def draw(document: dict[str, Any], file: pathlib.Path) -> None:
    """A row for every work: strong scaling on the left, weak on the right; dashes are the prediction."""
    mpl.use("Agg")
    rows = [row for row in document["results"] if row["processes"] == 1]
    works = list(dict.fromkeys((row["work"], row["direction"]) for row in rows))
    figure = Figure(figsize=(9.5, 1.0 + 1.9 * len(works)), layout="constrained")
    grid = figure.subplots(max(len(works), 1), 2, squeeze=False, sharex=True, sharey=True)
    for axes, (work, direction) in zip(grid, works, strict=False):
        for ax, scaling in zip(axes, (STRONG, WEAK), strict=True):
            found = [
                r for r in rows if (r["work"], r["direction"], r["scaling"]) == (work, direction, scaling)
            ]
            ax.set_visible(bool(found))
            _curves(ax, found, document)
            ax.set_title(f"{work}, {direction}: {scaling}", fontsize=8, loc="left")
    _axes(grid, rows)
    where = tables.conditions(document).splitlines()[0].partition(";")[0]
    figure.suptitle(f"Share of the ideal, measured and (dashed) predicted. {where}", fontsize=9)
    shown = {label: handle for ax in grid.flat for handle, label in _legend(ax)}
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)


def _curves(ax: Axes, rows: Sequence[Row], document: dict[str, Any]) -> None:
    for name, (colour, marker) in SERIES.items():
        points = sorted((r for r in rows if series(r) == name), key=lambda r: r["devices"])
        if points:
            numbers = [1, *(r["devices"] for r in points)]
            measured = [1.0, *map(tables.efficiency, points)]
            predicted = [1.0, *(tables.ideal(r) / tables.predicted(r, document) for r in points)]
            ax.plot(numbers, measured, marker=marker, markersize=5, color=colour, label=name)
            ax.plot(numbers, predicted, "--", color=colour, linewidth=1)


def _legend(ax: Axes) -> list[tuple[Any, str]]:
    return list(zip(*ax.get_legend_handles_labels(), strict=True))


def _axes(grid: Any, rows: Sequence[Row]) -> None:
    numbers = sorted({1, *(row["devices"] for row in rows)})
    for ax in grid.flat:
        ax.set_xscale("log", base=2)
        ax.set_xticks(numbers, [str(n) for n in numbers])
        ax.set_ylim(0, 1.15)
        ax.axhline(1, color="black", linewidth=0.6)
        ax.grid(axis="y", color="#eeeeee")
        ax.spines[["top", "right"]].set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("devices")
    for ax in grid[:, 0]:
        ax.set_ylabel("of ideal", fontsize=8)
