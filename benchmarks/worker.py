# SPDX-License-Identifier: Apache-2.0
"""One process of the benchmark: one framework with one number of threads.

    python worker.py FRAMEWORK THREADS

Commands are JSON objects, one a line on the standard input, and so are the replies. It measures one sample
when it is told to, so that the driver can take turns between processes. The first reply says what it offers,
or why nothing. The commands:

    {"cmd": "reference", "spec": NAME, "dtype": D, "file": F}        writes Case.arrays (JAX only)
    {"cmd": "setup", "id": N, "method": M, "spec": NAME, "dtype": D, "backward": B, "file": F, "tries": T,
     "choice": NOTE}
    {"cmd": "sample", "id": N}     {"cmd": "memory", "id": N}     {"cmd": "drop"}
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import sys
import time
import traceback
from typing import Any

MODULES = {"jax": "methods", "torch": "torch_methods"}


def limit_threads(threads: int) -> None:
    """Before anything is imported: as many CPUs and threads as asked for."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cpus[-threads:])  # the first CPU often serves interrupts
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC"):
        os.environ[name] = str(threads)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # no pool of compilers beside the measurement
    if threads == 1:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


class Worker:
    """The commands. Every one returns the reply as a dictionary."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.methods = {method.name: method for method in module.METHODS}
        self.live: dict[int, tuple[Any, Any]] = {}

    def hello(self) -> dict[str, Any]:
        methods = {name: method.about for name, method in self.methods.items()}
        return {"methods": methods, "versions": self.module.versions(), "isa": self.module.instruction_set()}

    def reference(self, spec: str, dtype: str, file: str) -> dict[str, Any]:
        import numpy as np
        from specs import BY_NAME

        arrays = self.module.reference(BY_NAME[spec], dtype)
        np.savez(file, **arrays)
        return {"flops": int(arrays["flops"])}

    def setup(self, id: int, method: str, **case: Any) -> dict[str, Any]:
        """Compiles, runs, and compares with the reference; says how long that took, or why it cannot be."""
        from measure import Sampler

        case_ = _case(**case)
        obstacle = self.methods[method].obstacle(case_)
        if obstacle is not None:
            return {"cannot": obstacle}
        start = time.perf_counter()
        prepared = self.methods[method].prepare(case_)
        results = prepared.call()
        first = time.perf_counter() - start
        errors = _errors(case_, prepared, results)
        del results
        self.live[id] = (prepared, Sampler(prepared.call))
        return {"first": first, "errors": errors, "note": prepared.note}

    def sample(self, id: int) -> dict[str, Any]:
        return dict(self.live[id][1].sample())

    def memory(self, id: int) -> dict[str, Any]:
        from measure import peak_memory

        prepared = self.live[id][0]
        planned = None if prepared.temporary_bytes is None else prepared.temporary_bytes()
        return {"temporary": planned, **(peak_memory(prepared.call) or {})}

    def drop(self) -> dict[str, Any]:
        self.live.clear()
        gc.collect()
        return {}


def _case(spec: str, dtype: str, backward: bool, file: str, tries: int, choice: str) -> Any:
    import numpy as np
    from method import Case
    from specs import BY_NAME

    with np.load(file) as arrays:
        return Case(BY_NAME[spec], dtype, backward, dict(arrays), tries, choice)


def _errors(case: Any, prepared: Any, results: Any) -> dict[str, float] | None:
    """Per result ||x - reference|| / ||reference||; None for a method that computes something else."""
    import numpy as np

    if prepared.to_numpy is None:
        return None
    found = dict(zip(case.results, prepared.to_numpy(results), strict=True))
    right = {name: case.arrays[name] for name in found}
    return {n: float(np.linalg.norm(found[n] - x) / np.linalg.norm(x)) for n, x in right.items()}


def main(framework: str, threads: str) -> None:
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no reply
    limit_threads(int(threads))
    if importlib.util.find_spec(framework) is None:
        replies.write(json.dumps({"missing": f"{framework} is not installed"}) + "\n")
        return
    worker = Worker(importlib.import_module(MODULES[framework]))
    replies.write(json.dumps(worker.hello()) + "\n")
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            reply = getattr(worker, arguments.pop("cmd"))(**arguments)
        except Exception as error:  # the driver reports it and goes on
            traceback.print_exc()
            reply = {"failed": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
