# SPDX-License-Identifier: Apache-2.0
"""Compares the executor with a GPU, wrapper by wrapper: its findings and numbers are worth what this says.

    python tests/simt/conformance.py [--output results.json]

needs numpy, a C++ compiler, nvcc and a GPU of compute capability 8.0 or later; the instructions of 9.0 are
compared on 9.0 only. It prints one line per case and fails if one differs. Data movement and conversions must
agree bit by bit, products and the approximation of exp2 up to rounding.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import importlib.util
import json
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
SWIZZLE_ROWS = {0: 16, 1: 64, 2: 32, 3: 16}  # elements of a row for each number of a swizzle
EXTENT = (80, 7, 6, 5, 3)  # innermost first
WGMMA_BYTES = 96 << 10
TIMEOUT = 60  # seconds for one case on the GPU
APPROXIMATE = 4  # units in the last place, for exp2

Compare = Callable[[np.ndarray, np.ndarray], str]


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of the library: arguments after the name of the function, and how to compare its results."""

    name: str
    function: str
    data: np.ndarray
    out_words: int
    compare: Compare
    arguments: tuple[Any, ...] = ()
    hopper: bool = True


def bits(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).view(np.uint32).ravel()


def halves(rng: np.random.Generator, count: int, bfloat16: bool) -> np.ndarray:
    """Normal random numbers of a 2-byte type."""
    x = rng.standard_normal(count).astype(np.float32)
    return (bits(x) >> 16).astype(np.uint16) if bfloat16 else x.astype(np.float16).view(np.uint16)


def exact(gpu: np.ndarray, host: np.ndarray) -> str:
    wrong = np.flatnonzero(gpu != host)
    if wrong.size == 0:
        return ""
    first = f"first word {wrong[0]}: GPU {gpu[wrong[0]]:#010x}, executor {host[wrong[0]]:#010x}"
    return f"{wrong.size} of {gpu.size} words differ, {first}"


def close(gpu: np.ndarray, host: np.ndarray) -> str:
    """Sums of up to 32 products of numbers around 1, in float32."""
    a, b = gpu.view(np.float32).astype(np.float64), host.view(np.float32).astype(np.float64)
    error = float(np.max(np.abs(a - b) / (1 + np.abs(b))))
    return "" if error < 1e-5 else f"largest difference {error:.2e}"


def approximately(gpu: np.ndarray, host: np.ndarray) -> str:
    """Up to a few units in the last place."""
    steps = np.abs(gpu.view(np.int32).astype(np.int64) - host.view(np.int32).astype(np.int64))
    return f"{steps.max()} units in the last place" if np.any(steps > APPROXIMATE) else ""


def numbers_agree(gpu: np.ndarray, host: np.ndarray) -> str:
    """Columns as `numbers` in conformance/sm80.cuh writes them; NaN of float32 may have any bits."""
    columns = ("f16, bf16", "f16 pair", "bf16 pair", "TF32", "from f16", "from bf16", "exp2")
    problems = []
    for i, name in enumerate(columns):
        a, b = gpu.reshape(-1, 7)[:, i].copy(), host.reshape(-1, 7)[:, i].copy()
        if i >= 3:
            for x in (a, b):
                x[np.isnan(x.view(np.float32))] = 0x7FFFFFFF
        if message := (approximately if i >= 6 else exact)(a, b):
            problems.append(f"{name}: {message}")
    return "; ".join(problems)


def ampere_cases(rng: np.random.Generator) -> Iterator[Case]:
    any_bits = functools.partial(rng.integers, 0, 2**32, dtype=np.uint32)
    x = any_bits(2**16)
    x[: 2**15] = bits(np.ldexp(rng.standard_normal(2**15), rng.integers(-30, 20, 2**15)).astype(np.float32))
    x[: 2**13] &= 0xFFFFF000  # ties
    x[:8] = bits(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65504, 65520, 1e-45], np.float32))
    yield Case("numbers", "run", x, 7 * x.size, numbers_agree, hopper=False)
    yield Case("warps", "run", any_bits(3 * 128), 8 * 128, exact, hopper=False)
    yield Case("copies", "run", any_bits(4 * 512 + 5 * 128), 8 * 128, exact, hopper=False)
    parts = [
        np.concatenate([halves(rng, 32 * 12, kind == 1).view(np.uint32).reshape(32, 6),
                        bits(rng.standard_normal(128).astype(np.float32)).reshape(32, 4)], 1)
        for kind in (0, 1)
    ]  # fmt: skip
    parts.append(bits(rng.standard_normal(320).astype(np.float32)).reshape(32, 10))
    yield Case("products", "run", np.concatenate(parts).ravel(), 3 * 4 * 32, close, hopper=False)


