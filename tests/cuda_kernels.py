# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels as Python functions of numpy arrays: on the host executor, or on the GPU of this machine.

Both run the kernels of cuda/host/kernels.h through simt/harness/harness.h, without JAX. Every array lies
between guard areas, and results are poisoned; what the executor finds is an AssertionError.
JAX_NA_KERNELS=device chooses the GPU (it needs nvcc).
"""

from __future__ import annotations

import ctypes
import enum
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from . import oracle
from .cuda_problems import Problem, dtype_of
from .simt import build

Array = np.ndarray
Mode = tuple[str, str]  # dtype, precision
AXES = 3  # kAxes
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "float64": 3}  # DType
ON_DEVICE = os.environ.get("JAX_NA_KERNELS") == "device"
ARITHMETIC = {
    ("bfloat16", "default"): "BF16",
    ("float16", "default"): "F16",
    ("float32", "default"): "TF32",
    ("float32", "exact"): "ExactF32",
}
GUARD, GUARD_BYTE = 256, 0xA5
ADDITIONAL = ("additional_keys", "additional_values")
OPTIONAL = ("rpb", *ADDITIONAL, "key_mask")  # of fused attention
NAN, NO_NAN = 0xFF, 0x40  # bytes to poison results with; the others are between 2 and 4
OPERANDS = ("query", "key", "value", "weights", "x", "y", "scores", "offsets", "out", "lse", "delta", "dout")
OPERANDS += ("rpb", *ADDITIONAL, "key_mask", "dquery", "dkey", "dvalue", "drpb", "scratch")  # Operand


class Kernel(enum.IntEnum):
    """Target."""

    FORWARD, BACKWARD, GEMM_QK, GEMM_AV, GEMM_INVERSE, NAIVE_QK, NAIVE_AV, NAIVE_INVERSE = range(8)


class Pass(enum.IntEnum):
    """Pass; the CPU's single backward pass is not among these."""

    FORWARD, BACKWARD_QUERY, BACKWARD_KEY, QK, AV, INVERSE = 0, 2, 3, 4, 5, 6


GEMM_PASSES = {Kernel.GEMM_QK: Pass.QK, Kernel.GEMM_AV: Pass.AV, Kernel.GEMM_INVERSE: Pass.INVERSE}


# The interface of simt/harness/harness.h


class _Axis(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("length", "kernel_size", "stride", "dilation")]
    _fields_ += [("is_causal", ctypes.c_bool)]


class NativeProblem(ctypes.Structure):
    """Problem of common/problem.h; what is present starts at `offsets` instead of q0 and k0."""

    _fields_ = [("batch", ctypes.c_int64), ("rank", ctypes.c_int), ("axis", _Axis * AXES)]
    _fields_ += [(name, ctypes.c_int * AXES) for name in ("q0", "nq", "k0", "nk")]
    _fields_ += [(name, ctypes.c_int) for name in ("heads", "kv_heads", "head_dim", "value_dim", "pitch")]
    _fields_ += [("tile", ctypes.c_int * AXES), ("scale", ctypes.c_double)]


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("bytes", ctypes.c_int64), ("name", ctypes.c_char_p)]
    _fields_ += [("is_result", ctypes.c_int32), ("operand", ctypes.c_int32)]


class _Call(ctypes.Structure):
    _fields_ = [("problem", NativeProblem)]
    _fields_ += [(n, ctypes.c_int32) for n in ("target", "dtype", "is_exact", "drpb_parts", "tokens")]
    _fields_ += [("operands", ctypes.c_uint32), ("seed", ctypes.c_uint32), ("kernels", ctypes.c_char_p)]


def padded(values: Sequence[int]) -> tuple[int, ...]:
    return (1,) * (AXES - len(values)) + tuple(values)


def native_axis(axis: oracle.Axis) -> ctypes.Structure:
    """The axis as the C++ sources know it."""
    return _Axis(axis.length, axis.kernel_size, axis.stride, axis.dilation, axis.is_causal)


def native(problem: Problem) -> NativeProblem:
    """The problem as the C++ sources know it, padded to three axes."""
    n = NativeProblem(
        batch=problem.batch, rank=len(problem.axes), scale=problem.softmax_scale, pitch=problem.pitch
    )
    for name in ("heads", "kv_heads", "head_dim", "value_dim"):
        setattr(n, name, getattr(problem, name))
    axes = [oracle.Axis(1, 1)] * (AXES - len(problem.axes)) + list(problem.axes)
    for a, axis in enumerate(axes):
        n.axis[a] = native_axis(axis)
        n.nq[a], n.nk[a] = len(axis.queries), len(axis.keys)
    return n


def native_call(kernel: Kernel, problem: Problem, mode: Mode, operands: Sequence[str], **more: Any) -> _Call:
    """A call with these operands, and with a mask of keys if the problem has one, in a mode."""
    present = {*operands, *(["key_mask"] if problem.key_mask else [])}
    bits = sum(1 << OPERANDS.index(name) for name in present)
    numbers = {"dtype": DTYPES[mode[0]], "is_exact": mode[1] == "exact", "tokens": problem.additional}
    return _Call(problem=native(problem), target=kernel, operands=bits, **numbers, **more)


def built() -> list[str]:
    """The arithmetics whose tensor core kernels exist: for the host, those of JAX_NA_TEST_ARITHMETICS."""
    some = os.environ.get("JAX_NA_TEST_ARITHMETICS")
    return some.split(",") if some and not ON_DEVICE else list(build.ARITHMETICS)


