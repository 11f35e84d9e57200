# SPDX-License-Identifier: Apache-2.0
"""Benchmarks neighborhood attention on the CPU: python benchmarks/run.py [--quick]

Every framework runs in a process of its own for every number of threads. The processes take turns, sample by
sample, so that a slow moment of the machine hits all methods alike. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import machine
import table
from client import Client, WorkerDied, reason
from rich import progress
from rich.console import Console
from session import BOTH, FORWARD, PASSES, TOLERANCE, Plan, Problem, Tick, measure
from specs import SPECS, Spec, select

QUICK_SPECS = "nat-s3-14,1d-1024-w7,tiny-16-w3"
ROUNDS, SECONDS = 15, 10.0
TRIES = 4  # configurations of a peer with free parameters
DIRECTIONS = {"forward": (FORWARD,), "both": (BOTH,), "all": (FORWARD, BOTH)}
console = Console(width=None if sys.stdout.isatty() else 140)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--specs", help='names, groups, patterns, "all"; default core,overhead')
    add("--methods", default="*", help="names or patterns; default all")
    add("--dtype", default="float32,bfloat16", help="default float32,bfloat16")
    add("--direction", choices=DIRECTIONS, default="all", help="both: forward and backward together")
    add("--threads", default="1,all", help='numbers, or "all" CPUs; default 1,all')
    add("--rounds", type=int, help=f"samples per method, default {ROUNDS}")
    add("--seconds", type=float, help=f"budget of a method per case, default {SECONDS:g}")
    add("--torch-python", metavar="PATH", help="a Python that has torch, if this one has not")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every case")
    add("--log", type=pathlib.Path, metavar="FILE", help="write here what the workers print")
    add("--quick", action="store_true", help="small problems, few rounds, untuned peers")
    add("--list", action="store_true", help="print the specs and stop")
    return p


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else ROUNDS)
    options.seconds = options.seconds or (1.0 if options.quick else SECONDS)
    if options.list:
        table.print_specs(console, SPECS)
        return 0
    try:
        specs = select(options.specs or (QUICK_SPECS if options.quick else "core,overhead"))
        threads = _threads(options.threads)
        dtypes = options.dtype.split(",")
        if not set(dtypes) <= set(TOLERANCE):
            raise ValueError(f"--dtype must be of {', '.join(TOLERANCE)}, got {options.dtype}")
    except ValueError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    with workers(options, threads) as clients:
        document = _document(clients, options, arguments)
        _measure_all(clients, options, [*itertools.product(specs, dtypes)], document)
    return 0


def _threads(text: str) -> list[int]:
    """The numbers of threads, without repetitions, smallest first.

    Raises:
        ValueError: if one is no number of CPUs here.
    """
    most = machine.cpus()
    numbers = {most if t == "all" else int(t) if t.isdigit() else 0 for t in text.split(",")}
    if not all(1 <= n <= most for n in numbers):
        raise ValueError(f'--threads are numbers from 1 to {most} or "all", got {text}')
    return sorted(numbers)


@contextlib.contextmanager
def workers(options: argparse.Namespace, threads: Sequence[int]) -> Iterator[list[Client]]:
    """The processes; the last one is that of JAX with most threads, and must be there for the reference."""
    pythons = {"torch": options.torch_python or sys.executable, "jax": sys.executable}
    log = (options.log or pathlib.Path(os.devnull)).open("w")
    roles = [(threads[-1], True), *((n, False) for n in threads)]  # processes to weigh, and to time
    clients = [Client(f, n, python, log, weighs) for f, python in pythons.items() for n, weighs in roles]
    try:
        if clients[-1].missing is not None:
            raise SystemExit(f"run.py: {clients[-1].missing}")
        absent = {c.framework: c.missing for c in clients if c.missing is not None}
        for framework, why in absent.items():
            console.print(f"[yellow]{framework} is not measured: {why}[/]")
        yield [c for c in clients if c.missing is None]
    finally:
        for client in clients:
            client.close()
        log.close()


def _measure_all(
    clients: Sequence[Client],
    options: argparse.Namespace,
    problems: Sequence[tuple[Spec, str]],
    document: dict[str, Any],
) -> None:
    plan = Plan(
        methods=tuple(options.methods.split(",")),
        rounds=options.rounds,
        seconds=options.seconds,
        tries=1 if options.quick else TRIES,
    )
    directions = DIRECTIONS[options.direction]
    methods = sum(plan.wants(method) for c in clients if not c.weighs for method in c.methods)
    steps = len(problems) * len(directions) * methods * (1 + plan.rounds)
    with progress_bar(steps) as bar, tempfile.TemporaryDirectory() as folder:
        for spec, dtype in problems:
            file = pathlib.Path(folder, "case.npz")
            bar(f"{spec} {dtype}: reference", 0)
            reply = _reference(clients[-1], spec, dtype, file)
            if "failed" in reply:
                console.print(f"[red]{spec} {dtype}: no reference, {reply['failed']}[/]")
                document["skipped"].append({"spec": spec.name, "dtype": dtype, "reason": reply["failed"]})
                bar("", len(directions) * methods * (1 + plan.rounds))
                continue
            for direction in directions:
                problem = Problem(spec, dtype, direction, reply["flops"] * PASSES[direction], file)
                _measure_one(problem, clients, plan, bar, document)
                _write(options.output, document)


def _measure_one(
    problem: Problem, clients: Sequence[Client], plan: Plan, bar: Tick, document: dict[str, Any]
) -> None:
    def tick(text: str, steps: int) -> None:
        bar(f"{problem.spec} {problem.dtype} {problem.direction}: {text}" if text else "", steps)

    results, skipped = measure(problem, clients, plan, tick)
    document["results"] += results
    document["skipped"] += skipped
    table.print_case(console, problem, results, skipped)


def _reference(client: Client, spec: Spec, dtype: str, file: pathlib.Path) -> dict[str, Any]:
    try:
        return client.ask("reference", spec=spec.name, dtype=dtype, file=str(file))
    except WorkerDied as error:
        client.start()
        return {"failed": reason(str(error))}


@contextlib.contextmanager
def progress_bar(steps: int) -> Iterator[Tick]:
    columns = (
        progress.SpinnerColumn(),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("{task.description}"),
    )
    disable = not console.is_terminal
    with progress.Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task("", total=steps)

        def tick(text: str, steps: int) -> None:
            bar.update(task, advance=steps, description=text or None)

        yield tick


def _document(
    clients: Sequence[Client], options: argparse.Namespace, arguments: Sequence[str]
) -> dict[str, Any]:
    """The results file without its results."""
    versions = {"python": platform.python_version()}
    for client in clients:
        versions |= client.versions
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": machine.command_line(arguments),
        "machine": {**machine.describe(), "instruction_set": clients[-1].instruction_set},
        "versions": versions,
        "options": {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick},
        "about": {name: about for client in clients for name, about in client.methods.items()},
        "results": [],
        "skipped": [],
    }


def _write(file: pathlib.Path | None, document: dict[str, Any]) -> None:
    if file is not None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(document, indent=1) + "\n")
        part.replace(file)  # an interruption leaves the last complete file


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
