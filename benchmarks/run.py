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
    CPU: {
        "specs": "core,overhead",
        "methods": "*",
        "dtype": "float32,bfloat16",
        "directions": "forward,forward+backward",
        "rounds": 15,
        "seconds": 10.0,
        "total": math.inf,
    },
    GPU: {
        "specs": "large,gpu",
        "methods": "fused,cudnn-all,torch-flex,jax-dense,gemm,naive,xla",
        "dtype": "bfloat16",
        "directions": ",".join(PASSES),
        "rounds": 7,
        "seconds": 1.0,
        "total": 400.0,
    },
}
QUICK: dict[str, dict[str, Any]] = {
    CPU: {
        "specs": "nat-s3-14,1d-1024-w7,tiny-16-w3",
        "dtype": "float32",
        "rounds": 3,
        "seconds": 1.0,
        "tries": 1,
    },
    GPU: {"specs": "nat-s3-14,1d-1024-w7", "seconds": 0.05},
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    epilog = "\n".join(f"defaults on a {platform}: {values}" for platform, values in DEFAULTS.items())
    p = argparse.ArgumentParser(description=__doc__, epilog=epilog, formatter_class=formatter)
    add = p.add_argument
    add("--platform", choices=(CPU, GPU), default=CPU, help="default cpu")
    add("--specs", help='names of problems, groups, patterns, "all"')
    add("--methods", help="names or patterns, on a GPU in this order")
    add("--dtype", help="float32, bfloat16, float16 (on a GPU) or several")
    add("--directions", help=f"of {', '.join(PASSES)}")
    add("--threads", default="1,all", help='on a CPU: numbers, or "all" CPUs; default 1,all')
    add("--rounds", type=int, help="samples per method")
    add("--seconds", type=float, help="budget of a method per problem and direction")
    add("--total", type=float, metavar="SECONDS", help="begin nothing after so long")
    add("--tries", type=int, default=4, help="configurations of a peer with free parameters, default 4")
    add("--tiles", type=int, default=0, metavar="N", help="also time the N tiles that the planner likes best")
    add("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has torch")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every problem")
    add("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    add("--log", default=os.devnull, metavar="FILE", help="append here what the workers print")
    add("--quick", action="store_true", help="small problems, short measurements: does everything run?")
    add("--list", action="store_true", help="print the problems and stop")
    return p


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the defaults of their platform; the names in them become what they name.

    Raises:
        ValueError: if one names nothing.
    """
    p = parser()
    first = p.parse_args(arguments)
    p.set_defaults(**DEFAULTS[first.platform] | (QUICK[first.platform] if first.quick else {}))
    options = p.parse_args(arguments)
    options.specs = select(options.specs)
    options.threads = thread_numbers(options.threads, machine.cpus())
    options.dtype = words("--dtype", options.dtype, check.TOLERANCE[options.platform])
    options.directions = words("--directions", options.directions, PASSES)
    if options.tiles and options.platform == CPU:
        raise ValueError("--tiles are those of a GPU")
    return options


def words(option: str, text: str, known: Iterable[str]) -> list[str]:
    """Words separated by commas.

    Raises:
        ValueError: if one is not known.
    """
    given = text.split(",")
    if not set(given) <= set(known):
        raise ValueError(f"{option} takes {', '.join(known)}, got {text}")
    return given


def thread_numbers(text: str, most: int) -> list[int]:
    """The numbers of threads, without repetitions, smallest first.

    Raises:
        ValueError: if one is no number of CPUs here.
    """
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
