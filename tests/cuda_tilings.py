# SPDX-License-Identifier: Apache-2.0
"""Tiles of the CUDA kernels, as the rows of their table say, and random ones of them for a problem."""

from __future__ import annotations

import ctypes
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from . import cuda_kernels
from .cuda_kernels import ADDITIONAL, AXES, Kernel, Mode, Pass
from .cuda_problems import Problem, Tile, boxes_visited

ENOUGH_WORK = 1 << 20  # multiplications of a product that the executor does in a fraction of a second
HOPPER_ROWS = 128


class _Tiling(ctypes.Structure):
    _fields_ = [(side, ctypes.c_int * AXES) for side in ("query", "key")]
    _fields_ += [(n, ctypes.c_int) for n in ("rows", "warp_rows", "columns", "features", "staged_slots")]


class Tiling(NamedTuple):
    """Tiling of common/call/variant.h."""

    query: Tile
    key: Tile
    rows: int
    columns: int
    staged_slots: int

    def choice(self, name: str) -> str:
        """The kernel with these tiles, as the attribute has it; the halo kernels have one."""
        tiles = (self.query,) if name.startswith("halo") else (self.query, self.key)
        return choice(name, *tiles)


def choice(name: str, *tiles: Tile) -> str:
    """A kernel with tiles, as the attribute `kernels` has it."""
    return f"{name}:{','.join('x'.join(map(str, tile)) for tile in tiles)}"


def tilings(
    kernel: Kernel, which: Pass, problem: Problem, mode: Mode, name: str = "portable"
) -> list[Tiling]:
    """All tiles with which a kernel takes a problem."""
    rank = len(problem.axes)
    call = _query(kernel, problem, mode)
    found = (_Tiling * 4096)()
    count = cuda_kernels.library().jax_na_tilings(ctypes.byref(call), which, name.encode(), found, len(found))
    assert count <= len(found)
    return [
        Tiling(tuple(t.query[-rank:]), tuple(t.key[-rank:]), t.rows, t.columns, t.staged_slots)
        for t in found[:count]
    ]


def obstacle(kernel: Kernel, which: Pass, problem: Problem, mode: Mode, name: str = "portable") -> str:
    """Why a kernel does not take a problem, "" if it does."""
    call, text = _query(kernel, problem, mode), ctypes.create_string_buffer(400)
    cuda_kernels.library().jax_na_obstacle(ctypes.byref(call), which, name.encode(), text, len(text))
    return text.value.decode()


def _query(kernel: Kernel, problem: Problem, mode: Mode) -> ctypes.Structure:
    is_fused = kernel in (Kernel.FORWARD, Kernel.BACKWARD)
    optional = [*(["rpb"] if problem.rpb else []), *(ADDITIONAL if problem.additional else [])]
    return cuda_kernels.native_call(kernel, problem, mode, optional if is_fused else ())


def any_tiling(
    kernel: Kernel, which: Pass, problem: Problem, mode: Mode, rows: int, rng: np.random.Generator
) -> Tiling:
    """A random one of the kernel for so many rows, else for fewer, else of any."""
    legal = tilings(kernel, which, problem, mode)
    numbers = (*(rows >> i for i in range(rows.bit_length())), 64, 32)
    number = next((n for n in numbers if any(t.rows == n for t in legal)), None)
    if number is None:
        raise ValueError(f"there is no kernel for {problem}")
    return cheap_tiling([t for t in legal if t.rows == number], problem, which, rng)


def cheap_tiling(legal: Sequence[Tiling], problem: Problem, which: Pass, rng: np.random.Generator) -> Tiling:
    """A random one, not so badly suited to the problem that the executor takes long."""
    keys_stay = which in (Pass.BACKWARD_KEY, Pass.INVERSE)
    each = legal[0].rows * legal[0].columns * max(32, problem.head_dim, problem.value_dim)
    whole = {"query_start": 0, "num_queries": None, "key_start": 0, "num_keys": None}
    grid = [dataclasses.replace(axis, **whole) for axis in problem.axes]
    best, least = legal[0], math.inf
    for _ in range(10):
        tiling = legal[rng.integers(len(legal))]
        tiles = (tiling.key, tiling.query) if keys_stay else (tiling.query, tiling.key)
        cost = each * problem.batch * problem.heads * boxes_visited(grid, *tiles, keys_stay)
        if cost < least:
            best, least = tiling, cost
        if cost < ENOUGH_WORK:
            break
    return best


def forward_kernels(problem: Problem, mode: Mode, rows: int, rng: np.random.Generator) -> str:
    """The portable kernel of so many rows, with random tiles."""
    return any_tiling(Kernel.FORWARD, Pass.FORWARD, problem, mode, rows, rng).choice("portable")


def hopper_kernels(problem: Problem, dtype: str, rng: np.random.Generator) -> str:
    """The kernel for compute capability 9.0 with random tiles; with some that it refuses, if it has none."""
    legal = tilings(Kernel.FORWARD, Pass.FORWARD, problem, (dtype, "default"), "sm90")
    if legal:
        return cheap_tiling(legal, problem, Pass.FORWARD, rng).choice("sm90")
    return choice("sm90", (1,) * len(problem.axes), (1,) * len(problem.axes))


def backward_kernels(problem: Problem, mode: Mode, rows: int, rng: np.random.Generator) -> str:
    """The kernels of both passes, with random tiles."""
    passes = (Pass.BACKWARD_QUERY, Pass.BACKWARD_KEY)
    found = (any_tiling(Kernel.BACKWARD, which, problem, mode, rows, rng) for which in passes)
    return ";".join(tiling.choice("portable") for tiling in found)
