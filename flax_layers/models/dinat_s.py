# SPDX-License-Identifier: Apache-2.0
"""DiNAT_s (https://arxiv.org/abs/2209.15001): Swin with dilated neighborhood attention for its windows."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from flax_layers.models import blocks
from flax_layers.models.pyramid import PATCH, Pyramid, PyramidConfig, alternating

__all__ = ["VARIANTS", "DiNATs", "DiNATsConfig"]


@dataclasses.dataclass(frozen=True)
class DiNATsConfig(PyramidConfig):
    """The fields of `PyramidConfig`; an MLP of 4 times the features if not said otherwise."""

    mlp_ratio: float = 4.0


class PatchMerging(nnx.Module):
    """2 x 2 tokens side by side, a norm, and a linear layer without bias to twice the features.

    Sides that are odd are padded with zeros at the end, as published.
    """

    def __init__(self, features: int, **options: Any) -> None:
        self.norm = blocks.layer_norm(4 * features, **options)
        self.reduction = blocks.linear(4 * features, 2 * features, use_bias=False, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, Y, features] to [batch..., ceil(X / 2), ceil(Y / 2), 2 * features]."""
        x = blocks.padded(x, 2)
        # The published order: the first axis of the square runs fastest.
        corners = [x[..., i::2, j::2, :] for j in range(2) for i in range(2)]
        x = self.reduction(self.norm(jnp.concatenate(corners, -1)))
        return x


class DiNATs(Pyramid):
    """DiNAT_s: images to logits, or with `features_only` to the features of all levels.

    The arguments are those of `flax_layers.models.pyramid.Pyramid`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from flax_layers.models.dinat_s import DiNATs, DiNATsConfig
      >>> config = DiNATsConfig(16, depths=(1, 1), num_heads=(2, 2), dilations=((1,), (1,)))
      >>> model = DiNATs(config, rngs=nnx.Rngs(0), features_only=True)
      >>> [x.shape for x in nnx.eval_shape(model, jnp.ones((2, 50, 40, 3)))]
      [(2, 13, 10, 16), (2, 7, 5, 32)]
    """

    Stem = staticmethod(functools.partial(blocks.PatchEmbed, patch_size=PATCH))
    Downsample = PatchMerging


_DEPTHS = (2, 2, 18, 2)
_TINY = DiNATsConfig(96, (2, 2, 6, 2), (3, 6, 12, 24), drop_path=0.2)
_SMALL = DiNATsConfig(96, _DEPTHS, (3, 6, 12, 24), drop_path=0.3)
_BASE = DiNATsConfig(128, _DEPTHS, (4, 8, 16, 32), drop_path=0.5)
_LARGE = DiNATsConfig(192, _DEPTHS, (6, 12, 24, 48), drop_path=0.35)


def _dilated(config: DiNATsConfig, image_size: int = 224) -> DiNATsConfig:
    return dataclasses.replace(config, dilations=alternating(config.depths, image_size))


VARIANTS: dict[str, DiNATsConfig] = {
    "dinat_s_tiny": _dilated(_TINY),
    "dinat_s_small": _dilated(_SMALL),
    "dinat_s_base": _dilated(_BASE),
    "dinat_s_large": _dilated(_LARGE),
    "dinat_s_large_384": _dilated(_LARGE, 384),
}
