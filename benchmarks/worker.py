# SPDX-License-Identifier: Apache-2.0
"""One process of the benchmark: one framework, with one number of threads or on a GPU.

client.py starts it through execnet, in whichever Python has the framework, and calls the methods of Worker by
name. It measures one sample when it is told to, so that the driver can take turns between processes.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import os
import sys
import time
import traceback
import types
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from method import Case, Method, Prepared

    from jax_na.tools.clock import Clock

MODULES = {"jax": "jax_methods", "torch": "torch_methods"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")
PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13")
PACKAGES = {"jax": ("jax", "jaxlib", "jax-na", "numpy", *PLUGINS), "torch": ("torch",)}
Reply = dict[str, Any]


def limit_threads(threads: int) -> None:
    """Before anything is imported: as many CPUs and threads as asked for."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[-threads:])  # the first CPU often serves interrupts
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers during the measurement
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def without_jax(folder: str) -> None:
    """Makes the modules of jax_na that need the standard library only importable in a Python without JAX."""
    package = types.ModuleType("jax_na")
    package.__path__ = [folder]
    sys.modules["jax_na"] = package


class Worker:
    """The commands. Every one returns the reply."""

    def __init__(self, framework: str, device: str) -> None:
        self.framework, self.device = framework, device
        self.module = importlib.import_module(MODULES[framework])
        every: tuple[Method, ...] = self.module.METHODS
        self.methods = {method.name: method for method in every if device in method.devices}
        self.prepared: dict[int, Prepared] = {}
        self.clocks: dict[int, Clock] = {}

    def hello(self) -> Reply:
        """What this process offers."""
        import machine

        about = {name: method.about for name, method in self.methods.items()}
        return {"methods": about, "versions": machine.versions(PACKAGES[self.framework])}

    def case(self, problem: Reply, bounds: tuple[bytes, ...] = (), file: str = "", **options: Any) -> Case:
        """A case from what comes through the channel, or from a file."""
        import numpy as np
        from method import Case

        from jax_na.tools.problems import Problem

        lines = tuple(np.frombuffer(line, np.int32).reshape(-1, 2) for line in bounds)
        arrays = dict(np.load(file)) if file else {}
        return Case(Problem(**problem), self.device, lines, arrays, **options)

    def reference(self, problem: Reply, file: str) -> Reply:
        """Writes Case.arrays of a problem into a file (JAX on a CPU only)."""
        import numpy as np

        np.savez(file, **self.module.reference(self.case(problem)))
        return {}

    def setup(self, id: int, method: str, **arguments: Any) -> Reply:
        """Prepares, runs, and verifies; says how long that took, or why it cannot be."""
        case = self.case(**arguments)
        obstacle = self.methods[method].obstacle(case)
        if obstacle is not None:
            return {"cannot": obstacle}
        start = time.perf_counter()
        prepared = self.methods[method].prepare(case)
        errors = {} if case.choice else prepared.errors()  # what was chosen was verified with the method
        self.prepared[id] = prepared
        return {"setup_s": time.perf_counter() - start, "errors": errors, "note": prepared.note}

    def start(self, id: int, direction: str) -> Reply:
        """Compiles one direction, for the samples that follow; says the FLOPs of something else."""
        prepared = self.prepared[id]
        problem = replace(prepared.case.problem, direction=direction)
        self.clocks.pop(id, None)  # the memory of another direction
        self.clocks[id] = prepared.clock(problem)
        return {"flops": prepared.flops(problem)}

    def sample(self, id: int) -> Reply:
        """One sample."""
        return self.clocks[id].sample()._asdict()

    def memory(self, id: int, direction: str) -> Reply:
        """What the compiler plans, and what one call needs."""
        import memory

        prepared = self.prepared[id]
        problem = replace(prepared.case.problem, direction=direction)
        planned = prepared.temporary_bytes(problem)
        return {"temporary": planned, **memory.peak(prepared.call(problem))}

    def ceilings(self, matmul_size: int, copy_bytes: int) -> Reply:
        """What the GPU gives."""
        return dict(self.module.ceilings(matmul_size, copy_bytes))

    def tiles(self, problem: Reply, number: int) -> Reply:
        """Tiles of the fused CUDA kernels to try."""
        import tiles

        return {"trials": list(tiles.trials(self.case(problem).problem, number))}

    def drop(self) -> Reply:
        """Forgets all cases."""
        self.clocks.clear()
        self.prepared.clear()
        gc.collect()
        return {}


def begin(framework: str, device: str, threads: int, package: str, log: str) -> Worker:
    """Sets the process up; a ModuleNotFoundError if it has not got the framework."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(output, stream)
    if threads:
        limit_threads(threads)
    if importlib.util.find_spec(framework) is None:
        raise ModuleNotFoundError(f"{framework} is not installed")
    if framework != "jax":
        without_jax(package)
    return Worker(framework, device)


def answer(function: Callable[[], Reply]) -> Reply:
    """The reply of a command, or what went wrong: the driver reports it and goes on."""
    try:
        return function()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def serve(channel: Any) -> None:
    """Answers what comes through the channel: first how to begin, then (command, arguments)."""
    worker: Worker | None = None

    def hello() -> Reply:
        nonlocal worker
        worker = begin(**channel.receive())
        return worker.hello()

    channel.send(answer(hello))
    for command, arguments in channel:
        channel.send(answer(functools.partial(getattr(worker, command), **arguments)))
