# SPDX-License-Identifier: Apache-2.0
"""Throughput of models: python benchmarks/models/throughput.py [--only PATTERNS] [--quick]

Images per second of the forward pass, by implementation of attention; milliseconds of a training step (AdamW)
and minutes of an epoch of ImageNet-1K, with the trained positional bias and without it; peak memory; and what
tracing, lowering and compiling cost. The cases are those of tables 5 to 8 of Hassani et al., Faster
Neighborhood Attention (2024), whose figures, from an A100, stand beside ours for orientation, and HDiT's. It
runs on whatever device JAX has.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # machine.py is shared with the other benchmarks

import machine
import table
from cases import Case, build, cases, quick_cases
from families import FAMILIES

from jax_na.tools.clock import QueueClock, Sample, Timing

Row = dict[str, Any]
PACKAGES = ("jax-na", "jax", "jaxlib", "flax", "optax", "numpy")
ROUNDS = 7


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", default="*", metavar="PATTERNS", help="cases by name, as --list has them")
    p.add_argument(
        "--batch",
        type=int,
        default=128,
        help="of classifiers; default 128; others take a share",
    )
    p.add_argument("--seconds", type=float, default=1.0, help="budget of a case's samples; default 1")
    p.add_argument("--total", type=float, default=math.inf, help="begin nothing after so many seconds")
    p.add_argument("--output", type=pathlib.Path, metavar="JSON", help="write results here, after every case")
    p.add_argument("--table", type=pathlib.Path, metavar="FILE", help="write the tables here as well")
    p.add_argument("--quick", action="store_true", help="tiny models: does everything run?")
    p.add_argument("--list", action="store_true", help="print the cases and stop")
    return p


def forward(model: nnx.Module) -> tuple[Callable[..., Any], Any]:
    """A function (state, inputs..) -> what the model returns, and the state."""
    definition, state = nnx.split(model)

    def call(state: Any, *arrays: jax.Array) -> Any:
        return nnx.merge(definition, state)(*arrays)

    return jax.jit(call), state


def training_step(model: nnx.Module, loss: Callable[..., jax.Array]) -> tuple[Callable[..., Any], Any]:
    """A function (state, arrays..) -> state, and the state: parameters, moments, random streams."""
    definition, state = nnx.split(optimized(model))
    return jax.jit(step_of(definition, loss), donate_argnums=0), state


def optimized(model: nnx.Module) -> tuple[nnx.Module, nnx.Optimizer[nnx.Module]]:
    """A model and its AdamW."""
    return model, nnx.Optimizer(model, optax.adamw(1e-3, weight_decay=0.05), wrt=nnx.Param)


def step_of(definition: Any, loss: Callable[..., jax.Array]) -> Callable[..., Any]:
    """A function (state, arrays..) -> state of what `optimized` gives, split by nnx."""

    def step(state: Any, *arrays: jax.Array) -> Any:
        model, optimizer = nnx.merge(definition, state)
        optimizer.update(model, nnx.grad(loss)(model, *arrays))
        return nnx.state((model, optimizer))

    return step


def inputs(case: Case) -> tuple[jax.Array, ...]:
    """Random ones in the dtype of the computation; for training, what the loss takes as well."""
    random, family = np.random.default_rng(0), FAMILIES[case.family]
    arrays = family.inputs(case.config, case.shape, random)
    if case.trains:
        arrays += family.training(case.config, case.shape, random)
    return tuple(x.astype(case.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in arrays)


def compiled(call: Any, *arguments: Any) -> tuple[Any, Row]:
    """The program, seconds of the stages that led to it, and the bytes that it needs on the device."""
    times = [time.perf_counter()]
    traced = call.trace(*arguments)
    times.append(time.perf_counter())
    lowered = traced.lower()
    times.append(time.perf_counter())
    program = lowered.compile()
    times.append(time.perf_counter())
    stages = dict(zip(("trace_s", "lower_s", "compile_s"), np.diff(times).tolist(), strict=True))
    memory = program.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return program, {**stages, "memory": int(used - memory.alias_size_in_bytes)}


class Calls:
    """Calls of a program; a training step goes on from the state that the last one left."""

    def __init__(self, program: Any, state: Any, arrays: tuple[jax.Array, ...], trains: bool) -> None:
        self._program, self._state, self._arrays, self._trains = program, state, arrays, trains

    def __call__(self) -> Any:
        """Enqueues one."""
        result = self._program(self._state, *self._arrays)
        if self._trains:
            self._state = result
        return result


def timing(call: Callable[[], Any], seconds: float) -> Timing:
    """Samples of calls, as many as fit into the budget but at least three."""
    clock = QueueClock(call, jax.block_until_ready)
    samples: list[Sample] = []
    start = time.perf_counter()
    while len(samples) < ROUNDS and (len(samples) < 3 or time.perf_counter() - start < seconds):
        samples.append(clock.sample())
    return Timing(tuple(samples))


def measure(case: Case, seconds: float) -> Row:
    """A row of results; if something goes wrong, with the reason."""
    try:
        model, loss = build(case), FAMILIES[case.family].loss
        call, state = training_step(model, loss) if case.trains else forward(model)
        arrays = inputs(case)
        program, facts = compiled(call, state, *arrays)
        found = timing(Calls(program, state, arrays, case.trains), seconds)
    except Exception as error:  # the other cases can still be measured
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        return {**case.columns, "reason": reason[:300]}
    return {**case.columns, **facts, "seconds": found.median, "quartiles": found.quartiles}


def conditions(arguments: Sequence[str]) -> Row:
    """What a results file says besides results."""
    on_gpu = jax.default_backend() == "gpu"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": machine.command_line(arguments, "models/throughput.py"),
        "machine": machine.describe() | (machine.gpu() if on_gpu else {}),
        "versions": machine.versions(PACKAGES),
    }


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status: 1 if a case failed."""
    options = parser().parse_args(arguments)
    every = quick_cases() if options.quick else cases(options.batch)
    patterns = options.only.split(",")
    chosen = [case for case in every if any(fnmatch.fnmatch(case.name, p) for p in patterns)]
    if options.list:
        print("\n".join(case.name for case in chosen))
        return 0
    if not chosen:
        print(f"throughput.py: no case is called {options.only}; --list prints them", file=sys.stderr)
        return 2
    content: Row = {**conditions(arguments), "results": []}
    end = time.monotonic() + options.total
    for case in chosen:
        is_late = time.monotonic() > end
        row = {**case.columns, "reason": "no time was left"} if is_late else measure(case, options.seconds)
        content["results"].append(row)
        print(f"{case.name}: {table.summary(row)}", file=sys.stderr, flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(content, indent=1) + "\n")
    text = table.tables(content)
    print(text)
    if options.table is not None:
        options.table.write_text(text + "\n")
    return 1 if any("reason" in row for row in content["results"]) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
