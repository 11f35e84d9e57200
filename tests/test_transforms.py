# SPDX-License-Identifier: Apache-2.0
"""Attention under JAX's transformations, against the oracle: vmap, scan, checkpoint, eager, donation."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers, oracle
from .cases import Case

pytestmark = pytest.mark.usefixtures("quick_compile")
every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
CASE = Case(
    "transforms", (3, 5), (2, 3), stride=(1, 2), is_causal=(True, False), heads=2, head_dim=3, rpb=True
)
TOKENS = Case("tokens", (5,), 3, batch=(2,), heads=2, head_dim=3, additional=2)
ARRAYS = ("query", "key", "value", "rpb")


def stacked(case, rng, n):
    """Inputs of n problems, stacked along a new leading axis."""
    each = [case.inputs(rng) for _ in range(n)]
    return {name: np.stack([x[name] for x in each]) for name in each[0]}


def pick(inputs, mapped, i):
    return {name: x[i] if name in mapped else x[0] for name, x in inputs.items()}


def in_axes(names, mapped):
    return ({name: 0 if name in mapped else None for name in names},)


def assert_vmap(case, function, inputs, subsets, cotangents=None):
    """vmap of `function` with each subset of the inputs mapped: entry i is the result of problem i.

    The function returns (out, lse), or with `cotangents` their gradients.
    """

    @jax.jit
    def program(inputs):
        results = []
        for mapped in subsets:
            some = {name: x if name in mapped else x[0] for name, x in inputs.items()}
            results.append(jax.vmap(function, in_axes(inputs, mapped))(some))
        return results

    for mapped, results in zip(subsets, program(inputs), strict=True):
        for i in range(len(inputs["query"])):
            found = jax.tree.map(lambda x, i=i: x[i], results)
            reference = oracle.Attention(case.geometry, pick(inputs, mapped, i), case.scale)
            if cotangents is None:
                helpers.assert_close(helpers.named(found), {"out": reference.out, "lse": reference.lse}, 2e-5)
            else:
                helpers.assert_close(found, reference.gradients(*cotangents), 6e-5)


EVERY_SUBSET = [set(names) for n in range(1, 5) for names in itertools.combinations(ARRAYS, n)]
SUBSETS = [{"query"}, {"key", "value"}, {"value", "rpb"}]


@every_implementation
def test_vmap_of_subsets(implementation, rng):
    """Any subset of query, key, value and rpb may be mapped; the others are shared."""
    attend = helpers.attend(CASE, implementation)
    subsets = EVERY_SUBSET if implementation == helpers.IMPLEMENTATIONS[0] else SUBSETS
    assert_vmap(CASE, lambda inputs: attend(**inputs), stacked(CASE, rng, 3), subsets)


@pytest.mark.some(2)
@every_implementation
def test_vmap_of_the_gradient(implementation, rng):
    """Per-example gradients, of what is mapped and of what is shared, the positional bias included."""
    attend, cotangents = helpers.attend(CASE, implementation), CASE.cotangents(rng)

    def gradient(inputs):
        return jax.vjp(lambda x: attend(**x), inputs)[1](cotangents)[0]

    subsets = [set(ARRAYS), {"query", "value"}, {"key", "value"}, {"rpb"}]
    assert_vmap(CASE, gradient, stacked(CASE, rng, 3), subsets, cotangents)


GROUPED = Case("grouped", (7, 6), (3, 4), heads=4, kv_heads=2, batch=(2,), rpb=True, additional=3)


@every_implementation
def test_vmap_of_a_bias_with_grouped_heads(implementation, rng):
    """Every instance has heads of its own: groups stay together, and so do additional tokens."""
    attend, cotangents = helpers.attend(GROUPED, implementation), GROUPED.cotangents(rng)

    def gradient(inputs):
        return jax.vjp(lambda x: attend(**x), inputs)[1](cotangents)[0]

    inputs = stacked(GROUPED, rng, 3)
    subsets = [{"rpb"}, {"rpb", "key", "additional_values"}, set(inputs)]
    assert_vmap(GROUPED, lambda x: attend(**x), inputs, subsets)
    assert_vmap(GROUPED, gradient, inputs, subsets[1:], cotangents)


def test_vmap_of_a_bias_is_one_call(rng):
    """Forward and backward; nothing is mapped one by one."""
    attend, inputs = helpers.attend(GROUPED, None), stacked(GROUPED, rng, 3)

    def gradient(inputs):
        return jax.grad(lambda x: attend(**x)[0].sum())(inputs)

    shared = {name: x if name == "rpb" else x[0] for name, x in inputs.items()}
    for some, mapped in ((inputs, set(inputs)), (shared, {"rpb"})):
        text = str(jax.make_jaxpr(jax.vmap(gradient, in_axes(some, mapped)))(some))
        assert text.count(" na_attention[") == text.count(" na_attention_backward[") == 1
        assert "scan[" not in text
        assert "while[" not in text


@every_implementation
def test_vmap_with_tokens(implementation, rng):
    attend = helpers.attend(TOKENS, implementation)
    subsets = [{"query", "additional_keys"}]
    assert_vmap(TOKENS, lambda inputs: attend(**inputs), stacked(TOKENS, rng, 2), subsets)


@every_implementation
def test_gradient_of_vmap(implementation, rng):
    """What is shared by the mapped problems gets the sum of their gradients."""
    inputs, cotangents = stacked(CASE, rng, 3), stacked_cotangents(CASE, rng, 3)
    mapped = {"query", "value"}
    some = {name: x if name in mapped else x[0] for name, x in inputs.items()}
    attend = helpers.attend(CASE, implementation)

    def batched(**some):
        return jax.vmap(lambda x: attend(**x), in_axes(some, mapped))(some)

    _, found = helpers.evaluate(batched, some, cotangents)
    each = [helpers.expected(CASE, pick(inputs, mapped, i), [c[i] for c in cotangents])[1] for i in range(3)]
    expected = {name: np.stack([g[name] for g in each]) for name in mapped}
    expected |= {name: sum(g[name] for g in each) for name in ARRAYS if name not in mapped}
    helpers.assert_close(found, expected, 6e-5)


def stacked_cotangents(case, rng, n):
    return tuple(np.stack(c) for c in zip(*(case.cotangents(rng) for _ in range(n)), strict=True))


def nested(function):
    """2 x 3 problems by two vmaps over axes that hardly lead; key and value lack the 2, the bias the 3."""
    inner_axes, outer_axes = {"query": 1, "key": 3, "value": 0}, {"query": -1, "rpb": 2}

    def axes(some):
        return ({name: some.get(name) for name in ARRAYS},)

    inner = jax.vmap(function, axes(inner_axes), out_axes=(2, 0))
    outer = jax.vmap(inner, axes(outer_axes), out_axes=(-1, 1))

    def batched(**inputs):
        for places in (inner_axes, outer_axes):  # from leading axes, 2 before 3, to where they are mapped
            for name, place in places.items():
                leads = 1 if name == "query" and places is inner_axes else 0
                inputs[name] = jnp.moveaxis(inputs[name], leads, place + leads)
        out, lse = outer(inputs)
        return jnp.moveaxis(out, (-1, 2), (0, 1)), jnp.moveaxis(lse, 1, 0)

    return batched


@every_implementation
def test_nested_vmap(implementation, rng):
    """Values and gradients; those of what is shared are sums over the problems."""
    case = dataclasses.replace(CASE, batch=())
    lead = {"query": (2, 3), "key": (3,), "value": (3,), "rpb": (2,)}
    inputs = {name: rng.standard_normal((*lead[name], *shape)) for name, shape in case.shapes().items()}
    inputs = {name: x.astype(np.float32) for name, x in inputs.items()}
    shape = inputs["query"].shape
    cotangents = tuple(rng.standard_normal(s).astype(np.float32) for s in (shape, shape[:-1]))
    attend = helpers.attend(case, implementation)
    results, gradients = helpers.evaluate(nested(lambda x: attend(**x)), inputs, cotangents)

    expected = {name: np.zeros(x.shape) for name, x in inputs.items()}
    for i, j in np.ndindex(2, 3):
        at = {"query": (i, j), "key": j, "value": j, "rpb": i}
        problem = oracle.Attention(case.geometry, {name: x[at[name]] for name, x in inputs.items()})
        found = helpers.named([x[i, j] for x in results])
        helpers.assert_close(found, {"out": problem.out, "lse": problem.lse}, 2e-5)
        for name, gradient in problem.gradients(*(c[i, j] for c in cotangents)).items():
            expected[name][at[name]] += gradient
    helpers.assert_close(gradients, expected, 6e-5)


@pytest.mark.parametrize("implementation", helpers.UNFUSED)
def test_vmap_of_the_unfused(implementation, rng):
    """Mapped query, shared key; an extra batch axis gives the same."""
    q, k = rng.standard_normal((2, 3, 1, 6, 2, 4)).astype(np.float32)
    options = {"kernel_size": (3,), "implementation": implementation}
    shared = np.broadcast_to(k[0], q.shape)
    for function in (jax_na.neighborhood_qk, jax_na.neighborhood_av):
        operation = jax.jit(functools.partial(function, **options))
        expected = operation(q, shared)
        assert helpers.relative_error(jax.vmap(operation, in_axes=(0, None))(q, k[0]), expected) <= 2e-6
        q = expected  # the weights


@pytest.mark.some(1)
@every_implementation
def test_scan_over_layers(implementation, rng):
    """Three layers in a scan, with a bias each; value and gradients are those of the loop written out."""
    inputs, biases = CASE.inputs(rng), rng.standard_normal((3, *CASE.shapes()["rpb"])).astype(np.float32)
    attend = helpers.attend(CASE, implementation)

    def layer(x, rpb):
        return x + attend(query=x, key=x, value=x, rpb=rpb)[0]

    def scanned(query, biases):
        return jax.lax.scan(lambda x, rpb: (layer(x, rpb), None), query, biases)[0]

    def looped(query, biases):
        return functools.reduce(layer, biases, query)

    arguments, cotangent = {"query": inputs["query"], "biases": biases}, CASE.cotangents(rng)[0]
    (found, expected) = (helpers.evaluate(f, arguments, cotangent) for f in (scanned, looped))
    assert helpers.relative_error(found[0], expected[0]) <= 2e-6
    helpers.assert_close(found[1], expected[1], 6e-6)


@every_implementation
def test_scan_over_problems(implementation, rng):
    """One problem a step, with a bias that all of them share."""
    inputs, cotangents = stacked(CASE, rng, 3), stacked_cotangents(CASE, rng, 3)
    inputs["rpb"] = inputs["rpb"][0]
    attend = helpers.attend(CASE, implementation)

    def scanned(rpb, **mapped):
        return jax.lax.scan(lambda _, x: (None, attend(**x, rpb=rpb)), None, mapped)[1]

    found = helpers.evaluate(scanned, inputs, cotangents)
    each = [
        helpers.expected(
            CASE,
            {name: x if name == "rpb" else x[i] for name, x in inputs.items()},
            [c[i] for c in cotangents],
        )
        for i in range(3)
    ]
    values, gradients = ({name: np.stack([e[n][name] for e in each]) for name in each[0][n]} for n in (0, 1))
    helpers.assert_close(helpers.named(found[0]), values, 2e-5)
    helpers.assert_close(found[1], gradients | {"rpb": gradients["rpb"].sum(0)}, 6e-5)


@every_implementation
def test_checkpoint_changes_nothing(implementation, rng):
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    attend = helpers.attend(CASE, implementation)
    found = helpers.evaluate(jax.checkpoint(attend), inputs, cotangents)
    helpers.assert_correct(CASE, found, inputs, cotangents)


@every_implementation
def test_eval_shape(implementation, rng):
    inputs = CASE.inputs(rng, jnp.bfloat16)
    abstract = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs.items()}
    out, lse = jax.eval_shape(helpers.attend(CASE, implementation), **abstract)
    assert (out.shape, out.dtype) == (inputs["query"].shape, jnp.bfloat16)
    assert (lse.shape, lse.dtype) == (inputs["query"].shape[:-1], jnp.float32)


@pytest.mark.some(1)
@every_implementation
def test_ranks_are_not_promoted(implementation, rng):
    """The library says itself which axes it broadcasts: JAX may be told that code which does not is wrong."""
    case = dataclasses.replace(CASE, batch=(2,), kv_heads=1, additional=2)
    inputs = case.inputs(rng)
    attend = helpers.attend(case, implementation)

    def loss(inputs):
        out, lse = attend(**inputs)
        return out.sum() + lse.sum()

    with jax.numpy_rank_promotion("raise"):
        _, moved = jax.jvp(jax.grad(loss), (inputs,), (inputs,))
        if implementation in helpers.UNFUSED:
            arrays = (inputs["query"], inputs["key"])
            scores = jax_na.neighborhood_qk(
                *arrays, **case.spec, rpb=inputs["rpb"], implementation=implementation
            )
            weights = jax.nn.softmax(scores)
            jax_na.neighborhood_av(weights, inputs["value"], **case.spec, implementation=implementation)
    assert all(np.isfinite(x).all() for x in moved.values())


@every_implementation
def test_weak_types_end_here(implementation):
    weak = jnp.broadcast_to(1.0, (1, 5, 1, 4))
    assert weak.weak_type
    out, lse = jax_na.na1d(weak, weak, weak, 3, implementation=implementation, return_lse=True)
    assert not out.weak_type
    assert not lse.weak_type
    traced = jax.make_jaxpr(lambda q: jax_na.na1d(q, q, q, 3, implementation=implementation))(weak)
    assert not traced.out_avals[0].weak_type


@every_implementation
def test_without_jit(implementation, rng):
    """Eager calls, and those under jax.disable_jit, give what a compiled program gives."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    attend = helpers.attend(CASE, implementation)
    results, pull = jax.vjp(lambda inputs: attend(**inputs), inputs)
    helpers.assert_correct(CASE, (results, pull(cotangents)[0]), inputs, cotangents)


