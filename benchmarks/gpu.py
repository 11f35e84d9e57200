# SPDX-License-Identifier: Apache-2.0
"""Benchmarks neighborhood attention on a GPU: python benchmarks/gpu.py [--specs ...] [--output RESULTS.json]

First the fused kernels on every problem, then the peers, as long as there is time. Before a method is timed,
some of its results and gradients are compared with the definition in float64. docs/benchmarks.md says what is
measured.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from typing import Any

import check
import gpu_report
import machine
from client import Client, Role, WorkerDied, reason
from method import GPU
from session import Document, Entry, Plan, Row, measure_on_gpu

from jax_na.tools.problems import PASSES, Problem, select

SPECS = "large,gpu"
QUICK_SPECS = "nat-s3-14,1d-1024-w7"
METHODS = "fused,cudnn-all,torch-flex,jax-dense,gemm,naive,xla"  # in this order
OURS = ("fused", "gemm", "naive", "xla")
ROUNDS = 7
CEILINGS, QUICK_CEILINGS = (8192, 4 << 30), (256, 1 << 20)  # rows of a matrix product, bytes of a copy


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--specs", help=f'names of problems, groups, patterns, "all"; default {SPECS}')
    add("--methods", default=METHODS, help=f"names or patterns, in this order; default {METHODS}")
    add("--dtype", default="bfloat16", help="float32, bfloat16, float16 or several; default bfloat16")
    add("--directions", default=",".join(PASSES), help="default: all three")
    add("--tiles", type=int, default=0, metavar="N", help="also time the N tiles that the planner likes best")
    add("--seconds", type=float, default=1.0, help="budget of one measurement, default 1")
    add(
        "--total",
        type=float,
        default=400.0,
        metavar="SECONDS",
        help="begin nothing after so long, default 400",
    )
    add("--torch-python", default=sys.executable, metavar="PATH", help="a Python that has torch")
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every problem")
    add("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    add("--log", default=os.devnull, metavar="FILE", help="append here what the workers print")
    add("--platform", default="", help='JAX\'s platform; "cpu" to try this program without a GPU')
    add("--quick", action="store_true", help="tiny problems and short measurements: does everything run?")
    return p


class Session:
    """One run: its options, its clock, its processes, and the document that grows."""

    def __init__(self, options: argparse.Namespace, clients: Sequence[Client], document: Document) -> None:
        self.options, self.document = options, document
        self.end = time.monotonic() + options.total
        self.owner = {method: client for client in clients for method in client.methods}
        self.jax = clients[0]

    @property
    def is_over(self) -> bool:
        """Whether nothing is to begin any more."""
        return bool(time.monotonic() > self.end)

    @property
    def plan(self) -> Plan:
        """What is asked of every measurement."""
        return Plan((), ROUNDS, self.options.seconds)

    @property
    def dtypes(self) -> list[str]:
        """Those of the command line."""
        return list(self.options.dtype.split(","))

    def methods(self) -> list[str]:
        """The names asked for, in their order."""
        patterns = self.options.methods.split(",")
        return list(dict.fromkeys(name for p in patterns for name in self.owner if fnmatch(name, p)))

    def measure(self, method: str, problem: Problem) -> None:
        """One method in all directions, or the reason why not."""
        # Others in JAX end by themselves; compiling FlexAttention may take longer than there is time.
        end = None if self.owner[method] is self.jax else self.end
        entry = Entry(self.owner[method], method, problem, end=end)
        if self.is_over:
            entry.obstacle = "no time was left"
        rows = measure_on_gpu(entry, self.options.directions.split(","), self.plan)
        skipped = [] if entry.obstacle is None else [entry.skipped()]
        self.document.add(rows, skipped)
        self.say(problem, method, rows, skipped)
        self.write()

    def sweep(self, problem: Problem) -> None:
        """The times of tiles of the fused kernels on a problem, until the time is over."""
        try:
            reply = self.jax.ask("tiles", problem=asdict(problem), number=self.options.tiles)
        except WorkerDied as error:
            reply = {"failed": str(error)}
        if "failed" in reply:
            say(f"{problem} {problem.dtype}: no tiles, {reply['failed']}")
        plan = replace(self.plan, seconds=self.options.seconds / 4)
        for trial in reply.get("trials", []):
            if self.is_over:
                break
            entry = Entry(self.jax, "fused", problem)
            choice = trial.pop("choice")
            rows = measure_on_gpu(entry, [trial["direction"]], plan, choice)
            skipped = [] if entry.obstacle is None else [entry.skipped()]
            self.document.add([{**row, **trial} for row in rows], skipped, to="tiles")
            self.say(problem, f"{trial['kernel']} {trial['tile']}", rows, skipped)
        self.write()

    def say(self, problem: Problem, method: str, rows: Sequence[Row], skipped: Sequence[Row]) -> None:
        """One line for every measurement."""
        for row in rows:
            seconds = sorted(row["seconds"])[len(row["seconds"]) // 2]
            rate = f"{seconds * 1e3:.4g} ms, {row['flops'] / seconds / 1e12:.4g} TFLOP/s"
            say(f"{problem} {problem.dtype} {method} {row['direction']}: {rate}")
        for row in skipped:
            say(f"{problem} {problem.dtype} {method}: {row['reason']}")

    def write(self) -> None:
        """The results, and the tables."""
        self.document.write(self.options.output)
        if self.options.table is not None:
            self.options.table.write_text(gpu_report.report(self.document.content))


def say(text: str) -> None:
    """To the standard error."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def workers(options: argparse.Namespace) -> Iterator[list[Client]]:
    """The processes: that of JAX first, and that of PyTorch if it is there."""
    roles = [Role("jax", GPU, platform=options.platform, log=options.log)]
    if not options.platform:
        roles.append(Role("torch", GPU, python=options.torch_python, log=options.log))
    clients = [Client(role) for role in roles]
    try:
        if clients[0].missing is not None:
            raise SystemExit(f"gpu.py: {clients[0].missing}")
        for client in clients[1:]:
            if client.missing is not None:
                say(f"{client.role.framework} is not measured: {client.missing}")
        yield [client for client in clients if client.missing is None]
    finally:
        for client in clients:
            client.close()


