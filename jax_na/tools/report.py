# SPDX-License-Identifier: Apache-2.0
"""What measurements look like: a progress bar, text tables, and the output of `jax-na profile` and `tune`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jax_na.neighborhood import by
from jax_na.tools import profiler, simulator
from jax_na.tools.clock import Timing, in_turns
from jax_na.tools.problems import BACKWARD, FORWARD, Problem
from jax_na.tools.profiler import Prepared
from jax_na.tools.roofline import Ceiling

WIDTH = 120  # of a table where there is no terminal
Tick = Callable[[str, int], None]  # what is going on, and steps done


def rich(module: str) -> Any:
    """A module of the optional dependency rich, like "rich.table"."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError('tables and progress bars need rich: pip install "jax-na[cli]"') from error


@contextlib.contextmanager
def progress(steps: int) -> Iterator[Tick]:
    """A progress bar on the standard error, if rich is installed and that is a terminal."""
    if importlib.util.find_spec("rich") is None:
        yield lambda text, steps: None
        return
    bars = rich("rich.progress")
    columns = (
        bars.SpinnerColumn(),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("{task.description}"),
    )
    console = rich("rich.console").Console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=steps)
        yield lambda text, steps: bar.update(task, advance=steps, description=text or None)


class Trial(NamedTuple):
    """A problem, and what compiles a way to compute it."""

    problem: Problem
    prepare: Callable[[], Prepared]


class Measured(NamedTuple):
    """The timing of a problem, and the memory that its program needs."""

    problem: Problem
    timing: Timing
    peak_bytes: int | None


def measure(trials: Mapping[str, Trial], rounds: int) -> dict[str, Measured]:
    """Compiles all, then times them in turns, under a progress bar."""
    with progress(len(trials) * (rounds + 1)) as tick:
        ready = {}
        for name, trial in trials.items():
            tick(f"compiling {name}", 0)
            ready[name] = trial.prepare()
            tick("", 1)
        samples = in_turns(
            {name: prepared.clock.sample for name, prepared in ready.items()},
            rounds,
            tick=lambda name: tick(f"timing {name}", 1),
        )
    return {
        name: Measured(trial.problem, Timing(samples[name]), ready[name].peak_bytes)
        for name, trial in trials.items()
    }


