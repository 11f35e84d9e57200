# SPDX-License-Identifier: Apache-2.0
"""The page about a CPU: times, ratios, and what is asked of the fused kernel, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import results
from results import Row

from jax_na.tools.problems import BOTH, BY_NAME, FORWARD, OVERHEAD
from jax_na.tools.report import markdown_table, milliseconds

PURE_JAX = ("xla", "jax-blocked", "jax-gather", "jax-dense")
BEST_JAX = "best pure JAX"
SHARE = "of SGEMM"
METHODS = ("fused", "gemm", "naive", BEST_JAX, "torch-flex", "torch-sdpa-all")
PRODUCTS = (results.YARDSTICK, "torch-sgemm")  # the second one until 2026-11-26
IDLE = ("identity", "empty")  # calls that do nothing; "empty" was an FFI call
SHORT_CALL, SCALING = 1e-3, 1.8  # problems longer than this on one thread must gain so much from two
FEWEST = 0  # stands for the smallest number of threads that was measured
OVERHEAD_US, EXTRA_BYTES = 10, 1_000_000  # of a call, and of each thread


Case = tuple[str, bool]  # in words, and whether it meets a goal


# What it means, and the time of which row is divided by that of which other one: rows of the fused kernel,
# forward, with most threads unless it says something else.
RATIOS: dict[str, tuple[str, Row, Row]] = {
    "FlexAttention": ("its time over f", {"method": "torch-flex"}, {}),
    BEST_JAX: ("its time over f", {"method": BEST_JAX}, {}),
    "gemm": ("its time over f", {"method": "gemm"}, {}),
    "pass back": ("forward+backward over f (3.5 times the FLOPs)", {"direction": BOTH}, {}),
    "back, pure JAX": (
        "its forward+backward over that of the fused kernel",
        {"direction": BOTH, "method": BEST_JAX},
        {"direction": BOTH},
    ),
    "bfloat16": ("float32 over bfloat16", {"dtype": "float32"}, {"dtype": "bfloat16"}),
    "threads": ("f on the fewest threads over f", {"threads": FEWEST}, {}),
}


class Results:
    """A results file, by problem. The best of the methods in pure JAX is one more method."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        rows = results.summary(document["results"])
        measured = pl.DataFrame(rows, infer_schema_length=None).with_columns(form=pl.col("method"))
        pure = measured.filter(pl.col("method").is_in(PURE_JAX)).sort("median_s", maintain_order=True)
        best = pure.group_by(results.KEYS[:-1], maintain_order=True).first()
        best = best.with_columns(method=pl.lit(BEST_JAX)).select(measured.columns)
        self.frame = pl.concat([measured, best])
        self._by_key = {tuple(r[k] for k in results.KEYS): r for r in self.frame.iter_rows(named=True)}
        self.threads: list[int] = sorted(set(measured["threads"]))

    @property
    def most(self) -> int:
        """The largest number of threads."""
        return self.threads[-1]

    def of(self, *methods: str) -> list[Row]:
        """All rows of some methods."""
        return list(self.frame.filter(pl.col("method").is_in(methods)).iter_rows(named=True))

    def problems(self, dtype: str, direction: str) -> list[str]:
        """Names of the problems measured, but the one for the overhead of a call."""
        found = self.frame.filter(dtype=dtype, direction=direction)["problem"].unique(maintain_order=True)
        return [name for name in found if BY_NAME[name].group != OVERHEAD]

    def get(self, **key: Any) -> Row | None:
        """A row; of the fused kernel, forward, with most threads unless the key says something else."""
        whole = {"direction": FORWARD, "method": "fused", "threads": self.most} | key
        if whole["threads"] == FEWEST:
            whole["threads"] = self.threads[0]
        return self._by_key.get(tuple(whole[name] for name in results.KEYS))


def report(r: Results) -> str:
    """The whole report."""
    dtypes = list(dict.fromkeys(r.frame["dtype"]))
    parts = [_conditions(r)]
    for dtype in dtypes:
        for direction in (FORWARD, BOTH):
            if r.problems(dtype, direction):
                parts += [f"### {direction.capitalize()}, {dtype}, {_threads(r.most)}: milliseconds"]
                parts += [markdown_table(times(r, dtype, direction))]
    for dtype in dtypes:
        parts += [f"### Ratios of the fused kernel, {dtype}, {_threads(r.most)}"]
        parts += [markdown_table(ratios(r, dtype))]
    meanings = [f"- {name}: {ratio[0]}" for name, ratio in RATIOS.items()]
    parts += ["\n".join([f"- {SHARE}: useful FLOP/s over those of SGEMM", *meanings])]
    parts += ["### Goals", "\n".join(goals(r))]
    wrong = _wrong(r.document["skipped"])
    return "\n\n".join([*parts, *(["### Wrong results", wrong] if wrong else [])]) + "\n"


