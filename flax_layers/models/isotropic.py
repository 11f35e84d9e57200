# SPDX-License-Identifier: Apache-2.0
"""The isotropic models of DiNAT's authors: vision transformers of one resolution with neighborhood attention.

Small and Base have the widths of ViT-S and ViT-B, but heads of 32 features. Their numbers are those of the
published training code; Mini, Tiny and Large, and models for other image sizes than 224, were not published.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_layers.models import blocks

__all__ = ["VARIANTS", "Isotropic", "IsotropicConfig"]


@dataclasses.dataclass(frozen=True)
class IsotropicConfig:
    """What an isotropic model is.

    Attributes:
      embed_dim: features of all tokens.
      num_heads: of every block.
      depth: number of blocks.
      patch_size: pixels along the side of a token.
      mlp_ratio: hidden features of the MLP, in features.
      kernel_size: keys of a window along both axes.
      dilation: of every other block, beginning with the second.
      drop_path: stochastic depth of the last block; it grows linearly from 0 over all blocks.
      dropout: of the tokens, of the results of attention, and of both layers of the MLP.
      num_classes: 0 for no head: the model returns the mean over all tokens.
      in_channels: channels of the images.
    """

    embed_dim: int
    num_heads: int
    depth: int = 12
    patch_size: int = 16
    mlp_ratio: float = 4.0
    kernel_size: int = 7
    dilation: int = 1
    drop_path: float = 0.0
    dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3


class Isotropic(nnx.Module):
    """Tokens, blocks of neighborhood attention, a norm, and a linear layer on the mean over all tokens.

    Args:
      config: the architecture.
      rngs: streams "params" and, for dropout and stochastic depth, "dropout".
      dtype: of the computation; inferred from images and parameters if None.
      param_dtype: of the parameters; the positional biases have float32 at least.
      implementation: of attention, see `jax_na.neighborhood_attention`.
      remat: compute every block again in the backward pass; or a policy of `jax.checkpoint` for that.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from flax_layers.models.isotropic import Isotropic, IsotropicConfig
      >>> config = IsotropicConfig(32, num_heads=2, depth=1, patch_size=8)
      >>> Isotropic(config, rngs=nnx.Rngs(0))(jnp.ones((2, 48, 64, 3))).shape
      (2, 1000)
    """

    def __init__(
        self,
        config: IsotropicConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str | None = None,
        remat: blocks.Remat = False,
    ) -> None:
        self.config, self.remat = config, remat
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_embed = blocks.PatchEmbed(
            config.in_channels, config.embed_dim, config.patch_size, **options
        )
        self.dropout = blocks.Dropout(config.dropout, rngs)
        self.blocks = nnx.List(
            blocks.attention_block(
                config.embed_dim,
                num_heads=config.num_heads,
                mlp_ratio=config.mlp_ratio,
                kernel_size=config.kernel_size,
                dilation=config.dilation if i % 2 else 1,
                dropout=config.dropout,
                drop_path=rate,
                implementation=implementation,
                **options,
            )
            for i, rate in enumerate(blocks.drop_path_rates(config.drop_path, config.depth))
        )
        self.classifier = blocks.Classifier(config.embed_dim, config.num_classes, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images `[batch..., X, Y, in_channels]` of any size to logits `[batch..., num_classes]`."""
        blocks.check_images(images, self.config.in_channels)
        x = self.dropout(self.patch_embed(images))
        return self.classifier(blocks.run(self.blocks, x, remat=self.remat))


_SMALL = IsotropicConfig(384, 12, drop_path=0.1)
_BASE = IsotropicConfig(768, 24, drop_path=0.4)

VARIANTS: dict[str, IsotropicConfig] = {
    "nat_isotropic_small": _SMALL,
    "nat_isotropic_base": _BASE,
    "dinat_isotropic_small": dataclasses.replace(_SMALL, dilation=2),
    "dinat_isotropic_base": dataclasses.replace(_BASE, dilation=2),
    # What they were compared with: windows as large as the 14 x 14 tokens of 224 pixels, full attention.
    "vit_rpb_small": dataclasses.replace(_SMALL, kernel_size=14),
    "vit_rpb_base": dataclasses.replace(_BASE, kernel_size=14),
}
