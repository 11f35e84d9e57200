# SPDX-License-Identifier: Apache-2.0
"""HDiT, the hourglass diffusion transformer (https://arxiv.org/abs/2401.11605).

A network that denoises images in pixel space: neighborhood attention at the high resolutions, global
attention at the low ones. `flax_layers.models.diffusion` trains it and samples from it. Its authors published
configurations, but no weights. Of their kinds of attention, shifted windows are left out: no published
configuration of these models has them.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_layers.models import blocks, hdit_blocks
from flax_layers.models.hdit_config import VARIANTS, HDiTConfig, Level, Mapping
from flax_layers.nnx import NeighborhoodAttention

__all__ = ["VARIANTS", "HDiT", "HDiTConfig", "Level", "Mapping", "param_groups"]


class HDiT(nnx.Module):
    """The raw network of an HDiT: noisy images, scaled to unit variance, to the target of its loss.

    `diffusion.denoiser` makes a denoiser of it. Untrained, it returns zeros.

    Args:
      config: the architecture.
      rngs: streams "params" and, for dropout, "dropout".
      dtype: of the computation; inferred from images and parameters if None. Not float16, whose range is too
        small for it.
      param_dtype: of the parameters.
      implementation: of attention, see `jax_na.neighborhood_attention`.
      remat: compute every layer again in the backward pass; or a policy of `jax.checkpoint` for that.

    Example:
      >>> from flax import nnx
      >>> from flax_layers.models.hdit import HDiT, HDiTConfig, Level, Mapping
      >>> levels = (Level(1, 16, kernel_size=3, head_dim=8), Level(1, 32, "full", head_dim=8))
      >>> config = HDiTConfig(levels, Mapping(16, 1), num_classes=10)
      >>> model = nnx.eval_shape(lambda: HDiT(config, rngs=nnx.Rngs(0)))  # shapes alone
      >>> noisy, sigma, classes = jnp.ones((2, 32, 32, 3)), jnp.ones(2), jnp.array([3, 10])
      >>> nnx.eval_shape(lambda model: model(noisy, sigma, classes), model).shape
      (2, 32, 32, 3)
    """

    def __init__(
        self,
        config: HDiTConfig,
        *,
        rngs: nnx.Rngs,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        implementation: str | None = None,
        remat: blocks.Remat = False,
    ) -> None:
        self.config, self.remat = config, remat
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        levels, patch = config.levels, config.patch_size**2 * config.channels
        self.patch_in = hdit_blocks.linear(patch, levels[0].width, **options)
        self.conditioning = hdit_blocks.Conditioning(config, **options)

        def layers(level: Level) -> nnx.List[blocks.TransformerBlock]:
            make = {"implementation": implementation, **options}
            return nnx.List(_layer(level, config.mapping.width, **make) for _ in range(level.depth))

        pairs = list(itertools.pairwise(levels))
        self.down_levels = nnx.List(layers(level) for level in levels[:-1])
        self.merges = nnx.List(hdit_blocks.linear(4 * a.width, b.width, **options) for a, b in pairs)
        self.mid_level = layers(levels[-1])
        self.splits = nnx.List(hdit_blocks.Split(b.width, a.width, **options) for a, b in pairs)
        self.up_levels = nnx.List(layers(level) for level in levels[:-1])
        self.out_norm = hdit_blocks.rms_norm(levels[0].width, **options)
        self.patch_out = hdit_blocks.linear(levels[0].width, patch, kernel_init=hdit_blocks.zeros, **options)

    def __call__(
        self,
        images: jax.Array,
        sigma: jax.Array,
        classes: jax.Array | None = None,
        augmentation: jax.Array | None = None,
        condition: jax.Array | None = None,
    ) -> jax.Array:
        """Evaluates the network.

        Args:
          images: `[batch..., X, Y, channels]`; X and Y are multiples of `config.multiple`, and no level's
            grid is smaller than its window.
          sigma: the noise of the images, `[batch...]` or one number.
          classes: int `[batch...]`, `config.num_classes` for none; needed if the model has classes.
          augmentation: `[batch..., 9]`, zeros for an image as it was; zeros if None.
          condition: `[batch..., condition_features]`; needed if the model has it.

        Returns:
          `[batch..., X, Y, channels]`.
        """
        self._check(images)
        c = self.conditioning(jnp.broadcast_to(sigma, images.shape[:-3]), classes, augmentation, condition)
        x = self.patch_in(hdit_blocks.to_patches(images, self.config.patch_size))
        skips = []
        for level, merge in zip(self.down_levels, self.merges, strict=True):
            x = blocks.run(level, x, c, remat=self.remat)
            skips.append(x)
            x = merge(hdit_blocks.to_patches(x, 2))
        x = blocks.run(self.mid_level, x, c, remat=self.remat)
        for level, split, skip in reversed(list(zip(self.up_levels, self.splits, skips, strict=True))):
            x = blocks.run(level, split(x, skip), c, remat=self.remat)
        return hdit_blocks.to_pixels(self.patch_out(self.out_norm(x)), self.config.patch_size)

    def _check(self, images: jax.Array) -> None:
        config = self.config
        blocks.check_images(images, config.channels)
        sides = images.shape[-3:-1]
        if any(side < 1 or side % config.multiple for side in sides):
            nearest = tuple(max(round(side / config.multiple), 1) * config.multiple for side in sides)
            raise ValueError(
                f"sides {sides} of images must be multiples of {config.multiple}; the nearest are {nearest}"
            )
        for i, level in enumerate(config.levels):
            tokens = min(sides) // config.side_of(i)
            if level.kernel_size != "full" and tokens < level.kernel_size:
                least = -(-level.kernel_size * config.side_of(i) // config.multiple) * config.multiple
                raise ValueError(
                    f"images of sides {sides} have {tokens} tokens along a side of level {i}, fewer than its "
                    f"kernel_size {level.kernel_size}; take sides of at least {least}, or another kernel_size"
                )


def _layer(
    level: Level, condition_features: int, *, implementation: str | None, **options: Any
) -> blocks.TransformerBlock:
    heads, left = divmod(level.width, level.head_dim)
    if left or not heads:
        raise ValueError(
            f"width {level.width} of a level must be a multiple of its head_dim {level.head_dim}"
        )
    attn = NeighborhoodAttention(
        heads,
        level.width,
        level.kernel_size,
        rank=2,
        use_bias=False,
        cosine_scale=10.0,
        position=hdit_blocks.AxialRoPE(heads, level.head_dim),
        heads_dropout_rate=level.dropout,
        deterministic=False,
        implementation=implementation,
        kernel_init=hdit_blocks.uniform,
        out_kernel_init=hdit_blocks.zeros,
        **options,
    )
    mlp = hdit_blocks.GEGLU(level.width, level.hidden or 3 * level.width, dropout=level.dropout, **options)
    numerics = {name: options[name] for name in ("dtype", "param_dtype")}

    def norm(features: int, *, rngs: nnx.Rngs) -> hdit_blocks.AdaRMSNorm:
        return hdit_blocks.AdaRMSNorm(features, condition_features, rngs=rngs, **numerics)

    return blocks.TransformerBlock(level.width, attn, mlp, norm=norm, rngs=options["rngs"])


def param_groups(model: HDiT) -> nnx.State[Any, Any]:
    """Names of how each parameter is trained in the published recipe, for `optax.multi_transform`.

    "decayed" are the matrices of layers, patches and between levels; "mapping_decayed" those of the mapping
    network and of the adaptive norms, at a third of the learning rate; "plain" and "mapping_plain" have no
    weight decay. In the recipe AdamW has learning rate 5e-4, betas (0.9, 0.95) and weight decay 1e-2.

    Returns:
      The state `nnx.state(model, nnx.Param)` with strings in place of the parameters.
    """

    def group(path: tuple[Any, ...]) -> str:
        names = set(map(str, path))
        prefix = "mapping_" if names & {"mapping", "linear"} else ""
        is_matrix = "kernel" in names and not names & {"time_in_proj", "aug_in_proj", "mapping_cond_in_proj"}
        return prefix + ("decayed" if is_matrix else "plain")

    flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return nnx.from_flat_state([(path, group(path)) for path, _ in flat])
