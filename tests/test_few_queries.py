# SPDX-License-Identifier: Apache-2.0
"""A few queries of a grid, as when a stream goes on: the kernel that CPUs have for them."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood
from jax_na.kernels import contract, plan
from jax_na.kernels.platforms import CPU
from jax_na.op import Op

from . import helpers, oracle

pytestmark = pytest.mark.usefixtures("quick_compile")


@dataclasses.dataclass(frozen=True)
class Few:
    """Queries [first, first + count) per axis of a grid, with all keys."""

    grid: tuple[int, ...]
    kernel_size: tuple[int, ...]
    first: tuple[int, ...]
    count: tuple[int, ...]
    stride: tuple[int, ...] | int = 1
    dilation: tuple[int, ...] | int = 1
    is_causal: tuple[bool, ...] | bool = False
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16
    rpb: bool = False

    @property
    def window(self):
        return Neighborhood(self.kernel_size, self.stride, self.dilation, self.is_causal)

    @property
    def axes(self):
        n = self.window
        per_axis = zip(self.grid, n.kernel_size, n.stride, n.dilation, n.is_causal, strict=True)
        regions = zip(per_axis, self.first, self.count, strict=True)
        return tuple(oracle.Axis(*axis, first, count) for axis, first, count in regions)

    def inputs(self, rng, dtype, batch=2):
        shapes = {
            "query": (batch, *self.count, self.heads, self.head_dim),
            "key": (batch, *self.grid, self.kv_heads, self.head_dim),
            "value": (batch, *self.grid, self.kv_heads, self.value_dim),
        }
        found = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
        if self.rpb:
            table = (self.heads, *(2 * w - 1 for w in self.window.kernel_size))
            found["rpb"] = rng.standard_normal(table).astype(np.float32)
        return found


FEW = {
    "decoding": Few((300,), (257,), (299,), (1,), is_causal=True, heads=16, kv_heads=4, head_dim=64),
    "six heads of one": Few((40,), (33,), (20,), (1,), heads=6, kv_heads=1, head_dim=20, value_dim=24),
    "three dilated": Few((60,), (9,), (30,), (3,), stride=2, dilation=4, rpb=True, value_dim=5),
    "early": Few((50,), (20,), (2,), (2,), is_causal=True, heads=2, kv_heads=2, rpb=True, head_dim=3),
    "a point": Few((12, 15), (5, 7), (11, 3), (1, 1), dilation=(2, 1), rpb=True, value_dim=40),
    "two rows": Few((9, 8), (3, 4), (4, 0), (2, 2), is_causal=(True, False), heads=3, kv_heads=3),
    "a voxel": Few((6, 7, 8), (3, 3, 5), (0, 6, 4), (1, 1, 2), dilation=(1, 2, 1), rpb=True),
}


def attend(few, inputs, **options):
    starts = {"query_start": few.first, "key_start": 0, "length": few.grid}
    given = {**inputs, **starts, **options}
    return jax_na.region_attention(kernel_size=few.window, return_lse=True, implementation="fused", **given)


def kernels(few, inputs):
    op = Op(few.window, few.grid)
    return plan.plan(CPU, "na_fused_forward", op, contract.problem(op, inputs))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", FEW)
def test_against_the_oracle(name, is_masked, dtype, rng):
    """Masked keys hold NaN; the values of the two first keys, which few queries see, do as well."""
    few = FEW[name]
    inputs = few.inputs(rng, jnp.dtype(dtype))
    assert kernels(few, inputs) == "single"
    masks = {}
    if is_masked:
        mask = masks["key_mask"] = rng.random(inputs["key"].shape[:-2]) > 0.4
        mask[1] = False  # of the second example nothing exists
        inputs["key"][~mask] = inputs["value"][~mask] = np.nan
    inputs["value"].reshape(2, -1, *inputs["value"].shape[-2:])[:, :2] = np.nan
    found = helpers.named(attend(few, inputs, **masks))
    attention = oracle.Attention(oracle.Geometry(few.axes), {**inputs, **masks})
    expected = {"out": attention.out, "lse": attention.lse}
    helpers.assert_same(found, expected, helpers.TOLERANCE[dtype][0])


def test_what_it_takes(rng):
    """Calls of up to four queries, whose choice does not depend on anything else of their sizes."""
    few = FEW["three dilated"]
    more = dataclasses.replace(few, count=(5,))
    assert kernels(more, more.inputs(rng, np.float32)) != "single"
    rows = jax_na.implementations(jnp.zeros((1, 5, 2, 8)), (3,), platform="cpu")
    (single,) = (kernel for kernel in rows[0].variants if kernel.name == "single")
    assert single.reason == "it takes calls of 1 to 4 queries, not 5"
    (unknown,) = (k for k in jax_na.implementations(platform="cpu")[0].variants if k.name == "single")
    assert unknown.available


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_of_any_size(dtype, rng):
    """The largest scores do not overflow, as in every kernel."""
    few = FEW["six heads of one"]
    inputs = few.inputs(rng, jnp.dtype(dtype))
    for scale in (1e3, 1e30):
        large = inputs | {"query": (inputs["query"].astype(np.float32) * scale).astype(dtype)}
        found = helpers.named(attend(few, large))
        attention = oracle.Attention(oracle.Geometry(few.axes), large)
        helpers.assert_same(found, {"out": attention.out, "lse": attention.lse}, 2e-2)
