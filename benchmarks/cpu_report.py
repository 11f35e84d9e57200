# SPDX-License-Identifier: Apache-2.0
"""Results on a CPU: tables of times, ratios, and what is asked of the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import results
from results import Row

from jax_na.tools.problems import BOTH, BY_NAME, FORWARD, OVERHEAD
from jax_na.tools.report import markdown_table, milliseconds

PURE_JAX = ("xla", "jax-blocked", "jax-gather", "jax-dense")
BEST_JAX = "best pure JAX"
METHODS = ("fused", "gemm", "naive", BEST_JAX, "torch-flex", "torch-sdpa-all")
IDLE = ("identity", "empty")  # calls that do nothing; "empty" was an FFI call
SHORT_CALL, SCALING = 1e-3, 1.8  # problems longer than this on one thread must gain so much from two
OVERHEAD_US, EXTRA_BYTES = 10, 1_000_000  # of a call, and of each thread

# Columns, and what is divided by what. Forward unless said; times of the fused kernel are f.
RATIOS = {
    "of SGEMM": "useful FLOP/s over those of SGEMM",
    "FlexAttention": "its time over f",
    BEST_JAX: "its time over f",
    "gemm": "its time over f",
    "pass back": "forward+backward over f (3.5 times the FLOPs)",
    "back, pure JAX": "its forward+backward over that of the fused kernel",
    "bfloat16": "float32 over bfloat16",
    "threads": "f on the fewest threads over f",
}


class Results:
    """A results file, by problem. The best of the methods in pure JAX is one more method."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        rows = results.summary(document["results"])
        measured = pl.DataFrame(rows, infer_schema_length=None).with_columns(form=pl.col("method"))
        pure = measured.filter(pl.col("method").is_in(PURE_JAX)).sort("median_s", maintain_order=True)
        best = pure.group_by(results.KEYS[:-1], maintain_order=True).first()
        best = best.with_columns(pl.lit(BEST_JAX).alias("method")).select(measured.columns)
        self.frame = pl.concat([measured, best])
        self._by_key = {tuple(r[k] for k in results.KEYS): r for r in self.frame.iter_rows(named=True)}
        self.threads: list[int] = sorted(set(measured["threads"]))

    @property
    def most(self) -> int:
        """The largest number of threads."""
        return self.threads[-1]

    def of(self, method: str) -> list[Row]:
        """All rows of a method."""
        return list(self.frame.filter(method=method).iter_rows(named=True))

    def problems(self, dtype: str, direction: str) -> list[str]:
        """Names of the problems measured, but the one for the overhead of a call."""
        found = self.frame.filter(dtype=dtype, direction=direction)["problem"].unique(maintain_order=True)
        return [name for name in found if BY_NAME[name].group != OVERHEAD]

    def get(
        self, problem: str, dtype: str, direction: str, method: str, threads: int | None = None
    ) -> Row | None:
        """A row, by default that with most threads."""
        return self._by_key.get((problem, dtype, direction, threads or self.most, method))


