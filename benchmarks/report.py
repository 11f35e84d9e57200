# SPDX-License-Identifier: Apache-2.0
"""Results of run.py as Markdown tables, ratios and a picture: python benchmarks/report.py RESULTS.json"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from session import BOTH, FORWARD
from specs import BY_NAME, OVERHEAD
from table import extra_bytes, milliseconds

PURE_JAX = ("xla", "jax-blocked", "jax-gather", "jax-dense")
BEST_JAX = "best pure JAX"
METHODS = ("fused", "gemm", "naive", BEST_JAX, "torch-flex", "torch-sdpa-all")
START, END = "<!-- results: written by report.py -->", "<!-- end of results -->"
SHORT_CALL, SCALING = 1e-3, 1.8  # problems longer than this on one thread must gain so much from two
OVERHEAD_US, EXTRA_BYTES = 10, 1_000_000  # of a call, and of each thread

# Columns, and what is divided by what. Forward unless said; times of the fused kernel are f
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

Result = dict[str, Any]


class Results:
    """A results file, by case."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        keys = ("spec", "dtype", "direction", "threads", "method")
        self._by_key = {tuple(r[k] for k in keys): r for r in document["results"]}
        self.threads: list[int] = sorted({r["threads"] for r in document["results"]})

    @property
    def most(self) -> int:
        return self.threads[-1]

    def of(self, method: str) -> list[Result]:
        return [r for r in self.document["results"] if r["method"] == method]

    def specs(self, dtype: str, direction: str) -> list[str]:
        """Names of the problems measured, but the one for the overhead of a call."""
        found = (
            r["spec"] for r in self.document["results"] if (r["dtype"], r["direction"]) == (dtype, direction)
        )
        return [s for s in dict.fromkeys(found) if BY_NAME[s].group != OVERHEAD]

    def get(
        self, spec: str, dtype: str, direction: str, method: str, threads: int | None = None
    ) -> Result | None:
        """A result, by default that with most threads."""
        if method == BEST_JAX:
            found = [self.get(spec, dtype, direction, name, threads) for name in PURE_JAX]
            return min((r for r in found if r is not None), key=lambda r: r["median_s"], default=None)
        return self._by_key.get((spec, dtype, direction, threads or self.most, method))


def ratio(slow: Result | None, fast: Result | None) -> float | None:
    return None if slow is None or fast is None else float(slow["median_s"] / fast["median_s"])


def times(results: Results, dtype: str, direction: str) -> list[list[str]]:
    """Rows of milliseconds, the first one the header."""
    rows = [["problem", *METHODS]]
    for spec in results.specs(dtype, direction):
        cells = [results.get(spec, dtype, direction, method) for method in METHODS]
        best = min((r["median_s"] for r in cells if r is not None), default=0.0)
        rows.append([spec, *(_time(r, best) for r in cells)])
    return rows


def _time(r: Result | None, best: float) -> str:
    if r is None:
        return "-"
    text = milliseconds(r["median_s"])
    text = f"**{text}**" if r["median_s"] == best else text
    if r["method"] == "fused" and r["of_sgemm"] is not None:
        return f"{text} ({r['gflop_per_s']:.0f} GFLOP/s, {r['of_sgemm']:.0%})"
    return f"{text} ({r['method']})" if r["method"] in PURE_JAX else text


def ratios(results: Results, dtype: str) -> list[list[str]]:
    """Rows of how the fused kernel compares, the first one the header; RATIOS explains the columns."""
    rows = [["problem", *RATIOS]]
    for spec in results.specs(dtype, FORWARD):
        f = results.get(spec, dtype, FORWARD, "fused")
        both = results.get(spec, dtype, BOTH, "fused")
        row = [
            None if f is None or f["of_sgemm"] is None else f"{f['of_sgemm']:.0%}",
            _times(ratio(results.get(spec, dtype, FORWARD, "torch-flex"), f)),
            _times(ratio(results.get(spec, dtype, FORWARD, BEST_JAX), f)),
            _times(ratio(results.get(spec, dtype, FORWARD, "gemm"), f)),
            _times(ratio(both, f)),
            _times(ratio(results.get(spec, dtype, BOTH, BEST_JAX), both)),
            _times(ratio(f, results.get(spec, "bfloat16", FORWARD, "fused")) if dtype == "float32" else None),
            _times(ratio(results.get(spec, dtype, FORWARD, "fused", results.threads[0]), f)),
        ]
        rows.append([spec, *(cell or "-" for cell in row)])
    return rows


def _times(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}x" if value < 10 else f"{value:.0f}x"


def overheads(results: Results) -> list[tuple[int, str, float, float]]:
    """(threads, dtype, microseconds of the fused call, of the empty call) on the tiny problems."""
    found = []
    for r in results.of("empty"):
        fused = results.get(r["spec"], r["dtype"], FORWARD, "fused", r["threads"])
        if fused is not None:
            found.append((r["threads"], r["dtype"], fused["median_s"] * 1e6, r["median_s"] * 1e6))
    return found


