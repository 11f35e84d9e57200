# SPDX-License-Identifier: Apache-2.0
"""A model in training on several devices, and in two processes: what it learns on one."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flax_layers.models.nat import NAT, NATConfig
from jax_na.mesh import communication

from . import helpers, small_models

pytestmark = pytest.mark.usefixtures("quick_compile")
CONFIG = NATConfig(8, (1, 1), (2, 2), mlp_ratio=2, kernel_size=3, num_classes=5)
SIDES, BATCH = (64, 16), 4  # tokens of the first level: 16 x 4


def training(rng, sides=SIDES, batch=BATCH):
    """Leaves of a model, images, labels; and a step of gradient descent, (leaves, loss) of these."""
    graph, state = nnx.split(small_models.random(NAT, CONFIG, rng))
    values, tree = jax.tree.flatten(state)

    def loss(values, images, labels):
        logits = nnx.merge(graph, jax.tree.unflatten(tree, values))(images)
        return -jax.numpy.mean(jax.nn.log_softmax(logits)[jax.numpy.arange(len(labels)), labels])

    def step(values, images, labels):
        value, gradients = jax.value_and_grad(loss)(values, images, labels)
        return [x - 0.1 * g for x, g in zip(values, gradients, strict=True)], value

    images = small_models.images(rng, sides, batch)
    return step, values, images, rng.integers(CONFIG.num_classes, size=batch)


def losses(step, values, *data):
    """Of two steps: the second one knows the gradients of the first."""
    values, first = step(values, *data)
    return [first, step(values, *data)[1]]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_batch_and_space_over_eight_devices(rng):
    """As on one device; of the grid only halos travel."""
    step, values, images, labels = training(rng)
    expected = losses(jax.jit(step), values, images, labels)
    mesh = jax.make_mesh((2, 4), ("data", "space"), axis_types=(AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, P())
    laid = (
        jax.device_put(values, everywhere),
        jax.device_put(images, NamedSharding(mesh, P("data", "space"))),
        jax.device_put(labels, NamedSharding(mesh, P("data"))),
    )
    compiled = jax.jit(step, out_shardings=everywhere).lower(*laid).compile()
    assert helpers.relative_error(losses(compiled, *laid), expected) < 1e-5
    kinds = {collective.kind for collective in communication.collectives(compiled)}
    assert "collective-permute" in kinds
    assert "all-to-all" not in kinds


PROCESS = """
import sys
import jax, numpy as np
import flax_layers.models.nat  # the installed one, before the folder of the tests is looked at
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from tests import test_models_sharded as own
step, values, images, labels = own.training(np.random.default_rng(3))
mesh = jax.make_mesh((2, 2), ("data", "space"), axis_types=(AxisType.Auto,) * 2)

def put(x, spec):
    return jax.make_array_from_callback(np.shape(x), NamedSharding(mesh, spec), lambda i: np.asarray(x)[i])

values = [put(x, P()) for x in values]
data = put(images, P("data", "space")), put(labels, P("data"))
step = jax.jit(step, out_shardings=NamedSharding(mesh, P()))
print(*(float(x) for x in own.losses(step, values, *data)))
"""


@pytest.mark.some(0)  # half a minute
def test_two_processes():
    """The batch over two processes, rows over two devices of each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = str(pathlib.Path(__file__).parent.parent)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", PROCESS, address, str(i), root],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    found = [process.communicate(timeout=300)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    step, *arguments = training(np.random.default_rng(3))
    expected = losses(jax.jit(step), *arguments)
    for values in found:
        assert helpers.relative_error([float(x) for x in values[-2:]], expected) < 1e-5
