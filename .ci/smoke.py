# SPDX-License-Identifier: Apache-2.0
"""Does an installed wheel compute? Forward and backward, against attention over all pairs of tokens.

python smoke.py [IMPLEMENTATION...]: those that must be available, and no others; by default all.
"""

import sys

import jax
import jax.numpy as jnp

import jax_na

inputs = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 4, 32))
neighborhood = jax_na.Neighborhood((7, 7), dilation=2)
mask = neighborhood.mask((14, 14)).reshape(196, 196)


def over_all_pairs(inputs):
    tokens = inputs.reshape(3, 2, 196, 4, 32)
    return jax.nn.dot_product_attention(*tokens, mask=mask).reshape(inputs.shape[1:])


def gradient(attend):
    return jax.grad(lambda inputs: jnp.sin(attend(inputs)).sum())(inputs)


rows = jax_na.implementations()
asked = sys.argv[1:] or [row.name for row in rows]
assert [row.name for row in rows if row.available] == asked, rows
expected = gradient(over_all_pairs)
for name in (*asked, None):
    found = gradient(lambda inputs: jax_na.na2d(*inputs, neighborhood, implementation=name))  # noqa: B023
    error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
    print(f"{name}: relative difference of the gradient {error:.1e}")
    assert error < 1e-5