@pytest.mark.some(1)
@every_implementation
def test_disable_jit_and_debug_nans(implementation, rng):
    """Operation by operation, nothing inside is nan; what comes in as nan is found."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    attend = helpers.attend(CASE, implementation)
    with jax.disable_jit(), jax.debug_nans(True):
        results, pull = jax.vjp(lambda inputs: attend(**inputs), inputs)
        gradients = pull(cotangents)[0]
        with pytest.raises(FloatingPointError, match="nan"):
            attend(**inputs | {"query": inputs["query"] * np.nan})
    helpers.assert_correct(CASE, (results, gradients), inputs, cotangents)


def test_debug_nans_with_tokens(rng):
    inputs, cotangents = TOKENS.inputs(rng), TOKENS.cotangents(rng)
    with jax.debug_nans(True):
        results, pull = jax.vjp(lambda inputs: helpers.attend(TOKENS, None)(**inputs), inputs)
        gradients = pull(cotangents)[0]
    helpers.assert_correct(TOKENS, (results, gradients), inputs, cotangents)


@every_implementation
def test_donated_inputs(implementation, rng):
    """A program may write results over its inputs: the kernels never read what was already overwritten."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    run = helpers.compiled(helpers.attend(CASE, implementation))
    given = jax.tree.map(jnp.array, inputs)
    found = jax.jit(run, donate_argnums=0)(given, cotangents)
    assert all(x.is_deleted() for x in given.values())
    helpers.assert_correct(CASE, found, inputs, cotangents)


def test_eager_calls_do_not_recompile(rng):
    inputs = CASE.inputs(rng)
    attend = helpers.attend(CASE, "fused")
    attend(**inputs)
    with jax.log_compiles(), helpers.logs("jax") as records:
        attend(**CASE.inputs(rng))
    assert not [r for r in records if "Compiling" in r.getMessage()]
