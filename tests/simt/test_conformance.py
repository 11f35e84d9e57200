# SPDX-License-Identifier: Apache-2.0
"""The conformance program on the executor alone, against numpy, before a GPU judges."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from . import build, conformance

pytestmark = pytest.mark.skipif(build.host_compiler() is None, reason="no C++ compiler")
CASES = {case.name: case for case in conformance.cases(0)}
LANE = np.arange(32)
ROW_BYTES = {1: 128, 2: 64, 3: 32}


@functools.cache
def library() -> str:
    return str(build.host_library("conformance", [(build.SIMT / "conformance" / "conformance.cc", ())], []))


def run(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Input and output of a case; a finding of the executor fails the test."""
    return CASES[name].data, conformance.run(library(), CASES[name])


def widen(x: np.ndarray, kind: str) -> np.ndarray:
    """2-byte numbers as float64."""
    if kind == "f16":
        return x.view(np.float16).astype(np.float64)
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def permuted(address: np.ndarray, swizzle: int) -> np.ndarray:
    """Where a swizzle puts the byte at `address`."""
    return address ^ ((address >> 7) % (ROW_BYTES[swizzle] // 16) << 4) if swizzle else address


def assert_close(x: np.ndarray, reference: np.ndarray) -> None:
    assert np.max(np.abs(x - reference) / (1 + np.abs(reference))) < 1e-5


def round_to_tf32(x: np.ndarray) -> np.ndarray:
    """Finite numbers to 11 significant bits, ties away from zero; subnormal ones have a fixed step."""
    x = x.astype(np.float64)
    step = np.ldexp(1.0, np.maximum(np.frexp(x)[1], -125) - 11)
    return np.copysign(np.floor(np.abs(x) / step + 0.5) * step, x)


@np.errstate(all="ignore")  # NaN, and numbers beyond the range of float16
def test_conversions():
    data, out = run("numbers")
    x, out = data.view(np.float32), out.reshape(-1, 7)
    f16 = np.where(np.isnan(x), 0x7FFF, x.astype(np.float16).view(np.uint16))
    bf16 = np.where(np.isnan(x), 0x7FFF, (data + 0x7FFF + (data >> 16 & 1)) >> 16)
    following = np.roll(np.arange(x.size), -1)
    np.testing.assert_array_equal(out[:, 0], f16 | bf16 << 16)
    np.testing.assert_array_equal(out[:, 1], f16 | f16[following].astype(np.uint32) << 16)
    np.testing.assert_array_equal(out[:, 2], bf16 | bf16[following] << 16)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(
        out[finite, 3].view(np.float32), round_to_tf32(x[finite]).astype(np.float32)
    )
    np.testing.assert_array_equal(out[np.isinf(x), 3], data[np.isinf(x)])
    every = np.arange(x.size, dtype=np.uint16)
    np.testing.assert_array_equal(out[:, 4].view(np.float32), widen(every, "f16"))
    np.testing.assert_array_equal(out[:, 5].view(np.float32), widen(every, "bf16"))


@np.errstate(all="ignore")
def test_exp2():
    data, out = run("numbers")
    x, found = data.view(np.float32).astype(np.float64), out.reshape(-1, 7)[:, 6].view(np.float32)
    exp2 = np.exp2(np.where(np.abs(x) < 2.0**-126, 0, x))
    exp2 = np.where(exp2 < 2.0**-126, 0, np.where(exp2 >= 2.0**128, np.inf, exp2))
    np.testing.assert_allclose(found.astype(np.float64), exp2, rtol=1e-6)


def test_warp_collectives():
    data, out = run("warps")
    value, lane = data.reshape(-1, 32, 3)[..., 0], data.reshape(-1, 32, 3)[..., 1] % 32
    out = out.reshape(-1, 32, 8)
    signed = value.view(np.int32)
    np.testing.assert_array_equal(out[..., 0], np.take_along_axis(value, lane.astype(int), 1))
    np.testing.assert_array_equal(out[..., 1], value[:, LANE ^ (data[2] % 32)])
    np.testing.assert_array_equal(out[..., 2].view(np.int32), np.tile(signed.min(1, keepdims=True), 32))
    np.testing.assert_array_equal(out[..., 3].view(np.int32), np.tile(signed.max(1, keepdims=True), 32))
    np.testing.assert_array_equal(out[..., 4], np.tile(np.all(signed > -2000000000, 1, keepdims=True), 32))
    np.testing.assert_array_equal(out[..., 5], np.tile(np.any(signed > 2000000000, 1, keepdims=True), 32))
    np.testing.assert_array_equal(out[..., 6], value)
    assert not np.any(out[..., 7])


def test_copies_and_ldmatrix():
    data, out = run("copies")
    chunks, choice = data[:2048].reshape(512, 4), data[2048:].reshape(128, 5)
    shared = np.zeros((512, 4), np.uint32)
    for j in range(4):
        valid = choice[:, j] >> 31 == 0
        shared[128 * j : 128 * (j + 1)] = np.where(valid[:, None], chunks[choice[:, j] & 511], 0)
    matrices = shared[choice[:, 4] & 511].view(np.uint16).reshape(4, 4, 8, 8)  # warp, matrix, row, column
    for transposed in (False, True):
        m = matrices.swapaxes(2, 3) if transposed else matrices
        pairs = np.ascontiguousarray(m).view(np.uint32).reshape(4, 4, 32)  # row lane / 4, pair lane % 4
        found = out.reshape(4, 32, 8)[..., 4 * transposed : 4 * transposed + 4]
        np.testing.assert_array_equal(found, pairs.swapaxes(1, 2))


def test_warp_products():
    data, out = run("products")
    data, out = data.reshape(3, 32, 10), out.reshape(3, 32, 4).view(np.float32)
    g, i = LANE // 4, LANE % 4
    for kind, words, result in zip(("f16", "bf16", "tf32"), data, out, strict=True):
        pairs = 1 if kind == "tf32" else 2
        a, b, d = np.zeros((16, 8 * pairs)), np.zeros((8 * pairs, 8)), np.zeros((16, 8))
        if kind == "tf32":
            values = (words & 0xFFFFE000).view(np.float32)[..., None].astype(np.float64)
        else:
            values = widen(np.ascontiguousarray(words).view(np.uint16), kind).reshape(32, 10, 2)
        for e in range(pairs):
            for r in range(4):
                a[g + r % 2 * 8, pairs * i + e + r // 2 * 4 * pairs] = values[:, r, e]
            for r in range(2):
                b[pairs * i + e + r * 4 * pairs, g] = values[:, 4 + r, e]
        for r in range(4):
            d[g + r // 2 * 8, 2 * i + r % 2] = words[:, 6 + r].view(np.float32)
        d += a @ b
        for r in range(4):
            assert_close(result[:, r], d[g + r // 2 * 8, 2 * i + r % 2])


def boxes(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a tensor copy: place of each element in shared memory and in the tensor; whether it is inside."""
    case = CASES[name]
    extent, count, step, swizzle, number = case.arguments
    coordinates = case.data[-5 * number :].view(np.int32).reshape(number, 5)
    inside, index = np.ones((number, *count[::-1]), bool), np.zeros((number, *count[::-1]), np.int64)
    for axis in reversed(range(5)):
        x = coordinates[:, axis, None] + np.arange(count[axis]) * step[axis]
        x = x.reshape(number, *(count[axis] if a == axis else 1 for a in reversed(range(5))))
        inside, index = inside & (x >= 0) & (x < extent[axis]), index * extent[axis] + x
    linear = 2 * np.arange(np.prod(count))
    return (
        permuted(linear, swizzle) // 2,
        np.where(inside, index, 0).reshape(number, -1),
        inside.reshape(number, -1),
    )


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("load")])
def test_tensor_loads(name):
    data, out = run(name)
    place, index, inside = boxes(name)
    expected = np.zeros(inside.shape, np.uint16)
    expected[:, place] = np.where(inside, data.view(np.uint16)[index], 0)
    np.testing.assert_array_equal(out.view(np.uint16).reshape(expected.shape), expected)


def test_barriers():
    data, out = run("hand_over")
    np.testing.assert_array_equal(
        out.reshape(8, 32), np.cumsum(data.reshape(8, 32)[:, ::-1], 0, dtype=np.uint32)
    )
    data, out = run("parts")
    np.testing.assert_array_equal(out, np.concatenate([data[::-1] + np.uint32(1), data[::-1] + np.uint32(2)]))


def operand(memory: np.ndarray, extent: int, swizzle: int, major_n: bool, outer: bool) -> np.ndarray:
    """[extent, 16] values of a wgmma operand as `operand` in conformance/sm90.cuh lays it out."""
    row = ROW_BYTES[swizzle]
    index, term = np.arange(extent)[:, None], np.arange(16)[None, :]
    if major_n:
        pieces = extent * 2 // row
        leading, stride = (8 * row, pieces * 8 * row) if outer else (16 * row, 8 * row)
        address = index * 2 // row * leading + term // 8 * stride + term % 8 * row + index * 2 % row
    else:
        begin = 32 if outer and row > 32 else 0
        address = begin + index // 8 * (16 * row if outer else 8 * row) + index % 8 * row + term * 2
    return memory[permuted(address, swizzle) // 2]


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("wgmma")])
def test_warpgroup_products(name):
    data, out = run(name)
    _, kind, n = name.split("_")
    n = int(n)
    memory = widen(data.view(np.uint16)[: conformance.WGMMA_BYTES // 2], kind)
    registers = widen(data[conformance.WGMMA_BYTES // 4 :].view(np.uint16), kind).reshape(4, 8, 4, 2, 2, 2)
    # warp, g, i, half of 8 terms, half of 8 rows, pair -> rows, terms
    in_registers = registers.transpose(0, 4, 1, 3, 2, 5).reshape(64, 16)
    first = np.arange(n // 2, dtype=np.float64)
    # warp, g, i, c, h, e -> rows, columns
    sums = out.view(np.float32).astype(np.float64).reshape(4, 8, 4, 3, 4, 2, n // 8, 2, 2)
    sums = sums.transpose(3, 4, 5, 0, 7, 1, 6, 2, 8).reshape(3, 4, 2, 64, n)
    initial = np.broadcast_to(first, (4, 8, 4, n // 2)).reshape(4, 8, 4, n // 8, 2, 2)
    initial = initial.transpose(0, 4, 1, 3, 2, 5).reshape(64, n)
    for s, swizzle in enumerate((1, 2, 3)):
        left, left_outer = (operand(memory, 64, swizzle, False, outer) for outer in (False, True))
        for which, major_n in enumerate((False, True)):
            right, right_outer = (
                operand(memory[16384:], n, swizzle, major_n, outer).T for outer in (False, True)
            )
            assert_close(sums[s, which, 0], initial + left @ right)
            assert_close(sums[s, which, 1], (left_outer + left) @ right_outer)
            assert_close(sums[s, 2 + which, 0], in_registers @ right)
            assert_close(sums[s, 2 + which, 1], initial + in_registers @ right_outer)
