# SPDX-License-Identifier: Apache-2.0
"""What is measured in JAX on a GPU: jax-na's implementations, and attention over all tokens."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_timing import Ceilings, Timing, time_function
from specs import Spec

import jax_na

GB = 1 << 30
FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
PASSES = {FORWARD: 1.0, BACKWARD: 2.5, BOTH: 3.5}  # useful FLOPs, in forward passes
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
Attend = Callable[..., tuple[jax.Array, jax.Array | None]]  # inputs -> (out, lse)


@dataclass
class Problem:
    """A spec in a dtype with random inputs on the device."""

    spec: Spec
    dtype: str
    inputs: tuple[jax.Array, ...] = field(init=False)
    dout: jax.Array = field(init=False)

    def __post_init__(self) -> None:
        shapes = {**self.spec.shapes, "dout": self.spec.shapes["query"]}
        keys = jax.random.split(jax.random.key(0), len(shapes))
        types = {"rpb": jnp.float32}
        *inputs, self.dout = (
            jax.random.normal(k, shape, types.get(name, self.dtype))
            for k, (name, shape) in zip(keys, shapes.items(), strict=True)
        )
        self.inputs = tuple(inputs)

    @property
    def neighborhood(self) -> jax_na.Neighborhood:
        return jax_na.Neighborhood(**self.spec.neighborhood)

    @property
    def flops(self) -> float:
        """Useful ones of the forward pass."""
        s = self.spec
        return float(self.neighborhood.flops(s.spatial, s.heads, s.head_dim, batch=s.batch))

    def bytes(self, direction: str) -> float:
        """What has to be read and written at least: every array once."""
        s, size = self.spec, ITEMSIZE[self.dtype]
        query, key = (math.prod(s.shapes[name]) * size for name in ("query", "key"))
        lse = math.prod(s.shapes["query"][:-1]) * 4
        forward, backward = 2 * query + 2 * key + lse, 4 * query + 4 * key + lse
        return float({FORWARD: forward, BACKWARD: backward, BOTH: forward + backward}[direction])

    @property
    def pairs(self) -> float:
        """Of all queries with all keys."""
        return float(self.spec.batch) * self.spec.heads * self.spec.tokens**2


@dataclass(frozen=True)
class Method:
    """`obstacle` says why a problem is not run. `exact`: it computes neighborhood attention."""

    name: str
    about: str
    obstacle: Callable[[Problem], str | None]
    attend: Callable[[Problem], Attend]
    exact: bool = True


def measure(problem: Problem, method: Method, direction: str, budget: float) -> Timing:
    """Seconds of one call."""
    attend = method.attend(problem)
    query, *others = problem.inputs

    def forward(*inputs: jax.Array) -> jax.Array:
        return attend(*inputs)[0]

    def both(query: jax.Array, dout: jax.Array, *others: jax.Array) -> Any:
        out, pull = jax.vjp(forward, query, *others)
        return out, pull(dout)

    def vary(i: int) -> jax.Array:
        return query + jnp.asarray(i / 64, query.dtype)

    if direction == FORWARD:
        return time_function(forward, vary, others, budget)
    if direction == BOTH:
        return time_function(both, vary, (problem.dout, *others), budget)
    save = jax.jit(lambda *inputs: jax.vjp(forward, *inputs)[1])
    return time_function(
        lambda pull, dout: pull(dout), lambda i: save(vary(i), *others), (problem.dout,), budget
    )


def planes(
    problem: Problem, method: Method, gradients: bool, batch: int, kv_head: int
) -> dict[str, np.ndarray]:
    """Inputs and results of one group of heads, for gpu_check."""
    attend, spec = method.attend(problem), problem.spec

    @jax.jit
    def run(dout: jax.Array, *inputs: jax.Array) -> dict[str, jax.Array]:
        if not gradients:
            out, lse = attend(*inputs)
            return {"out": out} if lse is None else {"out": out, "lse": lse[..., None]}
        out, pull, lse = jax.vjp(attend, *inputs, has_aux=True)
        extra = {} if lse is None else {"lse": lse[..., None]}
        return {"out": out, **extra, **{f"d{n}": x for n, x in zip(spec.shapes, pull(dout), strict=True)}}

    results = run(problem.dout, *problem.inputs)
    arrays = {**dict(zip(spec.shapes, problem.inputs, strict=True)), **results}
    if gradients:
        arrays["dout"] = problem.dout
    group = spec.heads // spec.kv_heads
    of_queries = slice(kv_head * group, (kv_head + 1) * group)
    heads = dict.fromkeys(("query", "out", "lse", "dout", "dquery"), of_queries)
    return {
        name: np.asarray(x[batch, ..., heads.get(name, slice(kv_head, kv_head + 1)), :], np.float32)
        for name, x in arrays.items()
        if not name.endswith("rpb")
    }


def result(
    timing: Timing, problem: Problem, direction: str, ceilings: Ceilings, exact: bool
) -> dict[str, Any]:
    """Rates of useful work (over all pairs for a method that computes those), and how far from the floor."""
    spec = problem.spec
    forward = problem.flops if exact else 4 * problem.pairs * spec.head_dim
    flops, size = forward * PASSES[direction], problem.bytes(direction)
    seconds = timing.median
    floor = ceilings.floor(problem.flops * PASSES[direction], size)
    return {
        "median_s": seconds,
        "quartiles_s": timing.quartiles,
        "samples": len(timing.samples),
        "calls_per_sample": timing.calls,
        "tflop_per_s": flops / seconds / 1e12,
        "of_matmul": flops / seconds / 1e12 / ceilings.tflop_per_s,
        "gb_per_s": size / seconds / 1e9,
        "of_copy": size / seconds / 1e9 / ceilings.gb_per_s,
        "floor_s": floor,
        "of_floor": floor / seconds,
    }


# jax-na

MOST_FLOPS = {
    "naive": 3e11,
    "gemm": 3e12,
    "xla": 3e12,
}  # useful ones of a forward pass that is worth the wait
LARGEST = 12 * GB  # array that a method may need


def _too_large(what: str, size: float) -> str | None:
    return f"{what} would take {size / GB:.0f} GB" if size > LARGEST else None


def _implementation_obstacle(name: str, problem: Problem) -> str | None:
    rows = jax_na.implementations(problem.inputs[0], **problem.spec.neighborhood)
    row = next(row for row in rows if row.name == name)
    if row.reason is not None:
        return row.reason
    if problem.flops > MOST_FLOPS.get(name, math.inf):
        return "it would take too long"
    stored = 4.0 * math.prod(problem.spec.shapes["query"][:-1]) * problem.spec.window
    return _too_large("the stored weights", stored) if name in ("naive", "gemm") else None


def attend_with(name: str | None, problem: Problem) -> Attend:
    spec = problem.spec

    def attend(*inputs: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        named: dict[str, Any] = dict(zip(spec.shapes, inputs, strict=True))
        options = {"scale": spec.scale, "implementation": name, "return_lse": True}
        out, lse = jax_na.neighborhood_attention(**named, **spec.neighborhood, **options)
        return out, lse

    return attend


# Attention over all tokens: with a mask the same result, without one what neighborhood attention replaces.


def _all_tokens(problem: Problem, implementation: str, mask: jax.Array | None) -> Attend:
    spec = problem.spec

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        q_, k_, v_ = (x.reshape(spec.batch, spec.tokens, *x.shape[-2:]) for x in (q, k, v))
        out = jax.nn.dot_product_attention(
            q_, k_, v_, mask=mask, scale=spec.softmax_scale, implementation=implementation
        )
        return out.reshape(q.shape), None

    return attend


def _masked(problem: Problem) -> Attend:
    n = problem.spec.tokens
    mask = problem.neighborhood.mask(problem.spec.spatial).reshape(n, n)
    return _all_tokens(problem, "xla", jnp.asarray(mask)[None, None])


def _masked_obstacle(problem: Problem) -> str | None:
    if problem.spec.rpb:
        return "written without a positional bias"
    return _too_large("scores of all pairs", 4 * problem.pairs)


def _cudnn_obstacle(problem: Problem) -> str | None:
    if jax.default_backend() != "gpu":
        return "cuDNN needs a GPU"
    if problem.dtype == "float32" or problem.spec.head_dim > 128:
        return "cuDNN takes 2-byte types and up to 128 features per head"
    return "written without a positional bias" if problem.spec.rpb else None


METHODS = (
    *(
        Method(
            row.name,
            f"jax-na: {row.about}",
            functools.partial(_implementation_obstacle, row.name),
            functools.partial(attend_with, row.name),
        )
        for row in jax_na.implementations()
    ),
    Method("jax-dense", "jax.nn over all pairs with a mask", _masked_obstacle, _masked),
    Method(
        "cudnn-all",
        "cuDNN through jax.nn, every token sees all",
        _cudnn_obstacle,
        lambda problem: _all_tokens(problem, "cudnn", None),
        exact=False,
    ),
)