def is_built(mode: Mode) -> bool:
    return ARITHMETIC.get(mode, "") not in set(build.ARITHMETICS) - set(built())


@functools.cache
def library() -> ctypes.CDLL:
    """The kernels, built.

    Raises:
        simt.build.BuildError: if they cannot be.
    """
    if not ON_DEVICE and build.host_compiler() is None:
        pytest.skip("there is no C++ compiler to build the CUDA kernels for the host with")
    kernels, dispatch = build.cuda_sources(built())
    if ON_DEVICE:
        host = [*dispatch, build.SIMT / "harness" / "harness_device.cu"]
        path = build.device_library("kernels", kernels, host, build.architecture())
    else:
        path = build.host_library("kernels", kernels, [*dispatch, build.SIMT / "harness" / "harness.cc"])
    return ctypes.CDLL(str(path))


class _Arena:
    """Arrays between guard areas, aligned to 16 bytes and not more: the least that callers promise."""

    def __init__(self) -> None:
        self.memory: list[Array] = []
        self.buffers: list[_Buffer] = []

    def add(self, name: str, array: Array | None, is_result: bool = False) -> Array | None:
        """A copy of the array, for the kernel; None for an array that is not there."""
        if array is None:
            return None
        memory = np.full(array.nbytes + 2 * GUARD + 256, GUARD_BYTE, np.uint8)
        start = GUARD + (16 - memory.ctypes.data - GUARD) % 256
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        self.memory.append(memory)
        self.buffers.append(
            _Buffer(memory.ctypes.data + start, array.nbytes, name.encode(), is_result, OPERANDS.index(name))
        )
        return copy

    def intact(self) -> bool:
        """Whether the guard areas are as they were."""
        starts = (b.data - m.ctypes.data for b, m in zip(self.buffers, self.memory, strict=True))
        return all(
            (m[:s] == GUARD_BYTE).all() and (m[s + b.bytes :] == GUARD_BYTE).all()
            for s, b, m in zip(starts, self.buffers, self.memory, strict=True)
        )


def run(
    kernel: Kernel,
    problem: Problem,
    dtype: str,
    operands: Mapping[str, Array | None],
    results: Mapping[str, Array | None],
    *,
    kernels: str = "naive",
    precision: str = "default",
    seed: int = 0,
    drpb_parts: int = 0,
) -> dict[str, Array]:
    """Runs kernels; `results` are poisoned arrays of the right shapes, of which changed copies come back.

    `kernels` is the attribute of the same name, see common/call/choice.h.
    """
    arena = _Arena()
    arena.add("offsets", problem.offsets)
    inputs = {name: arena.add(name, x) for name, x in operands.items()}
    outputs = {name: arena.add(name, x, is_result=True) for name, x in results.items()}
    present = ["offsets", *(name for name, x in operands.items() if x is not None)]
    numbers = {"seed": seed, "drpb_parts": drpb_parts, "kernels": kernels.encode()}
    call = native_call(kernel, problem, (dtype, precision), present, **numbers)
    report = ctypes.create_string_buffer(4096)
    buffers = (_Buffer * len(arena.buffers))(*arena.buffers)
    library().jax_na_run(ctypes.byref(call), buffers, len(buffers), report, len(report))
    assert not report.value, (
        f"{kernel.name} {problem} {dtype} {kernels} seed {seed}:\n{report.value.decode()}"
    )
    assert arena.intact(), "bytes beside an array have changed"
    for name, x in operands.items():
        assert x is None or x.tobytes() == inputs[name].tobytes(), f"the operand {name} has changed"
    return {name: x for name, x in outputs.items() if x is not None}


def any_seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**32))


def poisoned(shape: Sequence[int], dtype: Any, byte: int = NAN) -> Array:
    """An array whose bytes are all the same."""
    array = np.empty(tuple(shape), dtype)
    array.view(np.uint8).reshape(-1)[...] = byte
    return array


def forward(
    problem: Problem, dtype: str, inputs: Mapping[str, Array], poison: int = NAN, **how: Any
) -> dict[str, Array]:
    """out and lse."""
    shapes = problem.shapes()
    results = {
        "out": poisoned(shapes["out"], dtype_of(dtype), poison),
        "lse": poisoned(shapes["lse"], np.float32, poison),
    }
    operands = {name: inputs.get(name) for name in ("query", "key", "value", *OPTIONAL)}
    return run(Kernel.FORWARD, problem, dtype, operands, results, **how)


def backward(
    problem: Problem,
    dtype: str,
    inputs: Mapping[str, Array],
    given: Mapping[str, Array],
    poison: int = NAN,
    parts: int = 4,
    **how: Any,
) -> dict[str, Array]:
    """Gradients of all inputs but additional tokens, named like them; `given` are lse, delta and dout."""
    names = ("query", "key", "value")
    operands = {name: inputs[name] for name in names} | {
        name: given[name] for name in ("lse", "delta", "dout")
    }
    operands |= {name: inputs.get(name) for name in OPTIONAL}
    results: dict[str, Array | None] = {
        f"d{name}": poisoned(inputs[name].shape, dtype_of(dtype), poison) for name in names
    }
    results["drpb"] = poisoned((parts, *inputs["rpb"].shape), np.float32, poison) if problem.rpb else None
    found = run(Kernel.BACKWARD, problem, dtype, operands, results, drpb_parts=parts, **how)
    if problem.rpb:
        with np.errstate(invalid="ignore"):  # parts that are not finite add up to what is not
            found["drpb"] = found["drpb"].sum(0)
    return {name[1:]: x for name, x in found.items()}
