# SPDX-License-Identifier: Apache-2.0
"""One attention layer on a mesh: its inputs, made where they belong, and its program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import compare
import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from splits import Split, axis_names

from jax_na.mesh.traffic import halo_keys
from jax_na.tools import profiler
from jax_na.tools.problems import BACKWARD, FORWARD, ITEMSIZE, Problem

LARGEST = 50e9  # bytes of inputs and results that one device has room for: it computes what is compared


@dataclass(frozen=True)
class Layer:
    """The attention of a problem, in its direction."""

    problem: Problem
    unit = compare.TOKEN
    amount_unit = "FLOP"

    @property
    def name(self) -> str:
        return self.problem.name

    @property
    def dtype(self) -> str:
        return self.problem.dtype

    @property
    def direction(self) -> str:
        return self.problem.direction

    @property
    def amount(self) -> float:
        return float(profiler.flops(self.problem))

    @property
    def checked(self) -> Layer:
        return self

    def grown(self, split: Split) -> Layer:
        p = self.problem
        spatial = tuple(n * c for n, c in zip(p.spatial, split.space, strict=True))
        heads, kv_heads = p.heads * split.heads, p.kv_heads * split.heads
        return Layer(replace(p, batch=p.batch * split.batch, spatial=spatial, heads=heads, kv_heads=kv_heads))

    def obstacle(self, split: Split) -> str | None:
        p = self.problem
        sizes = {"batch": (p.batch, split.batch), "heads": (p.kv_heads, split.heads)}
        sizes |= {f"axis {a}": x for a, x in enumerate(zip(p.spatial, split.space, strict=True))}
        for name, (size, parts) in sizes.items():
            if size % parts:
                return f"{name} of {size} does not divide over {parts} devices"
        arrays = replace(p, direction=BACKWARD if p.needs_gradients else FORWARD).least_bytes
        return "one device has no room for what is compared" if arrays > LARGEST else None

    def halo_bytes(self, split: Split) -> float:
        p = self.problem
        forward, both = halo_keys(profiler.neighborhood(p), p.spatial, split.space)
        keys = forward if p.direction == FORWARD else both
        token = p.kv_heads // split.heads * (p.head_dim + p.value_dim) * ITEMSIZE[p.dtype]
        return float(keys * token * p.batch // split.batch)

    def columns(self) -> dict[str, Any]:
        p = self.problem
        return {name: getattr(p, name) for name in ("batch", "spatial", "heads", "head_dim", "kernel_size")}

    def job(self, mesh: Mesh) -> LayerJob:
        return LayerJob(self.problem, mesh)


class LayerJob:
    """A layer as a program of all devices of a mesh."""

    def __init__(self, problem: Problem, mesh: Mesh) -> None:
        self._problem = problem
        tokens = NamedSharding(mesh, P("batch", *axis_names(problem.rank), "heads"))
        places = dict.fromkeys((*problem.shapes, "dout"), tokens)
        if problem.rpb:
            places["rpb"] = NamedSharding(mesh, P("heads"))
        if problem.direction == FORWARD:
            del places["dout"]
        self._names = tuple(places)
        self._make = jax.jit(self._arrays, out_shardings=places)
        outcome = {"out": tokens} | {f"d{name}": x for name, x in places.items() if name in problem.shapes}
        self._outcome = {"out": tokens} if problem.direction == FORWARD else outcome

    def _arrays(self) -> dict[str, jax.Array]:
        """The same values however they are split."""
        every = profiler.arrays(self._problem)
        return {name: every[name] for name in self._names}

    def _program(self, arrays: Any) -> profiler.Program:
        return profiler.program(self._problem, profiler.attention(self._problem, None), arrays)

    def lower(self) -> jax.stages.Lowered:
        function, vary, others = self._program(self._make.eval_shape())
        return jax.jit(function, out_shardings=tuple(self._outcome.values())).lower(vary(0), *others)

    def call(self, program: Any) -> Callable[[], Any]:
        _, vary, others = self._program(self._make())
        first = vary(0)
        return lambda: program(first, *others)

    def results(self, program: Any) -> dict[str, list[jax.Array]]:
        return {name: [x] for name, x in zip(self._outcome, self.call(program)(), strict=True)}
