# SPDX-License-Identifier: Apache-2.0
"""Queries of a region with the keys around them: a grid cut into regions and joined is the whole grid."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers, oracle
from .cases import NAMED, Case

# where each axis is cut; odd places, so that regions start in every dilation group
CUTS = {
    "all-1d": ((7, 8),),
    "causal-1d": ((1,),),
    "many-tiles": ((70,),),
    "all-2d": ((5,), (4,)),
    "mixed-2d": ((4, 5), (3,)),
    "all-3d": ((3,), (), (2,)),
    "multi-query": ((2,), ()),
}
SLOW = (
    "many-tiles",
    "causal-1d",
    "all-2d",
    "mixed-2d",
    "multi-query",
)  # for "xla" to compile, and nothing new to it
RUNS = [(name, i) for name in CUTS for i in helpers.IMPLEMENTATIONS if i != "xla" or name not in SLOW]
pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
KERNELS = [name for name in helpers.IMPLEMENTATIONS if name != "xla"]


def key_range(axis, queries, spare):
    """The keys that a range of queries sees, and up to `spare` more on either side."""
    seen = [k for x in queries for k in oracle.slots(axis, x) if k is not None]
    return range(max(min(seen) - spare, 0), min(max(seen) + 1 + spare, axis.length))


def regions(case, cuts):
    """(queries, keys) of all regions, a range per axis; every other region has more keys than it needs."""
    per_axis = []
    for axis, places in zip(case.axes, cuts, strict=True):
        ends = [0, *places, axis.length]
        queries = [range(*pair) for pair in itertools.pairwise(ends)]
        per_axis.append([(part, key_range(axis, part, 3 * (i % 2))) for i, part in enumerate(queries)])
    return [tuple(zip(*region, strict=True)) for region in itertools.product(*per_axis)]


def attend(query, key, value, spec, length, offsets, **options):
    """(out, lse) of a region; `offsets` [rank, 2] are the first query and the first key per axis."""
    starts = {"query_start": offsets[:, 0], "key_start": offsets[:, 1]}
    return jax_na.region_attention(
        query, key, value, **spec, length=length, **starts, return_lse=True, **options
    )


def part(x, ranges, batch):
    return x[(slice(None),) * batch + tuple(slice(r.start, r.stop) for r in ranges)]


def in_regions(case, cuts, implementation):
    """Attention region by region; offsets are arguments of the compiled program, so they are traced."""
    cut = regions(case, cuts)
    starts = np.array(
        [[[q.start, k.start] for q, k in zip(*region, strict=True)] for region in cut], np.int32
    )
    batch = len(case.batch)

    def run(offsets, query, key, value, rpb=None):
        out = jnp.full((*query.shape[:-1], value.shape[-1]), jnp.nan, query.dtype)
        lse = jnp.full(query.shape[:-1], jnp.nan, query.dtype)
        for (queries, keys), offset in zip(cut, offsets, strict=True):
            parts = part(query, queries, batch), part(key, keys, batch), part(value, keys, batch)
            options = {"scale": case.scale, "rpb": rpb, "implementation": implementation}
            results = attend(*parts, case.spec, case.grid, offset, **options)
            at = (slice(None),) * batch + tuple(slice(r.start, r.stop) for r in queries)
            out, lse = out.at[at].set(results[0]), lse.at[at].set(results[1])
        return out, lse

    return lambda **inputs: run(jax.lax.optimization_barrier(jnp.array(starts, jnp.int32)), **inputs)


@pytest.mark.some(5)
@pytest.mark.parametrize(("name", "implementation"), RUNS)
def test_regions_are_the_whole(name, implementation, rng):
    case = NAMED[name]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    found = helpers.evaluate(in_regions(case, CUTS[name], implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)


@pytest.mark.parametrize("implementation", helpers.DOUBLE)
def test_regions_are_the_whole_in_float64(implementation, rng, x64):
    case = NAMED["causal-1d"]
    inputs, cotangents = case.inputs(rng, np.float64), case.cotangents(rng, np.float64)
    found = helpers.evaluate(in_regions(case, CUTS["causal-1d"], implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)


SHARD = Case("shard", (24,), 3, stride=2, dilation=2, is_causal=False, heads=2, rpb=True)


def shards(implementation):
    """Attention in shards of 8 queries and 17 keys, the shape of one program, at run-time offsets."""
    starts = jnp.array([0, 8, 16], jnp.int32)
    key_starts = jnp.clip(starts - 5, 0, 24 - 17)
    offsets = jnp.stack([starts, key_starts], -1)[:, None]

    def one(offset, query, key, value, rpb):
        query = jax.lax.dynamic_slice_in_dim(query, offset[0, 0], 8, 1)
        key, value = (jax.lax.dynamic_slice_in_dim(x, offset[0, 1], 17, 1) for x in (key, value))
        options = {"rpb": rpb, "implementation": implementation}
        return attend(query, key, value, SHARD.spec, SHARD.grid, offset, **options)

    return offsets, one


def joined(results):
    return tuple(jnp.moveaxis(x, 0, 1).reshape(1, 24, *x.shape[3:]) for x in results)


@every_implementation
@pytest.mark.parametrize("loop", ["map", "vmap"])
def test_mapped_offsets(loop, implementation, rng):
    """One program for all shards, also when vmap maps the offsets together with the arrays."""
    offsets, one = shards(implementation)
    inputs, cotangents = SHARD.inputs(rng), SHARD.cotangents(rng)

    def run(**inputs):
        def step(offset):
            return one(offset, **inputs)

        return joined(jax.lax.map(step, offsets) if loop == "map" else jax.vmap(step)(offsets))

    helpers.assert_correct(SHARD, helpers.evaluate(run, inputs, cotangents), inputs, cotangents)


PLACES = {
    "centred": {"kernel_size": 4, "stride": 2, "dilation": 2, "is_causal": False},
    "causal": {"kernel_size": 3, "stride": 3, "dilation": 3, "is_causal": True},
}
LENGTH, QUERIES, KEYS = 17, 5, 14


def places(spec):
    """Every place of 5 queries and 14 keys on an axis of 17 that holds all windows, as oracle geometries."""
    for query_start, key_start in itertools.product(range(LENGTH - QUERIES + 1), range(LENGTH - KEYS + 1)):
        axis = oracle.Axis(LENGTH, *spec.values(), query_start, QUERIES, key_start, KEYS)
        with contextlib.suppress(ValueError):
            oracle.axis_slots(axis)
            yield oracle.Geometry((axis,))


@every_implementation
@pytest.mark.parametrize("name", PLACES)
def test_every_place(name, implementation, rng):
    """One compiled program, run for every query_start and key_start that is possible."""
    spec = PLACES[name]
    per_axis = {name: (value,) for name, value in spec.items()}
    heads, dim, window = 2, 3, spec["kernel_size"]
    shapes = {"query": (QUERIES, heads, dim), "key": (KEYS, 1, dim), "value": (KEYS, 1, dim)}
    shapes["rpb"] = (heads, 2 * window - 1)
    inputs = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    cotangents = tuple(
        rng.standard_normal(s).astype(np.float32) for s in (shapes["query"], shapes["query"][:-1])
    )

    @jax.jit
    def program(offsets):
        def run(inputs):
            arrays = (inputs[name] for name in ("query", "key", "value"))
            options = {"rpb": inputs["rpb"], "implementation": implementation}
            return attend(*arrays, per_axis, LENGTH, offsets, **options)

        results, pull = jax.vjp(run, inputs)
        return results, pull(tuple(cotangents))[0]

    geometries = list(places(spec))
    assert len(geometries) > 10
    for geometry in geometries:
        axis = geometry.axes[0]
        results, gradients = program(np.array([[axis.query_start, axis.key_start]], np.int32))
        reference = oracle.Attention(geometry, inputs)
        helpers.assert_close(helpers.named(results), {"out": reference.out, "lse": reference.lse}, 2e-5)
        helpers.assert_close(gradients, reference.gradients(*cotangents), 6e-5)


# queries 4..7 of 12 see, with a window of 3, the keys 3..8
INSIDE = {"query_start": 4, "key_start": 3}
OUTSIDE = {
    "keys end too early": {"query_start": 5, "key_start": 3},
    "keys begin too late": {"query_start": 4, "key_start": 4},
    "keys far away": {"query_start": 4, "key_start": 1000},
    "negative key": {"query_start": 0, "key_start": -1},
    "negative query": {"query_start": -1, "key_start": 0},
    "queries past the end": {"query_start": 9, "key_start": 6},
    "keys past the end": {"query_start": 8, "key_start": 7},
    "overflow": {"query_start": 2**31 - 2, "key_start": 2**31 - 2},
}


@functools.cache
def region_program(implementation):
    """(out, lse) of 4 queries and 6 keys of an axis of 12, by query_start and key_start."""
    data = jnp.ones((10, 2, 3), jnp.float32)

    @jax.jit
    def run(query_start, key_start):
        offsets = jnp.array([[query_start, key_start]], jnp.int32)
        arrays = data[:4], data[:6], data[:6]
        return attend(*arrays, {"kernel_size": (3,)}, 12, offsets, implementation=implementation)

    return run


@every_implementation
def test_windows_inside_the_keys(implementation):
    out, lse = region_program(implementation)(**INSIDE)
    assert helpers.relative_error(out, np.ones((4, 2, 3))) < 1e-6
    assert helpers.relative_error(lse, np.full((4, 2), 3**0.5 + np.log(3))) < 1e-6


@pytest.mark.skipif(helpers.ON_GPU, reason="a GPU's kernels cannot raise errors")
@pytest.mark.parametrize("implementation", KERNELS)
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_errors(reason, implementation):
    """The kernels check run-time offsets and say so; they never read what is not there."""
    run = region_program(implementation)
    with pytest.raises(
        (jax.errors.JaxRuntimeError, ValueError), match=r"INVALID_ARGUMENT: na_\w+: on axis 0"
    ):
        jax.block_until_ready(run(**OUTSIDE[reason]))


@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS if helpers.ON_GPU else ["xla"])
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, implementation):
    """Where nothing can be raised, in XLA's programs and on a GPU: no number comes out that is not one."""
    offsets = OUTSIDE[reason]
    out, lse = map(np.asarray, region_program(implementation)(**offsets))
    for x in range(4):
        query = min(max(offsets["query_start"] + x, 0), 11)
        window = range(min(max(query - 1, 0), 9), min(max(query - 1, 0), 9) + 3)
        keys = range(offsets["key_start"], offsets["key_start"] + 6)
        if not (query == offsets["query_start"] + x and set(window) <= set(keys)):
            assert np.isnan(out[x]).all()
            assert np.isnan(lse[x]).all()


def test_region_of_a_batch_0(rng):
    case = dataclasses.replace(NAMED["all-2d"], batch=(0,))
    inputs = case.inputs(rng)
    out, lse = in_regions(case, CUTS["all-2d"], None)(**inputs)
    assert out.shape == (0, 13, 7, 2, 8)
    assert lse.shape == (0, 13, 7, 2)
