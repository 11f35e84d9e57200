# SPDX-License-Identifier: Apache-2.0
"""What several test files share: errors, tolerances, compiled calls, and a dense differentiable reference."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_na

from . import oracle
from .cases import Case

Inputs = Mapping[str, Any]
ON_GPU = jax.default_backend() == "gpu"
IMPLEMENTATIONS = tuple(row.name for row in jax_na.implementations() if row.available)
UNFUSED = tuple(row.name for row in jax_na.implementations() if row.available and row.unfused)
DOUBLE = tuple(row.name for row in jax_na.implementations(np.zeros((), np.float64)) if row.available)
# Sums of "xla" are scattered by XLA, on a GPU in any order.
REPEATABLE = tuple(name for name in IMPLEMENTATIONS if not (ON_GPU and name == "xla"))
# relative error ||x - reference|| / ||reference|| of one tensor: (results, gradients)
TOLERANCE = {
    "float64": (1e-12, 1e-12),
    "float32": (2e-5, 6e-5),
    "bfloat16": (8e-3, 2e-2),
    "float16": (1e-3, 3e-3),
}


def available(*names: str) -> tuple[str, ...]:
    """Those of them that run on the platform of the tests."""
    return tuple(name for name in names if name in IMPLEMENTATIONS)


def relative_error(x: Any, reference: Any) -> float:
    """||x - reference|| / ||reference||; a reference of zeros must be met exactly."""
    x, reference = np.asarray(x, np.float64), np.asarray(reference, np.float64)
    assert x.shape == reference.shape, f"shape {x.shape}, expected {reference.shape}"
    if not np.any(reference):
        return np.inf if np.any(x != 0) else 0.0
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def assert_close(results: Inputs, references: Inputs, tolerance: float) -> None:
    """Every tensor of two dictionaries agrees; the message lists the errors of those that do not."""
    assert set(results) == set(references)
    errors = {name: relative_error(results[name], references[name]) for name in references}
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}  # NaN is wrong too
    assert not wrong, f"relative errors above {tolerance}: {wrong}"


def assert_identical(results: Any, references: Any) -> None:
    """The same tree with the same bits (NaN and -0.0 included)."""
    assert jax.tree.structure(results) == jax.tree.structure(references)
    for x, y in zip(jax.tree.leaves(results), jax.tree.leaves(references), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def attend(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The public function with the parameters of a case: inputs by name -> (out, lse)."""

    def function(**inputs: Any) -> tuple[jax.Array, jax.Array]:
        return jax_na.neighborhood_attention(
            **inputs, **case.spec, scale=case.scale, return_lse=True, implementation=implementation
        )

    return function


def compiled(function: Callable[..., Any]) -> Callable[[Inputs, Any], tuple[Any, dict[str, Any]]]:
    """One program: (inputs, cotangents) -> results of `function(**inputs)` and the gradients of inputs."""

    def run(inputs: Inputs, cotangents: Any) -> tuple[Any, dict[str, Any]]:
        results, pull = jax.vjp(lambda inputs: function(**inputs), inputs)
        return results, pull(cotangents)[0]

    return jax.jit(run)


def evaluate(function: Callable[..., Any], inputs: Inputs, cotangents: Any) -> tuple[Any, dict[str, Any]]:
    """Results and gradients of `function(**inputs)`."""
    return compiled(function)(inputs, cotangents)


def named(results: tuple[Any, Any]) -> dict[str, Any]:
    return dict(zip(("out", "lse"), results, strict=True))


def expected(case: Case, inputs: Inputs, cotangents: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `evaluate` must give, from the oracle: results by name, gradients by name."""
    attention = oracle.Attention(case.geometry, dict(inputs), case.scale)
    return {"out": attention.out, "lse": attention.lse}, attention.gradients(*cotangents)


def assert_correct(case: Case, found: tuple[Any, dict[str, Any]], inputs: Inputs, cotangents: Any) -> None:
    """((out, lse), gradients), as `evaluate` returns them, agree with the oracle."""
    results, gradients = expected(case, inputs, cotangents)
    tolerance, gradient_tolerance = TOLERANCE[inputs["query"].dtype.name]
    assert_close(named(found[0]), results, tolerance)
    assert_close(found[1], gradients, gradient_tolerance)


def assert_same(found: Inputs, expected: Inputs, tolerance: float) -> None:
    """The same numbers where they are finite, and not finite at the same places."""
    assert set(found) == set(expected)
    for name, reference in expected.items():
        x, reference = np.asarray(found[name], np.float64), np.asarray(reference, np.float64)
        finite = np.isfinite(reference)
        assert np.array_equal(np.isfinite(x), finite), f"{name}: other entries are finite"
        assert relative_error(x[finite], reference[finite]) <= tolerance, name


def assert_alike(found: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Every array of two trees agrees."""
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert relative_error(x, y) < tolerance


def assert_right(case: Case, found: tuple[Any, dict[str, Any]], inputs: Inputs, cotangents: Any) -> None:
    """As `assert_correct`, for results that are not all finite."""
    results, gradients = expected(case, inputs, cotangents)
    tolerance, gradient_tolerance = TOLERANCE[inputs["query"].dtype.name]
    assert_same(named(found[0]), results, tolerance)
    assert_same(found[1], gradients, gradient_tolerance)


def dense_attention(case: Case, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
    """(out, lse) in plain jnp over all pairs: JAX differentiates it, to any order."""
    geometry, shapes = case.geometry, case.shapes()
    heads, kv_heads = shapes["query"][-2], shapes["key"][-2]
    batch, (n, m) = int(np.prod(case.batch)), geometry.mask.shape
    query = inputs["query"].reshape(batch, n, kv_heads, heads // kv_heads, case.head_dim)
    key = inputs["key"].reshape(batch, m, kv_heads, case.head_dim)
    value = inputs["value"].reshape(batch, m, kv_heads, shapes["value"][-1])
    visible = geometry.mask
    if case.additional:
        tokens = inputs["additional_keys"].reshape(batch, case.additional, kv_heads, case.head_dim)
        key = jnp.concatenate([key, tokens], 1)
        tokens = inputs["additional_values"].reshape(batch, case.additional, kv_heads, value.shape[-1])
        value = jnp.concatenate([value, tokens], 1)
        visible = np.pad(visible, ((0, 0), (0, case.additional)), constant_values=True)
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    logits = scale * jnp.einsum("bngsd,bmgd->bgsnm", query, key)
    if case.rpb:
        bias = inputs["rpb"].reshape(heads, -1)[:, geometry.displacement].reshape(kv_heads, -1, n, m)
        logits += jnp.pad(bias, ((0, 0), (0, 0), (0, 0), (0, case.additional)))
    logits = jnp.where(visible, logits, -jnp.inf)
    lse = jax.nn.logsumexp(logits, -1)
    out = jnp.einsum("bgsnm,bmgd->bngsd", jnp.exp(logits - lse[..., None]), value)
    shape = shapes["query"][:-1]
    return out.reshape(*shape, value.shape[-1]), jnp.moveaxis(lse, 3, 1).reshape(shape)


@contextlib.contextmanager
def logs(name: str) -> Iterator[list[logging.LogRecord]]:
    """The records that a logger and its children get meanwhile."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
