# SPDX-License-Identifier: Apache-2.0
"""Random legal problems, drawn by hypothesis, against the definition."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jax_na.kernels import plan

from . import helpers
from .cases import Case

LONGEST = {1: 40, 2: 9, 3: 5}
DIMS = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 33])


@st.composite
def axes(draw, longest):
    """(length, kernel_size, stride, dilation, is_causal), every legal combination of a short axis."""
    length = draw(st.integers(1, longest))
    dilation = draw(st.integers(1, length))
    kernel_size = draw(st.integers(1, length // dilation))
    return length, kernel_size, draw(st.integers(1, kernel_size)), dilation, draw(st.booleans())


@st.composite
def cases(draw):
    rank = draw(st.integers(1, 3))
    grid, kernel_size, stride, dilation, is_causal = zip(
        *(draw(axes(LONGEST[rank])) for _ in range(rank)), strict=True
    )
    kv_heads = draw(st.integers(1, 2))
    return Case(
        "random",
        grid,
        kernel_size,
        stride,
        dilation,
        is_causal,
        batch=draw(st.sampled_from([(), (1,), (2,), (1, 2)])),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        head_dim=draw(DIMS),
        value_dim=draw(DIMS),
        # A bias on the only key cancels out of the softmax: its gradient would be little but rounding.
        rpb=max(kernel_size) > 1 and draw(st.booleans()),
        additional=draw(st.sampled_from([0, 0, 0, 2])),
        scale=draw(st.sampled_from([None, None, 0.7])),
    )


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
@hypothesis.settings(
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=True,
)
@hypothesis.given(
    case=cases(), dtype=st.sampled_from(["float32", "float32", "bfloat16"]), seed=st.integers(0, 2**32 - 1)
)
def test_random_problems(implementation, case, dtype, seed):
    """With a random one of the tiles that a kernel can do, so that every kernel gets its turn."""
    rng = np.random.default_rng(seed)
    inputs, cotangents = case.inputs(rng, jnp.dtype(dtype)), case.cotangents(rng, jnp.dtype(dtype))

    def any_of_them(platform, target, op, problem):
        legal = plan.candidates(platform, target, problem)
        rows = [kernels for kernels in legal if kernels.startswith("rows")]
        choices = rows or legal
        return choices[rng.integers(len(choices))] if rng.random() < 0.5 else choices[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "plan", any_of_them)
        found = helpers.evaluate(helpers.attend(case, implementation), inputs, cotangents)
    helpers.assert_correct(case, found, inputs, cotangents)
