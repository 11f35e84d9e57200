# SPDX-License-Identifier: Apache-2.0
"""What the benchmark prints: a table per case, and the list of specs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from session import YARDSTICKS, Problem
from specs import Spec

COLUMNS = ("threads", "median ms", "quartiles ms", "GFLOP/s", "of SGEMM", "extra MB", "error")
LOADED = (
    0.2  # share of the time of a call that its threads waited for a core, above which the time is doubtful
)


def print_case(
    console: Console, problem: Problem, results: Sequence[dict[str, Any]], skipped: Iterable[dict[str, Any]]
) -> None:
    """One case: fastest first within a number of threads, then the methods that have no time."""
    title = f"{problem.spec}: {problem.spec.about}, {problem.dtype}, {problem.direction}"
    table = Table(
        box=SIMPLE_HEAD, title=f"{title}: {problem.flops / 1e9:.3g} useful GFLOP", title_justify="left"
    )
    table.add_column("method", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", style="dim")
    for r in sorted(results, key=lambda r: (r["threads"], r["method"] in YARDSTICKS, r["median_s"])):
        table.add_row(*_row(r), style="dim" if r["method"] in YARDSTICKS else None)
    console.print(table)
    for words, methods in _reasons(skipped).items():
        style = "bold red" if "WRONG" in words or "failed" in words else "dim"
        console.print(f"  {', '.join(methods)}: {words}", style=style, highlight=False)


def _row(r: dict[str, Any]) -> list[str]:
    low, high = r["quartiles_s"]
    fraction, error, extra = r["of_sgemm"], r.get("error"), extra_bytes(r)
    return [
        r["method"],
        str(r["threads"]),
        milliseconds(r["median_s"]),
        f"{milliseconds(low)} - {milliseconds(high)}",
        f"{r['gflop_per_s']:.3g}",
        "" if fraction is None else f"{fraction:.0%}",
        "" if extra is None else f"{extra / 1e6:.2f}",
        "not NA" if error is None else f"{error:.0e}",
        " ".join([r["note"], "(waited for cores)" if r["waited"] > LOADED * r["threads"] else ""]).strip(),
    ]


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def extra_bytes(r: dict[str, Any]) -> int | None:
    """Peak memory besides inputs and results: planned by the compiler or seen, whichever is more."""
    memory = r.get("memory") or {}
    seen = max(0, memory["rise"] - memory["results"]) if "rise" in memory else None
    found = [b for b in (seen, memory.get("temporary")) if b is not None]
    return max(found, default=None)


def _reasons(skipped: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The methods by the reason for which they were not measured."""
    reasons: dict[str, list[str]] = {}
    for s in skipped:
        methods = reasons.setdefault(s["reason"], [])
        if s["method"] not in methods:
            methods.append(s["method"])
    return reasons


def print_specs(console: Console, specs: Iterable[Spec]) -> None:
    table = Table(box=SIMPLE_HEAD)
    for column in ("group", "name", "about", "q [batch, *spatial, heads, head_dim]", "window"):
        table.add_column(column, no_wrap=True)
    for spec in specs:
        changed = {"stride": (1,), "dilation": (1,), "is_causal": (False,)}
        extras = [
            f"{n} {by(getattr(spec, n))}" for n, d in changed.items() if getattr(spec, n) != d * spec.rank
        ]
        heads = [f"{spec.kv_heads} kv heads"] if spec.kv_heads != spec.heads else []
        window = ", ".join([by(spec.kernel_size), *extras, *heads, *(["rpb"] if spec.rpb else [])])
        table.add_row(spec.group, spec.name, spec.about, str(list(spec.shapes["query"])), window)
    console.print(table)


def by(values: Iterable[int]) -> str:
    return "x".join(str(int(v)) for v in values)
