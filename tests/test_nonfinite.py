# SPDX-License-Identifier: Apache-2.0
"""What is not finite reaches the queries that see it, and what depends on these, and nothing else."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na.rules import fused, trilinear

from . import helpers, oracle
from .cases import Case

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", [*helpers.IMPLEMENTATIONS, None])
SMALL = Case("1d", (33,), 3, stride=2, dilation=2, is_causal=True, heads=2, kv_heads=1, head_dim=5, rpb=True)
LONG = Case("long", (120,), 33, heads=2, head_dim=8)
PLANE = Case("2d", (7, 9), (3, 3), is_causal=(False, True), head_dim=4, value_dim=3)
WIDE = Case("wide-2d", (19, 20), (9, 11), dilation=(2, 1), head_dim=8, rpb=True)
TOKENS = Case("tokens", (14,), 4, additional=2, heads=2, head_dim=4)
CASES = (SMALL, LONG, PLANE, WIDE, TOKENS)
LOCAL = (  # nothing that all queries share, and no query with one key: that has its weight whatever it is
    Case("1d", (12,), 3, stride=2, heads=2, kv_heads=1, head_dim=2),
    Case("2d", (3, 8), (2, 3), dilation=(1, 2), head_dim=2, value_dim=3),
)


def planted(x, rng, value=np.nan):
    """A copy of the array with `value` in one place."""
    x = np.array(x)
    x.flat[rng.integers(x.size)] = value
    return x


@every_implementation
@pytest.mark.parametrize("is_causal", [False, True])
def test_the_last_of_200(is_causal, implementation, rng):
    """Four windows of 7 hold the last token, or that of one query if they end at theirs."""
    q, k, v = rng.standard_normal((3, 1, 200, 2, 16)).astype(np.float32)
    attend = jax.jit(lambda k, v: jax_na.na1d(q, k, v, 7, is_causal=is_causal, implementation=implementation))
    clean = np.array(attend(k, v))
    k[0, -1, 0, 3] = v[0, -1, 1, 5] = np.nan
    out = np.array(attend(k, v))
    seen = 1 if is_causal else 4
    assert np.isnan(out[0, -seen:, 0]).all()
    assert np.isnan(out[0, -seen:, 1, 5]).all()
    out[0, -seen:, 0], out[0, -seen:, 1, 5] = clean[0, -seen:, 0], clean[0, -seen:, 1, 5]
    assert helpers.relative_error(out, clean) < 1e-6


@every_implementation
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, implementation, rng):
    """NaN in one place of an input or of a cotangent, one after the other."""
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    program = helpers.compiled(helpers.attend(case, implementation))
    for name in inputs:
        poisoned = {**inputs, name: planted(inputs[name], rng)}
        helpers.assert_right(case, program(poisoned, cotangents), poisoned, cotangents)
    for i in range(2):
        poisoned = tuple(planted(x, rng) if j == i else x for j, x in enumerate(cotangents))
        helpers.assert_right(case, program(inputs, poisoned), inputs, poisoned)


@every_implementation
@pytest.mark.parametrize("case", [SMALL, WIDE], ids=str)
def test_infinite_values(case, implementation, rng):
    """Infinities of both signs in values stay infinities; a feature that sees both is NaN."""
    inputs = case.inputs(rng)
    inputs["value"] = planted(planted(inputs["value"], rng, np.inf), rng, -np.inf)
    out, lse = helpers.attend(case, implementation)(**inputs)
    reference = oracle.Attention(case.geometry, inputs, case.scale)
    helpers.assert_same({"out": out, "lse": lse}, {"out": reference.out, "lse": reference.lse}, 2e-5)
    infinite = np.isinf(reference.out)
    assert infinite.any()
    assert np.array_equal(np.asarray(out)[infinite], reference.out[infinite].astype(np.float32))


@every_implementation
def test_bfloat16(implementation, rng):
    case, dtype = dataclasses.replace(SMALL, rpb=False), jnp.dtype("bfloat16")
    inputs, cotangents = case.inputs(rng, dtype), case.cotangents(rng, dtype)
    inputs["value"] = planted(inputs["value"], rng)
    found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_right(case, found, inputs, cotangents)


def test_asked_once(rng, monkeypatch):
    """As on a GPU: "xla" decides outside of its loop between two programs, forward and backward."""
    for rules in (fused, trilinear):
        monkeypatch.setattr(rules, "either", functools.partial(_either_on_a_gpu, rules.either))
    inputs, cotangents = SMALL.inputs(rng), SMALL.cotangents(rng)
    program = helpers.compiled(helpers.attend(SMALL, "xla"))
    for name in ("query", "key", "value"):
        poisoned = {**inputs, name: planted(inputs[name], rng)}
        helpers.assert_right(SMALL, program(poisoned, cotangents), poisoned, cotangents)
    large = {**inputs, "rpb": np.full_like(inputs["rpb"], -7e29)}
    for given in (inputs, large):
        helpers.assert_right(SMALL, program(given, cotangents), given, cotangents)
    poisoned = (planted(cotangents[0], rng), cotangents[1])
    helpers.assert_right(SMALL, program(inputs, poisoned), inputs, poisoned)


def _either_on_a_gpu(either, platform, *args):
    return either("cuda", *args)


@pytest.mark.parametrize("implementation", helpers.DOUBLE)
def test_float64(implementation, rng, x64):
    inputs, cotangents = SMALL.inputs(rng, np.float64), SMALL.cotangents(rng, np.float64)
    inputs["key"] = planted(inputs["key"], rng)
    found = helpers.evaluate(helpers.attend(SMALL, implementation), inputs, cotangents)
    helpers.assert_right(SMALL, found, inputs, cotangents)


def higher_order(case, implementation):
    """inputs, direction, weights -> tangents, and the gradient of the norm of a gradient, by name."""
    attend = helpers.attend(case, implementation)

    def results(inputs):
        return helpers.named(attend(**inputs))

    def loss(inputs, weights):
        out, lse = attend(**inputs)
        return jnp.sum(weights[0] * out**2) + jnp.sum(weights[1] * lse**2)

    def norm(inputs, direction, weights):
        gradient = jax.grad(loss)(inputs, weights)
        return sum(jnp.sum(direction[name] * x**2) for name, x in gradient.items())

    def run(inputs, direction, weights):
        return {
            "tangents": jax.jvp(results, (inputs,), (direction,))[1],
            "second": jax.grad(norm)(inputs, direction, weights),
        }

    return run


@pytest.mark.some(1)
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@pytest.mark.parametrize("case", LOCAL, ids=str)
def test_higher_order(case, implementation, rng):
    """What does not move when a number moves does not when that number is NaN; what moves is NaN then."""
    operands = case.inputs(rng), case.inputs(rng), case.cotangents(rng)
    program = jax.jit(higher_order(case, implementation))
    exact = jax.jit(higher_order(case, "xla"))
    clean, (reference,) = program(*operands), in_float64(exact, operands)
    for i, x in enumerate(jax.tree.leaves(operands)):
        place = rng.integers(x.size)
        moved = in_float64(exact, *(replaced(operands, i, place, x.flat[place] + move) for move in (2, -3)))
        poisoned = program(*replaced(operands, i, place, np.nan))
        jax.tree.map_with_path(assert_moves_alike, clean, poisoned, reference, *moved)


def in_float64(program, *operands):
    """Results of a program for each of these; in float32 a weak influence may round to none."""
    with jax.enable_x64(True):
        return [jax.tree.map(np.asarray, program(*jax.tree.map(np.float64, each))) for each in operands]


def replaced(tree, i, place, value):
    """The arrays of a tree with another number at one place of the i-th."""
    leaves, structure = jax.tree.flatten(tree)
    leaves[i] = np.array(leaves[i])
    leaves[i].flat[place] = value
    return structure.unflatten(leaves)


def assert_moves_alike(path, clean, poisoned, reference, *moved):
    change = np.max([np.abs(x - reference) for x in moved], axis=0)
    size = np.abs(reference).max()
    stays, moves = change == 0, change > 1e-3 * size
    assert np.allclose(poisoned[stays], clean[stays], rtol=0, atol=1e-5 * size), path
    assert np.isnan(poisoned[moves]).all(), path


@pytest.mark.parametrize("implementation", helpers.UNFUSED)
def test_unfused(implementation, rng):
    """A weight of zero contributes nothing: to sums of values, to gradients."""
    case = PLANE
    inputs = {name: x for name, x in case.inputs(rng).items() if name == "value"}
    weights = rng.standard_normal((*case.shapes()["query"][:-1], case.geometry.window)).astype(np.float32)
    inputs["weights"] = np.where(rng.random(weights.shape) < 0.5, 0, weights).astype(np.float32)
    inputs["value"], cotangent = planted(inputs["value"], rng), planted(case.cotangents(rng)[0], rng)

    def av(weights, value):
        return jax_na.neighborhood_av(weights, value, **case.spec, implementation=implementation)

    out, gradients = helpers.evaluate(av, inputs, cotangent)
    reference, expected = oracle.neighborhood_av(case.geometry, inputs, cotangent)
    helpers.assert_same({"out": out}, {"out": reference}, 2e-5)
    helpers.assert_same(gradients, expected, 6e-5)


@pytest.mark.parametrize("implementation", helpers.UNFUSED)
def test_unfused_products(implementation, rng):
    """A cotangent of zero brings nothing of a key to the gradient of a query, and the reverse."""
    case = PLANE
    inputs = {name: planted(x, rng) for name, x in case.inputs(rng).items() if name in ("query", "key")}
    cotangent = rng.standard_normal((*case.shapes()["query"][:-1], case.geometry.window)).astype(np.float32)
    cotangent[rng.random(cotangent.shape) < 0.5] = 0

    def qk(query, key):
        return jax_na.neighborhood_qk(query, key, **case.spec, implementation=implementation)

    scores, gradients = helpers.evaluate(qk, inputs, cotangent)
    reference, expected = oracle.neighborhood_qk(case.geometry, inputs, cotangent)
    helpers.assert_same({"scores": scores}, {"scores": reference}, 2e-5)
    helpers.assert_same(gradients, expected, 6e-5)
