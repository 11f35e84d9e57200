# SPDX-License-Identifier: Apache-2.0
"""The programs that come out: how often each kernel is called, what is saved, several devices."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from . import helpers
from .cases import Case

every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
CASE = Case("2d", (3, 5), (2, 3), stride=(1, 2), is_causal=(True, False), heads=2, head_dim=3, rpb=True)
TOKENS = Case("tokens", (5,), 3, batch=(2,), heads=2, head_dim=3, additional=2)


def calls(function, *arguments):
    """How often each kernel is called in the compiled program, by name without the prefix na_."""
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return collections.Counter(re.findall(r'custom_call_target="na_(\w+)"', text)), text


def total(attend, **options):
    def value(inputs):
        out, lse = attend(**inputs, **options)
        return jnp.sum(out**2) + jnp.sum(lse**2)

    return value


def test_compiled_gradient_of_fused(rng):
    """One forward kernel, one backward kernel, and no matrix product: no tangent is left over."""
    count, text = calls(jax.grad(total(helpers.attend(CASE, "fused"))), CASE.inputs(rng))
    assert count == {"fused_forward": 1, "fused_backward": 1}
    assert " dot(" not in text
    assert "while(" not in text


def test_compiled_forward_of_fused(rng):
    count, text = calls(lambda inputs: helpers.attend(CASE, "fused")(**inputs)[0], CASE.inputs(rng))
    assert count == {"fused_forward": 1}
    assert " dot(" not in text


@pytest.mark.parametrize("implementation", helpers.available("naive", "gemm"))
def test_compiled_gradient_of_unfused(implementation, rng):
    """Forward PN, softmax, NN; the products have two derivatives each: twice PN, NN and IN at most."""
    count, text = calls(jax.grad(total(helpers.attend(CASE, implementation))), CASE.inputs(rng))
    expected = {f"{implementation}_{operation}": 2 for operation in ("qk", "av", "inverse")}
    if not helpers.ON_GPU:  # there the softmax is JAX's
        expected["softmax"] = 1
    assert count == expected
    assert " dot(" not in text


def primitives(jaxpr):
    """Names of all primitives, those of inner programs as often as they are called."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


SAVE = {"both": ("jax_na_out", "jax_na_lse"), "nothing": ()}
FORWARD = {"fused": "na_attention", "xla": "na_attention"}  # the others: na_av, once more in each derivative


@pytest.mark.some(2)
@every_implementation
@pytest.mark.parametrize("save", SAVE)
def test_checkpoint_policy(save, implementation, rng):
    """With out and lse saved by their names, no layer's result is computed twice; else each is."""
    attend = helpers.attend(CASE, implementation)
    policy = jax.checkpoint_policies.save_only_these_names(*SAVE[save])

    def layer(x, rpb):
        return x + jnp.sin(attend(query=jnp.sin(x), key=x, value=x, rpb=rpb)[0])  # it needs out again

    def gradient(layer):
        def value(inputs):
            return jnp.sum(jnp.sin(layer(layer(inputs["query"], inputs["rpb"]), inputs["rpb"])))

        return jax.grad(value)

    inputs = CASE.inputs(rng)
    forward = FORWARD.get(implementation, "na_av")
    counts = [
        collections.Counter(primitives(jax.make_jaxpr(gradient(f))(inputs).jaxpr))[forward]
        for f in (layer, jax.checkpoint(layer, policy=policy))
    ]
    assert counts[1] - counts[0] == {"both": 0, "nothing": 2}[save]
    found, expected = (jax.jit(gradient(f))(inputs) for f in (jax.checkpoint(layer, policy=policy), layer))
    helpers.assert_close(
        {name: found[name] for name in ("query", "rpb")},
        {name: expected[name] for name in ("query", "rpb")},
        6e-6,
    )


# Several devices


def mesh(kind):
    axis_type = getattr(jax.sharding.AxisType, kind)
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=(axis_type,) * 2, devices=jax.devices()[:4])


several_devices = pytest.mark.skipif(len(jax.devices()) < 4, reason="needs 4 devices")
SHARDED = Case("sharded", (6,), 3, batch=(4,), heads=4, kv_heads=2, head_dim=3)
SPEC = PartitionSpec("data", None, "model", None)


@several_devices
@every_implementation
def test_shard_map(implementation, rng):
    """Batch and heads split over devices by hand, differentiated inside and outside."""
    inputs, cotangents = SHARDED.inputs(rng), SHARDED.cotangents(rng)
    specs = dict.fromkeys(inputs, SPEC)
    attend = helpers.attend(SHARDED, implementation)
    results = (SPEC, PartitionSpec(*SPEC[:3]))

    def inside(inputs, cotangents):
        return jax.vjp(lambda x: attend(**x), inputs)[1](cotangents)[0]

    local = jax.shard_map(lambda x: attend(**x), mesh=mesh("Auto"), in_specs=(specs,), out_specs=results)
    found = helpers.evaluate(lambda **x: local(x), inputs, cotangents)
    helpers.assert_correct(SHARDED, found, inputs, cotangents)
    gradient = jax.shard_map(inside, mesh=mesh("Auto"), in_specs=(specs, results), out_specs=specs)
    helpers.assert_close(jax.jit(gradient)(inputs, cotangents), found[1], 1e-6)


@several_devices
@every_implementation
def test_sharded_arguments(implementation, rng):
    """Arrays that lie on several devices go in, the right numbers come out."""
    inputs, cotangents = SHARDED.inputs(rng), SHARDED.cotangents(rng)
    sharding = NamedSharding(mesh("Auto"), SPEC)
    placed = {name: jax.device_put(x, sharding) for name, x in inputs.items()}
    found = helpers.evaluate(helpers.attend(SHARDED, implementation), placed, cotangents)
    helpers.assert_correct(SHARDED, found, inputs, cotangents)
