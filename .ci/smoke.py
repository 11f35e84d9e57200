# SPDX-License-Identifier: Apache-2.0
"""Does an installed wheel compute? Every implementation, forward and backward, against the naive kernels."""

import jax
import jax.numpy as jnp

import jax_na

inputs = jax.random.normal(jax.random.key(0), (3, 2, 14, 14, 4, 32))


def loss(inputs, name):
    return jnp.sin(jax_na.na2d(*inputs, kernel_size=7, dilation=2, implementation=name)).sum()


expected = jax.grad(loss)(inputs, "naive")
for row in jax_na.implementations():
    assert row.available, row
    error = jnp.linalg.norm(jax.grad(loss)(inputs, row.name) - expected) / jnp.linalg.norm(expected)
    print(f"{row.name}: relative difference of the gradient {error:.1e}")
    assert error < 1e-5
