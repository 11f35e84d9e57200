# SPDX-License-Identifier: Apache-2.0
"""More features than the fused kernels take: chunks of the value's, and the unfused kernels for the others.

Here the kernels of the platform have limits that they do not have; test_cuda_wide.py has those of GPUs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jax_na
from jax_na import Neighborhood
from jax_na.kernels import chunks, devices, table, variants
from jax_na.kernels.contract import Problem
from jax_na.op import Op

from . import helpers
from .cases import NAMED, Case
from .cuda_programs import calls

needs_fused = pytest.mark.skipif("fused" not in helpers.IMPLEMENTATIONS, reason="needs the fused kernels")
pytestmark = [needs_fused, pytest.mark.usefixtures("quick_compile")]
MOST_VALUE, MOST_HEAD = 16, 8
CASES = ("all-2d", "tokens-2d", "grouped-heads", "all-3d")  # bias, tokens, grouped heads; of every rank
REGION = Case("region", (11,), 3, 2, 2, batch=(2,), heads=4, kv_heads=2, value_dim=21, rpb=True, additional=2)


@pytest.fixture
def limited(monkeypatch):
    """Sets limits of the fused kernels, above which each says no."""

    def limit(head_dim=1 << 20, value_dim=1 << 20):
        real = variants.obstacle

        def obstacle(platform, target, problem):
            if target.startswith("na_fused") and problem.head_dim > head_dim:
                return f"it takes up to {head_dim} features per head of query and key, not {problem.head_dim}"
            if target.startswith("na_fused") and problem.value_dim > value_dim:
                return f"it takes up to {value_dim} features per head of the value, not {problem.value_dim}"
            return real(platform, target, problem)

        chunks.widths.cache_clear()
        monkeypatch.setattr(variants, "obstacle", obstacle)

    yield limit
    chunks.widths.cache_clear()


def names(function, *arguments):
    """The kernels of this library that a program calls, in order."""
    return [call.name for call in calls(jax.jit(function).lower(*arguments).as_text())]


def both_ways(case, implementation):
    """inputs, cotangents -> results, gradients"""
    return helpers.compiled(helpers.attend(case, implementation))


@pytest.mark.some(4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("implementation", ["fused", None])
@pytest.mark.parametrize("name", CASES)
def test_chunks_of_value_features(name, implementation, dtype, limited, rng):
    """In three calls, of which the last one has fewer features: results and gradients of the definition."""
    limited(value_dim=MOST_VALUE)
    case = dataclasses.replace(NAMED[name], value_dim=2 * MOST_VALUE + 5)
    inputs, cotangents = case.inputs(rng, jnp.dtype(dtype)), case.cotangents(rng, jnp.dtype(dtype))
    found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)
    every = names(both_ways(case, implementation), inputs, cotangents)
    assert every == ["na_fused_forward"] * 3 + ["na_fused_backward"] * 3


@pytest.mark.some(3)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_weights_are_stored_where_no_fused_kernel_fits(name, dtype, limited, rng):
    """Of None: products, softmax and sums forward; backward the products again, and their gradients."""
    limited(head_dim=MOST_HEAD - 1)
    case = dataclasses.replace(NAMED[name], head_dim=MOST_HEAD)
    inputs, cotangents = case.inputs(rng, jnp.dtype(dtype)), case.cotangents(rng, jnp.dtype(dtype))
    found = helpers.evaluate(helpers.attend(case, None), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)
    every = [name for name in names(both_ways(case, None), inputs, cotangents) if name != "na_softmax"]
    qk, av, inverse = (f"na_gemm_{part}" for part in ("qk", "av", "inverse"))
    assert every == [qk, av, qk, qk, av, inverse, inverse]


def attend_in_parts(query, key, value, **others):
    """REGION in two regions."""
    results = []
    for start, stop in ((0, 5), (5, 11)):
        ((first, last),) = Neighborhood(**REGION.spec).keys_of(REGION.grid, [(start, stop)])
        parts = query[:, start:stop], key[:, first:last], value[:, first:last]
        places = {"length": 11, "query_start": start, "key_start": first}
        results.append(jax_na.region_attention(*parts, **places, **REGION.spec, **others, return_lse=True))
    return tuple(jnp.concatenate(x, axis=1) for x in zip(*results, strict=True))


@pytest.mark.parametrize("limits", [{"value_dim": MOST_VALUE}, {"head_dim": MOST_HEAD - 1}], ids=str)
def test_regions(limits, limited, rng):
    limited(**limits)
    inputs, cotangents = REGION.inputs(rng), REGION.cotangents(rng)
    helpers.assert_correct(REGION, helpers.evaluate(attend_in_parts, inputs, cotangents), inputs, cotangents)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("limits", [{"value_dim": MOST_VALUE}, {"head_dim": MOST_HEAD - 1}], ids=str)
def test_several_devices(limits, limited, rng):
    """Batch, heads and the grid split over them."""
    limited(**limits)
    case = Case("sharded", (16, 6), (5, 3), batch=(2,), heads=2, value_dim=21, rpb=True)
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    mesh = jax.make_mesh((2, 2, 2), ("b", "x", "h"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    place = {name: PartitionSpec("b", "x", None, "h") for name in inputs} | {"rpb": PartitionSpec()}
    placed = {name: jax.device_put(x, NamedSharding(mesh, place[name])) for name, x in inputs.items()}
    found = helpers.evaluate(helpers.attend(case, None), placed, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)


def test_widths(limited):
    """Equal chunks of whole steps of 8, as many as cost least; none where they would not help."""
    limited(head_dim=64, value_dim=64)
    axes = Op(Neighborhood(3), (9,)).axes
    platform = devices.platform_of()
    for features in (1, 64, 65, 120, 129, 200, 1000):
        problem = Problem(axes, "float32", 32, features)
        for target in table.row("fused").targets:
            found = chunks.widths(platform, target, problem)
            assert sum(found) == features
            assert max(found) <= 64
            assert len({*found[:-1]}) <= 1
            assert all(width % 8 == 0 for width in found[:-1])
            assert len(found) <= 2 * -(-features // 64)
            assert (len(found) == 1) == (features <= 64)
    wide = Problem(axes, "float32", 65, 200)
    assert chunks.widths(platform, "na_fused_forward", wide) == (200,)
    assert "query and key, not 65" in chunks.obstacle(platform, "na_fused_forward", wide)


def test_what_None_takes(limited):
    """As `implementations` says it: chunks, stored weights, or pure JAX where weights are too large."""
    limited(head_dim=64, value_dim=64)

    def rows(length, head_dim, value_dim):
        query, value = (
            jax.ShapeDtypeStruct((length, 1, features), np.float32) for features in (head_dim, value_dim)
        )
        return {row.name: row for row in jax_na.implementations(query, (33,), value=value)}

    narrow, chunked, stored, large = rows(99, 64, 64), rows(99, 64, 96), rows(99, 65, 96), rows(2**24, 65, 96)
    for found, name in ((narrow, "fused"), (chunked, "fused"), (stored, "gemm"), (large, "xla")):
        assert [row.name for row in found.values() if row.taken] == [name]
        assert "is what None takes" in repr(found[name])
    assert {row.note for row in narrow.values()} == {None}
    note = "a call for each chunk of value features: na_fused_forward 48 + 48, na_fused_backward 48 + 48"
    assert chunked["fused"].note == note
    assert chunked["fused"].note in repr(chunked["fused"])
    assert stored["fused"].reason == "it takes up to 64 features per head of query and key, not 65"
    assert large["gemm"].note == "None leaves it: its weights take 2.5 GB in float32, more than 1 GB"
    assert large["gemm"].available


def test_nothing_is_said_of_no_problem():
    assert {row.taken for row in jax_na.implementations()} == {None}
    assert {row.note for row in jax_na.implementations()} == {None}


def test_an_error_names_what_works(limited, rng):
    limited(head_dim=MOST_HEAD - 1)
    case = NAMED["plain-1d"]
    why = (
        "implementation 'fused' cannot run: it takes up to 7 features per head of query and key, not 8; "
        "'gemm', 'naive', 'xla' can"
    )
    with pytest.raises(ValueError, match=why):
        helpers.attend(case, "fused")(**case.inputs(rng))
