# SPDX-License-Identifier: Apache-2.0
"""Random foreign calls of every CPU target, several things wrong at once, and right ones among them.

A call raises an error that says what is wrong, or computes; it never ends the process, and the build with
AddressSanitizer (.ci/sanitizers.py) sees whether it touches memory that is not its own. The right ones in
between compute what the oracle says, whatever was called before. JAX_NA_TEST_SEED repeats a run, --exhaustive
makes ten times as many calls.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_na import _cpu
from jax_na.kernels import register
from jax_na.kernels.platforms import CPU
from jax_na.kernels.table import ROWS

from . import helpers
from .foreign_calls import GRIDS, TARGETS, Call, shapes, valid_calls

CALLS = {"thinned": 30, "exhaustive": 300}  # of each target; every one is compiled anew
RIGHT = 0.2  # share of calls with none
DTYPES = ("float32", "bfloat16", "float16", "float64")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}

ELEMENTS = (*DTYPES, "float8_e4m3fn", "int4", "int8", "int16", "int32", "int64", "uint8", "bool", "complex64")
EXTENTS = (0, 1, 2, 3, 4, 7, 8, 12, 24)
MOST_ELEMENTS = 2**18  # of an array
NUMBERS = (-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 8, 1000, 2**28, 2**31 - 1, 2**31, 2**32 + 1, 2**63 - 1)
VALUES = (
    *(True, 3, 2.5, "", "rows", np.int32(1), np.uint64(2**63), np.float32(1), np.float64("nan")),
    *(np.zeros(0, np.int64), np.array([1, 2], np.int32), np.array([1.5]), np.arange(100), {"a": 1}, None),
)
PIECES = (
    "naive",
    "rows",
    "tiles",
    "single",
    "sm90",
    ":",
    ",",
    "x",
    "|",
    ";",
    "0",
    "1",
    "4",
    "16",
    "1024",
    "99999999999",
)

QUERIES, KEYS = (
    ("query", "dquery", "x", "out", "dout", "weights", "scores"),
    ("key", "dkey", "value", "dvalue", "y"),
)
TOKENS = ("token_key", "token_value")
SIZES: dict[str, dict[str, int]] = {  # the axes of arrays that have it
    "batch": dict.fromkeys((*QUERIES, *KEYS, *TOKENS, "lse", "delta", "key_mask"), 0),
    "heads": {**dict.fromkeys(QUERIES, -2), "lse": -1, "delta": -1, "rpb": 0, "drpb": 1},
    "kv_heads": dict.fromkeys((*KEYS, *TOKENS), -2),
    "head_dim": dict.fromkeys(("query", "dquery", "key", "dkey", "token_key"), -1),
    "value_dim": dict.fromkeys(("value", "dvalue", "y", "x", "out", "dout", "token_value"), -1),
    "pitch": dict.fromkeys(("weights", "scores"), -1),
    "parts": {"drpb": 0},
    "bytes": {"scratch": 0},
}

# What may be wrong with a call

Rng = np.random.Generator


def one(rng: Rng, values: Any) -> Any:
    """One of the values."""
    return list(values)[rng.integers(len(values))]


def converted(number: int, dtype: np.dtype[Any]) -> np.generic:
    """The number in a type that may be too narrow for it: it wraps around, or is infinite."""
    with np.errstate(over="ignore"):
        return np.int64(number).astype(dtype)


def some_shape(rng: Rng) -> tuple[int, ...]:
    """Of any rank up to nine. XLA writes out arrays without elements: their other extents are small."""
    shape = [int(one(rng, EXTENTS)) for _ in range(rng.integers(10))]
    while math.prod(n or 1 for n in shape) > MOST_ELEMENTS:
        shape.pop()
    return tuple(shape)


def near(rng: Rng, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that differs in one place, or in its rank."""
    changed = list(shape)
    if not changed or rng.random() < 0.2:
        changed.insert(rng.integers(len(changed) + 1), int(one(rng, EXTENTS)))
    elif rng.random() < 0.2:
        changed.pop(rng.integers(len(changed)))
    else:
        at = rng.integers(len(changed))
        changed[at] = max(0, changed[at] + int(rng.integers(-3, 4)))
    return tuple(changed)


def wrong_shape(rng: Rng, shape: tuple[int, ...]) -> tuple[int, ...]:
    return some_shape(rng) if rng.random() < 0.3 else near(rng, shape)


