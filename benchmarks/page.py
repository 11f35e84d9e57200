# SPDX-License-Identifier: Apache-2.0
"""The page about a CPU: times, ratios, and what is asked of the fused kernel, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
import results
from results import Row

from jax_na.tools.problems import BOTH, BY_NAME, FORWARD, OVERHEAD
from jax_na.tools.report import markdown_table, milliseconds

PURE_JAX = ("xla", "jax-blocked", "jax-gather", "jax-dense")
BEST_JAX = "best pure JAX"
METHODS = ("fused", "gemm", "naive", BEST_JAX, "torch-flex", "torch-sdpa-all")
PRODUCTS = (results.YARDSTICK, "torch-sgemm")  # the second one until 2026-11-26
IDLE = ("identity", "empty")  # calls that do nothing; "empty" was an FFI call
SHORT_CALL, SCALING = 1e-3, 1.8  # problems longer than this on one thread must gain so much from two
FEWEST = 0  # stands for the smallest number of threads that was measured
OVERHEAD_US, EXTRA_BYTES = 10, 1_000_000  # of a call, and of each thread


class Ratio(NamedTuple):
    """The time of one method over that of another; "fused", forward, with most threads unless it says so."""

    meaning: str
    slow: Row
    fast: Row


RATIOS = {
    "FlexAttention": Ratio("its time over f", {"method": "torch-flex"}, {}),
    BEST_JAX: Ratio("its time over f", {"method": BEST_JAX}, {}),
    "gemm": Ratio("its time over f", {"method": "gemm"}, {}),
    "pass back": Ratio("forward+backward over f (3.5 times the FLOPs)", {"direction": BOTH}, {}),
    "back, pure JAX": Ratio(
        "its forward+backward over that of the fused kernel",
        {"direction": BOTH, "method": BEST_JAX},
        {"direction": BOTH},
    ),
    "bfloat16": Ratio("float32 over bfloat16", {"dtype": "float32"}, {"dtype": "bfloat16"}),
    "threads": Ratio("f on the fewest threads over f", {"threads": FEWEST}, {}),
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
    threads = _threads(r.most)
    parts = [_conditions(r)]
    for dtype in dtypes:
        for direction in (FORWARD, BOTH):
            if r.problems(dtype, direction):
                parts += [f"### {direction.capitalize()}, {dtype}, {threads}: milliseconds"]
                parts += [markdown_table(times(r, dtype, direction))]
    for dtype in dtypes:
        parts += [f"### Ratios of the fused kernel, {dtype}, {threads}", markdown_table(ratios(r, dtype))]
    meanings = {"of SGEMM": "useful FLOP/s over those of SGEMM"}
    meanings |= {name: ratio.meaning for name, ratio in RATIOS.items()}
    parts += ["\n".join(f"- {name}: {meaning}" for name, meaning in meanings.items())]
    parts += ["### Goals", "\n".join([_memory_goal(r), _scaling_goal(r), _overhead_goal(r)])]
    wrong = [s for s in r.document["skipped"] if "WRONG" in s["reason"]]
    if wrong:
        lines = (f"- {s['method']} on {s['problem']}, {s['dtype']}: {s['reason']}" for s in wrong)
        parts += ["### Wrong results", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


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
    table = [["problem", "of SGEMM", *RATIOS]]
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


# Goals: one line each, with what misses it


def _memory_goal(r: Results) -> str:
    known = [row for row in r.of("fused") if row["extra_bytes"] is not None]
    over = [row for row in known if row["extra_bytes"] > EXTRA_BYTES * row["threads"]]
    missed = [f"{_name(row)} {row['extra_bytes'] / 1e6:.1f} MB" for row in over]
    return _goal("memory besides results at most 1 MB a thread", len(known), missed)


def _scaling_goal(r: Results) -> str:
    """Two threads against one, where both were measured."""
    ones = [row for row in r.of("fused") if row["threads"] == 1 and row["median_s"] > SHORT_CALL]
    gains = [(row, factor(row, r.get(**_key(row), threads=2))) for row in ones]
    known = [(row, gain) for row, gain in gains if gain is not None]
    low = [f"{_name(row)} {gain:.2f}x" for row, gain in known if gain < SCALING]
    return _goal(f"two threads at least {SCALING}x one, over 1 ms", len(known), low)


def _overhead_goal(r: Results) -> str:
    """The fused kernel against a call that does nothing, on the tiny problem."""
    cases, slow = 0, []
    for idle in r.of(*IDLE):
        fused = r.get(problem=idle["problem"], dtype=idle["dtype"], threads=idle["threads"])
        if fused is not None:
            cases += 1
            a, b = fused["median_s"] * 1e6, idle["median_s"] * 1e6
            where = f"{_threads(idle['threads'])} {idle['dtype']}"
            slow += [f"{where}: {a:.1f} against {b:.1f} us"] if a - b > OVERHEAD_US else []
    return _goal(f"a tiny call within {OVERHEAD_US} us of an idle one", cases, slow)


def _key(row: Row) -> Row:
    return {name: row[name] for name in ("problem", "dtype", "direction")}


def _name(row: Row) -> str:
    return " ".join(_key(row).values())


def _goal(text: str, cases: int, missed: Sequence[str]) -> str:
    verdict = f"{cases - len(missed)} of {cases}" if cases else "not measured"
    return "; not ".join([f"- {text}: {verdict}", *(["; ".join(missed)] if missed else [])])


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