def report(r: Results) -> str:
    """The whole report, as Markdown."""
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
    parts += ["\n".join(f"- {name}: {meaning}" for name, meaning in RATIOS.items())]
    parts += ["### Goals", "\n".join([_memory_goal(r), _scaling_goal(r), _overhead_goal(r)])]
    wrong = [s for s in r.document["skipped"] if "WRONG" in s["reason"]]
    if wrong:
        lines = (f"- {s['method']} on {s['problem']}, {s['dtype']}: {s['reason']}" for s in wrong)
        parts += ["### Wrong results", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def times(r: Results, dtype: str, direction: str) -> list[list[str]]:
    """Rows of milliseconds, the first one the header."""
    shown = r.frame.filter(
        pl.col("method").is_in(METHODS),
        pl.col("problem").is_in(r.problems(dtype, direction)),
        dtype=dtype,
        direction=direction,
        threads=r.most,
    )
    is_best = pl.col("median_s") == pl.col("median_s").min().over("problem")
    cells = pl.struct(pl.all()).map_elements(_time, return_dtype=pl.String)
    table = shown.with_columns(is_best.alias("is_best")).with_columns(cells.alias("cell"))
    wide = table.pivot("method", index="problem", values="cell")
    missing = [pl.lit(None).alias(method) for method in METHODS if method not in wide.columns]
    body = wide.with_columns(*missing).fill_null("-").select("problem", *METHODS)
    order = {name: i for i, name in enumerate(r.problems(dtype, direction))}
    return [["problem", *METHODS], *sorted(map(list, body.rows()), key=lambda row: order[row[0]])]


def _time(row: Row) -> str:
    text = milliseconds(row["median_s"])
    text = f"**{text}**" if row["is_best"] else text
    if row["method"] == "fused" and row["of_sgemm"] is not None:
        return f"{text} ({row['rate'] / 1e9:.0f} GFLOP/s, {row['of_sgemm']:.0%})"
    return f"{text} ({row['form']})" if row["method"] == BEST_JAX else text


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times longer the first takes, if both were measured."""
    return None if slow is None or fast is None else float(slow["median_s"] / fast["median_s"])


def ratios(r: Results, dtype: str) -> list[list[str]]:
    """Rows of how the fused kernel compares, the first one the header; RATIOS explains the columns."""
    rows = [["problem", *RATIOS]]
    for name in r.problems(dtype, FORWARD):
        f, both = (r.get(name, dtype, direction, "fused") for direction in (FORWARD, BOTH))
        half = r.get(name, "bfloat16", FORWARD, "fused") if dtype == "float32" else None
        row = [
            None if f is None or f["of_sgemm"] is None else f"{f['of_sgemm']:.0%}",
            *(_factor(ratio(r.get(name, dtype, FORWARD, m), f)) for m in ("torch-flex", BEST_JAX, "gemm")),
            _factor(ratio(both, f)),
            _factor(ratio(r.get(name, dtype, BOTH, BEST_JAX), both)),
            _factor(ratio(f, half)),
            _factor(ratio(r.get(name, dtype, FORWARD, "fused", r.threads[0]), f)),
        ]
        rows.append([name, *(cell or "-" for cell in row)])
    return rows


def _factor(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


# Goals: one line each, with what misses it


def _memory_goal(r: Results) -> str:
    known = [row for row in r.of("fused") if row["extra_bytes"] is not None]
    over = [row for row in known if row["extra_bytes"] > EXTRA_BYTES * row["threads"]]
    missed = [f"{_name(row)} {row['extra_bytes'] / 1e6:.1f} MB" for row in over]
    return _goal("memory besides results at most 1 MB a thread", len(known), missed)


def _scaling_goal(r: Results) -> str:
    """Two threads against one, where both were measured."""
    ones = [row for row in r.of("fused") if row["threads"] == 1 and row["median_s"] > SHORT_CALL]
    twos = [r.get(one["problem"], one["dtype"], one["direction"], "fused", 2) for one in ones]
    gains = [
        (one, gain) for one, two in zip(ones, twos, strict=True) if (gain := ratio(one, two)) is not None
    ]
    low = [f"{_name(one)} {gain:.2f}x" for one, gain in gains if gain < SCALING]
    return _goal(f"two threads at least {SCALING}x one, over 1 ms", len(gains), low)


def _overhead_goal(r: Results) -> str:
    """The fused kernel against a call that does nothing, on the tiny problem."""
    pairs = []
    for idle in (row for method in IDLE for row in r.of(method)):
        fused = r.get(idle["problem"], idle["dtype"], FORWARD, "fused", idle["threads"])
        if fused is not None:
            pairs.append((idle, fused["median_s"] * 1e6, idle["median_s"] * 1e6))
    slow = [
        f"{_threads(idle['threads'])} {idle['dtype']}: {a:.1f} against {b:.1f} us"
        for idle, a, b in pairs
        if a - b > OVERHEAD_US
    ]
    return _goal(f"a tiny call within {OVERHEAD_US} us of an idle one", len(pairs), slow)


def _name(row: Row) -> str:
    return f"{row['problem']} {row['dtype']} {row['direction']}"


def _goal(text: str, cases: int, missed: Sequence[str]) -> str:
    verdict = "not measured" if not cases else f"{cases - len(missed)} of {cases}"
    return f"- {text}: {verdict}" + (f"; not {'; '.join(missed)}" if missed else "")


# Conditions


def _conditions(r: Results) -> str:
    """When, where, with what, and how fast the machine was."""
    d, machine = r.document, r.document["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(d["versions"].items()))
    return (
        f"{d['date']}, {machine['cpu']}, {r.most} of {machine['cpus']} CPUs, {caches}, kernels for "
        f"{machine['instruction_set']}; {versions}. {_sgemm(r)}\n\n`{d['command']}`"
    )


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _sgemm(r: Results) -> str:
    """The rates of the matrix products, medians over the problems."""
    products = r.frame.filter(pl.col("method").is_in(results.YARDSTICKS))
    middle = pl.col("rate").sort().get(pl.len() // 2)
    medians = products.group_by("framework", "threads").agg(middle).sort("framework", "threads")
    texts = [f"{name} {rate / 1e9:.0f} ({_threads(n)})" for name, n, rate in medians.rows()]
    return f"SGEMM 1024 in the same rounds, GFLOP/s: {', '.join(texts)}."
