# SPDX-License-Identifier: Apache-2.0
"""Models that are small enough for tests, with random weights and without anything to compile for these."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flax_layers.models.dinat_s import DiNATs, DiNATsConfig
from flax_layers.models.isotropic import Isotropic, IsotropicConfig
from flax_layers.models.nat import NAT, NATConfig
from flax_layers.models.pyramid import alternating

# Levels of 7 x 9, 4 x 5 and 2 x 3 tokens of (28, 33) pixels: as large as the window, and smaller.
SCALED = NATConfig(8, (1, 2, 1), (1, 2, 4), mlp_ratio=2, layer_scale=0.5, num_classes=5)
DILATED = NATConfig(
    8, (2, 1), (1, 2), kernel_size=3, dilations=alternating((2, 1), 48, 3), mlp_ratio=2, num_classes=5
)
SWIN = DiNATsConfig(8, (2, 2), (2, 2), kernel_size=3, dilations=((1, 3), (1, 2)), num_classes=5)
ISOTROPIC = IsotropicConfig(16, 2, depth=2, patch_size=8, kernel_size=3, dilation=2, num_classes=5)
# Model, config, and the sides of images for it.
MODELS = {
    "nat": (NAT, SCALED, (28, 33)),
    "dinat": (NAT, DILATED, (48, 56)),
    "dinat_s": (DiNATs, SWIN, (37, 42)),
    "isotropic": (Isotropic, ISOTROPIC, (48, 50)),
}


class OneKey:
    """Random numbers where only shapes matter: the counters of `nnx.Rngs` make their tracing slow."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


def abstract(model: Any, config: Any, **options: Any) -> Any:
    """A model without values."""
    rates = config.dropout + config.drop_path
    return nnx.eval_shape(lambda: model(config, rngs=nnx.Rngs(0) if rates else OneKey(), **options))


def random(model: Any, config: Any, rng: np.random.Generator, **options: Any) -> Any:
    """A model with random values."""
    made = abstract(model, config, **options)

    def value(x: Any) -> jax.Array:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.key(rng.integers(2**31))
        if x.dtype == jnp.uint32:  # how many numbers were drawn
            return jnp.zeros(x.shape, x.dtype)
        return jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype)

    nnx.update(made, jax.tree.map(value, nnx.state(made)))
    return made


def images(rng: np.random.Generator, sides: tuple[int, int], batch: int = 2) -> np.ndarray:
    return rng.standard_normal((batch, *sides, 3)).astype(np.float32)


@nnx.jit
def forward(model: Any, images: Any) -> Any:
    return model(images)


def parameters(model: Any) -> int:
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
