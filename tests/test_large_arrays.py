# SPDX-License-Identifier: Apache-2.0
"""Limits of sizes, and what is said where a call exceeds them: nothing here is allocated or computed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood, _cpu
from jax_na.kernels import contract, register, table, variants
from jax_na.kernels.contract import Problem, Sizes
from jax_na.kernels.platforms import CPU, CUDA
from jax_na.op import Op

from .cases import Case
from .cuda_programs import attend, calls, gradient, lowered

LONGEST = _cpu.LONGEST_AXIS
KERNELS = ("fused", "gemm", "naive")
TOKENS = (1 << 16, 1 << 15)  # 2^31
OP = Op(Neighborhood((7, 7)), TOKENS)


def arrays(*shape, dtype=jnp.bfloat16):
    return dict.fromkeys(("query", "key", "value"), jax.ShapeDtypeStruct(shape, dtype))


def call(implementation=None, **window):
    return lambda inputs: jax_na.neighborhood_attention(**inputs, **window, implementation=implementation)


@pytest.mark.parametrize("implementation", [None, *KERNELS, "xla"])
def test_axes_have_a_longest_length(implementation):
    """One token more is an error before anything is traced: the table of so many windows takes 2 GB."""
    run = call(implementation, kernel_size=(7,))
    assert Neighborhood((7,)).axes((LONGEST,))[0].length == LONGEST
    message = f"length {LONGEST + 1} of spatial axis 0 is too large, the largest legal one is {LONGEST}"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, arrays(1, LONGEST + 1, 1, 8))
    with pytest.raises(ValueError, match=message.replace("axis 0", "axis 1")):
        Neighborhood((1, 3)).axes((5, LONGEST + 1))
    for length in (2**31, 2**40):
        with pytest.raises(ValueError, match=f"length {length} of spatial axis 0 is too large"):
            Neighborhood(3).flops((length,), 1, 1)


def test_regions_of_an_axis_that_is_too_long():
    small = jax.ShapeDtypeStruct((1, 16, 1, 8), jnp.float32)
    run = lambda x: jax_na.region_attention(  # noqa: E731
        x, x, x, (3,), length=(2**30,), query_start=2**29, key_start=2**29
    )
    with pytest.raises(ValueError, match=f"length {2**30} of spatial axis 0 is too large"):
        jax.eval_shape(run, small)


@pytest.mark.parametrize("implementation", KERNELS)
def test_more_elements_than_32_bits_count(implementation, cuda_kernels):
    """No reason for anything: tokens of many heads, and many batch entries."""
    for batch, grid, heads in ((1, (1 << 9, 1 << 9), 1 << 8), (1 << 13, (1 << 6, 1 << 6), 1)):
        case = Case("large", grid, (7, 7), batch=(batch,), heads=heads, head_dim=64)
        inputs = {name: jax.ShapeDtypeStruct(s, jnp.bfloat16) for name, s in case.shapes().items()}
        assert inputs["query"].size > 2**31 - 1
        found = {call.name for call in calls(lowered(gradient(case, implementation), inputs))}
        assert found
        assert all(implementation in name for name in found)


@pytest.mark.parametrize("implementation", ["fused", "gemm"])
def test_tokens_of_a_batch_entry(implementation, cuda_kernels):
    """Kernels count them in 32 bits; what has no such limit is named, and so is what would work."""
    few = arrays(4, TOKENS[0] - 1, TOKENS[1], 1, 8)
    assert calls(lowered(call(implementation, kernel_size=(1, 1)), few))
    message = (
        f"implementation '{implementation}' cannot run here: it takes up to 2^31 - 1 tokens of a batch "
        "entry, not 2147483648; region_attention takes them part by part; 'naive', 'xla' can"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        lowered(call(implementation, kernel_size=(1, 1)), arrays(1, *TOKENS, 1, 8))


def test_what_is_left_for_so_many_tokens(cuda_kernels):
    """`implementations` and None know it: only pure JAX and, by name, the naive kernels."""
    query = jax.ShapeDtypeStruct((1, *TOKENS, 1, 8), jnp.bfloat16)
    rows = {row.name: row for row in jax_na.implementations(query, (7, 7), platform="cuda")}
    assert [name for name, row in rows.items() if row.taken] == ["xla"]
    for name in ("fused", "gemm"):
        assert "tokens of a batch entry, not 2147483648" in rows[name].reason
    operands = {"query": query, "value": query}
    assert table.choose(OP, table.ATTENTION, CUDA, operands) == "xla"
    assert table.choose(OP, table.UNFUSED, CUDA, {"x": query, "y": query}) == "naive"


def problem(op, features, **sizes):
    return Problem(op.axes, "bfloat16", features, features, sizes=Sizes(**sizes))


def test_regions_count_their_own_tokens(cuda_kernels):
    """Of a grid that is larger than a kernel's limit."""
    part = {"batch": 1, "heads": 1, "kv_heads": 1, "queries": (8, 1 << 15), "keys": (14, 1 << 15)}
    for sizes, is_legal in ((part, True), (part | {"keys": TOKENS}, False)):
        for name in ("fused", "gemm"):
            assert (table.row(name).obstacle(CUDA, problem(OP, 64, **sizes)) is None) is is_legal


