# SPDX-License-Identifier: Apache-2.0
"""The oracle against windows written out by hand and against JAX's own derivatives of dense attention."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from . import helpers, oracle
from .cases import NAMED

pytestmark = pytest.mark.usefixtures("quick_compile")
UNFUSED = ["all-1d", "all-2d", "all-3d"]
WINDOWS = {
    "slides inward at the border": (
        oracle.Axis(7, 3),
        [(0, 2), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (4, 6)],
    ),
    "even kernel looks left": (oracle.Axis(6, 4), [(0, 3), (0, 3), (0, 3), (1, 4), (2, 5), (2, 5)]),
    "stride follows the leader": (oracle.Axis(6, 3, 2), [(0, 2), (0, 2), (2, 4), (2, 4), (3, 5), (3, 5)]),
    "partial stride group": (oracle.Axis(7, 5, 4), [(0, 4), (0, 4), (0, 4), (0, 4), (2, 6), (2, 6), (2, 6)]),
    "blocked": (oracle.Axis(6, 3, 3), [(0, 2), (0, 2), (0, 2), (3, 5), (3, 5), (3, 5)]),
    "causal": (oracle.Axis(5, 3, is_causal=True), [(0, 0), (0, 1), (0, 2), (1, 3), (2, 4)]),
    "causal stride": (oracle.Axis(6, 3, 2, 1, True), [(0, 0), (0, 1), (1, 2), (1, 3), (3, 4), (3, 5)]),
    "dilation": (oracle.Axis(7, 2, 1, 3), [(0, 3), (1, 4), (2, 5), (0, 3), (1, 4), (2, 5), (3, 6)]),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_by_hand(name):
    axis, ends = WINDOWS[name]
    for x, (first, last) in enumerate(ends):
        assert [k for k in oracle.slots(axis, x) if k is not None] == list(
            range(first, last + 1, axis.dilation)
        )


DISTINCT = (
    "all-1d",
    "blocked",
    "all-2d",
    "full-axis",
    "all-3d",
    "multi-query",
    "tokens-2d",
    "scale-0",
    "batch-0",
)


@pytest.mark.parametrize("case", [NAMED[name] for name in DISTINCT], ids=str)
def test_attention_by_autodiff(case, rng, x64):
    inputs, cotangents = case.inputs(rng, np.float64), case.cotangents(rng, np.float64)
    (out, lse), gradients = helpers.evaluate(
        lambda **inputs: helpers.dense_attention(case, inputs), inputs, cotangents
    )
    values, expected_gradients = helpers.expected(case, inputs, cotangents)
    helpers.assert_close({"out": out, "lse": lse}, values, 1e-13)
    helpers.assert_close(gradients, expected_gradients, 1e-12)


def keys_by_slot(geometry):
    """[N, window] flat key index of every slot in row-major order, -1 where there is none."""
    table = []
    for coordinates in itertools.product(*(axis.queries for axis in geometry.axes)):
        per_axis = [oracle.slots(axis, x) for axis, x in zip(geometry.axes, coordinates, strict=True)]
        window = itertools.product(*per_axis)
        table.append([-1 if None in key else np.ravel_multi_index(key, geometry.key_shape) for key in window])
    return np.array(table)


def by_query(x, case):
    """[*batch, *spatial, ...] -> [batch, N, ...]"""
    return x.reshape(-1, len(case.geometry.mask), *x.shape[-2:])


@pytest.mark.parametrize("name", UNFUSED)
def test_qk_by_autodiff(name, rng, x64):
    case = NAMED[name]
    keys = keys_by_slot(case.geometry)
    displacement = np.take_along_axis(case.geometry.displacement, keys, 1)

    def qk(query, key, rpb):
        weights = jnp.einsum("bnhd,bnjhd->bnhj", by_query(query, case), by_query(key, case)[:, keys])
        weights += jnp.moveaxis(rpb.reshape(len(rpb), -1)[:, displacement], 0, 1)
        weights = jnp.where(keys[:, None] < 0, -jnp.inf, weights)
        return weights.reshape(*query.shape[:-1], -1)

    inputs = case.inputs(rng, np.float64)
    del inputs["value"]
    cotangent = rng.standard_normal((*inputs["query"].shape[:-1], keys.shape[1]))
    weights, gradients = helpers.evaluate(qk, inputs, cotangent)
    reference, expected = oracle.neighborhood_qk(case.geometry, inputs, cotangent)
    assert np.array_equal(np.isinf(weights), np.isinf(reference))
    assert helpers.relative_error(np.exp(weights), np.exp(reference)) < 1e-12
    helpers.assert_close(gradients, expected, 1e-12)


@pytest.mark.parametrize("name", UNFUSED)
def test_av_by_autodiff(name, rng, x64):
    case = NAMED[name]
    keys = keys_by_slot(case.geometry)

    def av(weights, value):
        seen = jnp.where(keys[:, None] < 0, 0, by_query(weights, case))
        out = jnp.einsum("bnhj,bnjhd->bnhd", seen, by_query(value, case)[:, keys])
        return out.reshape(*weights.shape[:-1], -1)

    value, cotangent = rng.standard_normal((2, *case.shapes()["value"]))
    inputs = {"weights": rng.standard_normal((*value.shape[:-1], keys.shape[1])), "value": value}
    out, gradients = helpers.evaluate(av, inputs, cotangent)
    reference, expected = oracle.neighborhood_av(case.geometry, inputs, cotangent)
    assert helpers.relative_error(out, reference) < 1e-12
    helpers.assert_close(gradients, expected, 1e-12)
