# SPDX-License-Identifier: Apache-2.0
"""Benchmarks neighborhood attention on the CPU: python benchmarks/run.py [--quick]

Every framework runs in a process of its own for every number of threads. The processes take turns, sample by
sample, so that a slow moment of the machine hits all methods alike. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import check
import machine
import results
from client import Client, Role, WorkerDied, reason
from method import CPU
from session import Document, Plan, Tick, measure

from jax_na.tools import profiler
from jax_na.tools.problems import BOTH, FORWARD, PROBLEMS, Problem, select
from jax_na.tools.report import progress, text_table

QUICK_SPECS = "nat-s3-14,1d-1024-w7,tiny-16-w3"
ROUNDS, SECONDS = 15, 10.0
TRIES = 4  # configurations of a peer with free parameters
DIRECTIONS = {"forward": (FORWARD,), "both": (BOTH,), "all": (FORWARD, BOTH)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--specs", help='names of problems, groups, patterns, "all"; default core,overhead')
    add("--methods", default="*", help="names or patterns; default all")
    add("--dtype", default="float32,bfloat16", help="default float32,bfloat16")
    add("--direction", choices=DIRECTIONS, default="all", help="both: forward and backward together")
    add("--threads", default="1,all", help='numbers, or "all" CPUs; default 1,all')
    add("--rounds", type=int, help=f"samples per method, default {ROUNDS}")
    add("--seconds", type=float, help=f"budget of a method per case, default {SECONDS:g}")
    add("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has torch")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every case")
    add("--log", default=os.devnull, metavar="FILE", help="append here what the workers print")
    add("--quick", action="store_true", help="small problems, few rounds, untuned peers")
    add("--list", action="store_true", help="print the problems and stop")
    return p


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    options = parser().parse_args(arguments)
    options.rounds = options.rounds or (3 if options.quick else ROUNDS)
    options.seconds = options.seconds or (1.0 if options.quick else SECONDS)
    if options.list:
        print(problem_list(PROBLEMS))
        return 0
    try:
        chosen = select(options.specs or (QUICK_SPECS if options.quick else "core,overhead"))
        threads = thread_numbers(options.threads, machine.cpus())
        dtypes = options.dtype.split(",")
        if not set(dtypes) <= set(check.TOLERANCE[CPU]):
            raise ValueError(f"--dtype must be of {', '.join(check.TOLERANCE[CPU])}, got {options.dtype}")
    except ValueError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    problems = [replace(problem, dtype=dtype) for problem, dtype in itertools.product(chosen, dtypes)]
    with workers(options, threads) as clients:
        facts = {"rounds": options.rounds, "seconds": options.seconds, "quick": options.quick}
        document = Document("run.py", arguments, clients, device=CPU, options=facts)
        document.content["machine"]["instruction_set"] = clients[-1].instruction_set
        _measure_all(problems, clients, options, document)
    return 0


def thread_numbers(text: str, most: int) -> list[int]:
    """The numbers of threads, without repetitions, smallest first.

    Raises:
        ValueError: if one is no number of CPUs here.
    """
    numbers = {most if t == "all" else int(t) if t.isdigit() else 0 for t in text.split(",")}
    if not all(1 <= n <= most for n in numbers):
        raise ValueError(f'--threads are numbers from 1 to {most} or "all", got {text}')
    return sorted(numbers)


@contextlib.contextmanager
def workers(options: argparse.Namespace, threads: Sequence[int]) -> Iterator[list[Client]]:
    """The processes; the last one is that of JAX with most threads, and must be there for the reference."""
    pythons = {"torch": options.torch_python, "jax": sys.executable}
    numbers = [(threads[-1], True), *((n, False) for n in threads)]  # processes to weigh, and to time
    clients: list[Client] = []
    try:
        for framework, python in pythons.items():
            for n, weighs in numbers:
                clients.append(Client(Role(framework, CPU, n, weighs, python, "cpu", options.log)))
        if clients[-1].missing is not None:
            raise SystemExit(f"run.py: {clients[-1].missing}")
        for framework, why in {c.role.framework: c.missing for c in clients if c.missing}.items():
            print(f"{framework} is not measured: {why}")
        yield [client for client in clients if client.missing is None]
    finally:
        for client in clients:
            client.close()


def _measure_all(
    problems: Sequence[Problem], clients: Sequence[Client], options: argparse.Namespace, document: Document
) -> None:
    methods, tries = tuple(options.methods.split(",")), 1 if options.quick else TRIES
    plan = Plan(methods, options.rounds, options.seconds, tries)
    directions = DIRECTIONS[options.direction]
    number = sum(plan.wants(method) for c in clients if not c.role.weighs for method in c.methods)
    steps = len(directions) * number * (1 + plan.rounds)
    with progress(steps * len(problems)) as bar, tempfile.TemporaryDirectory() as folder:
        for problem in problems:
            file = pathlib.Path(folder, "case.npz")
            bar(f"{problem} {problem.dtype}: reference", 0)
            failed = _reference(clients[-1], problem, file)
            if failed is not None:
                print(f"{problem} {problem.dtype}: no reference, {failed}")
                document.add([], [{"problem": problem.name, "dtype": problem.dtype, "reason": failed}])
                bar("", steps)
                continue
            for direction in directions:
                _measure_one(replace(problem, direction=direction), file, clients, plan, (bar, document))
                document.write(options.output)


def _measure_one(
    problem: Problem,
    file: pathlib.Path,
    clients: Sequence[Client],
    plan: Plan,
    to: tuple[Tick, Document],
) -> None:
    bar, document = to
    name = f"{problem} {problem.dtype} {problem.direction}"
    rows, skipped = measure(problem, file, clients, plan, lambda text, n: bar(text and f"{name}: {text}", n))
    document.add(rows, skipped)
    print(f"{name}: {problem.about}; {profiler.flops(problem) / 1e9:.3g} useful GFLOP")
    if rows:
        print(text_table(results.cpu_cells(rows)))
    for words, methods in results.reasons(skipped).items():
        print(f"  {', '.join(methods)}: {words}")
    print(flush=True)


def _reference(client: Client, problem: Problem, file: pathlib.Path) -> str | None:
    """Computes it; says why it cannot be."""
    try:
        return client.ask("reference", problem=asdict(problem), file=str(file)).get("failed")
    except WorkerDied as error:
        return reason(str(error))


def problem_list(problems: Sequence[Problem]) -> str:
    """A table of the problems."""
    cells = [["group", "name", "about", "query [batch, *spatial, heads, head_dim]", "window"]]
    for p in problems:
        heads = f", {p.kv_heads} kv heads" if p.kv_heads != p.heads else ""
        window = str(profiler.neighborhood(p)) + heads + (", rpb" if p.rpb else "")
        cells.append([p.group, p.name, p.about, str(list(p.shapes["query"])), window])
    return text_table(cells, labels=4)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
