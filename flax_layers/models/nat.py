# SPDX-License-Identifier: Apache-2.0
"""NAT (https://arxiv.org/abs/2204.07143) and DiNAT (https://arxiv.org/abs/2209.15001).

One architecture: in DiNAT every other block dilates its windows so that they span the level.
"""

import dataclasses
from typing import Any

import jax
from flax import nnx

from flax_layers.models import blocks
from flax_layers.models.pyramid import Pyramid, PyramidConfig, alternating

__all__ = ["NAT", "VARIANTS", "NATConfig"]


@dataclasses.dataclass(frozen=True)
class NATConfig(PyramidConfig):
    """The fields of `PyramidConfig`; an MLP of 3 times the features if not said otherwise."""

    mlp_ratio: float = 3.0


class Tokenizer(nnx.Module):
    """Two convolutions 3 x 3 of stride 2, nothing between them, then a norm."""

    def __init__(self, in_channels: int, features: int, **options: Any) -> None:
        self.conv1 = blocks.conv(in_channels, features // 2, 3, strides=2, padding=1, **options)
        self.conv2 = blocks.conv(features // 2, features, 3, strides=2, padding=1, **options)
        self.norm = blocks.layer_norm(features, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[batch..., X, Y, in_channels] to [batch..., ceil(X / 4), ceil(Y / 4), features]."""
        x: jax.Array = self.norm(self.conv2(self.conv1(images)))
        return x


class Downsample(nnx.Module):
    """A convolution 3 x 3 of stride 2 without bias, to twice the features, then a norm."""

    def __init__(self, features: int, **options: Any) -> None:
        self.reduction = blocks.conv(
            features, 2 * features, 3, strides=2, padding=1, use_bias=False, **options
        )
        self.norm = blocks.layer_norm(2 * features, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, Y, features] to [batch..., ceil(X / 2), ceil(Y / 2), 2 * features]."""
        x = self.norm(self.reduction(x))
        return x


class NAT(Pyramid):
    """NAT and DiNAT: images to logits, or with `features_only` to the features of all levels.

    The arguments are those of `flax_layers.models.pyramid.Pyramid`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from flax_layers.models.nat import NAT, NATConfig
      >>> config = NATConfig(16, depths=(1,), num_heads=(2,), num_classes=10, in_channels=1)
      >>> model = NAT(config, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 28, 28, 1))).shape
      (2, 10)
    """

    Stem = Tokenizer
    Downsample = Downsample


_TINY_DEPTHS = (3, 4, 18, 5)
_MINI = NATConfig(64, (3, 4, 6, 5), (2, 4, 8, 16), drop_path=0.2)
_TINY = dataclasses.replace(_MINI, depths=_TINY_DEPTHS)
_SMALL = NATConfig(96, _TINY_DEPTHS, (3, 6, 12, 24), mlp_ratio=2, drop_path=0.3)
_BASE = NATConfig(128, _TINY_DEPTHS, (4, 8, 16, 32), mlp_ratio=2, drop_path=0.5, layer_scale=1e-5)
_LARGE = NATConfig(192, _TINY_DEPTHS, (6, 12, 24, 48), mlp_ratio=2, drop_path=0.35)


def _dilated(config: NATConfig, image_size: int = 224, kernel_size: int = 7) -> NATConfig:
    dilations = alternating(config.depths, image_size, kernel_size)
    return dataclasses.replace(config, dilations=dilations, kernel_size=kernel_size)


VARIANTS: dict[str, NATConfig] = {
    "nat_mini": _MINI,
    "nat_tiny": _TINY,
    "nat_small": dataclasses.replace(_SMALL, layer_scale=1e-5),
    "nat_base": _BASE,
    "dinat_mini": _dilated(_MINI),
    "dinat_tiny": _dilated(_TINY),
    "dinat_small": _dilated(_SMALL),  # published without layer scale, unlike NAT's
    "dinat_base": _dilated(_BASE),
    "dinat_large": _dilated(_LARGE),
    "dinat_large_384": _dilated(_LARGE, 384),
    "dinat_large_384_11x11": _dilated(_LARGE, 384, 11),
}