def _wrong(skipped: Sequence[Row]) -> str:
    rows = [row for row in skipped if "WRONG" in row["reason"]]
    return "\n".join(f"- {s['method']} on {s['problem']}, {s['dtype']}: {s['reason']}" for s in rows)


def times(r: Results, dtype: str, direction: str) -> list[list[str]]:
    """Rows of milliseconds, the first one the header."""
    table = [["problem", *METHODS]]
    for name in r.problems(dtype, direction):
        key = {"problem": name, "dtype": dtype, "direction": direction}
        rows = [r.get(method=method, **key) for method in METHODS]
        best = min((row["median_s"] for row in rows if row is not None), default=0.0)
        table.append([name, *("-" if row is None else _time(row, best) for row in rows)])
    return table


def _time(row: Row, best: float) -> str:
    text = milliseconds(row["median_s"])
    text = f"**{text}**" if row["median_s"] == best else text
    if row["method"] == "fused" and row["of_sgemm"] is not None:
        return f"{text} ({row['rate'] / 1e9:.0f} GFLOP/s, {row['of_sgemm']:.0%})"
    return f"{text} ({row['form']})" if row["method"] == BEST_JAX else text


def ratios(r: Results, dtype: str) -> list[list[str]]:
    """Rows of how the fused kernel compares, the first one the header; RATIOS explains the columns."""
    table = [["problem", SHARE, *RATIOS]]
    for name in r.problems(dtype, FORWARD):
        key = {"problem": name, "dtype": dtype}
        fused = r.get(**key)
        share = None if fused is None else fused["of_sgemm"]
        factors = [factor(r.get(**key | slow), r.get(**key | fast)) for _, slow, fast in RATIOS.values()]
        table.append([name, "-" if share is None else f"{share:.0%}", *map(_factor, factors)])
    return table


def factor(slow: Row | None, fast: Row | None) -> float | None:
    """How many times longer the first takes, if both were measured."""
    return None if slow is None or fast is None else float(slow["median_s"] / fast["median_s"])


def _factor(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


# Goals: cases of the fused kernel, and whether each meets the goal


def _memory(r: Results) -> Iterator[Case]:
    for row in r.of("fused"):
        extra = row["extra_bytes"]
        if extra is not None:
            yield f"{_name(row)} {extra / 1e6:.1f} MB", extra <= EXTRA_BYTES * row["threads"]


def _scaling(r: Results) -> Iterator[Case]:
    for row in r.of("fused"):
        if row["threads"] == 1 and row["median_s"] > SHORT_CALL:
            gain = factor(row, r.get(**_key(row), threads=2))
            if gain is not None:
                yield f"{_name(row)} {gain:.2f}x", gain >= SCALING


def _overhead(r: Results) -> Iterator[Case]:
    """Calls of the tiny problem."""
    for row in r.of(*IDLE):
        fused = r.get(**_key(row), threads=row["threads"])
        if fused is not None:
            call, idle = fused["median_s"] * 1e6, row["median_s"] * 1e6
            where = f"{_threads(row['threads'])} {row['dtype']}"
            yield f"{where}: {call:.1f} against {idle:.1f} us", call - idle <= OVERHEAD_US


GOALS = {
    "memory besides results at most 1 MB a thread": _memory,
    f"two threads at least {SCALING}x one, over 1 ms": _scaling,
    f"a tiny call within {OVERHEAD_US} us of an idle one": _overhead,
}


def goals(r: Results) -> Iterator[str]:
    """One line for each goal, with what misses it."""
    for text, cases in GOALS.items():
        found = list(cases(r))
        missed = [words for words, is_met in found if not is_met]
        verdict = f"{len(found) - len(missed)} of {len(found)}" if found else "not measured"
        yield f"- {text}: {verdict}" + (f"; not {'; '.join(missed)}" if missed else "")


def _key(row: Row) -> Row:
    return {name: row[name] for name in ("problem", "dtype", "direction")}


def _name(row: Row) -> str:
    return " ".join(_key(row).values())


# Conditions


def _conditions(r: Results) -> str:
    """When, where, with what, and how fast the machine was."""
    d, machine = r.document, r.document["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    return (
        f"{d['date']}, {machine['cpu']}, {r.most} of {machine['cpus']} CPUs, {caches}, kernels for "
        f"{machine['instruction_set']}; {results.versions(d)}. {_sgemm(r)}\n\n`{d['command']}`"
    )


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _sgemm(r: Results) -> str:
    """The rates of the matrix products, medians over the problems."""
    products = r.frame.filter(pl.col("method").is_in(PRODUCTS))
    middle = pl.col("rate").sort().get(pl.len() // 2)
    medians = products.group_by("framework", "threads").agg(middle).sort("framework", "threads")
    texts = [f"{name} {rate / 1e9:.0f} ({_threads(n)})" for name, n, rate in medians.rows()]
    return f"SGEMM 1024 in the same rounds, GFLOP/s: {', '.join(texts)}."
