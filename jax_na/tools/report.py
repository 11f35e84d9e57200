# SPDX-License-Identifier: Apache-2.0
"""What measurements look like: a progress bar, text tables, and the output of `jax-na profile` and `tune`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jax_na.kernels import chunks, contract, devices, plan
from jax_na.neighborhood import by
from jax_na.tools import profiler
from jax_na.tools.clock import Clock, Timing, in_turns
from jax_na.tools.problems import FORWARD, Problem

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


def measure(clocks: Mapping[str, Callable[[], Clock]], rounds: int) -> dict[str, Timing]:
    """Compiles all, then times them in turns, under a progress bar."""
    with progress(len(clocks) * (rounds + 1)) as tick:
        ready = {}
        for name, compiled in clocks.items():
            tick(f"compiling {name}", 0)
            ready[name] = compiled().sample
            tick("", 1)
        samples = in_turns(ready, rounds, tick=lambda name: tick(f"timing {name}", 1))
    return {name: Timing(samples[name]) for name in clocks}


def results(
    problem: Problem, timings: Mapping[str, Timing], missing: Mapping[str, str], *, as_json: bool
) -> None:
    """Prints the timings, and why the others could not run."""
    flops = profiler.flops(problem)
    if as_json:
        print(json.dumps(_document(problem, flops, timings, missing)))
        return
    table = rich("rich.table").Table(box=rich("rich.box").SIMPLE_HEAD)
    table.add_column("implementation", no_wrap=True)
    for name in ("median ms", "quartiles ms", "GFLOP/s", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    medians = [t.median for t in timings.values()]
    for name, t in timings.items():
        low, high = map(milliseconds, t.quartiles)
        rate, speed = f"{flops / t.median / 1e9:.3g}", f"{max(medians) / t.median:.1f}x"
        style = "bold green" if t.median == min(medians) else None
        table.add_row(name, milliseconds(t.median), f"{low} - {high}", rate, speed, style=style)
    console = rich("rich.console").Console()
    console.print(title(problem), highlight=False, soft_wrap=True)
    console.print(table)
    for name, reason in missing.items():
        console.print(f"  {name} cannot run: {reason}", style="dim", highlight=False)


def milliseconds(seconds: float) -> str:
    """Three digits."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def title(problem: Problem) -> str:
    """One line that says what is measured."""
    p = problem
    heads = f"{p.heads} heads" if p.kv_heads == p.heads else f"{p.heads} heads on {p.kv_heads}"
    dims = f"{p.head_dim}" if p.value_dim == p.head_dim else f"{p.head_dim} and {p.value_dim}"
    passes = "forward" if p.direction == FORWARD else "forward and backward"
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
    problem: Problem, flops: int, timings: Mapping[str, Timing], missing: Mapping[str, str]
) -> dict[str, Any]:
    measured = {
        name: {"median_s": t.median, "quartiles_s": t.quartiles, "gflop_per_s": flops / t.median / 1e9}
        for name, t in timings.items()
    }
    return {
        "problem": dataclasses.asdict(problem),
        "useful_flop": flops,
        "results": measured,
        "cannot_run": dict(missing),
    }


def dry_run(
    problem: Problem, rounds: int, names: list[str], missing: Mapping[str, str], notes: Iterable[str] = ()
) -> None:
    """Prints what would be measured and what else there is to know, and computes nothing."""
    print(title(problem))
    print(f"weights of a stored neighborhood: {profiler.weight_bytes(problem) / 1e6:.3g} MB (naive, gemm)")
    if any(name.startswith("fused") for name in names):
        print(f"kernel of the fused forward pass: {_planned(problem)}")
    for name in names:
        print(f"would time {name}, {rounds} rounds")
    for name, reason in missing.items():
        print(f"would not time {name}: {reason}")
    for note in notes:
        print(note)


def _planned(problem: Problem) -> str:
    """What the planner chooses for the fused forward pass, with its tiles; of chunks, for the first."""
    op, platform, target = profiler.op(problem), devices.platform_of(), "na_fused_forward"
    planned = chunks.first(platform, target, contract.problem(op, profiler.types(problem)))
    return plan.plan(platform, target, op, planned)
