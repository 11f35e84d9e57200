# SPDX-License-Identifier: Apache-2.0
"""Queries that see no key, and scores of any size: -inf is a masked key, a finite score is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers
from .cases import Case
from .test_nonfinite import PLANE, SMALL, WIDE

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", [*helpers.IMPLEMENTATIONS, None])
LONG = Case("long", (90,), 33, is_causal=True, heads=2, head_dim=8, rpb=True)
BIASED = (SMALL, LONG, dataclasses.replace(PLANE, rpb=True), WIDE)
TOKENS = Case("tokens", (9,), 3, additional=2, heads=2, head_dim=4, rpb=True)
LOWEST = float(np.finfo(np.float32).min)


@every_implementation
def test_only_itself_and_masked(implementation, rng):
    """The first query of a causal axis sees itself alone: if that is masked, it sees nothing."""
    q, k, v = rng.standard_normal((3, 1, 6, 1, 4)).astype(np.float32)
    rpb = np.float32([[0, -np.inf, -np.inf]])
    v[0, 5] = np.nan  # which only its own query could see
    out, lse = jax_na.na1d(
        q, k, v, 2, is_causal=True, rpb=rpb, return_lse=True, implementation=implementation
    )
    assert np.array_equal(out[0, 0], np.zeros_like(v[0, 0]))
    assert lse[0, 0, 0] == -np.inf
    assert helpers.relative_error(out[0, 1:], v[0, :-1]) < 1e-6
    assert np.isfinite(lse[0, 1:]).all()


def masked(case, rng, share=0.5):
    """Inputs whose bias masks a part of its entries, and cotangents."""
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    inputs["rpb"][rng.random(inputs["rpb"].shape) < share] = -np.inf
    return inputs, cotangents


@every_implementation
@pytest.mark.parametrize("case", BIASED, ids=str)
def test_masks_in_the_bias(case, implementation, rng):
    """All gradients are those of what is left, also where nothing is."""
    program = helpers.compiled(helpers.attend(case, implementation))
    for share in (0.5, 0.9, 1.0):
        inputs, cotangents = masked(case, rng, share)
        found = program(inputs, cotangents)
        helpers.assert_right(case, found, inputs, cotangents)
        assert not any(np.isnan(x).any() for x in jax.tree.leaves(found))


@every_implementation
def test_not_finite_behind_a_mask(implementation, rng):
    """The value of a key that the bias masks does not reach the query."""
    inputs, cotangents = masked(SMALL, rng)
    inputs["value"][0, 7, 0, 2] = np.nan
    found = helpers.evaluate(helpers.attend(SMALL, implementation), inputs, cotangents)
    helpers.assert_right(SMALL, found, inputs, cotangents)


@every_implementation
def test_tokens_alone(implementation, rng):
    """Where no key of the grid is seen, the additional tokens decide."""
    program = helpers.compiled(helpers.attend(TOKENS, implementation))
    for share in (0.7, 1.0):
        inputs, cotangents = masked(TOKENS, rng, share)
        helpers.assert_right(TOKENS, program(inputs, cotangents), inputs, cotangents)


@every_implementation
def test_merged_with_nothing(implementation, rng):
    """The attention over no key leaves another one as it is; its output may hold anything."""
    inputs = SMALL.inputs(rng)
    nothing = helpers.attend(SMALL, implementation)(**inputs | {"rpb": np.full_like(inputs["rpb"], -np.inf)})
    part, cotangents = SMALL.cotangents(rng), SMALL.cotangents(rng)

    def merged(out, lse, empty):
        return jax_na.merge_attentions([out, empty], [lse, nothing[1]])

    for empty in (nothing[0], jnp.full_like(nothing[0], jnp.nan)):
        operands = {"out": part[0], "lse": part[1], "empty": empty}
        results, gradients = helpers.evaluate(merged, operands, cotangents)
        helpers.assert_identical(results, part)
        expected = {"out": cotangents[0], "lse": cotangents[1], "empty": np.zeros_like(part[0])}
        helpers.assert_same(gradients, expected, 1e-6)


@every_implementation
@pytest.mark.parametrize("case", BIASED, ids=str)
def test_finite_scores_of_any_size(case, implementation, rng):
    """The lowest numbers are no mask: of equal scores the mean, however low; of others what softmax gives."""
    program = helpers.compiled(helpers.attend(case, implementation))
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    shape = inputs["rpb"].shape
    for bias in (
        np.full(shape, -7e29),
        np.full(shape, LOWEST),
        np.where(rng.random(shape) < 0.5, LOWEST, -7e29),
        np.where(rng.random(shape) < 0.5, LOWEST, inputs["rpb"]),
    ):
        given = inputs | {"rpb": bias.astype(np.float32)}
        helpers.assert_right(case, program(given, cotangents), given, cotangents)


@pytest.mark.some(1)
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
def test_second_order(implementation, rng):
    """Nothing is NaN in the derivatives of gradients where rows are masked."""
    case = Case("tiny", (8,), 3, is_causal=True, head_dim=2, rpb=True)
    attend = helpers.attend(case, implementation)
    inputs, (weights, _) = masked(case, rng, 0.6)

    def norm(inputs):
        gradient = jax.grad(lambda inputs: jnp.sum(weights * attend(**inputs)[0] ** 2))(inputs)
        return sum(jnp.sum(x**2) for x in gradient.values())

    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.jit(jax.grad(norm))(inputs)))