def resize(call: Call, rng: Rng) -> None:
    """Another size in all arrays that have it: it may be legal."""
    axes, extent = SIZES[one(rng, SIZES)], int(one(rng, (*EXTENTS, 48, 100, 2**16)))
    for arrays in (call.operands, call.results):
        for name in set(arrays) & set(axes):
            shape = list(arrays[name].shape if arrays is call.operands else arrays[name][0])
            if len(shape) >= 1 - min(axes[name], 0) and axes[name] < len(shape):
                shape[axes[name]] = extent
            if math.prod(n or 1 for n in shape) > MOST_ELEMENTS:
                continue
            if arrays is call.operands:
                arrays[name] = np.ones(shape, arrays[name].dtype)
            else:
                arrays[name] = (tuple(shape), arrays[name][1])
    if "scratch" in call.results and rng.random() < 0.5:
        call.results["scratch"] = ((2**20,), call.results["scratch"][1])


def reshape_operand(call: Call, rng: Rng) -> None:
    name = one(rng, call.operands)
    x = call.operands[name]
    call.operands[name] = np.ones(wrong_shape(rng, x.shape), x.dtype)


def cast_operand(call: Call, rng: Rng) -> None:
    name = one(rng, call.operands)
    call.operands[name] = np.ones(call.operands[name].shape, jnp.dtype(one(rng, ELEMENTS)))


def lose_operand(call: Call, rng: Rng) -> None:
    name = one(rng, call.operands)
    del call.operands[name]
    if rng.random() < 0.5:
        call.attributes["operands"] = mask_of(call)


def add_operand(call: Call, rng: Rng) -> None:
    """Any array that some call has, in its place or at the end, with or without its bit."""
    names = [*call.operands, one(rng, _cpu.OPERANDS)]
    shape, dtype = shapes(GRIDS[0])[names[-1]], one(rng, ("float32", "bfloat16", "int32"))
    added = np.ones(wrong_shape(rng, shape) if rng.random() < 0.5 else shape, jnp.dtype(dtype))
    arrays = {**call.operands, names[-1]: added}
    ordered = sorted(arrays, key=_cpu.OPERANDS.index) if rng.random() < 0.7 else names
    call.operands = {name: arrays[name] for name in ordered}
    if rng.random() < 0.7:
        call.attributes["operands"] = mask_of(call)


def mask_of(call: Call) -> np.int64:
    return np.int64(sum(1 << _cpu.OPERANDS.index(name) for name in call.operands))


def exchange_operands(call: Call, rng: Rng) -> None:
    values = [call.operands[name] for name in rng.permutation(list(call.operands))]
    call.operands = dict(zip(call.operands, values, strict=True))


def move_offsets(call: Call, rng: Rng) -> None:
    if "offsets" in call.operands:
        moved = call.operands["offsets"].copy()
        if moved.size:
            moved.flat[rng.integers(moved.size)] = converted(one(rng, NUMBERS), moved.dtype)
        call.operands["offsets"] = moved


def reshape_result(call: Call, rng: Rng) -> None:
    name = one(rng, call.results)
    shape, dtype = call.results[name]
    call.results[name] = (wrong_shape(rng, shape), dtype)


def cast_result(call: Call, rng: Rng) -> None:
    name = one(rng, call.results)
    call.results[name] = (call.results[name][0], jnp.dtype(one(rng, ELEMENTS)))


def lose_result(call: Call, rng: Rng) -> None:
    if len(call.results) > 1:
        del call.results[one(rng, call.results)]


def add_result(call: Call, rng: Rng) -> None:
    call.results[f"added {len(call.results)}"] = (some_shape(rng), jnp.dtype(one(rng, ELEMENTS)))


def change_number(call: Call, rng: Rng) -> None:
    """One number of an attribute, small ones as likely as those that overflow something."""
    name = one(rng, [n for n in call.attributes if n != "kernels"])
    values = np.array(call.attributes[name])
    if values.size:
        values.flat[rng.integers(values.size)] = converted(one(rng, NUMBERS), values.dtype)
    call.attributes[name] = values if values.ndim else values[()]


def change_length(call: Call, rng: Rng) -> None:
    """How many values an attribute has, of one or of all of them."""
    names = [n for n, value in call.attributes.items() if np.ndim(value) == 1]
    rank = int(rng.integers(6))
    for name in names if rng.random() < 0.5 else rng.permutation(names)[:1]:
        call.attributes[str(name)] = np.resize(call.attributes[str(name)], rank)


def change_type(call: Call, rng: Rng) -> None:
    call.attributes[one(rng, call.attributes)] = one(rng, VALUES)


def lose_attribute(call: Call, rng: Rng) -> None:
    if call.attributes:
        del call.attributes[one(rng, call.attributes)]


def add_attribute(call: Call, rng: Rng) -> None:
    call.attributes[f"added_{len(call.attributes)}"] = one(rng, VALUES)