def hopper_cases(rng: np.random.Generator) -> Iterator[Case]:
    any_bits = functools.partial(rng.integers, 0, 2**32, dtype=np.uint32)
    yield Case("hand_over", "run", any_bits(256), 256, exact)
    yield Case("parts", "run", any_bits(128), 256, exact)
    for swizzle in SWIZZLE_ROWS:
        yield from (tensor_load(rng, swizzle, step) for step in (1, 2, 3))
    for bfloat16 in (False, True):
        for n in (32, 64, 128, 256):
            operands = halves(rng, WGMMA_BYTES // 2 + 8 * 128, bfloat16).view(np.uint32)
            yield Case(f"wgmma_{'bf16' if bfloat16 else 'f16'}_{n}", "run", operands, 128 * 12 * n, close)


def tensor_load(rng: np.random.Generator, swizzle: int, step: int) -> Case:
    """Boxes at random coordinates, many of them partly or wholly outside."""
    boxes, count, steps = 64, (SWIZZLE_ROWS[swizzle], 4, 3, 2, 2), (1, step, step, step, 1)
    tensor = rng.integers(0, 2**16, np.prod(EXTENT), dtype=np.uint16).view(np.uint32)
    axes = zip(EXTENT, count, steps, strict=True)
    coordinates = np.stack([rng.integers(-c * s, e + 2, boxes, dtype=np.int32) for e, c, s in axes], 1)
    coordinates[:, 0] &= -8  # multiples of 16 bytes
    data = np.concatenate([tensor, coordinates.view(np.uint32).ravel()])
    out_words = boxes * int(np.prod(count)) // 2
    arguments = (EXTENT, count, steps, swizzle, boxes)
    return Case(f"load, swizzle {swizzle}, step {step}", "load", data, out_words, exact, arguments)


def cases(seed: int) -> list[Case]:
    return [*ampere_cases(np.random.default_rng(seed)), *hopper_cases(np.random.default_rng(seed + 1))]


def run(library: str, case: Case) -> np.ndarray:
    """The words that a case gives; what is not written stays 0xffffffff. `library` is a path.

    Raises:
        RuntimeError: with what the GPU or the executor says is wrong.
    """
    out = np.full(case.out_words, 2**32 - 1, np.uint32)
    data = np.ascontiguousarray(case.data)
    arguments: list[Any] = [(ctypes.c_int * 5)(*x) if isinstance(x, tuple) else x for x in case.arguments]
    for array in (out, data):
        arguments[:0] = [array.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(array.nbytes)]
    if case.function == "run":
        arguments.insert(0, case.name.encode())
    function = getattr(ctypes.CDLL(library), f"conformance_{case.function}")
    function.restype = ctypes.c_char_p
    if (error := function(*arguments)) is not None:
        raise RuntimeError(error.decode())
    return out


def run_apart(library: str, case: Case, seed: int) -> np.ndarray:
    """The same in a process of its own: after a fault, a GPU does nothing more for the process that made it.

    Raises:
        RuntimeError: likewise, or if it takes too long.
    """
    command = [sys.executable, __file__, "--seed", str(seed), "--library", library, "--case", case.name]
    try:
        result = subprocess.run(command, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"not done after {TIMEOUT} s") from None
    if result.returncode != 0:
        raise RuntimeError(result.stderr.decode().strip().split("\n")[-1])
    return np.frombuffer(result.stdout, np.uint32)


def compare(gpu: str, host: str, case: Case, seed: int) -> str:
    """How the results of one case differ, "" if they do not."""
    try:
        return case.compare(run_apart(gpu, case, seed), run(host, case))
    except RuntimeError as error:
        return str(error)


def builder() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("build", HERE / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", help="run one case of a built library: its words go to the output")
    parser.add_argument("--case")
    arguments = parser.parse_args()
    all_cases = cases(arguments.seed)
    if arguments.library:
        case = next(case for case in all_cases if case.name == arguments.case)
        sys.stdout.buffer.write(run(arguments.library, case).tobytes())
        return 0
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,driver_version", "--format=csv,noheader", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    name, capability, driver = answer.strip().split(", ")
    hopper = capability == "9.0"
    architecture = capability.replace(".", "") + ("a" if hopper else "")
    build = builder()
    source = build.SIMT / "conformance" / "conformance.cc"
    host = str(build.host_library("conformance", [(source, ())], []))
    gpu = str(build.device_library("conformance", [(source, ())], (), architecture))
    results: dict[str, str] = {}
    for case in all_cases:
        if case.hopper and not hopper:
            continue
        results[case.name] = compare(gpu, host, case, arguments.seed)
        print(
            f"{case.name:28} {'FAILED: ' + results[case.name] if results[case.name] else 'agrees'}",
            flush=True,
        )
    if arguments.output:
        machine = {"gpu": name, "capability": capability, "driver": driver, "seed": arguments.seed}
        arguments.output.write_text(json.dumps({**machine, "differences": results}, indent=1))
    return 1 if any(results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
