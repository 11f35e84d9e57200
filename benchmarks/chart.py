# SPDX-License-Identifier: Apache-2.0
"""The picture of a results file: how long every method takes on every problem."""

from __future__ import annotations

import pathlib
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from page import BEST_JAX, Results

from jax_na.tools.problems import BY_NAME, FORWARD

DTYPE = "float32"
# (method, what it is called, marker, colour)
SERIES = (
    ("fused", "jax-na fused", "o", "#c1121f"),
    ("gemm", "jax-na gemm", "s", "#f4a261"),
    ("naive", "jax-na naive", "v", "#d9b08c"),
    (BEST_JAX, BEST_JAX, "D", "#2a6f97"),
    ("torch-flex", "PyTorch FlexAttention, compiled", "^", "#6a4c93"),
    ("torch-sdpa-all", "PyTorch SDPA over all tokens (another result)", "x", "#8d99ae"),
)


def draw(document: dict[str, Any], file: pathlib.Path) -> None:
    """Dots on a logarithmic axis, with a whisker from quartile to quartile; no axis is cut."""
    mpl.use("Agg")
    results = Results(document)
    names = results.problems(DTYPE, FORWARD)
    figure = Figure(figsize=(9.5, 1.9 + 0.36 * len(names)), layout="constrained")
    ax = figure.add_subplot()
    for method, label, marker, colour in SERIES:
        _dots(ax, results, names, method, fmt=marker, color=colour, label=label)
    _sgemm(ax, results, names)
    _axes(ax, names)
    ax.set_title(_title(results), fontsize=9, loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)


def _axes(ax: Axes, names: list[str]) -> None:
    for row in range(len(names)):
        ax.axhline(row, color="#e5e5e5", linewidth=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xlabel("milliseconds per call (logarithmic; left is faster)")
    ax.set_yticks(range(len(names)), [f"{BY_NAME[s].about}\n{s}" for s in names], fontsize=7.5)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="x", color="#eeeeee")
    ax.set_axisbelow(True)


def _dots(ax: Axes, results: Results, names: list[str], method: str, **style: Any) -> None:
    found = [(row, results.get(problem=name, dtype=DTYPE, method=method)) for row, name in enumerate(names)]
    known = [(row, r) for row, r in found if r is not None]
    if known:
        x = [r["median_s"] * 1e3 for _, r in known]
        low = [max(0.0, (r["median_s"] - r["low_s"]) * 1e3) for _, r in known]
        high = [max(0.0, (r["high_s"] - r["median_s"]) * 1e3) for _, r in known]
        ax.errorbar(x, [row for row, _ in known], xerr=(low, high), markersize=6, elinewidth=1.2, **style)


def _sgemm(ax: Axes, results: Results, names: list[str]) -> None:
    """Where the useful FLOPs would be at the rate of the matrix product in the same rounds."""
    found = [(row, results.get(problem=name, dtype=DTYPE)) for row, name in enumerate(names)]
    known = [(row, r) for row, r in found if r is not None and r["of_sgemm"] is not None]
    milliseconds = [r["median_s"] * 1e3 * r["of_sgemm"] for _, r in known]
    label = "useful FLOPs at the rate of SGEMM"
    ax.plot(milliseconds, [row for row, _ in known], "|", color="black", markersize=13, label=label)


def _title(results: Results) -> str:
    d = results.document
    machine, versions = d["machine"], d["versions"]
    software = ", ".join(f"{n} {versions[n]}" for n in ("jax-na", "jax", "torch") if n in versions)
    return (
        f"Neighborhood attention, forward, {DTYPE}, {results.most} threads: medians and quartiles\n"
        f"{machine['cpu']} ({machine['instruction_set']}), {software}, {d['date']}"
    )
