# SPDX-License-Identifier: Apache-2.0
"""What is compiled for a GPU, and said of it, where heads are wider than the fused kernels take."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_na
from jax_na.kernels import chunks, contract, cost_cuda, plan, register, variants
from jax_na.kernels.contract import Problem
from jax_na.kernels.platforms import CUDA
from jax_na.op import Op

from .cases import Case
from .cuda_programs import CASE, attend, calls, gradient, lowered

pytestmark = pytest.mark.usefixtures("cuda_kernels")
WIDE_VALUE = dataclasses.replace(CASE, head_dim=64, value_dim=384)
WIDE_QUERY = dataclasses.replace(CASE, head_dim=320, value_dim=384)
LIMIT = 256  # of the fused kernels
HALO_LIMIT = {"forward": 128, "backward_query": 128, "backward_key": 64}  # for small windows, 2-byte types
GEMM = ["na_gemm_qk", "na_gemm_av"]


def types(case, dtype=jnp.bfloat16):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in case.shapes().items()}


@pytest.mark.parametrize("implementation", [None, "fused"])
@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_chunks_of_value_features(implementation, dtype, short):
    """The same query and key for each chunk, so the same LSE; a bias and its gradient with each."""
    found = calls(lowered(gradient(WIDE_VALUE, implementation), types(WIDE_VALUE, dtype)))
    forward, backward = (
        [c for c in found if c.name == f"na_fused_{name}"] for name in ("forward", "backward")
    )
    assert len(forward) + len(backward) == len(found)
    query, key, rpb = f"1x9x8x4x64x{short}", f"1x9x8x2x64x{short}", "4x7x5xf32"
    for every in (forward, backward):
        widths = [int(call.operands[2].split("x")[4]) for call in every]
        assert sum(widths) == 384
        assert not any(width % 8 for width in widths)
        assert 2 <= len(widths) <= 4
        for call, width in zip(every, widths, strict=True):
            value = f"1x9x8x2x{width}x{short}"
            assert call.operands[:4] == [query, key, value, "2x2xi32"]
            assert call.operands[-1] == rpb
            at_queries = "halo" if dtype == "bfloat16" else "portable"  # of the passes with a tile of queries
            expected = [at_queries, "portable"] if call in backward else [at_queries]
            assert names_of(call.attributes["kernels"]) == expected
            output = f"1x9x8x4x{width}x{short}"
            lse = "1x9x8x4xf32"
            if call in forward:
                assert call.results == [output, lse]
            else:
                assert call.operands[4:7] == [lse, lse, output]
                assert call.results == [query, key, value, f"8x{rpb}"]


def names_of(kernels):
    """Of every pass, the kernel that runs on every GPU."""
    return [choices.split("|")[-1].partition(":")[0] for choices in kernels.split(";")]


def test_chunks_of_additional_tokens():
    """They have the features of the value."""
    case = dataclasses.replace(WIDE_VALUE, additional=5)
    for call in calls(lowered(gradient(case), types(case))):
        width = call.operands[2].split("x")[4]
        assert call.operands[-2:] == ["1x5x2x64xbf16", f"1x5x2x{width}xbf16"]


def problem(head_dim, value_dim, **others):
    op = Op(jax_na.Neighborhood((7, 7)), (56, 56))
    return Problem(op.axes, "bfloat16", head_dim, value_dim, **others)


@pytest.mark.parametrize("head_dim", [16, 64, 128, 256])
@pytest.mark.parametrize("value_dim", [256, 257, 300, 384, 512, 1000])
@pytest.mark.parametrize("target", ["na_fused_forward", "na_fused_backward"])
def test_the_cheapest_chunks(head_dim, value_dim, target):
    """By the planner's costs, of all numbers of equal chunks that fit; what fits as a whole is not cut."""
    found = chunks.widths(CUDA, target, problem(head_dim, value_dim))
    if value_dim <= LIMIT:
        assert found == (value_dim,)
        return
    assert sum(found) == value_dim
    assert max(found) <= LIMIT

    def cost(widths):
        return sum(plan.lowest_cost(CUDA, target, problem(head_dim, width)) for width in widths)

    for number in range(1, 9):
        width = -(-value_dim // (8 * number)) * 8
        if width <= LIMIT:
            others = [min(width, value_dim - start) for start in range(0, value_dim, width)]
            assert cost(found) <= cost(others) or number > 2 * -(-value_dim // LIMIT)


def test_costs_of_chunks_are_those_of_features():
    """Twice as many features cost more than one chunk and less than two: scores are computed once."""
    every = [problem(128, width)._replace(dtype="float32") for width in (128, 256)]
    one, two = (plan.lowest_cost(CUDA, "na_fused_forward", each) for each in every)
    assert one < two < 2 * one
    assert cost_cuda.COSTS["portable"].softmax > 0


def test_default_with_wide_queries():
    """No chunk of their features has a softmax, so the products are stored."""
    inputs = types(WIDE_QUERY)
    assert [call.name for call in calls(lowered(attend(WIDE_QUERY), inputs))] == GEMM
    found = calls(lowered(gradient(WIDE_QUERY), inputs))
    assert [call.name for call in found] == [*GEMM, *GEMM[:1], *GEMM, *["na_gemm_inverse"] * 2]
    forward = found[0]
    assert forward.operands == ["1x9x8x4x320xbf16", "1x9x8x2x320xbf16", "2x2xi32"]
    assert forward.results == ["1x9x8x4x16xf32"]


def test_default_where_weights_would_be_too_large():
    """Pure JAX, which stores none."""
    large = Case("large", (1 << 20,), 512, head_dim=320)
    assert not calls(lowered(attend(large), types(large)))
    rows = {row.name: row for row in jax_na.implementations(types(large)["query"], (512,), platform="cuda")}
    assert [name for name, row in rows.items() if row.taken] == ["xla"]
    assert "more than 1 GB" in rows["gemm"].note


def test_default_where_the_size_of_weights_is_not_known():
    (batch,) = export.symbolic_shape("b")
    query = jax.ShapeDtypeStruct((batch, 32, 2, 320), jnp.float32)
    checks = [export.DisabledSafetyCheck.custom_call(name) for name in register.TARGETS[CUDA]]
    run = jax.jit(lambda q: jax_na.na1d(q, q, q, kernel_size=3))
    text = export.export(run, platforms=["cuda"], disabled_checks=checks)(query).mlir_module()
    assert "@na_" not in text


def test_errors_name_the_limit_and_what_works():
    message = (
        "implementation 'fused' cannot run here: it takes up to 256 features per head of query and key, not "
        "320; 'gemm', 'naive', 'xla' can"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        lowered(attend(WIDE_QUERY, "fused"), types(WIDE_QUERY))


def rows_of(case, **others):
    inputs = types(case)
    given = {"value": inputs["value"], "rpb": inputs.get("rpb"), "platform": "cuda", **case.spec, **others}
    return {row.name: row for row in jax_na.implementations(inputs["query"], **given)}


def test_implementations_of_wide_values():
    """What is taken, in which calls, and the kernels that take them."""
    found = rows_of(WIDE_VALUE)
    assert [name for name, row in found.items() if row.taken] == ["fused"]
    op = Op(jax_na.Neighborhood(**WIDE_VALUE.spec), WIDE_VALUE.grid)
    of_call = contract.problem(op, types(WIDE_VALUE))
    for target in ("na_fused_forward", "na_fused_backward"):
        widths = " + ".join(map(str, chunks.widths(CUDA, target, of_call)))
        assert f"{target} {widths}" in found["fused"].note
        part = chunks.first(CUDA, target, of_call)
        assert part.value_dim <= LIMIT
        portable = [row for row in variants.rows(CUDA, target) if row.name == "portable"]
        assert [variants.reason(CUDA, row, part) for row in portable] == [None] * len(portable)
    refused = [row for row in found["fused"].variants if "features" in (row.reason or "")]
    assert {(row.name, row.pass_name) for row in refused} == {
        (name, "backward_key") for name in cost_cuda.HALO
    }


def test_implementations_of_wide_queries():
    found = rows_of(WIDE_QUERY)
    assert found["fused"].reason == "it takes up to 256 features per head of query and key, not 320"
    assert [name for name, row in found.items() if row.taken] == ["gemm"]
    assert found["gemm"].note is None


def test_kernels_have_the_limit():
    """Every fused kernel takes as many features and not one more."""
    for target in ("na_fused_forward", "na_fused_backward"):
        for row in variants.rows(CUDA, target):
            limit = HALO_LIMIT[row.pass_name] if row.name in cost_cuda.HALO else LIMIT
            assert not row.obstacle(contract.query(CUDA, problem(limit, limit)))
            for features in ((limit + 8, limit), (limit, limit + 8)):
                assert row.obstacle(contract.query(CUDA, problem(*features))).endswith(f", not {limit + 8}")


def test_tokens_beside_the_kernels_do_not_change_chunks():
    """An operand that no kernel of a target takes is computed beside it."""
    for operands in ((), ("rpb",), ("token_key", "token_value")):
        widths = chunks.widths(CUDA, "na_fused_forward", problem(64, 384, operands=operands))
        assert sum(widths) == 384
    assert np.ptp(chunks.widths(CUDA, "na_fused_forward", problem(64, 384))) == 0
