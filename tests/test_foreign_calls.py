# SPDX-License-Identifier: Apache-2.0
"""Calls of the CPU targets past everything that Python checks.

Each call is made as it should be, then with one thing about it wrong. It raises an error that names the
target and has values in it, or computes; it never touches memory that is not its own, which the build with
AddressSanitizer sees (.ci/sanitizers.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from . import helpers
from .foreign_calls import TARGETS, Call, valid_calls

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
WRONG_CALLS = 120  # of each target; every one is compiled anew

# What is wrong with a call

Mutation = tuple[str, Callable[[Call], None]]
HUGE = (-1, 0, 2, 3, 1000, 2**20, 2**28, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63), 2**63 - 1)
KERNELS = ("", "naive", "rows", "tiles", "rows:0", "rows:9", "rows:4 ", "rows:4;rows:4", "portable:8x8,8x8")
KERNELS += ("tiles:4", "tiles:16", "tiles:1x16", "tiles:4x4x1", "tiles:2x2x2x2", "tiles:99999999999999999999")
KERNELS += ("tiles:-4", "tiles:4x", "tiles:x4", "tiles:4,4", "tiles:16|rows", "tiles:2x2x4|rows:2x2", "sm90")
KERNELS += (":", "|", ";", "|;|", "\0", "é" * 300)


def wrong_shapes(shape: tuple[int, ...], rng: np.random.Generator) -> Iterator[tuple[int, ...]]:
    for i in range(len(shape)):
        for size in {0, 1, shape[i] - 1, shape[i] + 1, 2 * shape[i]}:
            yield (*shape[:i], max(0, size), *shape[i + 1 :])
    yield shape[1:]
    yield shape[:-1]
    yield (1, *shape)
    yield (*shape, 1)
    yield ()
    yield tuple(int(i) for i in rng.permutation(shape))


def operand(name: str, value: Any) -> Callable[[Call], None]:
    return lambda call: call.operands.update({name: value})


def result(name: str, *value: Any) -> Callable[[Call], None]:
    return lambda call: call.results.update({name: value})


def mutations(call: Call, rng: np.random.Generator) -> Iterator[Mutation]:
    """Everything that one can do wrong with one part of the call."""
    for name, x in call.operands.items():
        for shape in wrong_shapes(x.shape, rng):
            yield f"{name} {shape}", operand(name, np.ones(shape, x.dtype))
        for dtype in (np.float16, np.float32, np.int32, np.uint8, np.int8, np.bool_, ml_dtypes.bfloat16):
            yield f"{name} {dtype}", operand(name, x.astype(dtype))
        yield f"no {name}", lambda c, n=name: c.operands.pop(n)
    for first, second in itertools.combinations(call.operands, 2):
        yield f"{first} <-> {second}", lambda c, p=(first, second): swap(c.operands, *p)
    for name, (shape, dtype) in call.results.items():
        for wrong in wrong_shapes(shape, rng):
            yield f"result {name} {wrong}", result(name, wrong, dtype)
        for other in (np.float16, np.float32, np.int32, np.uint8):
            yield f"result {name} {other}", result(name, shape, other)
        yield f"no result {name}", lambda c, n=name: c.results.pop(n)
    yield from wrong_attributes(call)
    yield from wrong_offsets(call)


def wrong_attributes(call: Call) -> Iterator[Mutation]:
    def change(**values: Any) -> Callable[[Call], None]:
        return lambda c: c.attributes.update(values)

    for name in ("kernel_size", "stride", "dilation", "length", "is_causal"):
        given = call.attributes[name]
        for i, value in itertools.product(range(len(given)), HUGE):
            changed = given.copy()
            changed[i] = value
            yield f"{name} {changed}", change(**{name: changed})
        for wrong in (given[:0], given[1:], np.append(given, 1), np.tile(given, 3)):
            yield f"{name} {wrong}", change(**{name: wrong})
    for kernels in KERNELS:
        yield f"kernels {kernels!r}", change(kernels=kernels)
    for value in HUGE:
        yield f"is_exact {value}", change(is_exact=np.int64(value))
        yield f"operands {value}", change(operands=np.int64(value))
    for i in range(64):
        flipped = np.int64(np.uint64(call.attributes["operands"]) ^ np.uint64(1 << i))
        yield f"operands without or with bit {i}", change(operands=flipped)
    for scale in (np.nan, np.inf, 0.0, -1e300):
        yield f"scale {scale}", change(scale=np.float64(scale))
    yield "kernels is a number", change(kernels=np.int64(1))
    yield "scale is an integer", change(scale=np.int64(1))


def wrong_offsets(call: Call) -> Iterator[Mutation]:
    if "offsets" not in call.operands:
        return
    given = call.operands["offsets"].reshape(-1)
    for i, value in itertools.product(range(given.size), (-(2**31), -1, 1, 2, 3, 100, 2**28, 2**31 - 1)):
        moved = given.copy()
        moved[i] = value if abs(value) > 100 else moved[i] + value
        yield f"offsets {moved.tolist()}", operand("offsets", moved.reshape(-1, 2))


def swap(values: dict[str, Any], first: str, second: str) -> None:
    values[first], values[second] = values[second], values[first]


# Tests


@pytest.mark.parametrize("target", TARGETS)
def test_valid_calls(target, rng):
    """Every kernel of a target computes what the oracle says."""
    for call, expected in valid_calls(target, rng):
        found = {name: x for name, x in call.run().items() if name != "scratch"}
        if "drpb" in found:
            found["drpb"] = found["drpb"].sum(0)
        halves = any(x.dtype.itemsize == 2 for x in call.operands.values())
        helpers.assert_close(found, expected, TOLERANCE["bfloat16" if halves else "float32"])


@pytest.mark.some(4)
@pytest.mark.parametrize("target", TARGETS)
def test_wrong_calls(target, rng):
    """A wrong call says what is wrong, or computes with its own memory only."""
    calls = [call for call, _ in valid_calls(target, rng)]
    wrong = [
        (call, *wrong)
        for call in rng.permutation(np.array(calls, object))[:4]
        for wrong in mutations(call, rng)
    ]
    refused = 0
    for i in rng.permutation(len(wrong))[:WRONG_CALLS]:
        call, what, mutate = wrong[i]
        changed = call.copy()
        mutate(changed)
        error = error_of(changed)
        assert error is None or is_clear(error, target), (what, error)
        refused += error is not None
    assert refused > WRONG_CALLS / 2


def error_of(call: Call) -> str | None:
    """What a call raises, None if it computes."""
    try:
        call.run()
    except Exception as error:
        return str(error)
    return None


def is_clear(message: str, target: str) -> bool:
    """Whether it names the target; XLA itself says what is wrong with the type of an attribute."""
    return f"{target}: " in message or "Failed to decode all FFI handler operands" in message


def test_messages(rng):
    """An error has the name of the array, what was given and what was expected."""
    call, _ = next(valid_calls("na_fused_forward", rng))
    call.operands["value"] = np.ones((2, 24, 3, 12), np.float32)
    given, expected = "[2, 24, 3, 12]", "[batch... of 2, keys=24, kv_heads=2, value_dim]"
    assert f"na_fused_forward: value has the shape {given}, not {expected}" in (error_of(call) or "")
