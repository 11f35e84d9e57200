# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention under JAX's transformations: vmap, scan, checkpoint, eager calls, donation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers
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


def assert_each(batched, one, inputs, mapped):
    """Entry i of the results of a vmap is the result of problem i."""
    for i in range(len(inputs["query"])):
        expected = one(pick(inputs, mapped, i))
        found = jax.tree.map(lambda x, i=i: x[i], batched)
        for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert helpers.relative_error(x, y) <= 2e-6


def assert_vmap(function, inputs, subsets):
    """vmap of `function` with each subset of the inputs mapped, against one call after another."""

    @jax.jit
    def program(inputs):
        results = []
        for mapped in subsets:
            some = {name: x if name in mapped else x[0] for name, x in inputs.items()}
            results.append(jax.vmap(function, in_axes(inputs, mapped))(some))
        return results

    one = jax.jit(function)
    for mapped, results in zip(subsets, program(inputs), strict=True):
        assert_each(results, one, inputs, mapped)


EVERY_SUBSET = [set(names) for n in range(1, 5) for names in itertools.combinations(ARRAYS, n)]
SUBSETS = [{"query"}, {"key", "value"}, {"value", "rpb"}]


@every_implementation
def test_vmap_of_subsets(implementation, rng):
    """Any subset of query, key, value and rpb may be mapped; the others are shared."""
    attend = helpers.attend(CASE, implementation)
    subsets = EVERY_SUBSET if implementation == helpers.IMPLEMENTATIONS[0] else SUBSETS
    assert_vmap(lambda inputs: attend(**inputs), stacked(CASE, rng, 3), subsets)


@every_implementation
def test_vmap_of_the_gradient(implementation, rng):
    """Per-example gradients, of what is mapped and of what is shared, the positional bias included."""
    attend, cotangents = helpers.attend(CASE, implementation), CASE.cotangents(rng)

    def gradient(inputs):
        return jax.vjp(lambda x: attend(**x), inputs)[1](cotangents)[0]

    assert_vmap(gradient, stacked(CASE, rng, 3), [set(ARRAYS), {"query", "value"}, {"rpb"}])


@every_implementation
def test_vmap_with_tokens(implementation, rng):
    attend = helpers.attend(TOKENS, implementation)
    subsets = [{"query", "additional_keys"}]
    assert_vmap(lambda inputs: attend(**inputs), stacked(TOKENS, rng, 2), subsets)


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


@every_implementation
def test_nested_vmap_over_other_axes(implementation, rng):
    """Two mapped axes, neither leading, one of them absent from key and value; results moved elsewhere."""
    q, k, v = rng.standard_normal((3, 2, 3, *CASE.grid, 2, 3)).astype(np.float32)
    attend = functools.partial(jax_na.na2d, kernel_size=CASE.kernel_size, implementation=implementation)
    inner = jax.vmap(attend, in_axes=(1, 0, 0), out_axes=2)
    outer = jax.vmap(inner, in_axes=(3, None, None), out_axes=-1)
    rows = jnp.moveaxis(jnp.asarray(q), (0, 1), (3, 1))  # [x, 3, y, 2, heads, dim]
    out = jax.jit(outer)(rows, k[0], v[0])  # [x, y, 3, heads, dim, 2]
    expected = attend(q, np.broadcast_to(k[0], q.shape), np.broadcast_to(v[0], q.shape))
    assert helpers.relative_error(jnp.moveaxis(out, (-1, 2), (0, 1)), expected) <= 2e-6


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


@every_implementation
def test_without_jit(implementation, rng):
    """Eager calls, and those under jax.disable_jit, give what a compiled program gives."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    attend = helpers.attend(CASE, implementation)
    results, pull = jax.vjp(lambda inputs: attend(**inputs), inputs)
    helpers.assert_correct(CASE, (results, pull(cotangents)[0]), inputs, cotangents)


def test_disable_jit(rng):
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)
    with jax.disable_jit():
        results, pull = jax.vjp(lambda inputs: helpers.attend(CASE, "fused")(**inputs), inputs)
        gradients = pull(cotangents)[0]
    helpers.assert_correct(CASE, (results, gradients), inputs, cotangents)


@every_implementation
def test_donated_inputs(implementation, rng):
    """A program may write its result over its query: the kernels never read what was already overwritten."""
    inputs, cotangents = CASE.inputs(rng), CASE.cotangents(rng)

    def run(query, others):
        return helpers.attend(CASE, implementation)(query=query, **others)

    query = jnp.array(inputs["query"])
    others = {name: x for name, x in inputs.items() if name != "query"}
    results = jax.jit(run, donate_argnums=0)(query, others)
    assert query.is_deleted()
    helpers.assert_close(helpers.named(results), helpers.expected(CASE, inputs, cotangents)[0], 2e-5)


def test_eager_calls_do_not_recompile(rng):
    inputs = CASE.inputs(rng)
    attend = helpers.attend(CASE, "fused")
    attend(**inputs)
    with jax.log_compiles(), helpers.logs("jax") as records:
        attend(**CASE.inputs(rng))
    assert not [r for r in records if "Compiling" in r.getMessage()]