def results(
    problem: Problem,
    found: Mapping[str, Measured],
    missing: Mapping[str, str],
    ceiling: Ceiling,
    *,
    as_json: bool,
) -> None:
    """Prints what was measured, the fraction of what the machine allows, and why the others could not run."""
    rows = {name: _row(measured, ceiling) for name, measured in found.items()}
    if as_json:
        print(json.dumps(_document(problem, rows, missing, ceiling)))
        return
    console = rich("rich.console").Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(title(problem), highlight=False, soft_wrap=True)
    console.print(_table(rows))
    console.print(_limits(problem, ceiling), highlight=False, soft_wrap=True)
    for name, reason in missing.items():
        console.print(f"  {name} cannot run: {reason}", style="dim", highlight=False)


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Any:
    """Of rich; `spread` is the distance of the quartiles in medians, `speed` against the slowest."""
    table = rich("rich.table").Table(box=rich("rich.box").SIMPLE_HEAD)
    table.add_column("implementation", no_wrap=True)
    for name in ("ms", "spread", "GFLOP/s", "GB/s", "roofline", "MB", "speed"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    medians = [row["median_s"] for row in rows.values()]
    for name, row in rows.items():
        median, (low, high) = row["median_s"], row["quartiles_s"]
        cells = [milliseconds(median), f"{(high - low) / median:.0%}"]
        cells += [f"{row[key]:.3g}" for key in ("gflop_per_s", "gb_per_s")]
        peak = row["peak_bytes"]
        cells += [f"{row['roofline']:.0%}", "" if peak is None else f"{peak / 1e6:.3g}"]
        style = "bold green" if median == min(medians) else None
        table.add_row(name, *cells, f"{max(medians) / median:.1f}x", style=style)
    return table


def _limits(problem: Problem, ceiling: Ceiling) -> str:
    """What the roofline is."""
    product, copy = f"{ceiling.flops / 1e9:.3g} GFLOP/s", f"{ceiling.bytes / 1e9:.3g} GB/s"
    least = milliseconds(ceiling.seconds(problem))
    return f"roofline: {least} ms by a matrix product of {product} and a copy of {copy}"


def _row(measured: Measured, ceiling: Ceiling) -> dict[str, Any]:
    problem, median = measured.problem, measured.timing.median
    return {
        "median_s": median,
        "quartiles_s": measured.timing.quartiles,
        "gflop_per_s": profiler.flops(problem) / median / 1e9,
        "gb_per_s": problem.least_bytes / median / 1e9,
        "roofline": ceiling.seconds(problem) / median,
        "peak_bytes": measured.peak_bytes,
    }


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def title(problem: Problem) -> str:
    """One line that says what is measured."""
    p = problem
    heads = f"{p.heads} heads" if p.kv_heads == p.heads else f"{p.heads} heads on {p.kv_heads}"
    dims = f"{p.head_dim}" if p.value_dim == p.head_dim else f"{p.head_dim} and {p.value_dim}"
    passes = {FORWARD: "forward", BACKWARD: "backward"}.get(p.direction, "forward and backward")
    bias = ", rpb" if p.rpb else ""
    grid = f"batch {p.batch}, {by(p.spatial)}, {profiler.neighborhood(p)}"
    useful = f"{profiler.flops(p) / 1e9:.3g} useful GFLOP"
    return f"{passes}: {grid}, {heads} of {dims}{bias}, {p.dtype}: {useful}"


def text_table(cells: Sequence[Sequence[str]], labels: int = 1) -> str:
    """Columns as wide as they need; the first `labels` and the last one aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = {*range(labels), len(widths) - 1}
    lines = (
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def markdown_table(cells: Sequence[Sequence[str]], labels: int = 1) -> str:
    """A table of a Markdown page; the first row is the header."""
    head, *body = cells
    lines = [head, ["---"] * labels + ["---:"] * (len(head) - labels), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _document(
    problem: Problem, rows: Mapping[str, Any], missing: Mapping[str, str], ceiling: Ceiling
) -> dict[str, Any]:
    rates = {"gflop_per_s": ceiling.flops / 1e9, "gb_per_s": ceiling.bytes / 1e9}
    return _facts(problem) | {"ceiling": rates, "results": dict(rows), "cannot_run": dict(missing)}


def _facts(problem: Problem) -> dict[str, Any]:
    return {
        "problem": dataclasses.asdict(problem),
        "useful_flop": profiler.flops(problem),
        "least_bytes": problem.least_bytes,
    }


def figure_class() -> Any:
    """Figures of the optional dependency matplotlib."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise ImportError('charts need matplotlib: pip install "jax-na[cli]"') from error


def chart(problem: Problem, found: Mapping[str, Measured], ceiling: Ceiling, file: str) -> None:
    """Draws the medians as bars, with quartiles and the least time that the machine allows."""
    timings = {name: measured.timing for name, measured in found.items()}
    figure = figure_class()(figsize=(8, 1.4 + 0.4 * len(timings)), layout="constrained")
    axes = figure.subplots()
    medians = [timing.median * 1e3 for timing in timings.values()]
    sides = [
        [abs(side * 1e3 - median) for side in timing.quartiles]
        for median, timing in zip(medians, timings.values(), strict=True)
    ]
    axes.barh(list(timings), medians, xerr=list(zip(*sides, strict=True)), color="#3b6fb6", height=0.6)
    axes.axvline(ceiling.seconds(problem) * 1e3, color="#d9822b", label="roofline")
    axes.set_xscale("log")
    axes.set_xlabel("ms")
    axes.set_title(title(problem), fontsize=8)
    axes.invert_yaxis()
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def dry_run(
    problem: Problem,
    rows: Sequence[simulator.Row],
    names: Sequence[str],
    missing: Mapping[str, str],
    notes: Iterable[str] = (),
    *,
    as_json: bool,
) -> None:
    """Prints what would be measured, what the fused kernels would do, and what else there is to know."""
    weights = profiler.weight_bytes(problem)
    if as_json:
        facts = {"useful_flop": profiler.flops(problem), "least_bytes": problem.least_bytes}
        tables = {
            "kernels": [row._asdict() for row in rows],
            "would_time": names,
            "cannot_run": dict(missing),
        }
        print(
            json.dumps({"problem": dataclasses.asdict(problem), **facts, "weight_bytes": weights, **tables})
        )
        return
    print(title(problem))
    print(f"weights of a stored neighborhood: {weights / 1e6:.3g} MB (naive, gemm)")
    if rows:
        print(text_table(simulator.cells(rows), labels=2))
    for name in names:
        print(f"would time {name}")
    for name, reason in missing.items():
        print(f"would not time {name}: {reason}")
    for note in notes:
        print(note)
