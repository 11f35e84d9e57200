# SPDX-License-Identifier: Apache-2.0
"""Derivatives beyond the gradient: forward mode, second and third order, against JAX's derivatives of a dense
reference in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jax_na

from . import helpers
from .cases import Case

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
TOLERANCE = 1e-4  # of derivatives of order two and three in float32
ONE = Case("1d", (8,), 3, stride=2, dilation=2, is_causal=True, heads=2, kv_heads=1, head_dim=3, rpb=True)
TWO = Case("2d", (4, 5), (3, 2), dilation=(1, 2), head_dim=2, value_dim=3)
TOKENS = Case("tokens", (4,), 2, additional=2, head_dim=3)
RING = Case(
    "ring",
    (8,),
    3,
    stride=2,
    dilation=2,
    is_periodic=True,
    heads=2,
    kv_heads=1,
    head_dim=3,
    rpb=True,
    additional=1,
)
TINY = Case("tiny", (4,), 3, heads=1, head_dim=2, rpb=True)
every_case = pytest.mark.parametrize("case", [ONE, TWO, TOKENS, RING], ids=str)
FUSED_AND_GEMM = helpers.available("fused", "gemm")
HESSIANS = [
    *(("rpb", name) for name in FUSED_AND_GEMM),
    *(("query", name) for name in helpers.IMPLEMENTATIONS),
]
SECOND_ORDER = [
    *((ONE, name) for name in helpers.IMPLEMENTATIONS),
    *((TWO, name) for name in FUSED_AND_GEMM),
    *((TOKENS, name) for name in helpers.available("naive")),
    *((RING, name) for name in (*helpers.available("gemm"), "xla")),
]


def reference(case):
    return lambda inputs: helpers.dense_attention(case, inputs)


def under_test(case, implementation):
    attend = helpers.attend(case, implementation)
    return lambda inputs: attend(**inputs)


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def loss(attend, weights):
    """A nonlinear function of out and lse, so that cotangents move with the inputs too."""

    def value(inputs):
        out, lse = attend(inputs)
        return jnp.sum(weights[0] * out**2) + jnp.sum(weights[1] * lse**2)

    return value


def problem(case, rng):
    """Inputs, a direction to differentiate along, and the weights of a loss."""
    return case.inputs(rng), case.inputs(rng), case.cotangents(rng)


@pytest.mark.some(4)
@every_implementation
@every_case
def test_forward_mode(case, implementation, rng, x64):
    """jvp and linearize; the reference gives the same tangents."""
    inputs, direction, _ = problem(case, rng)

    def tangents(attend, inputs, direction):
        _, linear = jax.linearize(attend, inputs)
        return {"jvp": jax.jvp(attend, (inputs,), (direction,))[1], "linearize": linear(direction)}

    found = jax.jit(lambda *a: tangents(under_test(case, implementation), *a))(inputs, direction)
    expected = jax.jvp(reference(case), (double(inputs),), (double(direction),))[1]
    for result in found.values():
        helpers.assert_close(helpers.named(result), helpers.named(expected), 6e-5)


def second_order(attend, weights, inputs, direction):
    """The Hessian of the loss times a direction, in every nesting of forward and reverse mode."""
    value = loss(attend, weights)

    def slope(inputs):
        return jax.jvp(value, (inputs,), (direction,))[1]

    def slope_by_gradient(inputs):
        gradient = jax.grad(value)(inputs)
        return sum(jnp.sum(gradient[name] * direction[name]) for name in inputs)

    return {
        "forward over reverse": jax.jvp(jax.grad(value), (inputs,), (direction,))[1],
        "reverse over forward": jax.grad(slope)(inputs),
        "reverse over reverse": jax.grad(slope_by_gradient)(inputs),
    }


def hessian_times(attend, weights, inputs, direction):
    return jax.jvp(jax.grad(loss(attend, weights)), (inputs,), (direction,))[1]


@pytest.mark.some(3)
@pytest.mark.parametrize(("case", "implementation"), SECOND_ORDER, ids=str)
def test_second_order(case, implementation, rng, x64):
    inputs, direction, weights = problem(case, rng)
    program = jax.jit(lambda *a: second_order(under_test(case, implementation), *a))
    found = program(weights, inputs, direction)
    expected = jax.jit(lambda *a: hessian_times(reference(case), *a))(*double((weights, inputs, direction)))
    for result in found.values():
        helpers.assert_close(result, expected, TOLERANCE)
    if not helpers.ON_GPU:  # there XLA scatters in any order
        helpers.assert_identical(program(weights, inputs, direction), found)


@pytest.mark.some(1)
@pytest.mark.parametrize("implementation", FUSED_AND_GEMM)
def test_third_order(implementation, rng, x64):
    inputs, direction, weights = problem(TINY, rng)

    def third(attend, weights, inputs, direction):
        def second(inputs):
            return hessian_times(attend, weights, inputs, direction)

        return jax.jvp(second, (inputs,), (direction,))[1]

    found = jax.jit(lambda *a: third(under_test(TINY, implementation), *a))(weights, inputs, direction)
    expected = jax.jit(lambda *a: third(reference(TINY), *a))(*double((weights, inputs, direction)))
    helpers.assert_close(found, expected, TOLERANCE)


@pytest.mark.some(1)
@pytest.mark.parametrize(("name", "implementation"), HESSIANS)
def test_hessian(name, implementation, rng, x64):
    """jax.hessian with respect to one input: batches of tangents, and zero tangents for the other inputs."""
    inputs, _, weights = problem(TINY, rng)

    def hessian(attend, weights, inputs):
        def value(x):
            return loss(attend, weights)({**inputs, name: x})

        return jax.hessian(value)(inputs[name])

    found = jax.jit(lambda *a: hessian(under_test(TINY, implementation), *a))(weights, inputs)
    expected = jax.jit(lambda *a: hessian(reference(TINY), *a))(*double((weights, inputs)))
    assert helpers.relative_error(found, expected) <= TOLERANCE


@pytest.mark.some(2)
@every_implementation
def test_gradient_of_one_input(implementation, rng):
    """Asking for fewer gradients does not change those that remain."""
    inputs, cotangents = ONE.inputs(rng), ONE.cotangents(rng)
    attend = under_test(ONE, implementation)

    def one_by_one(inputs):
        pulls = {
            name: jax.vjp(lambda x, name=name: attend({**inputs, name: x}), inputs[name])[1]
            for name in inputs
        }
        return {name: pull(cotangents)[0] for name, pull in pulls.items()}

    together = helpers.evaluate(helpers.attend(ONE, implementation), inputs, cotangents)[1]
    helpers.assert_close(jax.jit(one_by_one)(inputs), together, 1e-6)


@every_implementation
@pytest.mark.parametrize("result", [0, 1], ids=["out", "lse"])
def test_gradient_of_one_result(result, implementation, rng):
    """Only out, or only the log-sum-exp, is used: the other cotangent is a symbolic zero."""
    inputs, cotangents = ONE.inputs(rng), ONE.cotangents(rng)
    attend = under_test(ONE, implementation)
    pull = jax.jit(lambda inputs: jax.vjp(lambda i: attend(i)[result], inputs)[1](cotangents[result])[0])
    zeroed = [c if i == result else np.zeros_like(c) for i, c in enumerate(cotangents)]
    _, expected = helpers.expected(ONE, inputs, zeroed)
    helpers.assert_close(pull(inputs), expected, 6e-5)


@pytest.mark.some(1)
@every_implementation
def test_second_order_in_bfloat16(implementation, rng):
    inputs, direction = (ONE.inputs(rng, jnp.bfloat16) for _ in range(2))
    weights = ONE.cotangents(rng)
    found = jax.jit(lambda *a: hessian_times(under_test(ONE, implementation), *a))(weights, inputs, direction)
    assert {x.dtype for x in found.values()} == {jnp.dtype(jnp.bfloat16)}
    with jax.enable_x64(True):
        expected = hessian_times(reference(ONE), *double((weights, inputs, direction)))
    helpers.assert_close(found, expected, 4e-2)


@pytest.mark.some(1)
@pytest.mark.parametrize("implementation", helpers.UNFUSED)
def test_unfused_second_order(implementation, rng, x64):
    """Attention composed of neighborhood_qk and neighborhood_av has the second derivatives of attention."""
    case = TINY
    inputs, direction, weights = problem(case, rng)

    def composed(inputs):
        options = {**case.spec, "implementation": implementation}
        scaled = inputs["query"] * np.float32(case.head_dim**-0.5)
        logits = jax_na.neighborhood_qk(scaled, inputs["key"], rpb=inputs["rpb"], **options)
        lse = jax.nn.logsumexp(logits, -1)
        return jax_na.neighborhood_av(jnp.exp(logits - lse[..., None]), inputs["value"], **options), lse

    found = jax.jit(lambda *a: second_order(composed, *a))(weights, inputs, direction)
    expected = hessian_times(reference(case), *double((weights, inputs, direction)))
    for result in found.values():
        helpers.assert_close(result, expected, TOLERANCE)


@pytest.mark.some(1)
@pytest.mark.parametrize("implementation", helpers.DOUBLE)
def test_numerical_derivatives(implementation, rng, x64):
    """Finite differences, which share nothing with any of the above."""
    inputs = double(TINY.inputs(rng))
    check_grads(jax.jit(under_test(TINY, implementation)), (inputs,), order=2, modes=("fwd", "rev"))
