# SPDX-License-Identifier: Apache-2.0
"""Calls of the CPU targets by what the binding says of them, and what the oracle expects."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_na import _cpu

from . import oracle

Array = np.ndarray
TARGETS = _cpu.targets()
PARTS = 3
SCALE = 0.3
BATCH, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM, TOKENS = 2, 4, 2, 8, 12, 3
GRIDS = (
    (oracle.Axis(24, 5),),
    (oracle.Axis(9, 3, 2), oracle.Axis(12, 3, 1, 2, True)),
    (oracle.Axis(4, 2, is_causal=True), oracle.Axis(6, 3), oracle.Axis(7, 2, 1, 2)),
    (oracle.Axis(30, 7, query_start=10, num_queries=8, key_start=5, num_keys=20),),
    (oracle.Axis(30, 7, query_start=11, num_queries=2, key_start=5, num_keys=20),),
)


@dataclasses.dataclass
class Call:
    """Everything that XLA is told of a call."""

    target: str
    operands: dict[str, Array]
    results: dict[str, tuple[tuple[int, ...], Any]]
    attributes: dict[str, Any]

    def run(self) -> dict[str, Array]:
        results = [jax.ShapeDtypeStruct(*r) for r in self.results.values()]
        outputs = jax.ffi.ffi_call(self.target, results)(*self.operands.values(), **self.attributes)
        return {name: np.asarray(x) for name, x in zip(self.results, outputs, strict=True)}

    def copy(self) -> Call:
        return Call(self.target, dict(self.operands), dict(self.results), dict(self.attributes))


Grid = tuple[oracle.Axis, ...]


def valid_calls(
    target: str, rng: np.random.Generator, dtypes: Sequence[str] = ("float32", "bfloat16")
) -> Iterator[tuple[Call, dict[str, Array]]]:
    """Calls of a target and their results: every grid, every kernel with some of its tiles."""
    first = rng.integers(2)
    for (i, axes), (j, dtype) in itertools.product(enumerate(GRIDS), enumerate(dtypes)):
        turn, arrays = first + i + j, shapes(axes)
        chosen = {"rpb": turn % 2 == 0, "key_mask": turn // 2 % 2 == 0}
        optional = [name for name in TARGETS[target].optional if chosen.get(name)]
        operands, expected = made(target, axes, dtype, optional, rng)
        call = Call(target, operands, {}, attributes(axes, operands))
        for name in TARGETS[target].results:
            if name != "drpb" or "rpb" in operands:
                call.results[name] = (arrays[name], kind(target, name, dtype))
        dims = {"head_dim": HEAD_DIM, "value_dim": VALUE_DIM, "pitch": arrays["weights"][-1]}
        of_call = "float32" if target == "na_softmax" else dtype
        grid = oracle.Geometry(axes)
        sizes = (BATCH, HEADS, KV_HEADS, list(grid.query_shape), list(grid.key_shape))
        given = {"dtype": of_call, "operands": list(operands), "sizes": sizes, **dims}
        query = _cpu.Query(axes=list(map(as_tuple, axes)), **given)
        for row in _cpu.variants(target):
            choices = [tiling.choice for tiling in row.tilings(query)]
            for choice in rng.permutation(choices)[:2]:
                one = call.copy()
                one.attributes["kernels"] = str(choice)
                if "scratch" in one.results:
                    one.results["scratch"] = ((8 * row.scratch_bytes(query, str(choice)),), np.uint8)
                yield one, expected


def as_tuple(axis: oracle.Axis) -> tuple[int, int, int, int, bool]:
    return axis.length, axis.kernel_size, axis.stride, axis.dilation, axis.is_causal


def attributes(axes: Grid, operands: dict[str, Array]) -> dict[str, Any]:
    names = ("length", "kernel_size", "stride", "dilation", "is_causal")
    found: dict[str, Any] = {n: np.array([getattr(axis, n) for axis in axes], np.int64) for n in names}
    mask = sum(1 << _cpu.OPERANDS.index(name) for name in operands)
    found |= {"operands": np.int64(mask), "is_exact": np.int64(0), "scale": np.float64(SCALE), "kernels": ""}
    return found


def shapes(axes: Grid) -> dict[str, tuple[int, ...]]:
    """The shape of every array, by name."""
    geometry = oracle.Geometry(axes)
    at_query = (BATCH, *geometry.query_shape, HEADS)
    at_key = (BATCH, *geometry.key_shape, KV_HEADS)
    table = (HEADS, *(2 * axis.kernel_size - 1 for axis in axes))
    found: dict[str, tuple[int, ...]] = dict.fromkeys(("query", "dquery"), (*at_query, HEAD_DIM))
    found |= dict.fromkeys(("key", "dkey"), (*at_key, HEAD_DIM))
    found |= dict.fromkeys(("value", "dvalue", "y"), (*at_key, VALUE_DIM))
    found |= dict.fromkeys(("x", "out", "dout"), (*at_query, VALUE_DIM))
    found |= dict.fromkeys(("weights", "scores"), (*at_query, _cpu.pitch(geometry.window)))
    found |= dict.fromkeys(("lse", "delta"), at_query)
    tokens = (BATCH, TOKENS, KV_HEADS)
    found["key_mask"] = at_key[:-1]
    found |= {"token_key": (*tokens, HEAD_DIM), "token_value": (*tokens, VALUE_DIM)}
    return found | {"offsets": (len(axes), 2), "rpb": table, "drpb": (PARTS, *table), "scratch": (1,)}


def kind(target: str, name: str, dtype: str) -> Any:
    """The element type of an array in a call of inputs of `dtype`."""
    relative = {"input": jnp.dtype(dtype), "accumulator": jnp.promote_types(dtype, np.float32)}
    element = TARGETS[target].elements[name]
    return relative.get(element, element)


def made(
    target: str, axes: Grid, dtype: str, optional: Sequence[str], rng: np.random.Generator
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The operands of a call, in its order, and its results."""
    present = {*TARGETS[target].required, *optional}
    names = [name for name in _cpu.OPERANDS if name in present]
    arrays = shapes(axes)
    operands = {n: rng.standard_normal(arrays[n]).astype(kind(target, n, dtype)) for n in names}
    if "key_mask" in operands:
        operands["key_mask"] = rng.integers(1, 256, arrays["key_mask"]).astype(np.uint8)
        operands["key_mask"][..., 2::3] = 0  # every query sees a key
    if "offsets" in operands:
        operands["offsets"] = np.array([(a.query_start, a.key_start) for a in axes], np.int32)
    geometry = oracle.Geometry(axes)
    if target.startswith("na_fused"):
        return operands, attention(geometry, operands, rng)
    if target == "na_softmax":
        return operands, softmax(geometry, operands["scores"])
    return operands, unfused(target.rpartition("_")[2], geometry, operands)


