# SPDX-License-Identifier: Apache-2.0
"""Results of scaling.py as tables, beside the prediction of docs/scaling.md."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from jax_na.mesh.traffic import Link
from jax_na.tools.clock import quartiles
from jax_na.tools.report import markdown_table, milliseconds, text_table

Row = dict[str, Any]
Document = dict[str, Any]
SHORT = {"collective-permute": "permute", "reduce-scatter": "scatter"}
SAME_SPEED = 0.03  # of several processes


def ideal(row: Row) -> float:
    """Seconds if nothing were sent: those of one device, as many times more as there is to do for each."""
    share = row["amount"] / row["amount_alone"] / row["devices"]
    return float(statistics.median(row["alone_seconds"]) * share)


def efficiency(row: Row) -> float:
    """The ideal over what was measured."""
    return ideal(row) / float(statistics.median(row["seconds"]))


def predicted(row: Row, document: Document) -> float:
    """Seconds by docs/scaling.md: the ideal, and to receive the halos and the sums of gradients."""
    link, sizes = Link(**document["link"]), row["sizes"]
    halos = row["received_bytes"] if row["halo_bytes"] is None else row["halo_bytes"]
    ring = 2 * (row["devices"] - 1) / row["devices"] * sizes.get("all-reduce", 0)
    return ideal(row) + link.seconds(halos + ring, sum(row["collectives"].values()))


def summary(row: Row, document: Document) -> str:
    """A row as a line."""
    expected = ideal(row) / predicted(row, document)
    error = max(row["errors"].values())
    time = milliseconds(statistics.median(row["seconds"]))
    shares = f"{efficiency(row):.0%} of ideal ({expected:.0%} predicted)"
    return f"{row['case']}: {time} ms, {shares}, error {error:.0e}"


def reason(skipped: Row) -> str:
    """Why there is no row."""
    return f"{skipped['case']}: {skipped['reason']}"


def conditions(document: Document) -> str:
    """When, where, with what, and what lies between the devices."""
    machine, link = document["machine"], Link(**document["link"])
    where = f"{document['devices']} x {machine.get('gpu', machine['cpu'])}"
    versions = ", ".join(f"{name} {version}" for name, version in sorted(document["versions"].items()))
    lines = [f"{document['date']}, {where}; {versions}"]
    lines.append(
        f"Between neighbours {link.bandwidth / 1e9:.3g} GB/s, {link.latency * 1e6:.3g} us a message, measured"
    )
    return "\n".join([*lines, document["command"]])


def text(document: Document, markdown: bool = False) -> str:
    """One table for every work, what several processes did, and why cases are missing."""
    table = markdown_table if markdown else text_table
    heading = "### " if markdown else ""
    parts = [conditions(document)]
    for (work, direction), rows in _works(document).items():
        one = [row for row in rows if row["processes"] == 1] or rows
        dtype = rows[0]["dtype"]
        parts.append(f"{heading}{work}, {direction}, {dtype}\n\n{table(cells(one, document), 2)}")
    if pairs := paired(document):
        title = f"{heading}{document['processes']} processes instead of one"
        parts.append(f"{title}\n\n{table(process_cells(pairs), 1)}")
    if document["skipped"]:
        parts.append("\n".join(f"- {reason(s)}" for s in document["skipped"]))
    return "\n\n".join(parts) + "\n"


def _works(document: Document) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in document["results"]:
        found.setdefault((row["work"], row["direction"]), []).append(row)
    return found


HEAD = (
    *("scaling", "split", "devices", "ms", "quartiles", "ideal ms", "of ideal", "predicted"),
    *("halo MB", "received MB", "error", "collectives"),
)


def cells(rows: Sequence[Row], document: Document) -> list[list[str]]:
    """Strong ones first. "halo MB" is the formula, "received MB" what permutes of the program bring."""
    table = [list(HEAD)]
    for row in sorted(rows, key=lambda row: (row["scaling"], row["devices"])):
        median, (low, high) = statistics.median(row["seconds"]), quartiles(row["seconds"])
        halo = row["halo_bytes"]
        table.append(
            [
                *(row["scaling"], row["split"], str(row["devices"]), milliseconds(median)),
                *(f"{milliseconds(low)} - {milliseconds(high)}", milliseconds(ideal(row))),
                *(f"{efficiency(row):.0%}", f"{ideal(row) / predicted(row, document):.0%}"),
                *("" if halo is None else f"{halo / 1e6:.3g}", f"{row['received_bytes'] / 1e6:.3g}"),
                f"{max(row['errors'].values()):.0e}",
                _collectives(row),
            ]
        )
    return table


def _collectives(row: Row) -> str:
    return ", ".join(f"{n} {SHORT.get(kind, kind)}" for kind, n in row["collectives"].items()) or "none"


def paired(document: Document) -> list[tuple[Row, Row]]:
    """Rows of the same case, in one process and in several."""
    one = {row["case"]: row for row in document["results"] if row["processes"] == 1}
    several = [row for row in document["results"] if row["processes"] > 1]
    return [(one[row["case"]], row) for row in several if row["case"] in one]


def process_cells(pairs: Sequence[tuple[Row, Row]]) -> list[list[str]]:
    """How much longer several processes take, and whether they compute the same bits."""
    table = [["case", "ms, one", "ms, several", "ratio", "within 3 %", "error", "same bits"]]
    for one, several in pairs:
        medians = [statistics.median(row["seconds"]) for row in (one, several)]
        ratio = medians[1] / medians[0]
        table.append(
            [
                *(one["case"], *map(milliseconds, medians), f"{ratio:.3f}"),
                "yes" if abs(ratio - 1) <= SAME_SPEED else "no",
                f"{max(several['errors'].values()):.0e}",
                "yes" if one["digests"] == several["digests"] else "no",
            ]
        )
    return table
