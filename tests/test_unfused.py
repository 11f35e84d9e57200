# SPDX-License-Identifier: Apache-2.0
"""neighborhood_qk and neighborhood_av (PN, NN, and IN as a gradient) against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers, oracle
from .cases import NAMED

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", helpers.UNFUSED)
CASES = [
    "all-1d",
    "full-window",
    "long-causal",
    "all-2d",
    "full-axis",
    "all-3d",
    "multi-query",
    "no-batch",
    "batches",
]
every_case = pytest.mark.parametrize("name", CASES)


def qk(case, implementation, **options):
    options |= {**case.spec, "implementation": implementation}
    return lambda **inputs: jax_na.neighborhood_qk(**inputs, **options)


def av(case, implementation):
    return lambda **inputs: jax_na.neighborhood_av(**inputs, **case.spec, implementation=implementation)


def weights_shape(case):
    return (*case.shapes()["query"][:-1], case.geometry.window)


def qk_inputs(case, rng, dtype=np.float32):
    names = ("query", "key", "rpb")
    return {name: x for name, x in case.inputs(rng, dtype).items() if name in names}


def av_inputs(case, rng, dtype=np.float32):
    weights = rng.standard_normal(weights_shape(case)).astype(dtype)
    return {"weights": weights, "value": case.inputs(rng, dtype)["value"]}


def check_qk(case, implementation, rng, dtype):
    result = np.promote_types(
        dtype, np.float32
    )  # whatever the inputs: sums are not rounded to half precision
    inputs, cotangent = qk_inputs(case, rng, dtype), rng.standard_normal(weights_shape(case)).astype(result)
    weights, gradients = helpers.evaluate(qk(case, implementation), inputs, cotangent)
    reference, expected = oracle.neighborhood_qk(case.geometry, inputs, cotangent)
    tolerance, _ = helpers.TOLERANCE[result.name]
    _, gradient_tolerance = helpers.TOLERANCE[np.dtype(dtype).name]
    visible = np.isfinite(reference)
    assert weights.dtype == result
    assert np.array_equal(np.isfinite(weights), visible)
    assert np.all(weights[~visible] == -np.inf)
    assert helpers.relative_error(weights[visible], reference[visible]) <= tolerance
    helpers.assert_close(gradients, expected, gradient_tolerance)


def check_av(case, implementation, rng, dtype):
    inputs, cotangent = av_inputs(case, rng, dtype), case.cotangents(rng, dtype)[0]
    out, gradients = helpers.evaluate(av(case, implementation), inputs, cotangent)
    reference, expected = oracle.neighborhood_av(case.geometry, inputs, cotangent)
    tolerance, gradient_tolerance = helpers.TOLERANCE[np.dtype(dtype).name]
    assert out.dtype == dtype
    helpers.assert_close({"out": out}, {"out": reference}, tolerance)
    helpers.assert_close(gradients, expected, gradient_tolerance)


@every_implementation
@every_case
def test_qk(name, implementation, rng):
    check_qk(NAMED[name], implementation, rng, np.float32)


@every_implementation
@every_case
def test_av(name, implementation, rng):
    check_av(NAMED[name], implementation, rng, np.float32)


@every_implementation
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half(dtype, implementation, rng):
    check_qk(NAMED["all-2d"], implementation, rng, jnp.dtype(dtype))
    check_av(NAMED["all-2d"], implementation, rng, jnp.dtype(dtype))


@pytest.mark.parametrize("implementation", [name for name in helpers.DOUBLE if name in helpers.UNFUSED])
def test_float64(implementation, rng, x64):
    check_qk(NAMED["all-2d"], implementation, rng, np.float64)
    check_av(NAMED["all-2d"], implementation, rng, np.float64)


@every_implementation
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_float32_weights_of_half_values(dtype, implementation, rng):
    """Weights may be float32 (a softmax, say) when the value is not; their gradient is float32 then."""
    case = NAMED["grouped-heads"]
    inputs, cotangent = av_inputs(case, rng), case.cotangents(rng, jnp.dtype(dtype))[0]
    inputs["value"] = inputs["value"].astype(dtype)
    out, gradients = helpers.evaluate(av(case, implementation), inputs, cotangent)
    reference, expected = oracle.neighborhood_av(case.geometry, inputs, cotangent)
    assert out.dtype == jnp.dtype(dtype)
    assert gradients["weights"].dtype == np.float32
    tolerance, gradient_tolerance = helpers.TOLERANCE[dtype]
    helpers.assert_close({"out": out}, {"out": reference}, tolerance)
    helpers.assert_close(gradients, expected, gradient_tolerance)


@every_implementation
def test_scale_of_the_products(implementation, rng):
    """As if the query had been multiplied, but in the accumulator's dtype."""
    case = NAMED["all-1d"]
    inputs = qk_inputs(case, rng)
    visible = np.isfinite(oracle.neighborhood_qk(case.geometry, inputs, np.zeros(weights_shape(case)))[0])
    for scale, factor in ((0.25, 0.25), (None, case.head_dim**-0.5), (0.0, 0.0)):
        found = np.asarray(qk(case, implementation, scale=scale)(**inputs))
        expected = np.asarray(qk(case, implementation)(**{**inputs, "query": factor * inputs["query"]}))
        assert helpers.relative_error(found[visible], expected[visible]) < 1e-6