def test_thread_blocks(cuda_kernels):
    """Of every kernel: a launch has up to 2^31 - 1 of them."""
    inputs = arrays(1 << 14, 1 << 12, 1 << 9, 12)  # 2^35 rows, of a size that the halo kernels do not take
    for implementation, target in (("fused", "na_fused_forward"), ("gemm", "na_gemm_qk")):
        said = rf"{target} cannot run: .*portable:16,32: it takes problems of up to 2\^31 - 1 thread blocks"
        with pytest.raises(ValueError, match=said):
            lowered(call(implementation, kernel_size=(7,)), inputs)
    with pytest.raises(
        ValueError, match=r"'naive' cannot run here: .* up to 2\^31 - 1 thread blocks, not 2147483648"
    ):
        lowered(call("naive", kernel_size=(7,)), inputs)
    legal = Case("legal", (1 << 12,), 7, batch=(1 << 9,), heads=1 << 6, head_dim=8)
    found = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in legal.shapes().items()}
    assert calls(lowered(attend(legal, "naive"), found))


def reason(platform, name, target, given):
    (row,) = (row for row in variants.rows(platform, target) if row.name == name)
    return row.obstacle(contract.query(platform, given))


def test_rows_and_strides_of_tensor_maps(cuda_kernels):
    """The kernel with tensor copies leaves what they cannot address to the portable one."""
    rows = {"batch": 1 << 10, "heads": 1 << 10, "kv_heads": 1, "queries": (1 << 11,), "keys": (1 << 11,)}
    op = Op(Neighborhood(7), (1 << 11,))
    assert "2^31 - 1 rows" in reason(CUDA, "sm90", "na_fused_forward", problem(op, 8, **rows))
    assert not reason(CUDA, "portable", "na_fused_forward", problem(op, 8, **rows))
    apart = Op(Neighborhood((3, 7), dilation=(1 << 14, 1)), (1 << 16, 1 << 20))
    plane = {"batch": 1, "heads": 1, "kv_heads": 1, "queries": (1, 1 << 20), "keys": (3, 1 << 20)}
    assert "2^40 bytes apart" in reason(CUDA, "sm90", "na_fused_forward", problem(apart, 64, **plane))
    assert not reason(CUDA, "portable", "na_fused_forward", problem(apart, 64, **plane))
    assert not reason(CUDA, "sm90", "na_fused_forward", problem(op, 64, **rows | {"heads": 1}))


def test_kernels_for_cpus_have_no_such_limits():
    sizes = {"batch": 1, "heads": 1, "kv_heads": 1, "queries": TOKENS, "keys": TOKENS}
    for name in KERNELS:
        assert table.row(name).obstacle(CPU, problem(OP, 64, **sizes)) is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1, 1, (5,), (5, 5)), "1 sizes for 2 axes"),
        ((1, 1, 1, (5, 5), (5, 50)), "50 tokens are not on an axis of length 9"),
        ((-1, 1, 1, (), ()), "must not be negative"),
        ((1, 2**31, 1, (), ()), "at most 2\\^31 - 1"),
    ],
)
def test_sizes_that_are_none(sizes, message):
    axes = [(9, 3, 1, 1, False)] * 2
    with pytest.raises(ValueError, match=message):
        register.binding(CPU).Query(axes=axes, sizes=sizes)


def test_plans_do_not_depend_on_sizes():
    """A plan is looked up once for arrays of all sizes."""
    op = Op(Neighborhood(3), (64,))
    shapes = [{"query": np.zeros((n, 64, 2, 8), np.float32), "key": np.zeros((n, 64, 1, 8))} for n in (1, 2)]
    found = [contract.problem(op, inputs) for inputs in shapes]
    assert [p.sizes for p in found] == [Sizes(n, 2, 1, (64,), (64,)) for n in (1, 2)]
    assert found[0]._replace(sizes=None) == found[1]._replace(sizes=None)
