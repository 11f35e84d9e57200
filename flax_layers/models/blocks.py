# SPDX-License-Identifier: Apache-2.0
"""What the models are made of. Initial values and epsilons are those of the published PyTorch models."""

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from flax_layers.nnx import NeighborhoodAttention

Remat = bool | Callable[..., bool]
# The published truncation is at 100 standard deviations: none.
linear_init = jax.nn.initializers.normal(0.02)


class Factory(Protocol):
    """Makes a module of so many features."""

    def __call__(self, features: int, /, *, rngs: nnx.Rngs) -> Callable[..., jax.Array]: ...


def check_images(images: jax.Array, channels: int) -> None:
    """Images are [batch..., X, Y, channels]."""
    if images.ndim < 3 or images.shape[-1] != channels:
        raise ValueError(
            f"images {images.shape} must be [batch..., X, Y, {channels}]: channels last, {channels} of them"
        )


def linear(in_features: int, out_features: int, **options: Any) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, kernel_init=linear_init, **options)


def layer_norm(features: int, **options: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(features, epsilon=1e-5, **options)


def conv(in_features: int, out_features: int, size: int, *, padding: int = 0, **options: Any) -> nnx.Conv:
    """A convolution of an image, `options` as of `nnx.Conv`; values begin uniform in +-1 / sqrt(fan in)."""
    limit = 1 / math.sqrt(in_features * size**2)

    def init(key: jax.Array, shape: Sequence[int], dtype: Dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    sides = ((padding, padding),) * 2  # "SAME" would pad a stride of 2 at the end alone
    return nnx.Conv(
        in_features,
        out_features,
        (size, size),
        padding=sides,
        kernel_init=init,
        bias_init=init,
        **options,
    )


def attention(features: int, num_heads: int, dropout: float = 0.0, **options: Any) -> NeighborhoodAttention:
    """Neighborhood attention over images, with the positional bias of NAT.

    features: of input and output; dropout: of the output, until `eval()`; `options` go to the layer.
    """
    return NeighborhoodAttention(
        num_heads,
        features,
        rank=2,
        rel_pos_bias=True,
        dropout_rate=dropout,
        deterministic=False,
        kernel_init=linear_init,
        rpb_init=linear_init,
        **options,
    )


class MLP(nnx.Module):
    """fc2(gelu(fc1(x))) with the exact GELU, and dropout after both; [..., features] to the same."""

    def __init__(
        self, features: int, hidden_features: int, *, dropout: float = 0.0, rngs: nnx.Rngs, **options: Any
    ) -> None:
        self.fc1 = linear(features, hidden_features, rngs=rngs, **options)
        self.fc2 = linear(hidden_features, features, rngs=rngs, **options)
        self.dropout = Dropout(dropout, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(jax.nn.gelu(self.fc1(x), approximate=False))
        return self.dropout(self.fc2(x))


class Dropout(nnx.Dropout):
    """Flax's, which has no random state if nothing is dropped."""

    def __init__(self, rate: float, rngs: nnx.Rngs) -> None:
        super().__init__(rate, rngs=rngs if rate > 0 else None)


class DropPath(nnx.Module):
    """Stochastic depth: leaves `x [batch..., X, Y, features]` out of some samples.

    The others are divided by the share of those that keep it, so that the mean stays.
    """

    def __init__(self, rate: float, rngs: nnx.Rngs) -> None:
        self.dropout = Dropout(rate, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.dropout.rate == 0 or self.dropout.deterministic:
            return x
        return x * self.dropout(jnp.ones((*x.shape[:-3], 1, 1, 1), x.dtype))


def drop_path_rates(last: float, blocks: int) -> list[float]:
    """They grow linearly over all blocks of a model, from 0 to `last`."""
    return [last * i / max(blocks - 1, 1) for i in range(blocks)]


class LayerScale(nnx.Module):
    """A learned factor for every feature."""

    def __init__(self, features: int, initial: float, param_dtype: Dtype = jnp.float32) -> None:
        self.gamma = nnx.Param(jnp.full(features, initial, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * self.gamma[...].astype(x.dtype)


class TransformerBlock(nnx.Module):
    """x + drop_path(scale1(attn(norm1(x)))), and then the same with scale2, mlp and norm2.

    Args:
      features: of `x`.
      attn, mlp: modules, `[batch..., X, Y, features]` to the same shape.
      norm: makes the two norms, called with `(features, rngs=rngs)`.
      layer_scale: what the learned factors of both branches begin with; None for none.
      drop_path: how often a sample goes without a branch, until `eval()`.
      param_dtype: of the factors.
    """

    def __init__(
        self,
        features: int,
        attn: Callable[..., jax.Array],
        mlp: Callable[..., jax.Array],
        *,
        norm: Factory,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        param_dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1, self.attn = norm(features, rngs=rngs), attn
        self.norm2, self.mlp = norm(features, rngs=rngs), mlp
        self.scale1 = None if layer_scale is None else LayerScale(features, layer_scale, param_dtype)
        self.scale2 = None if layer_scale is None else LayerScale(features, layer_scale, param_dtype)
        self.drop_path = DropPath(drop_path, rngs)

    def __call__(self, x: jax.Array, *condition: jax.Array) -> jax.Array:
        """`condition` is passed on to the norms."""
        x = self._add(x, self.attn(self.norm1(x, *condition)), self.scale1)
        return self._add(x, self.mlp(self.norm2(x, *condition)), self.scale2)

    def _add(self, x: jax.Array, branch: jax.Array, scale: LayerScale | None) -> jax.Array:
        return x + self.drop_path(branch if scale is None else scale(branch))


def attention_block(
    features: int,
    *,
    num_heads: int,
    mlp_ratio: float,
    layer_scale: float | None = None,
    dropout: float = 0.0,
    drop_path: float = 0.0,
    implementation: str | None = None,
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    rngs: nnx.Rngs,
    **window: Any,
) -> TransformerBlock:
    """The block of NAT, DiNAT, DiNAT_s and the isotropic models; `window` goes to the attention layer."""
    numerics: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    return TransformerBlock(
        features,
        attention(
            features, num_heads, dropout, implementation=implementation, rngs=rngs, **numerics, **window
        ),
        MLP(features, int(mlp_ratio * features), dropout=dropout, rngs=rngs, **numerics),
        norm=functools.partial(layer_norm, **numerics),
        layer_scale=layer_scale,
        drop_path=drop_path,
        param_dtype=param_dtype,
        rngs=rngs,
    )


def run(blocks: Iterable[Any], x: jax.Array, *condition: jax.Array, remat: Remat = False) -> jax.Array:
    """All blocks, one after the other.

    With `remat` the backward pass computes every block again instead of keeping what is inside of it. A
    policy of `jax.checkpoint` says what is kept all the same: `save_only_these_names("jax_na_out",
    "jax_na_lse")` keeps the results of attention.
    """

    def call(block: Any, x: jax.Array, *condition: jax.Array) -> jax.Array:
        out: jax.Array = block(x, *condition)
        return out

    if remat:
        call = nnx.remat(call, policy=None if remat is True else remat)
    for block in blocks:
        x = call(block, x, *condition)
    return x


class PatchEmbed(nnx.Module):
    """Patches `patch_size` x `patch_size` to tokens, then a norm.

    Images whose sides are no multiples are padded with zeros at the end, as published.
    """

    def __init__(self, in_channels: int, features: int, patch_size: int, **options: Any) -> None:
        self.patch_size = patch_size
        self.proj = conv(in_channels, features, patch_size, strides=patch_size, **options)
        self.norm = layer_norm(features, **options)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[batch..., X, Y, in_channels] to one token for each patch, [batch..., X_out, Y_out, features]."""
        x: jax.Array = self.norm(self.proj(padded(images, self.patch_size)))
        return x


def padded(x: jax.Array, multiple: int) -> jax.Array:
    """`[..., X, Y, features]` with zeros at the end of X and Y, up to a multiple."""
    missing = [(0, -side % multiple) for side in x.shape[-3:-1]]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + missing + [(0, 0)])


class Classifier(nnx.Module):
    """LayerNorm, the mean over all tokens, and a linear layer; without the layer for 0 classes."""

    def __init__(self, features: int, num_classes: int, **options: Any) -> None:
        self.norm = layer_norm(features, **options)
        self.head = linear(features, num_classes, **options) if num_classes else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch..., X, Y, features] to [batch..., num_classes] (or features)."""
        x = jnp.mean(self.norm(x), (-3, -2))
        return x if self.head is None else self.head(x)