def attention(geometry: oracle.Geometry, operands: dict[str, Array], rng: Any) -> dict[str, Array]:
    """The results of a forward or a backward call, whose saved values are replaced by right ones."""
    found = oracle.Attention(geometry, operands, SCALE)
    if "dout" not in operands:
        return {"out": found.out, "lse": found.lse}
    dlse = rng.standard_normal(found.lse.shape)
    dout = operands["dout"]
    operands["lse"] = found.lse.astype(np.float32)
    operands["delta"] = ((dout.astype(np.float64) * found.out).sum(-1) - dlse).astype(np.float32)
    return {f"d{name}": x for name, x in found.gradients(dout, dlse).items()}


def softmax(geometry: oracle.Geometry, scores: Array) -> dict[str, Array]:
    logits = SCALE * scores[..., : geometry.window].astype(np.float64)
    lse = np.log(np.exp(logits).sum(-1))
    padding = [(0, 0)] * (scores.ndim - 1) + [(0, scores.shape[-1] - geometry.window)]
    return {"weights": np.pad(np.exp(logits - lse[..., None]), padding), "lse": lse}


def unfused(operation: str, geometry: oracle.Geometry, operands: dict[str, Array]) -> dict[str, Array]:
    if operation == "qk":
        inputs = {"query": operands["x"], "key": operands["y"]}
        zeros = np.zeros((*operands["x"].shape[:-1], geometry.window))
        scores, _ = oracle.neighborhood_qk(geometry, inputs, zeros)
        padding = [(0, 0)] * (scores.ndim - 1) + [(0, _cpu.pitch(geometry.window) - geometry.window)]
        return {"weights": np.pad(np.where(np.isneginf(scores), 0, scores), padding)}
    weights = operands["weights"][..., : geometry.window]
    if operation == "av":
        inputs = {"weights": weights, "value": operands["y"]}
        out, _ = oracle.neighborhood_av(geometry, inputs, np.zeros((*weights.shape[:-1], VALUE_DIM)))
        return {"x": out}
    value = np.zeros((BATCH, *geometry.key_shape, KV_HEADS, VALUE_DIM))
    _, gradients = oracle.neighborhood_av(geometry, {"weights": weights, "value": value}, operands["x"])
    return {"y": gradients["value"]}
