# SPDX-License-Identifier: Apache-2.0
"""Problems as programs of JAX, and their clocks: what `jax-na profile`, `jax-na tune` and benchmarks time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jax_na
from jax_na.neighborhood import Neighborhood
from jax_na.op import Op
from jax_na.tools.clock import Clock, QueueClock, WallClock
from jax_na.tools.problems import BACKWARD, FORWARD, PASSES, Problem

SHORT_CALL = (
    300e-6  # seconds: below, enqueueing may take longer than computing, and programs make several calls
)
TOGETHER = 16  # calls of such a program, each with a query of its own

Arrays = Mapping[str, jax.Array]
Attend = Callable[..., tuple[jax.Array, jax.Array | None]]  # (*inputs, *constants) -> (out, lse)


def neighborhood(problem: Problem) -> Neighborhood:
    """The window of a problem."""
    return Neighborhood(**problem.geometry)


def op(problem: Problem) -> Op:
    """The static argument of a call, by which plans and tuning are looked up."""
    return Op(neighborhood(problem), problem.spatial, problem.softmax_scale)


def types(problem: Problem) -> dict[str, Any]:
    """Shapes and dtypes of the inputs by name; a bias is float32 at least."""
    bias = problem.dtype if problem.dtype == "float64" else "float32"
    return {
        name: jax.ShapeDtypeStruct(shape, bias if name == "rpb" else problem.dtype)
        for name, shape in problem.shapes.items()
    }


def flops(problem: Problem) -> int:
    """Useful FLOPs: those of queries with keys that they see, 2 * (head_dim + value_dim) forward."""
    p = problem
    forward = neighborhood(p).flops(p.spatial, p.heads, p.head_dim, p.value_dim, p.batch)
    return int(forward * PASSES[p.direction])


def weight_bytes(problem: Problem) -> int:
    """Size of the stored weights, for the implementations that store them."""
    itemsize = max(jnp.dtype(problem.dtype).itemsize, 4)
    return problem.batch * problem.tokens * problem.heads * op(problem).pitch * itemsize


def availability(problem: Problem) -> Sequence[Any]:
    """Rows of jax_na.implementations: which can run the problem here, and why the others cannot."""
    inputs = types(problem)
    window = neighborhood(problem)
    return jax_na.implementations(inputs["query"], window, value=inputs["value"], rpb=inputs.get("rpb"))


def arrays(problem: Problem) -> dict[str, jax.Array]:
    """Random inputs by name, and the cotangent "dout"; a bias is float32 at least."""
    every = {**types(problem), "dout": jax.ShapeDtypeStruct(problem.out_shape, problem.dtype)}
    keys = jax.random.split(jax.random.key(0), len(every))
    return {
        name: jax.random.normal(key, x.shape, x.dtype)
        for key, (name, x) in zip(keys, every.items(), strict=True)
    }


def attention(problem: Problem, implementation: str | None, **options: Any) -> Attend:
    """The public function, as one of the problem's inputs in order; `options` go to it."""

    def attend(*inputs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        named: dict[str, Any] = dict(zip(problem.shapes, inputs, strict=True))
        every = {"scale": problem.scale, "implementation": implementation, **problem.geometry, **options}
        result = jax_na.neighborhood_attention(**named, **every)
        return result if options.get("return_lse") else (result, None)

    return attend


class Program(NamedTuple):
    """One direction of an attention: function(vary(i), *others), with another argument for every i."""

    function: Callable[..., Any]
    vary: Callable[[int], Any]
    others: tuple[Any, ...]

    def executable(self) -> Any:
        """The compiled program."""
        return jax.jit(self.function).lower(self.vary(0), *self.others).compile()

    def compile(self) -> Callable[[], Any]:
        """What computes it once and returns when it is done."""
        function, first = jax.jit(self.function), self.vary(0)
        return lambda: jax.block_until_ready(function(first, *self.others))

    def temporary_bytes(self) -> int:
        """Memory that the compiler plans besides inputs and results."""
        return int(self.executable().memory_analysis().temp_size_in_bytes)


def program(problem: Problem, attend: Attend, inputs: Arrays, constants: Sequence[Any] = ()) -> Program:
    """The direction of the problem. Results are (out,), the gradients, or (out, *gradients)."""
    query, *others = (inputs[name] for name in problem.shapes)

    def forward(query: Any, others: Sequence[Any], constants: Sequence[Any]) -> tuple[jax.Array]:
        return (attend(query, *others, *constants)[0],)

    def both(query: Any, others: Sequence[Any], constants: Sequence[Any], dout: Any) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda *x: attend(*x, *constants)[0], query, *others)
        return (out, *pull(dout))

    def vary(i: int) -> jax.Array:
        return query + jnp.asarray(i / 64, query.dtype) if i else query

    if problem.direction == FORWARD:
        return Program(forward, vary, (others, constants))
    if problem.direction != BACKWARD:
        return Program(both, vary, (others, constants, inputs["dout"]))

    @jax.jit
    def save(query: Any, others: Sequence[Any], constants: Sequence[Any]) -> Any:
        return jax.vjp(lambda *x: attend(*x, *constants)[0], query, *others)[1]

    run = lambda pull, dout: pull(dout)  # noqa: E731
    return Program(run, lambda i: save(vary(i), others, constants), (inputs["dout"],))


class Prepared(NamedTuple):
    """The clock of a compiled program, and what it needs of the memory: inputs, results, and in between.

    Of what JAX has not compiled the memory is not known.
    """

    clock: Clock
    peak_bytes: int | None


def prepare(program: Program, platform: str) -> Prepared:
    """Compiles a program for "cpu", or for an accelerator."""
    executable, first = program.executable(), program.vary(0)
    used = executable.memory_analysis()
    peak = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    if platform != "cpu":
        return Prepared(_queue_clock(program, lambda: executable(first, *program.others)), int(peak))

    def call() -> Any:
        return jax.block_until_ready(executable(first, *program.others))

    call()  # the first touches of memory
    return Prepared(WallClock(call), int(peak))


def clock(program: Program, platform: str) -> Clock:
    """Compiles a program and gives its clock on "cpu", or on an accelerator."""
    return prepare(program, platform).clock


def _queue_clock(program: Program, call: Callable[[], Any]) -> QueueClock:
    """Short programs are computed for several i at once: for one i the compiler would remove repetitions."""
    one = QueueClock(call, jax.block_until_ready)
    if one.estimate > SHORT_CALL:
        return one
    several = [program.vary(i) for i in range(TOGETHER)]

    def together(several: Sequence[Any], *others: Any) -> list[Any]:
        return [program.function(x, *others) for x in several]

    whole = jax.jit(together).lower(several, *program.others).compile()
    call = functools.partial(whole, several, *program.others)
    return QueueClock(call, jax.block_until_ready, together=TOGETHER)


def prepare_attention(problem: Problem, attend: Attend, constants: Sequence[Any] = ()) -> Prepared:
    """Compiles an attention for random inputs, on JAX's default platform."""
    inputs = arrays(problem)
    platform = next(iter(inputs["query"].devices())).platform
    return prepare(program(problem, attend, inputs, constants), platform)


def prepare_implementation(problem: Problem, implementation: str | None) -> Prepared:
    """Compiles an implementation of jax-na in the same way."""
    return prepare_attention(problem, attention(problem, implementation))