def measure_all(session: Session, chosen: Sequence[Problem]) -> None:
    """Method by method, so that the first ones are there if time runs out."""
    for method in session.methods():
        for dtype in session.dtypes:
            for problem in chosen:
                session.measure(method, replace(problem, dtype=dtype))
        if method == "fused" and session.options.tiles:
            for problem in chosen:
                session.sweep(replace(problem, dtype=session.dtypes[0]))


def begin(options: argparse.Namespace, arguments: Sequence[str], clients: Sequence[Client]) -> Session:
    """The session, with what the GPU gives."""
    sizes = QUICK_CEILINGS if options.quick else CEILINGS
    ceilings: dict[str, Any] = clients[0].ask("ceilings", matmul_size=sizes[0], copy_bytes=sizes[1])
    if "failed" in ceilings:
        raise SystemExit(f"gpu.py: {ceilings['failed']}")
    document = Document("gpu.py", arguments, clients, device=GPU, ceilings=ceilings, tiles=[])
    document.content["machine"] |= machine.gpu()
    return Session(options, clients, document)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 1 if an implementation of jax-na failed or was wrong."""
    options = parser().parse_args(arguments)
    if options.quick:
        options.seconds = min(options.seconds, 0.05)
    try:
        chosen = select(options.specs or (QUICK_SPECS if options.quick else SPECS))
        for given, known in ((options.dtype, check.TOLERANCE[GPU]), (options.directions, PASSES)):
            if not set(given.split(",")) <= set(known):
                raise ValueError(f"{given!r} is not of {', '.join(known)}")
    except ValueError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    with workers(options) as clients:
        try:
            session = begin(options, arguments, clients)
        except WorkerDied as error:
            raise SystemExit(f"gpu.py: {reason(str(error))}") from None
        measure_all(session, chosen)
        session.write()
    print(gpu_report.report(session.document.content))
    skipped = session.document.content["skipped"]
    wrong = [s for s in skipped if "WRONG" in s["reason"] or "failed" in s["reason"]]
    return 1 if any(s["method"] in OURS for s in wrong) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
