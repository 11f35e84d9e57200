# SPDX-License-Identifier: Apache-2.0
"""StyleNAT (https://arxiv.org/abs/2211.05770): the generator, whose heads look through windows of two sizes.

The Church configuration is left out: what was published of it does not say how its heads are divided.
"""

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_layers.models import blocks

__all__ = ["VARIANTS", "StyleNAT", "StyleNATConfig"]

FIRST_SIDE = 4  # of the first level; every level has twice the side of the one before
BLOCKS = 2  # of a level
rgb_init = jax.nn.initializers.variance_scaling(0.02**2, "fan_avg", "normal")


@dataclasses.dataclass(frozen=True)
class StyleNATConfig:
    """What a StyleNAT generator is.

    Attributes:
      features: of the levels, from 4 x 4 tokens to the size of the image.
      dilations: for every level after the first, whose attention is global, those of its groups of heads. A
        window and its dilation must fit into the level.
      kernel_size: keys of a window along both axes.
      head_dim, min_heads: a level has features / head_dim heads, but at least so many.
      style_features: of the random vectors, and of the styles.
      mapping_depth: layers from one to the other.
      mapping_rate: factor of their learning rate.
      mlp_ratio: hidden features of the MLP, in features.
      channels: of the images.
    """

    features: tuple[int, ...]
    dilations: tuple[tuple[int, ...], ...]
    kernel_size: int = 7
    head_dim: int = 32
    min_heads: int = 4
    style_features: int = 512
    mapping_depth: int = 8
    mapping_rate: float = 0.01
    mlp_ratio: float = 4.0
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.features) != len(self.dilations) + 1:
            raise ValueError(
                f"dilations {self.dilations} must have one tuple for each level of features {self.features} "
                f"after the first, {len(self.features) - 1}"
            )
        for level, dilations in enumerate(self.dilations, 1):
            largest = self.side(level) // self.kernel_size
            if max(dilations) > largest:
                raise ValueError(
                    f"dilations {dilations} of level {level} do not fit into {self.side(level)} tokens with "
                    f"kernel_size {self.kernel_size}; the largest that does is {largest}"
                )

    def side(self, level: int) -> int:
        """Tokens along the side of a level."""
        return FIRST_SIDE << level

    def num_heads(self, level: int) -> int:
        return max(self.features[level] // self.head_dim, self.min_heads)


class EqualLinear(nnx.Module):
    """A linear layer with equalized learning rate: x @ (kernel * rate / sqrt(in_features)) + bias * rate.

    With `is_activated`, sqrt(2) * leaky_relu(.., 0.2) of that. The kernel begins with deviation 1 / rate.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rate: float = 1.0,
        is_activated: bool = False,
        dtype: Dtype | None,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        normal = jax.random.normal(rngs.params(), (in_features, out_features), param_dtype)
        self.kernel = nnx.Param(normal / rate)
        self.bias = nnx.Param(jnp.zeros(out_features, param_dtype))
        self.rate, self.is_activated, self.dtype = rate, is_activated, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., in_features] to [batch..., out_features]."""
        arrays = nnx.nn.dtypes.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        x, kernel, bias = arrays
        x = x @ kernel * (self.rate / math.sqrt(kernel.shape[0])) + bias * self.rate
        return math.sqrt(2) * jax.nn.leaky_relu(x, 0.2) if self.is_activated else x


class AdaIN(nnx.Module):
    """Every channel of an image normalized over its tokens, times and plus what the style says."""

    def __init__(self, features: int, style_features: int, **options: Any) -> None:
        self.style = EqualLinear(style_features, 2 * features, **options)

    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        """x [batch..., X, Y, features], style [batch..., style_features]."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        gamma, beta = jnp.split(self.style(style)[..., None, None, :].astype(wide.dtype), 2, -1)
        centered = wide - jnp.mean(wide, (-3, -2), keepdims=True)
        variance = jnp.mean(centered**2, (-3, -2), keepdims=True)
        return (centered * jax.lax.rsqrt(variance + 1e-5) * gamma + beta).astype(x.dtype)


def doubled(x: jax.Array, border: Literal["edge", "constant"]) -> jax.Array:
    """[batch..., X, Y, C] at twice the side, by bilinear interpolation between the centres of pixels.

    Beyond the border are its own values ("edge") or zeros ("constant").
    """
    for axis in (x.ndim - 3, x.ndim - 2):
        side = x.shape[axis]
        widths = [(1, 1) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, widths, mode=border)
        before, after = (jax.lax.slice_in_dim(padded, i, i + side, axis=axis) for i in (0, 2))
        pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
        x = pair.reshape(*x.shape[:axis], 2 * side, *x.shape[axis + 1 :])
    return x


def sinusoids(side: int, features: int) -> jax.Array:
    """[side, side, features], float32: sines and cosines of the column, then of the row, counted from 1."""
    count = features // 4
    frequencies = 10000.0 ** (-jnp.arange(count) / max(count - 1, 1))
    angles = jnp.arange(1, side + 1)[:, None] * frequencies
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
    shape = (side, side, 2 * count)
    parts = jnp.broadcast_to(waves, shape), jnp.broadcast_to(waves[:, None], shape)
    return jnp.concatenate(parts, -1)


class Upsample(nnx.Module):
    """Twice the side, a norm, a linear layer to the features of the next level, and learned sinusoids."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype: Dtype, **options: Any) -> None:
        options = {"param_dtype": param_dtype, **options}
        self.norm = blocks.layer_norm(in_features, **options)
        self.reduction = blocks.linear(in_features, out_features, use_bias=False, **options)
        self.alpha = nnx.Param(jnp.zeros(1, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, X, in_features] to [batch..., 2 X, 2 X, out_features]."""
        x = self.reduction(self.norm(doubled(x, "edge")))
        waves = sinusoids(*x.shape[-2:])
        return x + (self.alpha[...] * waves).astype(x.dtype)


class ToRGB(nnx.Module):
    """Features to the image so far: a linear layer with two biases, as published."""

    def __init__(self, features: int, channels: int, *, param_dtype: Dtype, **options: Any) -> None:
        options = {"param_dtype": param_dtype, "kernel_init": rgb_init, **options}
        self.conv = nnx.Linear(features, channels, **options)
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, Y, features] to [batch..., X, Y, channels]."""
        image: jax.Array = self.conv(x)
        return image + self.bias[...].astype(image.dtype)


class Level(nnx.Module):
    """Blocks at one resolution, and what leads to the next; None after the last."""

    def __init__(self, layers: list[blocks.TransformerBlock], upsample: Upsample | None) -> None:
        self.blocks = nnx.List(layers)
        self.upsample = upsample


class StyleNAT(nnx.Module):
    """The generator: random vectors to images.

    A style vector is made of the random one and steers the norms of all blocks. Each level adds to the image;
    there is no limit to its values, the published data are in [-1, 1].

    Args:
      config: the architecture.
      rngs: stream "params".
      dtype: of the computation; inferred from inputs and parameters if None.
      param_dtype: of the parameters; the positional biases have float32 at least.
      implementation: of attention, see `jax_na.neighborhood_attention`.
      remat: compute every block again in the backward pass; or a policy of `jax.checkpoint` for that.

    Example:
      >>> from flax import nnx
      >>> from flax_layers.models.stylenat import StyleNAT, StyleNATConfig
      >>> config = StyleNATConfig((16, 16, 8), dilations=((1,), (1, 2)), min_heads=2, style_features=16)
      >>> model = nnx.eval_shape(lambda: StyleNAT(config, rngs=nnx.Rngs(0)))  # shapes alone
      >>> nnx.eval_shape(lambda model: model(jnp.ones((2, 16))), model).shape
      (2, 16, 16, 3)
    """

    def __init__(
        self,
        config: StyleNATConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str | None = None,
        remat: blocks.Remat = False,
    ) -> None:
        self.config, self.remat, self.dtype = config, remat, dtype
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        make = {"rate": config.mapping_rate, "is_activated": True, **options}
        style = config.style_features
        self.style = nnx.List(EqualLinear(style, style, **make) for _ in range(config.mapping_depth))
        first = (FIRST_SIDE, FIRST_SIDE, config.features[0])
        self.input = nnx.Param(jax.random.normal(rngs.params(), first, param_dtype))
        levels, to_rgbs = [], []
        for i, (features, following) in enumerate(
            zip(config.features, (*config.features[1:], None), strict=True)
        ):
            layers = [_block(config, i, implementation=implementation, **options) for _ in range(BLOCKS)]
            upsample = None if following is None else Upsample(features, following, **options)
            levels.append(Level(layers, upsample))
            to_rgbs.append(ToRGB(following or features, config.channels, **options))
        self.levels, self.to_rgbs = nnx.List(levels), nnx.List(to_rgbs)

    def __call__(self, z: jax.Array) -> jax.Array:
        """Normal random vectors [batch..., style_features] to images [batch..., X, X, channels]."""
        return self.synthesis(self.mapping(z))

    def mapping(self, z: jax.Array) -> jax.Array:
        """Random vectors, whose length does not count, to styles; both [batch..., style_features]."""
        wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
        w = (wide * jax.lax.rsqrt(jnp.mean(wide**2, -1, keepdims=True) + 1e-8)).astype(z.dtype)
        for layer in self.style:
            w = layer(w)
        return w

    def synthesis(self, w: jax.Array) -> jax.Array:
        """Styles [batch..., style_features] to images [batch..., X, X, channels]."""
        if w.shape[-1:] != (self.config.style_features,):
            raise ValueError(f"styles {w.shape} must be [batch..., {self.config.style_features}]")
        x = jnp.broadcast_to(self.input[...], (*w.shape[:-1], *self.input.shape))
        x = x.astype(self.dtype or w.dtype)
        image: jax.Array | None = None
        for level, to_rgb in zip(self.levels, self.to_rgbs, strict=True):
            x = blocks.run(level.blocks, x, w, remat=self.remat)
            if level.upsample is not None:
                x = level.upsample(x)
                image = None if image is None else doubled(image, "constant")
            image = to_rgb(x) if image is None else image + to_rgb(x)
        assert image is not None
        return image


def _block(
    config: StyleNATConfig, level: int, *, implementation: str | None, **options: Any
) -> blocks.TransformerBlock:
    """Global attention in the first level, one window or windows per group of heads in the others."""
    features = config.features[level]
    window: dict[str, Any] = {"kernel_size": FIRST_SIDE}
    if level:
        groups = [(config.kernel_size, dilation) for dilation in config.dilations[level - 1]]
        window = {"head_groups": groups}
    attn = blocks.attention(
        features, config.num_heads(level), implementation=implementation, **window, **options
    )
    mlp = blocks.MLP(features, int(config.mlp_ratio * features), **options)
    numerics = {name: options[name] for name in ("dtype", "param_dtype")}
    norm = functools.partial(AdaIN, style_features=config.style_features, **numerics)
    return blocks.TransformerBlock(features, attn, mlp, norm=norm, rngs=options["rngs"])


def _ffhq(*narrow: int) -> StyleNATConfig:
    """Five levels of 512 features, then narrower ones. Half of the heads see the whole map, with gaps."""
    features = (512,) * 5 + narrow
    return StyleNATConfig(features, tuple((1, 2**i) for i in range(len(features) - 1)))


VARIANTS: dict[str, StyleNATConfig] = {
    "ffhq_256": _ffhq(256, 128),
    "ffhq_1024": _ffhq(256, 128, 64, 32),
}
