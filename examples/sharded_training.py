# SPDX-License-Identifier: Apache-2.0
"""Trains a small denoiser on a mesh, data x space, and again on one device: the losses must agree.

    python examples/sharded_training.py [--devices 8 | --devices-here] [--steps 20]

The data are crops of the photograph that comes with scikit-image, with noise added. A token is a patch of
4 x 4 pixels. Crops are split over the mesh axis "data", their rows of tokens over "space". Nothing in the
model says so: jit gets sharded inputs, and the attention layers exchange the rows that windows reach in other
devices. By default the devices are eight parts of the CPU.
"""

import argparse
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from skimage import data

from flax_layers import NeighborhoodAttention
from jax_na.mesh import communication

PATCH, GRID, CROPS = 4, 32, 8  # pixels, tokens along the side of a crop, crops of a step
NOISE = 0.3  # standard deviation; pixels are in [0, 1]
RATE, MOMENTUM = 0.05, 0.9
# Devices add the losses and gradients of their tokens first: sums of float32 in another order, so other
# roundings, which training carries on. The losses are close, not the same bits.
TOLERANCE = 1e-4


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        attend = NeighborhoodAttention(num_heads=4, kernel_size=(7, 7), rel_pos_bias=True)
        x = x + attend(nn.LayerNorm()(x))
        hidden = nn.gelu(nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1])(hidden)


class Denoiser(nn.Module):
    """Noisy tokens [batch, X, Y, features] to clean ones; starts as the identity."""

    @nn.compact
    def __call__(self, noisy: jax.Array) -> jax.Array:
        x = nn.Dense(64)(noisy - 0.5)
        for _ in range(2):
            x = Block()(x)
        return noisy + nn.Dense(noisy.shape[-1], kernel_init=nn.initializers.zeros)(nn.LayerNorm()(x))


def loss_of(parameters: dict, noisy: jax.Array, clean: jax.Array) -> jax.Array:
    """Mean squared error; 1 is that of the noise itself."""
    return jnp.mean((Denoiser().apply(parameters, noisy) - clean) ** 2) / NOISE**2


def train_step(state: tuple, noisy: jax.Array, clean: jax.Array) -> tuple:
    """((parameters, velocity), loss) after a step of gradient descent with momentum."""
    parameters, velocity = state
    loss, gradients = jax.value_and_grad(loss_of)(parameters, noisy, clean)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradients)
    return (jax.tree.map(lambda p, v: p - RATE * v, parameters, velocity), velocity), loss


def batches(steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(noisy, clean) tokens [crops, X, Y, features], the same ones every time."""
    photo = data.astronaut().astype(np.float32) / 255
    random, side = np.random.default_rng(0), GRID * PATCH
    for _ in range(steps):
        corners = random.integers(0, photo.shape[0] - side, (CROPS, 2))
        crops = np.stack([photo[x : x + side, y : y + side] for x, y in corners])
        patches = crops.reshape(CROPS, GRID, PATCH, GRID, PATCH, 3).swapaxes(2, 3)
        clean = patches.reshape(CROPS, GRID, GRID, -1)
        yield clean + NOISE * random.standard_normal(clean.shape, np.float32), clean


def train(steps: int, everywhere: jax.sharding.Sharding, tokens: jax.sharding.Sharding) -> tuple:
    """(losses, compiled step), with the parameters and the batches placed so."""
    shape = next(batches(1))[0].shape
    parameters = Denoiser().init(jax.random.key(0), jnp.zeros(shape))
    state = jax.device_put((parameters, jax.tree.map(jnp.zeros_like, parameters)), everywhere)
    batch = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=tokens),) * 2
    step = jax.jit(train_step, out_shardings=everywhere).lower(state, *batch).compile()
    losses = []
    for arrays in batches(steps):
        state, loss = step(state, *jax.device_put(arrays, tokens))
        losses.append(float(loss))
    return losses, step


def mesh_of(devices: int) -> Mesh:
    """Two ways along the batch, if that goes, the rest along the rows of tokens."""
    ways = 2 if devices % 2 == 0 else 1
    if GRID % (devices // ways):
        raise SystemExit(f"{GRID} rows of tokens do not divide over {devices // ways} devices")
    return jax.make_mesh((ways, devices // ways), ("data", "space"), axis_types=(AxisType.Auto,) * 2)


def report_communication(step: jax.stages.Compiled) -> None:
    """What the devices send each other in one step; activations must stay where they are."""
    found = communication.collectives(step)
    for kind in sorted({c.kind for c in found}):
        sizes = [c.size for c in found if c.kind == kind]
        print(f"{kind}: {len(sizes)} in a step, {sum(sizes):,} bytes a device, the largest {max(sizes):,}")
    if {c.kind for c in found} & {"all-gather", "all-to-all"}:
        raise SystemExit("activations are gathered")
    print("nothing is gathered: halos travel in collective-permute, sums for gradients in all-reduce")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=8, help="parts of the CPU (default: %(default)s)")
    parser.add_argument("--devices-here", action="store_true", help="take the devices that there are instead")
    parser.add_argument("--steps", type=int, default=20, help="(default: %(default)s)")
    options = parser.parse_args()
    if not options.devices_here:  # before JAX looks for devices
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.devices)

    mesh = mesh_of(jax.device_count())
    print("mesh", dict(mesh.shape), "of", jax.devices()[0].device_kind)
    rows = NamedSharding(mesh, P("data", "space"))
    sharded, step = train(options.steps, NamedSharding(mesh, P()), rows)
    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    single, _ = train(options.steps, alone, alone)

    print("step  loss, sharded  loss, one device")
    for i, (a, b) in enumerate(zip(sharded, single, strict=True)):
        print(f"{i:4}  {a:13.7f}  {b:16.7f}")
    report_communication(step)
    worst = max(abs(a - b) / b for a, b in zip(sharded, single, strict=True))
    print(f"largest relative difference of the losses: {worst:.1e}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"that is more than {TOLERANCE}")


if __name__ == "__main__":
    main()
