# SPDX-License-Identifier: Apache-2.0
"""The executor finds the faults planted in small kernels, at their source lines, and else nothing."""

from __future__ import annotations

import ctypes
import functools
import re

import numpy as np
import pytest

from . import build

SEEDS = (1, 2, 3, 4)
pytestmark = pytest.mark.skipif(build.host_compiler() is None, reason="no C++ compiler")

# fault -> kinds of the finding
PRODUCT = {
    "MissingBarrier": "race",
    "MissingCopyWait": "race",
    "UnguardedStore": "out of bounds",
    "MisalignedCopy": "misaligned",
}
WINDOW_SUM = {
    "WindowTooLong": "out of bounds",
    "WindowTooEarly": "out of bounds",
    "WritesInput": "write to an input",
    "MisalignedStore": "misaligned",
    "OverlappingBlocks": "race between blocks",
}
EXCHANGE = {
    "MissingWarpSync": "race",
    "DivergentShuffle": "divergent collective",
    "LeavesEarly": "deadlock",
    "DivergentBarrier": "divergent barrier",
    "Uninitialised": "uninitialised shared memory",
    "SharedOverrun": "out of bounds",
}
TENSOR_PRODUCT = {
    "WrongPhase": "race|deadlock",  # by the order in which threads run
    "ShortTransaction": "deadlock",
    "LongTransaction": "deadlock",
    "BufferNotEmpty": "race|deadlock",
    "MissingRelease": "deadlock",
    "MissingInitFence": "missing fence_mbarrier_init",
    "MissingInitBarrier": "race",
    "WrongStride": "race",
    "WrongSwizzle": "wrong swizzle",
    "MissingWgmmaFence": "missing wgmma_fence",
    "MissingWgmmaWait": "product never waited for",
    "LateWgmmaWait": "race",
    "MissingNamedBarrier": "race",
    "MisalignedBox": "misaligned",
    "MisalignedRows": "misaligned",
    "MissingRegisters": "deadlock",
    "MapTooLong": "out of bounds",
}
SQUARE = {"MissingProxyFence": "missing fence_proxy_async"}


def read_sources() -> tuple[list[str], dict[str, set[str]]]:
    """The faults in the order of their numbers, and for each the lines ("file:line") its finding may give."""
    names: list[str] = []
    places: dict[str, set[str]] = {}
    for file in ("sm80.cuh", "sm90.cuh"):
        text = (build.SIMT / "faulty" / file).read_text()
        enumerators = re.search(r"^enum \w+ \{\n(.*?)\n\};", text, re.DOTALL | re.MULTILINE)
        assert enumerators
        names += [n for n in re.findall(r"k(\w+)", enumerators[1]) if n != "FirstOfHopper"]
        for marker in re.finditer(r"^ *// at (.*\n(?: *//.*\n)*)", text, re.MULTILINE):
            line = text.count("\n", 0, marker.end()) + 1
            for name in re.findall(r"k(\w+)", marker[1]):
                places.setdefault(name, set()).add(f"{file}:{line}")
    return names, places


NAMES, PLACES = read_sources()


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build.host_library("faulty", [(build.SIMT / "faulty" / "faulty.cc", ())], [])))
    loaded.report.restype = ctypes.c_char_p
    return loaded


def call(function: str, seed: int, fault: str, inputs: dict, output: np.ndarray, *sizes: int) -> str:
    """Runs a kernel; `output` is its last buffer. The report, "" if there are no findings."""
    lib = library()
    lib.begin(seed)
    pointers = []
    for name, array in {**inputs, "out": output}.items():
        pointers.append(array.ctypes.data_as(ctypes.c_void_p))
        lib.buffer(pointers[-1], ctypes.c_size_t(array.nbytes), name.encode(), int(array is output))
    getattr(lib, function)(*pointers, *sizes, NAMES.index(fault))
    assert bool(lib.findings()) == bool(lib.report())
    return lib.report().decode()


def product(seed: int, fault: str, rows: int = 150, steps: int = 3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 64 * steps)).astype(np.float16)
    y = rng.standard_normal((64 * steps, 64)).astype(np.float16)
    out = np.full((rows, 64), np.nan, np.float32)
    report = call("run_product", seed, fault, {"x": x, "y": y}, out, rows, steps)
    return report, out, x.astype(np.float64) @ y.astype(np.float64), 1e-6


