# SPDX-License-Identifier: Apache-2.0
"""Benchmarks neighborhood attention on a GPU: python benchmarks/gpu.py [--specs ...] [--output RESULTS.json]

First the fused kernels on every problem, then the peers, as long as there is time. Before a method is timed,
some of its results and gradients are compared with the definition in float64. docs/benchmarks.md says what is
measured.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from typing import Any

import client
import machine
from specs import Spec, select

SPECS = "large,gpu"
QUICK_SPECS = "nat-s3-14,1d-1024-w7"
METHODS = "fused,cudnn-all,torch-flex,jax-dense,gemm,naive,xla"  # in this order


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = p.add_argument
    add("--specs", help=f'names, groups, patterns, "all"; default {SPECS}')
    add("--methods", default=METHODS, help=f"names or patterns, in this order; default {METHODS}")
    add("--dtype", default="bfloat16", help="float32, bfloat16, float16 or several; default bfloat16")
    add("--directions", default="forward,backward,forward+backward", help="default: all three")
    add("--tiles", type=int, default=0, metavar="N", help="also time the N tiles that the planner likes best")
    add("--seconds", type=float, default=1.0, help="budget of one measurement, default 1")
    add(
        "--total",
        type=float,
        default=400.0,
        metavar="SECONDS",
        help="begin nothing after so long, default 400",
    )
    add("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every problem")
    add("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    add("--platform", help='JAX\'s platform; "cpu" to try this program without a GPU')
    add("--quick", action="store_true", help="tiny problems and short measurements: does everything run?")
    return p


class Session:
    """One run: its options, its clock, and the document that grows."""

    def __init__(self, options: argparse.Namespace, arguments: Sequence[str]) -> None:
        import gpu_timing

        self.options, self.end = options, time.monotonic() + options.total
        sizes = (256, 1 << 20) if options.quick else (8192, 4 << 30)
        self.ceilings = gpu_timing.measure_ceilings(*sizes)
        self.document: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": machine.command_line(arguments, "gpu.py"),
            "machine": {**machine.describe(), **gpu()},
            "versions": versions(),
            "ceilings": vars(self.ceilings),
            "results": [],
            "tiles": [],
            "skipped": [],
        }

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self.end

    def add(self, spec: Spec, dtype: str, method: str, direction: str, facts: dict[str, Any]) -> None:
        key = {
            "spec": spec.name,
            "about": spec.about,
            "dtype": dtype,
            "method": method,
            "direction": direction,
        }
        self.document["results"].append({**key, **facts})
        rate = f"{facts['median_s'] * 1e3:.4g} ms, {facts['tflop_per_s']:.4g} TFLOP/s"
        say(f"{spec} {dtype} {method} {direction}: {rate}")

    def skip(self, spec: Spec, dtype: str, method: str, reason: str) -> None:
        self.document["skipped"].append(
            {"spec": spec.name, "dtype": dtype, "method": method, "reason": reason}
        )
        say(f"{spec} {dtype} {method}: {reason}")

    def write(self) -> None:
        import gpu_report

        if self.options.output is not None:
            part = self.options.output.with_suffix(".part")
            part.write_text(json.dumps(self.document, indent=1) + "\n")
            part.replace(self.options.output)
        if self.options.table is not None:
            self.options.table.write_text(gpu_report.report(self.document))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def gpu() -> dict[str, Any]:
    """The GPU and its driver, as the driver tells; the names of JAX's devices where there is none."""
    fields = {
        "gpu": "name",
        "driver": "driver_version",
        "memory": "memory.total",
        "compute_capability": "compute_cap",
        "power_limit": "power.limit",
        "most_sm_clock": "clocks.max.sm",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        import jax

        return {"gpu": f"none, {jax.devices()[0].device_kind}", "driver": "none"}
    return dict(zip(fields, (value.strip() for value in line.split(",")), strict=True))


def versions() -> dict[str, str]:
    import importlib.metadata

    found = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "jax-na", "jax-cuda13-plugin", "jax-cuda12-plugin", "nvidia-cudnn-cu13"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure_jax(session: Session, spec: Spec, dtype: str, name: str) -> None:
    """One method on one problem: checked, then timed."""
    import gpu_methods as g

    problem, method = g.Problem(spec, dtype), next(m for m in g.METHODS if m.name == name)
    reason = method.obstacle(problem)
    if reason is not None:
        session.skip(spec, dtype, name, reason)
        return
    directions = session.options.directions.split(",")
    try:
        errors = check(problem, method, directions != [g.FORWARD]) if method.exact else {}
        for direction in directions:
            timing = g.measure(problem, method, direction, session.options.seconds)
            facts = g.result(timing, problem, direction, session.ceilings, method.exact)
            session.add(spec, dtype, name, direction, {**facts, "errors": errors, "exact": method.exact})
    except Exception as error:  # say so, and go on with the others
        session.skip(spec, dtype, name, f"it failed: {type(error).__name__}: {client.reason(str(error))}")


def check(problem: Any, method: Any, gradients: bool) -> dict[str, float]:
    """The largest relative errors over some groups of heads.

    Raises:
        ValueError: if one is too large.
    """
    import gpu_check
    import gpu_methods
    import numpy as np

    spec, worst = problem.spec, {}
    bounds = problem.neighborhood.bounds(spec.spatial)
    for batch, kv_head in gpu_check.groups(spec):
        planes = gpu_methods.planes(problem, method, gradients, batch, kv_head)
        rpb = None
        if spec.rpb:
            group = spec.heads // spec.kv_heads
            rpb = np.asarray(problem.inputs[3], np.float64)[kv_head * group : (kv_head + 1) * group]
        for name, error in gpu_check.errors(gpu_check.Sample(spec, bounds, planes, rpb)).items():
            worst[name] = max(worst.get(name, 0.0), error)
    reason = gpu_check.wrong(worst, problem.dtype)
    if reason is not None:
        raise ValueError(reason)
    return worst


def measure_torch(session: Session, specs: Sequence[Spec], dtype: str) -> None:
    """FlexAttention on all problems, in another process."""
    import gpu_methods as g
    from gpu_timing import Timing

    by_name = {spec.name: spec for spec in specs}
    script = pathlib.Path(__file__).with_name("gpu_torch.py")
    command = [sys.executable, str(script), ",".join(by_name), dtype, str(session.options.seconds)]
    for line in replies(command, session):
        if "versions" in line:
            session.document["versions"] |= line["versions"]
        elif "reason" in line:
            session.skip(by_name[line["spec"]], dtype, "torch-flex", client.reason(line["reason"]))
        elif line["direction"] in session.options.directions.split(","):
            spec = by_name[line["spec"]]
            timing = Timing(tuple(line["samples"]), line["calls"])
            facts = g.result(timing, g.Problem(spec, dtype), line["direction"], session.ceilings, exact=True)
            facts |= {"errors": line["errors"], "setup_s": line["setup_s"], "exact": True}
            session.add(spec, dtype, "torch-flex", line["direction"], facts)


def replies(command: Sequence[str], session: Session) -> Iterator[dict[str, Any]]:
    """The JSON lines of a process, until it ends or the time is over."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
            if session.is_over:
                process.kill()


def measure_all(session: Session, specs: Sequence[Spec]) -> None:
    import gpu_methods as g

    known = [*(m.name for m in g.METHODS), "torch-flex"]
    patterns = session.options.methods.split(",")
    methods = dict.fromkeys(name for p in patterns for name in known if fnmatch(name, p))
    for name in methods:
        for dtype in session.options.dtype.split(","):
            if name == "torch-flex":
                measure_torch(session, specs, dtype)
                session.write()
                continue
            for spec in specs:
                if session.is_over:
                    session.skip(spec, dtype, name, "no time was left")
                else:
                    measure_jax(session, spec, dtype, name)
                    session.write()
        if name == "fused" and session.options.tiles:
            import gpu_tiles

            for spec in specs:
                gpu_tiles.sweep(session, spec, session.options.dtype.split(",")[0])
                session.write()


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if options.platform:
        os.environ["JAX_PLATFORMS"] = options.platform
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory as well
    if options.quick:
        options.seconds = min(options.seconds, 0.05)
    try:
        specs = select(options.specs or (QUICK_SPECS if options.quick else SPECS))
    except ValueError as error:
        print(f"gpu.py: {error}", file=sys.stderr)
        return 2
    session = Session(options, arguments)
    measure_all(session, specs)
    session.write()
    import gpu_report

    print(gpu_report.report(session.document))
    wrong = [s for s in session.document["skipped"] if "WRONG" in s["reason"] or "failed" in s["reason"]]
    ours = [s for s in wrong if s["method"] in ("fused", "gemm", "naive", "xla")]
    return 1 if ours else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