@every_implementation
def test_half_products_do_not_overflow(implementation):
    """32 * 32 * 64 = 65536 is no float16."""
    x = np.full((1, 9, 1, 64), 32, np.float16)
    scores = jax_na.neighborhood_qk(x, x, (3,), implementation=implementation)
    assert scores.dtype == np.float32
    assert np.all(scores == 65536)
    assert np.all(jax.nn.softmax(scores) == np.float32(1 / 3))
    rounded = jax_na.neighborhood_qk(
        x, x, (3,), scale=0.5, preferred_element_type="float16", implementation=implementation
    )
    assert rounded.dtype == np.float16
    assert np.all(rounded == 32768)


@every_implementation
def test_no_infinite_slots(implementation, rng):
    """With no causal axis nothing is infinite, padding neither."""
    q = rng.standard_normal((1, 9, 2, 8)).astype(np.float32)
    with jax.debug_infs(True):
        scores = jax_na.neighborhood_qk(q, q, (3,), implementation=implementation)
        jax_na.na1d(q, q, q, 3, implementation=implementation).block_until_ready()
    assert np.isfinite(scores).all()


@every_implementation
def test_causal_slots_are_ignored(implementation, rng):
    """NaN in slots past the query changes nothing in av, and their gradient is zero."""
    case = NAMED["all-2d"]
    inputs, cotangent = av_inputs(case, rng), case.cotangents(rng)[0]
    program = helpers.compiled(av(case, implementation))
    clean = program(inputs, cotangent)
    hidden = jax_na.Neighborhood(**case.spec).indices(case.grid) < 0
    hidden = np.broadcast_to(hidden[None, :, :, None], inputs["weights"].shape)
    inputs["weights"][hidden] = np.nan
    helpers.assert_identical(program(inputs, cotangent), clean)
    assert hidden.any()
    assert np.all(np.asarray(clean[1]["weights"])[hidden] == 0)


@every_implementation
def test_composition_is_attention(implementation, rng):
    """softmax(qk) times values, differentiated by JAX, is neighborhood attention."""
    case = NAMED["all-1d"]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)

    def composed(query, key, value, rpb):
        weights = qk(case, implementation)(query=query * case.head_dim**-0.5, key=key, rpb=rpb)
        lse = jax.nn.logsumexp(weights, -1)
        return av(case, implementation)(weights=jnp.exp(weights - lse[..., None]), value=value), lse

    helpers.assert_correct(case, helpers.evaluate(composed, inputs, cotangents), inputs, cotangents)


@every_implementation
def test_slots_follow_indices(implementation, rng):
    """Slot j of the products belongs to the key that Neighborhood.indices names."""
    case = NAMED["mixed-2d"]
    inputs = qk_inputs(case, rng)
    weights = np.asarray(qk(case, implementation)(**inputs))
    indices = jax_na.Neighborhood(**case.spec).indices(case.grid)
    keys = inputs["key"].reshape(-1, case.heads, case.head_dim)[indices]
    products = np.einsum("xyhd,xyjhd->xyhj", inputs["query"][0], keys)
    visible = np.broadcast_to(indices[:, :, None] >= 0, products.shape)
    assert helpers.relative_error(weights[0][visible], products[visible]) < 1e-6


def test_default_is_the_fastest(rng):
    case = NAMED["all-2d"]
    inputs = qk_inputs(case, rng)
    helpers.assert_identical(*(qk(case, name)(**inputs) for name in (None, helpers.UNFUSED[0])))


@pytest.mark.parametrize("implementation", [n for n in helpers.UNFUSED if n in helpers.REPEATABLE])
def test_repeats_bit_for_bit(implementation, rng):
    case = NAMED["long-causal"]
    inputs, cotangent = av_inputs(case, rng), case.cotangents(rng)[0]
    program = helpers.compiled(av(case, implementation))
    first = program(inputs, cotangent)
    for _ in range(3):
        helpers.assert_identical(program(inputs, cotangent), first)
