# SPDX-License-Identifier: Apache-2.0
"""The hierarchical model of NAT, DiNAT and DiNAT_s: levels of blocks, each with half the side of the last."""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_layers.models import blocks

PATCH = 4  # pixels along the side of a token of the first level


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """What a hierarchical model is; one value a level where a tuple is asked for.

    Attributes:
      embed_dim: features of the first level; every level has twice those of the one before.
      depths: blocks of the levels.
      num_heads: heads of the levels.
      mlp_ratio: hidden features of the MLP, in features.
      kernel_size: keys of a window along both axes.
      dilations: of every block of every level, see `alternating`; 1 everywhere if None.
      layer_scale: what the learned factors of the residual branches begin with; None for none.
      drop_path: stochastic depth of the last block; it grows linearly from 0 over all blocks.
      dropout: of the tokens, of the results of attention, and of both layers of the MLP.
      num_classes: 0 for no head: the model returns the mean over all tokens.
      in_channels: channels of the images.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    mlp_ratio: float
    kernel_size: int = 7
    dilations: tuple[tuple[int, ...], ...] | None = None
    layer_scale: float | None = None
    drop_path: float = 0.0
    dropout: float = 0.0
    num_classes: int = 1000
    in_channels: int = 3

    def __post_init__(self) -> None:
        if len(self.num_heads) != len(self.depths):
            raise ValueError(
                f"num_heads {self.num_heads} must have one value for each of the {len(self.depths)} levels "
                f"of depths {self.depths}"
            )
        if self.dilations is not None and tuple(map(len, self.dilations)) != self.depths:
            raise ValueError(
                f"dilations {self.dilations} must have one value for each block of depths {self.depths}; "
                f"alternating({self.depths}, image_size, kernel_size) makes those of DiNAT"
            )

    @property
    def features(self) -> tuple[int, ...]:
        """Of the levels."""
        return tuple(self.embed_dim * 2**i for i in range(len(self.depths)))


def alternating(
    depths: tuple[int, ...], image_size: int = 224, kernel_size: int = 7
) -> tuple[tuple[int, ...], ...]:
    """DiNAT's dilations: 1 and the largest one whose window fits into the level, in turns.

    >>> alternating((3, 4, 2, 2))
    ((1, 8, 1), (1, 4, 1, 4), (1, 2), (1, 1))
    """
    largest = [max(image_size // (PATCH * 2**i) // kernel_size, 1) for i in range(len(depths))]
    return tuple(
        tuple(itertools.islice(itertools.cycle((1, dilation)), depth))
        for depth, dilation in zip(depths, largest, strict=True)
    )


class Level(nnx.Module):
    """Blocks at one resolution, and what leads to the next; None after the last."""

    def __init__(self, layers: list[blocks.TransformerBlock], downsample: Any, remat: blocks.Remat) -> None:
        self.blocks = nnx.List(layers)
        self.downsample = downsample
        self.remat = remat

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, Y, features] to the same shape."""
        return blocks.run(self.blocks, x, remat=self.remat)


class Pyramid(nnx.Module):
    """Tokens of 4 x 4 pixels, levels of transformer blocks, and a classifier.

    Args:
      config: the architecture.
      rngs: streams "params" and, for dropout and stochastic depth, "dropout".
      dtype: of the computation; inferred from images and parameters if None.
      param_dtype: of the parameters; the positional biases have float32 at least.
      implementation: of attention, see `jax_na.neighborhood_attention`.
      remat: compute every block again in the backward pass; or a policy of `jax.checkpoint` for that.
      features_only: no classifier, but a norm after each level, as published for detection and segmentation.
    """

    Stem: ClassVar[Callable[..., Any]]
    Downsample: ClassVar[Callable[..., Any]]

    def __init__(
        self,
        config: PyramidConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str | None = None,
        remat: blocks.Remat = False,
        features_only: bool = False,
    ) -> None:
        self.config = config
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.patch_embed: Any = self.Stem(config.in_channels, config.embed_dim, **options)
        self.dropout = blocks.Dropout(config.dropout, rngs)
        rates = iter(blocks.drop_path_rates(config.drop_path, sum(config.depths)))
        levels = []
        for i, features in enumerate(config.features):
            layers = [
                _block(config, (i, j), next(rates), implementation=implementation, **options)
                for j in range(config.depths[i])
            ]
            last = i + 1 == len(config.depths)
            levels.append(Level(layers, None if last else self.Downsample(features, **options), remat))
        self.levels = nnx.List(levels)
        if features_only:
            self.norms = nnx.List(blocks.layer_norm(features, **options) for features in config.features)
        else:
            self.classifier = blocks.Classifier(config.features[-1], config.num_classes, **options)
        self.features_only = features_only

    def __call__(self, images: jax.Array) -> jax.Array | tuple[jax.Array, ...]:
        """Classifies images of any size, or makes features of them.

        Args:
          images: `[batch..., X, Y, in_channels]`.

        Returns:
          Logits `[batch..., num_classes]`; with `features_only` a tuple, for every level
          `[batch..., X_level, Y_level, features]`, X_level being X / 4, X / 8, .. rounded up.
        """
        blocks.check_images(images, self.config.in_channels)
        x = self.dropout(self.patch_embed(images))
        maps = []
        for level in self.levels:
            x = level(x)
            maps.append(x)
            if level.downsample is not None:
                x = level.downsample(x)
        if self.features_only:
            return tuple(norm(x) for norm, x in zip(self.norms, maps, strict=True))
        out: jax.Array = self.classifier(x)
        return out


def _block(
    config: PyramidConfig, place: tuple[int, int], drop_path: float, **options: Any
) -> blocks.TransformerBlock:
    """The block of a (level, number)."""
    level, number = place
    return blocks.attention_block(
        config.features[level],
        num_heads=config.num_heads[level],
        mlp_ratio=config.mlp_ratio,
        kernel_size=config.kernel_size,
        dilation=1 if config.dilations is None else config.dilations[level][number],
        layer_scale=config.layer_scale,
        dropout=config.dropout,
        drop_path=drop_path,
        **options,
    )
