# SPDX-License-Identifier: Apache-2.0
"""Benchmarks neighborhood attention: python benchmarks/run.py [--platform gpu] [--quick]

On a CPU every framework runs in a process of its own for every number of threads, and all methods of a
problem take turns, sample by sample, so that a slow moment of the machine hits them alike. On a GPU methods
follow each other, the fused kernels first, as long as there is time. Before a method is timed, its results
are compared with right ones. docs/benchmarks.md says what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import check
import machine
import report
from client import Client, Role
from method import CPU, GPU
from session import Session, say

from jax_na.tools import profiler
from jax_na.tools.problems import PASSES, PROBLEMS, select
from jax_na.tools.report import text_table

OURS = ("fused", "gemm", "naive", "xla")
DEFAULTS: dict[str, dict[str, Any]] = {
    "specs": {CPU: "core,overhead", GPU: "large,gpu"},
    "methods": {CPU: "*", GPU: "fused,cudnn-all,torch-flex,jax-dense,gemm,naive,xla"},
    "dtype": {CPU: "float32,bfloat16", GPU: "bfloat16"},
    "directions": {CPU: "forward,forward+backward", GPU: ",".join(PASSES)},
    "rounds": {CPU: 15, GPU: 7},
    "seconds": {CPU: 10.0, GPU: 1.0},
    "total": {CPU: math.inf, GPU: 400.0},
    "tries": {CPU: 4, GPU: 1},
}
QUICK: dict[str, dict[str, Any]] = {
    "specs": {CPU: "nat-s3-14,1d-1024-w7,tiny-16-w3", GPU: "nat-s3-14,1d-1024-w7"},
    "dtype": {CPU: "float32", GPU: "bfloat16"},
    "rounds": {CPU: 3, GPU: 7},
    "seconds": {CPU: 1.0, GPU: 0.05},
    "tries": {CPU: 1, GPU: 1},
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = p.add_argument
    add("--platform", choices=(CPU, GPU), default=CPU, help="default cpu")
    add("--specs", help=f'names of problems, groups, patterns, "all"; default {_default("specs")}')
    add("--methods", help=f"names or patterns, on a GPU in this order; default {_default('methods')}")
    add("--dtype", help=f"of float32, bfloat16, float16 (on a GPU); default {_default('dtype')}")
    add("--directions", help=f"default {_default('directions')}")
    add("--threads", default="1,all", help='on a CPU: numbers, or "all" CPUs; default 1,all')
    add("--rounds", type=int, help=f"samples per method; default {_default('rounds')}")
    add("--seconds", type=float, help=f"budget of a method and direction; default {_default('seconds')}")
    add("--total", type=float, help=f"begin nothing after so many seconds; default {_default('total')}")
    add("--tries", type=int, help=f"configurations of a peer that is tuned; default {_default('tries')}")
    add("--tiles", type=int, default=0, metavar="N", help="also time the N tiles that the planner likes best")
    add("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has torch")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every problem")
    add("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    add("--log", default=os.devnull, metavar="FILE", help="append here what the workers print")
    add("--quick", action="store_true", help="small problems, short measurements: does everything run?")
    add("--list", action="store_true", help="print the problems and stop")
    return p


def _default(option: str) -> str:
    return " or on a GPU ".join(str(value) for value in DEFAULTS[option].values())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of their platform; a ValueError if one names nothing."""
    p = parser()
    first = p.parse_args(arguments)
    values = DEFAULTS | (QUICK if first.quick else {})
    p.set_defaults(**{name: value[first.platform] for name, value in values.items()})
    options = p.parse_args(arguments)
    options.specs = select(options.specs)
    options.threads = thread_numbers(options.threads, machine.cpus())
    options.dtype = words("--dtype", options.dtype, check.TOLERANCE[options.platform])
    options.directions = words("--directions", options.directions, PASSES)
    if options.tiles and options.platform == CPU:
        raise ValueError("--tiles are those of a GPU")
    return options


def words(option: str, text: str, known: Iterable[str]) -> list[str]:
    """Words separated by commas; a ValueError if one is not known."""
    given = text.split(",")
    if not set(given) <= set(known):
        raise ValueError(f"{option} takes {', '.join(known)}, got {text}")
    return given


def thread_numbers(text: str, most: int) -> list[int]:
    """The numbers of threads, smallest first; a ValueError if one is no number of CPUs here."""
    numbers = {most if t == "all" else int(t) if t.isdigit() else 0 for t in text.split(",")}
    if not all(1 <= n <= most for n in numbers):
        raise ValueError(f'--threads are numbers from 1 to {most} or "all", got {text}')
    return sorted(numbers)


def roles(options: argparse.Namespace) -> list[Role]:
    """What processes there are to be. The first one of JAX has most threads and must be there."""
    timed, weighs = [0], []
    if options.platform == CPU:
        timed, weighs = options.threads[::-1], options.threads[-1:]
    pythons = {"jax": sys.executable, "torch": options.torch_python}
    return [
        Role(framework, options.platform, number, weighing, python, options.log)
        for framework, python in pythons.items()
        for weighing, numbers in ((False, timed), (True, weighs))
        for number in numbers
    ]


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[list[Client]]:
    """The processes that have their framework."""
    clients: list[Client] = []
    try:
        clients += map(Client, roles(options))
        if clients[0].missing is not None:
            raise SystemExit(f"run.py: {clients[0].missing}")
        for framework, why in {c.role.framework: c.missing for c in clients if c.missing}.items():
            say(f"{framework} is not measured: {why}")
        yield [client for client in clients if client.missing is None]
    finally:
        for client in clients:
            client.close()


def problem_list() -> str:
    """A table of the problems."""
    cells = [["group", "name", "about", "query [batch, *spatial, heads, head_dim]", "window"]]
    for p in PROBLEMS:
        heads = f", {p.kv_heads} kv heads" if p.kv_heads != p.heads else ""
        window = str(profiler.neighborhood(p)) + heads + (", rpb" if p.rpb else "")
        cells.append([p.group, p.name, p.about, str(list(p.shapes["query"])), window])
    return text_table(cells, labels=4)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 1 if an implementation of jax-na failed or was wrong."""
    try:
        options = parse(arguments)
    except ValueError as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    if options.list:
        print(problem_list())
        return 0
    with workers(options) as clients:
        session = Session(options, arguments, clients)
        session.run()
    print(report.tables(session.content))
    wrong = [s for s in session.content["skipped"] if "WRONG" in s["reason"] or "failed" in s["reason"]]
    return 1 if any(s["method"] in OURS for s in wrong) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
