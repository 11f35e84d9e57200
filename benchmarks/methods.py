# SPDX-License-Identifier: Apache-2.0
"""What is measured in JAX: jax-na's implementations, the same attention in pure JAX, and two yardsticks."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from typing import Any

import blocked
import jax
import jax.numpy as jnp
import numpy as np
from method import SGEMM_SIZE, Case, Method, Prepared, all_pairs, first_of, no_bias, too_large
from specs import OVERHEAD, Spec

import jax_na
from jax_na import _cpu
from jax_na.kernels import register

EMPTY = "na_empty"  # an FFI target that does nothing


def _operands(case: Case) -> list[jax.Array]:
    """The inputs, and before them in a backward pass the cotangent; a bias stays float32."""
    names = ("dout", *case.inputs) if case.backward else case.inputs
    return [jnp.asarray(case.arrays[n], jnp.float32 if n == "rpb" else case.dtype) for n in names]


def _compile(case: Case, attend: Callable[..., jax.Array], constants: Sequence[Any] = ()) -> Prepared:
    """`attend(*inputs, *constants)` under jit, with its gradients by the inputs if the case asks for them."""

    def forward(inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> Sequence[jax.Array]:
        return (attend(*inputs, *constants),)

    def both(inputs: Sequence[jax.Array], constants: Sequence[jax.Array]) -> Sequence[jax.Array]:
        dout, *inputs = inputs
        out, pullback = jax.vjp(lambda *x: attend(*x, *constants), *inputs)
        return (out, *pullback(dout))

    function = jax.jit(both if case.backward else forward)
    operands = (_operands(case), [jnp.asarray(c) for c in constants])
    return Prepared(
        lambda: jax.block_until_ready(function(*operands)),
        lambda results: [np.asarray(x, np.float32) for x in results],
        lambda: _temporary_bytes(function.lower(*operands).compile()),
    )


def _temporary_bytes(compiled: Any) -> int:
    return int(compiled.memory_analysis().temp_size_in_bytes)


# jax-na


def _attend(spec: Spec, implementation: str, *inputs: jax.Array) -> jax.Array:
    named: dict[str, Any] = dict(zip(spec.shapes, inputs, strict=True))
    out: jax.Array = jax_na.neighborhood_attention(
        **named, **spec.neighborhood, scale=spec.scale, implementation=implementation
    )
    return out


def _implementation_obstacle(name: str, case: Case) -> str | None:
    query = jax.ShapeDtypeStruct(case.spec.shapes["query"], case.dtype)
    row = next(r for r in jax_na.implementations(query, **case.spec.neighborhood) if r.name == name)
    return first_of(row.reason, _stored_weights(case.spec) if name in ("naive", "gemm") else None)


def _stored_weights(spec: Spec) -> str | None:
    return too_large("the stored weights", math.prod(spec.shapes["query"][:-1]) * spec.window)


def _implementation(name: str, about: str) -> Method:
    return Method(
        name,
        f"jax-na: {about}",
        functools.partial(_implementation_obstacle, name),
        lambda case: _compile(case, functools.partial(_attend, case.spec, name)),
    )


# Pure JAX


def _dense(case: Case) -> Prepared:
    """All pairs of tokens with a mask, as jax.nn does it."""
    spec = case.spec
    mask = jax_na.Neighborhood(**spec.neighborhood).mask(spec.spatial).reshape(spec.tokens, spec.tokens)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
        q_, k_, v_ = (x.reshape(spec.batch, spec.tokens, *x.shape[-2:]) for x in (q, k, v))
        out = jax.nn.dot_product_attention(q_, k_, v_, mask=mask[None, None], scale=spec.softmax_scale)
        return out.reshape(q.shape)

    return _compile(case, attend, [mask])


def _gather(case: Case) -> Prepared:
    """Every query gathers copies of its keys and values."""
    spec = case.spec
    index = jax_na.Neighborhood(**spec.neighborhood).indices(spec.spatial).reshape(spec.tokens, spec.window)

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, index: jax.Array) -> jax.Array:
        b, n, g, d = spec.batch, spec.tokens, spec.kv_heads, spec.head_dim
        keys, values = (x.reshape(b, n, g, d)[:, index] for x in (k, v))
        s = jnp.einsum(
            "bngrd,bnwgd->bngrw", q.reshape(b, n, g, -1, d), keys, preferred_element_type=jnp.float32
        )
        s = jnp.where(index[:, None, None] >= 0, s * spec.softmax_scale, -jnp.inf)
        p = jax.nn.softmax(s).astype(v.dtype)
        return jnp.einsum("bngrw,bnwgd->bngrd", p, values).reshape(q.shape)

    return _compile(case, attend, [index])


def _gather_obstacle(case: Case) -> str | None:
    spec = case.spec
    copies = float(math.prod(spec.shapes["key"])) * spec.window
    size = jnp.dtype(case.dtype).itemsize
    return first_of(no_bias(case), too_large("its copies of the keys", copies, size))


# Yardsticks


def _sgemm(case: Case) -> Prepared:
    """A float32 matrix product, whatever the case: what the machine gives at that moment."""
    x = jax.random.normal(jax.random.key(0), (SGEMM_SIZE, SGEMM_SIZE), jnp.float32)
    product = jax.jit(jnp.dot)
    return Prepared(lambda: (jax.block_until_ready(product(x, x)),), None)


def _empty(case: Case) -> Prepared:
    """A kernel call with the same operands and results that does nothing."""
    query = case.spec.shapes["query"]
    call = jax.ffi.ffi_call(EMPTY, [jax.ShapeDtypeStruct(query, case.dtype)])
    function, operands = jax.jit(call), _operands(case)
    return Prepared(lambda: jax.block_until_ready(function(*operands)), None)


def _empty_obstacle(case: Case) -> str | None:
    if EMPTY not in register.TARGETS.get("cpu", ()):
        return f"there is no FFI target {EMPTY}"
    tiny = case.spec.group == OVERHEAD and not case.backward
    return None if tiny else "only measured forward on the problem for the overhead of a call"


METHODS = (
    *(_implementation(row.name, row.about) for row in jax_na.implementations()),
    Method(
        "jax-blocked",
        "pure JAX: tiles of queries with blocks of keys",
        lambda case: first_of(no_bias(case), blocked.obstacle(case)),
        functools.partial(blocked.prepare, _compile),
    ),
    Method("jax-gather", "pure JAX: copies of the keys per query", _gather_obstacle, _gather),
    Method(
        "jax-dense",
        "pure JAX: jax.nn.dot_product_attention with a mask",
        lambda case: first_of(no_bias(case), all_pairs(case, "its scores of all pairs")),
        _dense,
    ),
    Method("empty", "an FFI call that does nothing", _empty_obstacle, _empty),
    Method("sgemm", f"{SGEMM_SIZE}^3 float32 matrix product in JAX", lambda case: None, _sgemm),
)


# What the driver asks this framework for, besides timings


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "jax-na", "numpy")}


def instruction_set() -> str:
    return str(_cpu.isa())


def reference(spec: Spec, dtype: str) -> dict[str, np.ndarray]:
    """Case.arrays of a spec; the results are those of jax-na's "naive" in float32.

    Besides, "flops": the useful ones of the forward pass.

    Raises:
        ValueError: if the spec is too large for "naive".
    """
    obstacle = _stored_weights(spec)
    if obstacle is not None:
        raise ValueError(obstacle)
    rng = np.random.default_rng(0)
    shapes = {**spec.shapes, "dout": spec.shapes["query"]}
    arrays = {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in shapes.items()}
    arrays = {n: x if n == "rpb" else x.astype(dtype).astype(jnp.float32) for n, x in arrays.items()}
    inputs = [arrays[name] for name in spec.shapes]
    out, pullback = jax.vjp(jax.jit(functools.partial(_attend, spec, "naive")), *inputs)
    gradients = {f"d{n}": g for n, g in zip(spec.shapes, jax.jit(pullback)(arrays["dout"]), strict=True)}
    neighborhood = jax_na.Neighborhood(**spec.neighborhood)
    bounds = {f"bounds{a}": b for a, b in enumerate(neighborhood.bounds(spec.spatial))}
    flops = neighborhood.flops(spec.spatial, spec.heads, spec.head_dim, batch=spec.batch)
    everything = {**arrays, "out": out, **gradients, **bounds, "flops": flops}
    return {name: np.asarray(x) for name, x in everything.items()}
