# SPDX-License-Identifier: Apache-2.0
"""Every implementation against the definition: results and all gradients, by cotangents of out and lse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na

from . import helpers
from .cases import CASES, HALF, NAMED

every_implementation = pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)


def check(case, implementation, dtype, inputs, cotangents):
    """Results and gradients of one case against the oracle, which computes from the same rounded inputs."""
    results, gradients = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    out, lse = results
    assert out.dtype == jnp.dtype(dtype)
    assert lse.dtype == (np.float64 if dtype == np.float64 else np.float32)
    assert all(gradients[name].dtype == inputs[name].dtype for name in inputs)
    helpers.assert_correct(case, (results, gradients), inputs, cotangents)


@every_implementation
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32(case, implementation, rng):
    check(case, implementation, np.float32, case.inputs(rng), case.cotangents(rng))


@pytest.mark.usefixtures("quick_compile")
@every_implementation
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HALF, ids=str)
def test_half(case, implementation, dtype, rng):
    dtype = jnp.dtype(dtype)
    check(case, implementation, dtype, case.inputs(rng, dtype), case.cotangents(rng, dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_with_tokens(dtype, rng):
    case, dtype = NAMED["tokens-2d"], jnp.dtype(dtype)
    check(case, None, dtype, case.inputs(rng, dtype), case.cotangents(rng, dtype))


@pytest.mark.parametrize("implementation", helpers.DOUBLE)
@pytest.mark.parametrize("name", ["all-2d", "all-3d", "grouped-heads", "tokens"])
def test_float64(name, implementation, rng, x64):
    case = NAMED[name]
    check(case, implementation, np.float64, case.inputs(rng, np.float64), case.cotangents(rng, np.float64))


@pytest.mark.parametrize("name", ["mixed-2d", "tokens"])
def test_default_implementation(name, rng):
    case = NAMED[name]
    check(case, None, np.float32, case.inputs(rng), case.cotangents(rng))


def test_default_is_the_fastest(rng):
    """Without a name the first row of the table runs: the same bits."""
    case = NAMED["all-2d"]
    inputs = case.inputs(rng)
    default, first = (helpers.attend(case, name)(**inputs) for name in (None, helpers.IMPLEMENTATIONS[0]))
    helpers.assert_identical(default, first)


@every_implementation
@pytest.mark.parametrize("name", ["all-1d", "asymmetric-2d", "all-3d", "grouped-heads", "long-causal"])
def test_one_hot_values_show_the_mask(name, implementation, rng):
    """With the identity as values, out is the attention matrix: positive exactly where the mask is true."""
    case = dataclasses.replace(NAMED[name], rpb=False)
    inputs = case.inputs(rng)
    mask = case.geometry.mask
    identity = np.eye(len(mask), dtype=np.float32).reshape(*case.grid, 1, -1)
    inputs["value"] = np.broadcast_to(identity, (*inputs["key"].shape[:-1], len(mask)))
    out, _ = jax.jit(helpers.attend(case, implementation))(**inputs)
    weights = np.moveaxis(np.asarray(out).reshape(-1, len(mask), case.heads, len(mask)), 2, 1)
    assert np.array_equal(weights > 0, np.broadcast_to(mask, weights.shape))
    assert np.array_equal(weights != 0, weights > 0)


@every_implementation
@pytest.mark.parametrize("name", ["all-2d", "long-kernel", "grouped-heads"])
def test_large_logits(name, implementation, rng):
    """Logits thirty times as large: nearly one-hot, and exp would overflow without the maximum taken off."""
    case = dataclasses.replace(NAMED[name], scale=30.0, rpb=False)
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    results, gradients = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    values, expected = helpers.expected(case, inputs, cotangents)
    # a logit of size x is rounded by x * 2^-24, and that is the relative error of its exponential
    rounding = np.abs(values["lse"]).max() * 2.0**-24
    helpers.assert_close(helpers.named(results), values, rounding)
    helpers.assert_close(gradients, expected, 3 * rounding)


@every_implementation
def test_shifted_logits(implementation, rng):
    """A bias of +-1000 on every logit moves the log-sum-exp and leaves out as it is."""
    case = NAMED["asymmetric-2d"]
    inputs = case.inputs(rng)
    attend = jax.jit(helpers.attend(case, implementation))
    for shift in np.float32([-1000, 1000]):
        rounded = shift + inputs["rpb"]
        out, lse = attend(**{**inputs, "rpb": rounded})
        expected_out, expected_lse = attend(**{**inputs, "rpb": rounded - shift})
        assert helpers.relative_error(out, expected_out) < 1000 * 2.0**-24
        assert helpers.relative_error(lse, expected_lse + shift) < 2.0**-22


@pytest.mark.parametrize("implementation", helpers.REPEATABLE)
@pytest.mark.parametrize("name", ["all-2d", "long-kernel", "grouped-heads"])
def test_repeats_bit_for_bit(name, implementation, rng):
    """Two runs of one program give the same bits, forward and backward, whatever the threads do."""
    case = dataclasses.replace(NAMED[name], batch=(3,))
    if helpers.ON_GPU and implementation != "fused":
        case = dataclasses.replace(case, rpb=False)  # XLA scatters its gradient
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    program = helpers.compiled(helpers.attend(case, implementation))
    first = program(inputs, cotangents)
    for _ in range(3):
        helpers.assert_identical(program(inputs, cotangents), first)


@every_implementation
def test_batch_entries_do_not_mix(implementation, rng):
    """NaN in one batch entry and in one kv head stays there; the others keep their bits."""
    case = dataclasses.replace(NAMED["grouped-heads"], batch=(3,))
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    program = helpers.compiled(helpers.attend(case, implementation))
    clean = program(inputs, cotangents)
    for name in ("key", "value"):
        inputs[name][1], inputs[name][:, :, 1] = np.nan, np.nan
    poisoned = program(inputs, cotangents)
    shared = case.heads // case.kv_heads
    for index, heads in (("out", shared), ("lse", shared), ("query", shared), ("key", 1), ("value", 1)):
        x, y = ({**helpers.named(results), **gradients}[index] for results, gradients in (poisoned, clean))
        helpers.assert_identical(x[::2, :, :heads], y[::2, :, :heads])
        assert np.isnan(x[1]).all(), index
        assert np.isnan(x[:, :, heads:]).all(), index


@every_implementation
def test_dilation_groups_do_not_mix(implementation, rng):
    """Keys of one dilation group full of NaN: queries of the other groups never touch them."""
    case = dataclasses.replace(NAMED["many-tiles"], head_dim=8)
    inputs = case.inputs(rng)
    attend = jax.jit(helpers.attend(case, implementation))
    clean, _ = attend(**inputs)
    inputs["key"][:, 1::3], inputs["value"][:, 1::3] = np.nan, np.nan
    out, _ = attend(**inputs)
    for group in (0, 2):
        helpers.assert_identical(out[:, group::3], clean[:, group::3])
    assert np.isnan(out[:, 1::3]).all()


@every_implementation
def test_outputs_are_fully_written(implementation, rng):
    """Results written over buffers full of NaN hold none of it."""
    case = NAMED["all-2d"]
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)
    attend = helpers.attend(case, implementation)

    def run(poison, inputs):
        return helpers.evaluate(attend, inputs, cotangents)

    shapes = jax.eval_shape(run, None, inputs)
    poison = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), shapes)
    places = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(poison)}
    result = jax.jit(run, donate_argnums=0, keep_unused=True)(poison, inputs)
    reused = [x for x in jax.tree.leaves(result) if x.unsafe_buffer_pointer() in places]
    assert len(reused) == len(places), "the poisoned buffers were not used: this test would prove nothing"
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(result))
    helpers.assert_correct(case, result, inputs, cotangents)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_fixed_rank_functions(rank, rng):
    """na1d, na2d and na3d broadcast integers over their axes and take any number of batch axes, also none."""
    function = (jax_na.na1d, jax_na.na2d, jax_na.na3d)[rank - 1]
    for batch in ((), (2,), (1, 2)):
        q, k, v = rng.standard_normal((3, *batch, *(5, 6, 4)[:rank], 2, 3)).astype(np.float32)
        arguments = {"stride": 2, "is_causal": (False,) * (rank - 1) + (True,), "return_lse": True}
        expected = jax_na.neighborhood_attention(q, k, v, (3,) * rank, **arguments)
        helpers.assert_identical(function(q, k, v, 3, **arguments), expected)
        out = function(q, k, v, 3, **{**arguments, "return_lse": False})
        helpers.assert_identical(out, expected[0])


def test_merged_parts_are_the_whole(rng):
    """Attention to the grid, merged with that to one token after the other, is one call with the tokens."""
    case = dataclasses.replace(NAMED["tokens-2d"], additional=3)
    inputs, cotangents = case.inputs(rng), case.cotangents(rng)

    def everywhere(token):
        return jnp.broadcast_to(token[:, None, None], (1, *case.grid, *token.shape[1:]))

    def merged(additional_keys, additional_values, **inputs):
        parts = [helpers.attend(case, None)(**inputs)]
        for i in range(case.additional):
            key, value = everywhere(additional_keys[:, i]), everywhere(additional_values[:, i])
            parts.append(jax_na.na2d(inputs["query"], key, value, 1, return_lse=True))
        return jax_na.merge_attentions(*zip(*parts, strict=True))

    helpers.assert_correct(case, helpers.evaluate(merged, inputs, cotangents), inputs, cotangents)


def test_merge_with_an_empty_key_set(rng):
    """A log-sum-exp of -inf is an empty key set: its output counts for nothing, and no gradient is NaN."""
    out, empty, cotangent = rng.standard_normal((3, 5, 2, 4)).astype(np.float32)
    lse, lse_cotangent = rng.standard_normal((2, 5, 2)).astype(np.float32)

    def merged(out, lse):
        return jax_na.merge_attentions([out, empty], [lse, jnp.full_like(lse, -jnp.inf)])

    results, gradients = helpers.evaluate(merged, {"out": out, "lse": lse}, (cotangent, lse_cotangent))
    helpers.assert_identical(results, (out, lse))
    helpers.assert_close(gradients, {"out": cotangent, "lse": lse_cotangent}, 1e-6)
    nothing = jax_na.merge_attentions([empty], [jnp.full_like(lse, -jnp.inf)])
    assert np.array_equal(nothing[0], np.zeros_like(out))
    assert np.array_equal(nothing[1], np.full_like(lse, -np.inf))