def change_kernels(call: Call, rng: Rng) -> None:
    call.attributes["kernels"] = "".join(rng.choice(PIECES, rng.integers(8)))


MUTATIONS: tuple[Callable[[Call, Rng], None], ...] = (
    *(reshape_operand, cast_operand, lose_operand, add_operand, exchange_operands, move_offsets),
    *(reshape_result, cast_result, lose_result, add_result),
    *(resize, resize, resize, change_number, change_number),
    *(change_length, change_type, lose_attribute, add_attribute, change_kernels),
)


def mutated(call: Call, rng: Rng) -> tuple[Call, list[str]]:
    """The call with a few things wrong, and which."""
    changed, wrong = call.copy(), rng.choice(MUTATIONS, one(rng, (1, 1, 2, 3)))
    for mutate in wrong:
        if changed.operands and changed.results and changed.attributes:
            mutate(changed, rng)
    return changed, [mutate.__name__ for mutate in wrong]


# Tests


def with_batch(call: Call, leading: tuple[int, ...]) -> Call:
    """The same call with its batch as other axes."""
    without = ("offsets", "rpb", "drpb", "scratch")
    changed = call.copy()
    for name, x in call.operands.items():
        changed.operands[name] = x if name in without else x.reshape(*leading, *x.shape[1:])
    for name, (shape, dtype) in call.results.items():
        changed.results[name] = (shape if name in without else (*leading, *shape[1:]), dtype)
    return changed


def assert_right(call: Call, expected: dict[str, Any], rng: Rng) -> None:
    """A valid call computes what it should, with its batch as one axis or as several."""
    changed = with_batch(call, one(rng, ((2,), (1, 2), (2, 1), (1, 2, 1))))
    found = {name: x for name, x in changed.run().items() if name != "scratch"}
    if "drpb" in found:
        found["drpb"] = found["drpb"].sum(0)
    found = {name: x.reshape(np.shape(expected[name])) for name, x in found.items()}
    of_numbers = [x.dtype for x in call.operands.values() if x.dtype.name in TOLERANCE]
    narrowest = min(of_numbers, key=lambda dtype: dtype.itemsize)
    helpers.assert_close(found, expected, TOLERANCE[narrowest.name])


def outcome(call: Call) -> str:
    """How a call ended: "computed", "refused" by the target or as its attributes are read, "not made" by JAX.

    Any other is an error that is not clear.
    """
    try:
        call.run()
    except Exception as error:
        text = str(error)
        if not isinstance(error, jax.errors.JaxRuntimeError) and "INVALID_ARGUMENT" not in text:
            return "not made" if text else f"an error without words: {error!r}"
        is_clear = f"{call.target}: " in text or "Failed to decode all FFI handler operands" in text
        return "refused" if is_clear else text
    return "computed"


@pytest.mark.some(3)
@pytest.mark.parametrize("target", TARGETS)
def test_random_calls(target, rng, pytestconfig):
    calls = CALLS["exhaustive" if pytestconfig.getoption("exhaustive") else "thinned"]
    outcomes: collections.Counter[str] = collections.Counter()
    with jax.enable_x64(True):  # arrays keep the types that they are made with
        valid = list(valid_calls(target, rng, DTYPES))
        for _ in range(calls):
            call, expected = one(rng, valid)
            if rng.random() < RIGHT:
                assert_right(call, expected, rng)
                continue
            changed, wrong = mutated(call, rng)
            ended = outcome(changed)
            assert ended in ("computed", "refused", "not made"), (ended, wrong, changed)
            outcomes[ended] += 1
        assert_right(*one(rng, valid), rng)
    jax.clear_caches()  # of programs that no one calls again
    assert outcomes["refused"] > calls / 4  # what JAX itself does not make says nothing of the target


def test_every_target_is_called():
    """All that the package registers and calls: a new target is in the table, and then here."""
    assert set(TARGETS) == set(_cpu.handlers()) == register.TARGETS[CPU]
    assert {target for row in ROWS for target in row.targets} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_and_array_is_called(target, rng):
    """A new kernel or array of a target must be added to the valid calls."""
    signature = TARGETS[target]
    calls = [call for call, _ in valid_calls(target, rng)]
    assert {*signature.required, *signature.optional, *signature.results} <= set(shapes(GRIDS[0]))
    called = {call.attributes["kernels"].partition(":")[0] for call in calls}
    assert called == {row.name for row in _cpu.variants(target)}
    taken = {name for row in _cpu.variants(target) for name in row.takes} & set(signature.optional)
    given = {name for call in calls for name in call.operands}
    assert given >= {*signature.required, *taken}
