# SPDX-License-Identifier: Apache-2.0
"""What `jax-na profile` and `jax-na tune` show: a progress bar, a table or JSON, and what they would do."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

from jax_na.kernels import contract, devices, plan
from jax_na.neighborhood import by
from jax_na.tools.profiler import Problem, Timing, measure

Call = Callable[[], Any]


def rich(module: str) -> Any:
    """A module of the optional dependency rich, like "rich.table"."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError('tables and progress bars need rich: pip install "jax-na[cli]"') from error


def progress(compile_each: Mapping[str, Callable[[], Call]], rounds: int) -> dict[str, Timing]:
    """Compiles all, then times them in turns, under a progress bar if rich is installed."""
    if importlib.util.find_spec("rich") is None:
        return measure({name: compile_one() for name, compile_one in compile_each.items()}, rounds)
    bars = rich("rich.progress")
    columns = (
        bars.SpinnerColumn(),
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
    )
    console = rich("rich.console").Console(stderr=True)
    with bars.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(compile_each) * (rounds + 1))

        def compiled(name: str) -> Call:
            bar.update(task, description=f"compiling {name:12}")
            call = compile_each[name]()
            bar.advance(task)
            return call

        def tick(name: str) -> None:
            bar.update(task, description=f"timing {name:12}   ", advance=1)

        return measure({name: compiled(name) for name in compile_each}, rounds, tick)


def results(
    problem: Problem, timings: Mapping[str, Timing], missing: Mapping[str, str], *, as_json: bool
) -> None:
    """Prints the timings, and why the others could not run."""
    if as_json:
        print(json.dumps(_document(problem, timings, missing)))
        return
    table = rich("rich.table").Table(box=rich("rich.box").SIMPLE_HEAD)
    table.add_column("implementation", no_wrap=True)
    for name in ("median ms", "quartiles ms", "GFLOP/s", "speed"):
        table.add_column(name, justify="right", no_wrap=True)
    medians = [t.median for t in timings.values()]
    for name, t in timings.items():
        low, high = (f"{q * 1e3:.3g}" for q in t.quartiles)
        rate = f"{problem.flops / t.median / 1e9:.3g}"
        speed = f"{max(medians) / t.median:.1f}x"
        style = "bold green" if t.median == min(medians) else None
        table.add_row(name, f"{t.median * 1e3:.3g}", f"{low} - {high}", rate, speed, style=style)
    console = rich("rich.console").Console()
    console.print(title(problem), highlight=False, soft_wrap=True)
    console.print(table)
    for name, reason in missing.items():
        console.print(f"  {name} cannot run: {reason}", style="dim", highlight=False)


def title(problem: Problem) -> str:
    """One line that says what is measured."""
    p = problem
    heads = f"{p.heads} heads" if p.kv_heads == p.heads else f"{p.heads} heads on {p.kv_heads}"
    dims = f"{p.head_dim}" if p.value_dim == p.head_dim else f"{p.head_dim} and {p.value_dim}"
    passes = "forward and backward" if p.backward else "forward"
    bias = ", rpb" if p.rpb else ""
    grid = f"batch {p.batch}, {by(p.shape)}, {p.neighborhood}"
    return f"{passes}: {grid}, {heads} of {dims}{bias}, {p.dtype}: {p.flops / 1e9:.3g} useful GFLOP"


def _document(problem: Problem, timings: Mapping[str, Timing], missing: Mapping[str, str]) -> dict[str, Any]:
    measured = {
        name: {
            "median_s": t.median,
            "quartiles_s": t.quartiles,
            "gflop_per_s": problem.flops / t.median / 1e9,
        }
        for name, t in timings.items()
    }
    return {
        "problem": dataclasses.asdict(problem),
        "useful_flop": problem.flops,
        "results": measured,
        "cannot_run": dict(missing),
    }


def dry_run(problem: Problem, rounds: int, names: list[str], missing: Mapping[str, str]) -> None:
    """Prints what would be measured, and computes nothing."""
    print(title(problem))
    print(f"weights of a stored neighborhood: {problem.weight_bytes / 1e6:.3g} MB (naive, gemm)")
    if any(name.startswith("fused") for name in names):
        planned = contract.problem(problem.op, problem.types())
        kernels = plan.plan(devices.platform_of(), "na_fused_forward", problem.op, planned)
        print(f"kernel of the fused forward pass: {kernels}")
    for name in names:
        print(f"would time {name}, {rounds} rounds")
    for name, reason in missing.items():
        print(f"would not time {name}: {reason}")
