# SPDX-License-Identifier: Apache-2.0
"""What is measured in JAX: jax-na's implementations, peers in JAX, and two yardsticks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import blocked
import check
import jax
import jax.numpy as jnp
import numpy as np
import tiles
from method import CPU, GPU, Array, Case, Method, Prepared, Yardstick, first_of, no_bias, too_large

import jax_na
from jax_na.tools import peers, profiler
from jax_na.tools.clock import Clock, QueueClock
from jax_na.tools.peers import Peer
from jax_na.tools.problems import BOTH, OVERHEAD, Problem
from jax_na.tools.profiler import Attend

# Useful FLOPs of a forward pass on a GPU that is worth the wait.
MOST_FLOPS = {"naive": 3e11, "gemm": 3e12, "xla": 3e12}
CEILING_SECONDS = 2.0 / 7  # of a sample: long enough for the clocks to rise
CEILING_SAMPLES = 7
SGEMM_SIZE = 1024  # of the matrix product that all are compared with on a CPU


class Attention(Prepared):
    """An attention and its gradients under jit."""

    def __init__(
        self, case: Case, attend: Attend, constants: Sequence[Any] = (), is_exact: bool = True
    ) -> None:
        super().__init__(case, is_exact)
        self.attend = attend
        self.inputs, self.constants = inputs(case), [jnp.asarray(c) for c in constants]
        self._calls: dict[Problem, Callable[[], Any]] = {}
        self._results = jax.jit(self._compute)

    def program(self, problem: Problem) -> profiler.Program:
        """The direction of a problem."""
        return profiler.program(problem, self.attend, self.inputs, self.constants)

    def call(self, problem: Problem) -> Callable[[], Any]:
        if problem not in self._calls:
            self._calls[problem] = self.program(problem).compile()
        return self._calls[problem]

    def gpu_clock(self, problem: Problem) -> Clock:
        with tiles.chosen(self.case):
            return profiler.clock(self.program(problem), GPU)

    def temporary_bytes(self, problem: Problem) -> int:
        return self.program(problem).temporary_bytes()

    def verify(self) -> dict[str, float]:
        case = self.case
        if case.device == GPU:
            return check.sampled(case.problem, case.bounds, self.planes)
        found = [np.asarray(x, np.float32) for x in self.call(case.problem)()]
        return check.whole(dict(zip(case.results, found, strict=True)), case.arrays)

    def _compute(self, dout: jax.Array, *operands: jax.Array) -> dict[str, jax.Array]:
        out, pull, lse = jax.vjp(lambda *x: self.attend(*x, *self.constants), *operands, has_aux=True)
        found = {"out": out} if lse is None else {"out": out, "lse": lse[..., None]}
        if self.case.problem.needs_gradients:
            names = self.case.problem.shapes
            found |= {"dout": dout, **{f"d{n}": x for n, x in zip(names, pull(dout), strict=True)}}
        return found

    def planes(self, batch: int, kv_head: int) -> check.Planes:
        """Inputs and results of the heads that share a key head."""
        problem, found = self.case.problem, {}
        operands = {name: self.inputs[name] for name in problem.shapes}
        arrays = operands | self._results(self.inputs["dout"], *operands.values())
        for name, x in arrays.items():
            heads = check.heads(problem, name, kv_head)
            if name == "rpb":
                found[name] = np.asarray(x[heads])
            elif name != "drpb":
                found[name] = np.asarray(x[batch, ..., heads, :], np.float32)
        return found


def inputs(case: Case) -> dict[str, jax.Array]:
    """The inputs of a case and the cotangent."""
    if not case.arrays:
        return profiler.arrays(case.problem)
    dtypes = {"rpb": "float32"}
    names = (*case.problem.shapes, "dout")
    return {n: jnp.asarray(case.arrays[n], dtypes.get(n, case.problem.dtype)) for n in names}


# jax-na


def _implementation(name: str, about: str) -> Method:
    def obstacle(case: Case) -> str | None:
        row = next(row for row in profiler.availability(case.problem) if row.name == name)
        stored = _stored_weights(case) if name in ("naive", "gemm") else None
        return first_of(row.reason, _too_slow(case, name), stored)

    def prepared(case: Case) -> Prepared:
        return Attention(case, profiler.attention(case.problem, name, return_lse=case.device == GPU))

    return Method(name, f"jax-na: {about}", obstacle, prepared)


def _too_slow(case: Case, name: str) -> str | None:
    slow = case.device == GPU and profiler.flops(case.problem) > MOST_FLOPS.get(name, math.inf)
    return "it would take too long" if slow else None


def _stored_weights(case: Case) -> str | None:
    p = case.problem
    return too_large(case, "the stored weights", p.batch * p.tokens * p.heads * p.window)


# Peers


# Names that results have, and where they are measured.
MEASURED = {"jax.nn": ("jax-dense", (CPU, GPU)), "cudnn, all tokens": ("cudnn-all", (GPU,))}


def _peer(peer: Peer) -> Method:
    name, platforms = MEASURED[peer.name]

    def obstacle(case: Case) -> str | None:
        return peer.obstacle(case.problem, jax.default_backend())

    def prepared(case: Case) -> Prepared:
        attend, constants = peer.attention(case.problem)
        return Attention(case, attend, constants, peer.is_exact)

    return Method(name, peer.about, obstacle, prepared, platforms)


# Yardsticks


def _yardstick(case: Case, function: Callable[..., Any], flops: float, *operands: jax.Array) -> Prepared:
    compiled = jax.jit(function, keep_unused=True)
    return Yardstick(case, lambda: (jax.block_until_ready(compiled(*operands)),), flops)


def _sgemm(case: Case) -> Prepared:
    x = jax.random.normal(jax.random.key(0), (SGEMM_SIZE, SGEMM_SIZE), jnp.float32)
    return _yardstick(case, jnp.dot, 2.0 * SGEMM_SIZE**3, x, x)


def _identity(case: Case) -> Prepared:
    """A program with the same operands that only copies the query."""
    arrays = inputs(case)
    return _yardstick(case, lambda *x: jnp.copy(x[0]), 0.0, *(arrays[name] for name in case.problem.shapes))


def _identity_obstacle(case: Case) -> str | None:
    tiny = case.problem.group == OVERHEAD and not case.problem.needs_gradients
    return None if tiny else "only measured forward on the problem for the overhead of a call"


METHODS = (
    *(_implementation(row.name, row.about) for row in jax_na.implementations()),
    Method(
        "jax-blocked",
        "pure JAX: tiles of queries with blocks of keys",
        lambda case: first_of(no_bias(case), blocked.obstacle(case)),
        functools.partial(blocked.prepared, Attention),
        (CPU,),
    ),
    *map(_peer, peers.PEERS),
    Method("identity", "a jitted identity: what a call costs", _identity_obstacle, _identity, (CPU,)),
    Method("sgemm", f"{SGEMM_SIZE}^3 float32 matrix product", lambda case: None, _sgemm, (CPU,)),
)


# What the driver asks for, besides timings


def reference(case: Case) -> dict[str, Array]:
    """The arrays of a case on a CPU; right are the results of "naive" in float32, unless it is too large."""
    obstacle = _stored_weights(case)
    if obstacle is not None:
        raise ValueError(obstacle)
    single = replace(case.problem, dtype="float32", direction=BOTH)
    inputs = {name: x.astype(jnp.float32) for name, x in profiler.arrays(case.problem).items()}
    results = profiler.program(single, profiler.attention(single, "naive"), inputs).compile()()
    names = ("out", *(f"d{name}" for name in single.shapes))
    return {name: np.asarray(x) for name, x in {**inputs, **dict(zip(names, results, strict=True))}.items()}


def ceilings(matmul_size: int, copy_bytes: int) -> dict[str, Any]:
    """What a GPU gives: a large bfloat16 matrix product, and a copy that one addition makes (read and write).

    The best of some samples.
    """
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(k, (matmul_size, matmul_size), jnp.bfloat16) for k in keys)
    product = _best(jax.jit(jnp.dot), a, b)
    x = jax.random.normal(keys[0], (copy_bytes // 4,), jnp.float32)
    copy = _best(jax.jit(lambda x: x + 1), x)
    return {
        "tflop_per_s": 2 * matmul_size**3 / product / 1e12,
        "gb_per_s": 2 * x.nbytes / copy / 1e9,
        "matmul_size": matmul_size,
        "copy_bytes": x.nbytes,
    }


def _best(function: Callable[..., Any], *operands: jax.Array) -> float:
    clock = QueueClock(lambda: function(*operands), jax.block_until_ready, CEILING_SECONDS)
    return min(clock.sample().seconds for _ in range(CEILING_SAMPLES))
