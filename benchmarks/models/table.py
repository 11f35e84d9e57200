# SPDX-License-Identifier: Apache-2.0
"""Tables of what was measured, with the paper's figures beside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import paper

from jax_na.tools.report import text_table

Row = dict[str, Any]
IMAGENET = 1_281_167  # images of an epoch
COLUMNS = ("naive", "gemm", "fused", "default")


def rate(row: Row) -> float:
    """Images per second."""
    return float(row["shape"][0] / row["seconds"])


def summary(row: Row) -> str:
    """What a row says, in a line."""
    if "reason" in row:
        return str(row["reason"])
    stages = (
        f"traced {row['trace_s']:.1f} s, lowered {row['lower_s']:.1f} s, compiled {row['compile_s']:.1f} s"
    )
    return f"{rate(row):.0f} images/s, {row['memory'] / 1e9:.2f} GB, {stages}"


def tables(content: Row) -> str:
    """All tables, as text."""
    found = [row for row in content["results"] if "reason" not in row]
    parts = []
    for dtype in ("bfloat16", "float32"):
        rows = [row for row in found if row["dtype"] == dtype and not row["trains"]]
        if rows:
            parts += [f"forward, {dtype}, images/s (paper, A100)", text_table(_forward(rows), labels=1), ""]
    rows = [row for row in found if row["trains"]]
    if rows:
        parts += ["training step", text_table(_training(rows), labels=2), ""]
    parts += [f"{row['name']}: {row['reason']}" for row in content["results"] if "reason" in row]
    return "\n".join(parts).rstrip()


def _forward(rows: Sequence[Row]) -> list[list[str]]:
    cells = [["model", *COLUMNS, "GB of fused"]]
    for variant in _names(rows):
        mine = {row["implementation"] or "default": row for row in rows if row["variant"] == variant}
        published = paper.FIGURES.get(variant)
        half_or_single = {} if published is None else published[rows[0]["dtype"] == "float32"]
        line = [variant]
        for name in COLUMNS:
            given = f"{rate(mine[name]):.0f}" if name in mine else ""
            line.append(given + (f" ({half_or_single[name]:g})" if name in half_or_single else ""))
        cells.append([*line, f"{mine['fused']['memory'] / 1e9:.2f}" if "fused" in mine else ""])
    return cells


def _training(rows: Sequence[Row]) -> list[list[str]]:
    stages = ("trace", "lower", "compile")
    cells = [["model", "bias", "ms", "images/s", "epoch, min", "paper, fused", "GB", *stages]]
    for row in rows:
        published = paper.FIGURES.get(row["variant"])
        hours = {} if published is None or row["has_bias"] else published.hours
        minutes = f"{hours['fused'] * 60 / paper.EPOCHS:.1f}" if hours else ""
        speed = [f"{row['seconds'] * 1e3:.1f}", f"{rate(row):.0f}", f"{IMAGENET / rate(row) / 60:.1f}"]
        seconds = [f"{row[f'{s}_s']:.1f} s" if f"{s}_s" in row else "-" for s in stages]  # "-": it was cached
        bias = {True: "yes", False: "no", None: ""}[row["has_bias"]]
        cells.append([row["variant"], bias, *speed, minutes, f"{row['memory'] / 1e9:.2f}", *seconds])
    return cells


def _names(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))