def goals(results: Results) -> list[str]:
    """What is asked of the fused kernel, one line each, with those that miss it."""
    return [_memory_goal(results), _scaling_goal(results), _overhead_goal(results)]


def _memory_goal(results: Results) -> str:
    extra = [(r, extra_bytes(r)) for r in results.of("fused")]
    known = [(r, size) for r, size in extra if size is not None]
    over = [f"{_name(r)} {size / 1e6:.1f} MB" for r, size in known if size > EXTRA_BYTES * r["threads"]]
    return _goal("memory besides results at most 1 MB a thread", len(known), over)


def _scaling_goal(results: Results) -> str:
    """Two threads against one, where both were measured."""
    gains = []
    for one in results.of("fused"):
        if one["threads"] == 1 and one["median_s"] > SHORT_CALL:
            two = results.get(one["spec"], one["dtype"], one["direction"], "fused", 2)
            gains.append((one, ratio(one, two)))
    known = [(one, gain) for one, gain in gains if gain is not None]
    low = [f"{_name(one)} {gain:.2f}x" for one, gain in known if gain < SCALING]
    return _goal(f"two threads at least {SCALING}x one, over 1 ms", len(known), low)


def _overhead_goal(results: Results) -> str:
    calls = overheads(results)
    slow = [f"{_threads(n)} {d}: {a:.1f} against {b:.1f} us" for n, d, a, b in calls if a - b > OVERHEAD_US]
    return _goal(f"a tiny call within {OVERHEAD_US} us of an empty one", len(calls), slow)


def _name(r: Result) -> str:
    return f"{r['spec']} {r['dtype']} {r['direction']}"


def _goal(text: str, cases: int, missed: Sequence[str]) -> str:
    verdict = "not measured" if not cases else f"{cases - len(missed)} of {cases}"
    return f"- {text}: {verdict}" + (f"; not {'; '.join(missed)}" if missed else "")


def markdown(results: Results) -> str:
    """The whole report."""
    dtypes = list(dict.fromkeys(r["dtype"] for r in results.document["results"]))
    threads = _threads(results.most)
    parts = [_conditions(results)]
    for dtype in dtypes:
        for direction in (FORWARD, BOTH):
            if results.specs(dtype, direction):
                parts += [f"### {direction.capitalize()}, {dtype}, {threads}: milliseconds"]
                parts += [_table(times(results, dtype, direction))]
    for dtype in dtypes:
        parts += [f"### Ratios of the fused kernel, {dtype}, {threads}", _table(ratios(results, dtype))]
    parts += ["\n".join(f"- {name}: {meaning}" for name, meaning in RATIOS.items())]
    parts += ["### Goals", "\n".join(goals(results))]
    wrong = [s for s in results.document["skipped"] if "WRONG" in s["reason"]]
    if wrong:
        lines = (f"- {s['method']} on {s['spec']}, {s['dtype']}: {s['reason']}" for s in wrong)
        parts += ["### Wrong results", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _conditions(results: Results) -> str:
    """When, where, with what, and how fast the machine was."""
    d = results.document
    machine = d["machine"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in sorted(d["versions"].items()))
    return (
        f"{d['date']}, {machine['cpu']}, {results.most} of {machine['cpus']} CPUs, {caches}, kernels for "
        f"{machine['instruction_set']}; {versions}. {_sgemm(results)}\n\n`{d['command']}`"
    )


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def _sgemm(results: Results) -> str:
    """The rates of the matrix products, medians over the cases."""
    rates: dict[tuple[str, int], list[float]] = {}
    for r in results.document["results"]:
        if r["method"] in ("sgemm", "torch-sgemm"):
            rates.setdefault((r["framework"], r["threads"]), []).append(r["gflop_per_s"])
    texts = [f"{f} {sorted(v)[len(v) // 2]:.0f} ({_threads(n)})" for (f, n), v in sorted(rates.items())]
    return f"SGEMM 1024 in the same rounds, GFLOP/s: {', '.join(texts)}."


def _table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument(
        "--chart", type=pathlib.Path, metavar="PNG", help="draw this picture; needs matplotlib"
    )
    parser.add_argument("--docs", type=pathlib.Path, metavar="MD", help="replace the results in this page")
    options = parser.parse_args(arguments)
    results = Results(json.loads(options.results.read_text()))
    text = markdown(results)
    if options.docs is None:
        print(text)
    else:
        page = options.docs.read_text()
        before, after = page.split(START)[0], page.split(END)[1]
        options.docs.write_text(f"{before}{START}\n\n{text}\n{END}{after}")
    if options.chart is not None:
        import chart

        chart.draw(results, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
