# SPDX-License-Identifier: Apache-2.0
"""region_attention as users call it: known positions, every option, and which keys a region needs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood

from . import helpers, oracle
from .cases import NAMED, Case

every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
CASE = Case(
    "region",
    (7,),
    3,
    dilation=2,
    batch=(2,),
    heads=4,
    kv_heads=2,
    head_dim=3,
    rpb=True,
    additional=2,
    scale=0.7,
)


@pytest.mark.parametrize("name", ["causal-1d", "all-1d", "stride-even", "ragged-dilation", "kernel-1"])
def test_keys_of(name):
    """Of every region along an axis, against the windows of the definition."""
    case = NAMED[name]
    (axis,) = case.axes
    neighborhood = Neighborhood(**case.spec)
    for start, stop in itertools.combinations(range(axis.length + 1), 2):
        seen = [k for x in range(start, stop) for k in oracle.slots(axis, x) if k is not None]
        assert neighborhood.keys_of(case.grid, [(start, stop)]) == ((min(seen), max(seen) + 1),)


def test_keys_of_several_axes():
    neighborhood = Neighborhood((3, 5), dilation=(2, 1), is_causal=(True, False))
    keys = neighborhood.keys_of((12, 9), [(6, 8), (8, 9)])
    assert keys == ((2, 8), (4, 9))
    assert all(type(x) is int for pair in keys for x in pair)


@pytest.mark.some(2)
@every_implementation
def test_every_option(implementation, rng):
    """Two parts at known positions are the whole: with a bias, tokens, grouped heads and a scale."""
    options = {**CASE.spec, "scale": CASE.scale, "implementation": implementation}
    window = Neighborhood(**CASE.spec)

    def in_parts(query, key, value, **others):
        results = []
        for start, stop in ((0, 3), (3, 7)):
            ((first, last),) = window.keys_of(CASE.grid, [(start, stop)])
            parts = query[:, start:stop], key[:, first:last], value[:, first:last]
            places = {"length": 7, "query_start": start, "key_start": (first,)}
            results.append(jax_na.region_attention(*parts, **places, **options, **others, return_lse=True))
        return tuple(jnp.concatenate(x, axis=1) for x in zip(*results, strict=True))

    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    helpers.assert_correct(CASE, helpers.evaluate(in_parts, inputs, cotangents), inputs, cotangents)


def test_the_whole_grid_is_a_region(rng):
    """Every kind of position gives the same, known or traced; without return_lse there is one result."""
    query, key, value = rng.standard_normal((3, 5, 6, 2, 4)).astype(np.float32)
    expected = jax_na.na2d(query, key, value, 3)

    def region(query_start, key_start, length=(5, 6)):
        starts = {"query_start": query_start, "key_start": key_start}
        return jax_na.region_attention(query, key, value, (3, 3), length=length, **starts)

    zero = np.zeros(2, np.int32)
    for starts in ((0, 0), ((0, 0), zero), (jnp.int32(0), (np.int64(0), jnp.int8(0)))):
        helpers.assert_identical(region(*starts), expected)
        helpers.assert_identical(jax.jit(region)(*starts), expected)


def test_one_program_for_all_positions(rng):
    """Positions are no part of the program, not even in eager calls."""
    query, key = rng.standard_normal((2, 8, 2, 4)).astype(np.float32)

    def region(start):
        starts = {"length": 16, "query_start": start, "key_start": start}
        return jax_na.region_attention(query[3:5], key, key, (5,), **(starts | {"query_start": start + 3}))

    region(0)
    with jax.log_compiles(), helpers.logs("jax") as records:
        region(5)
    assert not [r for r in records if "Compiling" in r.getMessage()]


def test_precision_and_dtype(rng):
    query, key = rng.standard_normal((2, 8, 2, 4)).astype(jnp.bfloat16)
    places = {"length": 8, "query_start": 0, "key_start": 0}
    out, lse = jax_na.region_attention(
        query, key, key, (5,), **places, return_lse=True, precision="highest", implementation="xla"
    )
    assert (out.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)


@every_implementation
def test_nan_is_not_merged_away(implementation, rng):
    """A query that sees a nan has it in its result, also when it sees tokens beside."""
    q, k, v = rng.standard_normal((3, 9, 1, 4)).astype(np.float32)
    tokens = rng.standard_normal((2, 3, 1, 4)).astype(np.float32)
    k[2] = np.nan
    options = {"additional_keys": tokens[0], "additional_values": tokens[1], "return_lse": True}
    out, lse = jax_na.na1d(q, k, v, 3, **options, implementation=implementation)
    assert np.isnan(out[1:4]).all()
    assert np.isnan(lse[1:4]).all()
