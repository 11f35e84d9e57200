# SPDX-License-Identifier: Apache-2.0
"""One run of the benchmark: which methods are measured on which problems in which order; its document."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from fnmatch import fnmatch
from typing import Any

import machine
import report
import results
from client import Client
from entry import Entry, Plan, Row, label, measure, weigh
from method import GPU
from results import YARDSTICK

from jax_na import _cpu
from jax_na.tools.problems import Problem
from jax_na.tools.report import milliseconds

CEILINGS, QUICK_CEILINGS = (8192, 4 << 30), (256, 1 << 20)  # rows of a matrix product, bytes of a copy
Method = tuple[Client, str]  # a process, and the name of a method that it has


def say(text: str) -> None:
    """To the standard error."""
    print(text, file=sys.stderr, flush=True)


class Session:
    """One run: its options, its clock, its processes, and the document that grows."""

    def __init__(
        self, options: argparse.Namespace, arguments: Sequence[str], clients: Sequence[Client]
    ) -> None:
        self.options, self.clients = options, clients
        self.end = time.monotonic() + options.total
        self.plan = Plan(options.rounds, options.seconds, options.tries)
        self.on_gpu = options.platform == GPU
        facts = self._ceilings() if self.on_gpu else {"options": asdict(self.plan)}
        about = conditions(options, arguments, clients)
        about["machine"] |= machine.gpu() if self.on_gpu else {"instruction_set": _cpu.isa()}
        self.content: dict[str, Any] = {**about, **facts, "results": [], "skipped": []}

    def _ceilings(self) -> Row:
        """What a GPU gives; on a CPU the yardstick takes part in every round."""
        rows, size = QUICK_CEILINGS if self.options.quick else CEILINGS
        ceilings = self.clients[0].ask("ceilings", matmul_size=rows, copy_bytes=size)
        if "failed" in ceilings:
            raise SystemExit(f"run.py: {ceilings['failed']}")
        return {"ceilings": ceilings, "tiles": []}

    def methods(self) -> list[Method]:
        """Those asked for, in their order."""
        patterns = [*self.options.methods.split(","), *([] if self.on_gpu else [YARDSTICK])]
        timed = [client for client in self.clients if not client.role.weighs]
        every = [(client, name) for client in timed for name in client.methods]
        return list(dict.fromkeys(pair for p in patterns for pair in every if fnmatch(pair[1], p)))

    def run(self) -> None:
        """Measures everything; on a GPU method by method: the first ones are there if time runs out."""
        dtypes, methods = self.options.dtype, self.methods()
        cases = [replace(problem, dtype=dtype) for problem in self.options.specs for dtype in dtypes]
        if not self.on_gpu:
            for case in cases:
                self.together(case, methods)
            return
        for method in methods:
            for case in cases:
                self.alone(case, method)
            for case in cases if method[1] == "fused" and self.options.tiles else []:
                self.sweep(case)

    def together(self, case: Problem, methods: Sequence[Method]) -> None:
        """Measures methods in turns, each direction by itself: some methods have no backward pass."""
        with tempfile.TemporaryDirectory() as folder:
            file = str(pathlib.Path(folder, "case.npz"))
            failed = self.clients[0].ask("reference", problem=asdict(case), file=file).get("failed")
            for direction in self.options.directions:
                problem = replace(case, direction=direction)
                entries = [self._entry(method, problem, failed) for method in methods]
                rows = measure(entries, [direction], self.plan, file)
                self.add([row | weigh(row, self.clients, problem, file) for row in rows], entries)

    def alone(self, case: Problem, method: Method) -> None:
        """Measures a method in all directions."""
        entry = self._entry(method, case)
        self.add(measure([entry], self.options.directions, self.plan), [entry])

    def _entry(self, method: Method, case: Problem, failed: str | None = None) -> Entry:
        """JAX ends by itself; compiling FlexAttention may take longer than there is time."""
        client, name = method
        entry = Entry(client, name, case, end=math.inf if client.role.framework == "jax" else self.end)
        if failed is not None:
            entry.obstacle = f"there is no reference: {failed}"
        elif time.monotonic() > self.end:
            entry.obstacle = "no time was left"
        return entry

    def sweep(self, case: Problem) -> None:
        """Times tiles of the fused kernels, until the time is over."""
        client = self.clients[0]
        reply = client.ask("tiles", problem=asdict(case), number=self.options.tiles)
        if "failed" in reply:
            say(f"{case} {case.dtype}: no tiles, {reply['failed']}")
        plan = replace(self.plan, seconds=self.plan.seconds / 4)
        for trial in reply.get("trials", []):
            entry = self._entry((client, "fused"), case)
            rows = measure([entry], [trial["direction"]], plan, choice=trial.pop("choice"))
            self.add([row | trial for row in rows], [entry], "tiles")

    def add(self, rows: Sequence[Row], entries: Sequence[Entry], to: str = "results") -> None:
        """Keeps, says and writes what was measured, and why the others were not."""
        skipped = [entry.skipped() for entry in entries if entry.obstacle is not None]
        self.content[to] += rows
        self.content["skipped"] += skipped
        for row, median in zip(rows, results.medians(rows), strict=True):
            rate = f"{row['flops'] / median / 1e9:.4g} GFLOP/s"
            say(f"{label(row)}: {milliseconds(median)} ms, {rate} {row.get('tile', '')}".rstrip())
        for row in skipped:
            say(f"{label(row)}: {row['reason']}")
        if self.options.output is not None:
            write(self.content, self.options.output)
        if self.options.table is not None:
            self.options.table.write_text(report.tables(self.content))


def conditions(options: argparse.Namespace, arguments: Sequence[str], clients: Sequence[Client]) -> Row:
    """What a results file says besides results."""
    versions = {"python": platform.python_version()}
    for client in clients:
        versions |= client.versions
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": machine.command_line(arguments, "run.py"),
        "machine": machine.describe(),
        "versions": versions,
        "about": {name: about for client in clients for name, about in client.methods.items()},
        "device": options.platform,
    }


def write(content: Row, file: pathlib.Path) -> None:
    """Replaces a file: an interruption leaves the last complete one."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(file)
