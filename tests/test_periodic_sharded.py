# SPDX-License-Identifier: Apache-2.0
"""Periodic axes over the devices of a mesh: what one device computes, by a ring of halos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import jax_na
from jax_na import Neighborhood

from . import helpers

pytestmark = [
    pytest.mark.usefixtures("quick_compile"),
    pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices"),
]
HEADS, KV_HEADS = 4, 2
WINDOWS = {
    "one axis": Neighborhood((5, 5), is_periodic=(False, True)),
    "torus": Neighborhood((5, 4), dilation=(1, 2), is_periodic=True),
    "wide": Neighborhood((15, 23), is_periodic=True),
    "causal": Neighborhood((5, 5), is_causal=(True, False), is_periodic=(False, True)),
    "cut strides": Neighborhood((8, 7), stride=(8, 6), is_periodic=True),
    "strided": Neighborhood((6, 9), stride=(4, 3), is_periodic=True),
}
SPECS = [
    ("x", None, None),
    (None, "x", None),
    (None, "x", "y"),
    (None, None, ("y", "x")),
    (None, None, "x", "y"),
]


def loss_of(n, implementation=None):
    def loss(query, key, value, rpb):
        attend = jax_na.neighborhood_attention
        out, lse = attend(query, key, value, n, rpb=rpb, return_lse=True, implementation=implementation)
        return jnp.sum(jnp.sin(out)) + jnp.sum(lse**2)

    return loss


def on_mesh(rng, n, spec, kind):
    """A mesh, and arrays of a problem that lie on it, cut by this spec; a bias has its heads alone."""
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    shapes = [(4, 16, 24, HEADS, 8), *[(4, 16, 24, KV_HEADS, 8)] * 2]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes]
    rpb = rng.standard_normal((HEADS, *(2 * w - 1 for w in n.kernel_size)), np.float32)
    placed = [jax.device_put(x, jax.NamedSharding(mesh, jax.P(*spec))) for x in arrays]
    return mesh, [*placed, jax.device_put(rpb, jax.NamedSharding(mesh, jax.P(*spec[3:])))]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=lambda kind: kind.name)
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_sharded(name, spec, kind, rng):
    """Batches and both axes cut over devices: what one device computes, by a ring of halos."""
    n = WINDOWS[name]
    mesh, placed = on_mesh(rng, n, spec, kind)
    both = jax.value_and_grad(loss_of(n), argnums=(0, 1, 2, 3))
    with jax.set_mesh(mesh):
        program = jax.jit(both).lower(*placed).compile()
    assert "all-gather" not in program.as_text()
    helpers.assert_alike(program(*placed), jax.jit(both)(*map(np.asarray, placed)))


@pytest.mark.parametrize("implementation", helpers.IMPLEMENTATIONS)
def test_sharded_second_order(implementation, rng):
    """The derivative of a gradient, under a mesh."""
    n = WINDOWS["torus"]
    _, placed = on_mesh(rng, n, (None, "x", "y"), AxisType.Auto)
    loss = loss_of(n, implementation)

    def second(*arrays):
        return jax.jvp(jax.grad(loss, argnums=(0, 1, 2, 3)), arrays, arrays)[1]

    helpers.assert_alike(jax.jit(second)(*placed), jax.jit(second)(*map(np.asarray, placed)), 1e-4)


@pytest.mark.parametrize("spec", [("x", None, None), ("x", None, "y")], ids=str)
def test_second_order_in_shard_map(spec, rng):
    """The derivative of a gradient; the periodic axis is whole in a block, or cut."""
    n = WINDOWS["one axis"]
    mesh, placed = on_mesh(rng, n, spec, AxisType.Auto)

    def block(*arrays):
        attend = jax_na.sharded_neighborhood_attention
        return attend(*arrays, n, axis_names=spec[1:3])

    blocks = jax.shard_map(block, mesh=mesh, in_specs=(jax.P(*spec),) * 3, out_specs=jax.P(*spec))

    def second(attend):
        gradient = jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2))
        return jax.jit(lambda *arrays: jax.jvp(gradient, arrays, arrays)[1])

    def whole(*arrays):
        return jax_na.neighborhood_attention(*arrays, n)

    arrays = placed[:3]
    helpers.assert_alike(second(blocks)(*arrays), second(whole)(*map(np.asarray, arrays)), 1e-4)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_sharded_function(name, spec, rng):
    """Inside shard_map, gradients included."""
    n = WINDOWS[name]
    mesh, placed = on_mesh(rng, n, spec, AxisType.Auto)

    def block(*arrays):
        attend = jax_na.sharded_neighborhood_attention
        return attend(*arrays, n, axis_names=spec[1:3])

    blocks = jax.shard_map(block, mesh=mesh, in_specs=(jax.P(*spec),) * 3, out_specs=jax.P(*spec))

    def whole(*arrays):
        return jax_na.neighborhood_attention(*arrays, n)

    def gradients(attend):
        return jax.jit(jax.grad(lambda *x: jnp.sum(jnp.sin(attend(*x))), argnums=(0, 1, 2)))

    arrays = placed[:3]
    helpers.assert_alike(gradients(blocks)(*arrays), gradients(whole)(*map(np.asarray, arrays)))


def test_padding_of_blocks():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def block(x):
        attend = jax_na.sharded_neighborhood_attention
        return attend(x, x, x, (3,), axis_names="x", length=15, is_periodic=True)

    message = "length 15 of periodic axis 0 leaves padding in 8 blocks of 2; legal is 16"
    with pytest.raises(ValueError, match=message):
        jax.shard_map(block, mesh=mesh, in_specs=jax.P("x"), out_specs=jax.P("x"))(np.zeros((16, 2, 8)))