def window_sum(seed: int, fault: str, count: int = 100):
    x = np.random.default_rng(seed).standard_normal(count).astype(np.float32)
    out = np.full(count, np.nan, np.float32)
    report = call("run_window_sum", seed, fault, {"x": x}, out, count)
    start = np.clip(np.arange(count) - 2, 0, count - 5)
    return report, out, np.array([x[s : s + 5].astype(np.float64).sum() for s in start]), 1e-6


def exchange(seed: int, fault: str):
    out = np.full(128, -1, np.int32)
    report = call("run_exchange", seed, fault, {}, out)
    thread = np.arange(128)
    lane, warp = thread % 32, thread // 32
    neighbour = (lane + 1) % 32
    return report, out, warp * 32 + neighbour + neighbour + (lane ^ 1) + 31 - 31 + 2 + 127 - thread, 0


def bfloat16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def float32(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def tensor_product(seed: int, fault: str, rows: int = 150, steps: int = 5):
    rng = np.random.default_rng(seed)
    x, y = (bfloat16(rng.standard_normal(shape)) for shape in ((rows, 64 * steps), (64 * steps, 64)))
    out = np.full((rows, 64), 0x7FC0, np.uint16)
    report = call("run_tensor_product", seed, fault, {"x": x, "y": y}, out, rows, steps)
    return report, float32(out), float32(x).astype(np.float64) @ float32(y), 4e-3


def square(seed: int, fault: str):
    x = bfloat16(np.random.default_rng(seed).standard_normal((64, 64)))
    out = np.full((64, 64), np.nan, np.float32)
    report = call("run_square", seed, fault, {"x": x}, out)
    return report, out, float32(x).astype(np.float64) @ float32(x), 1e-6


CASES = [
    (kernel, fault, kind)
    for kernel, faults in (
        (product, PRODUCT),
        (window_sum, WINDOW_SUM),
        (exchange, EXCHANGE),
        (tensor_product, TENSOR_PRODUCT),
        (square, SQUARE),
    )
    for fault, kind in faults.items()
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kernel", [product, window_sum, exchange, tensor_product, square])
def test_clean_kernels_compute_and_give_no_findings(kernel, seed):
    report, out, expected, tolerance = kernel(seed, "None")
    assert report == ""
    assert np.linalg.norm(out - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("kernel", "fault", "kind"), CASES, ids=[fault for _, fault, _ in CASES])
def test_faults_are_found_at_their_lines(kernel, fault, kind, seed):
    report = kernel(seed, fault)[0]
    findings = [f for f in re.split(r"\n(?=\S)", report) if re.match(f"({kind}): ", f)]
    assert findings, report
    lines = {line for f in findings for line in re.findall(r"\w+\.cuh:\d+", f)}
    assert lines & PLACES[fault], f"none of {PLACES[fault]} in\n{report}"


def test_every_planted_fault_is_tested():
    faults = {fault for _, fault, _ in CASES}
    assert set(NAMES) == {"None"} | faults
    assert set(PLACES) == faults


def test_every_place_of_a_race_is_named():
    report = product(1, "MissingBarrier")[0]
    assert PLACES["MissingBarrier"] <= set(re.findall(r"\w+\.cuh:\d+", report))


def test_deadlocks_are_explained():
    report = tensor_product(1, "ShortTransaction")[0]
    assert "128 bytes more than announced" in report
    assert "warps 4 (32 threads) 5 (32 threads)" in report
    assert "shared memory + 0x10000" in report
    report = tensor_product(1, "LongTransaction")[0]
    assert "0 of 1 arrivals and 128 bytes are missing" in report
    report = exchange(1, "LeavesEarly")[0]
    assert "have left the kernel" in report


def test_launches_are_ordered():
    """What one launch wrote, the next one may write again."""
    lib, out = library(), np.zeros(128, np.int32)
    assert call("run_exchange", 1, "None", {}, out) == ""
    lib.run_exchange(out.ctypes.data_as(ctypes.c_void_p), NAMES.index("None"))
    assert lib.findings() == 0


def test_illegal_launches_are_refused():
    lib = library()
    lib.launch_with.restype = ctypes.c_char_p
    assert b"threads" in lib.launch_with(33, 0)
    assert b"shared memory" in lib.launch_with(32, 228 << 10)
    assert lib.launch_with(32, 227 << 10) is None
