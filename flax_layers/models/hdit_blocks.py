# SPDX-License-Identifier: Apache-2.0
"""What HDiT is made of, beside the blocks of all models. No linear layer has a bias."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype
from numpy.typing import NDArray

from flax_layers.models import blocks
from flax_layers.models.hdit_config import HDiTConfig

AUGMENTATION = 9  # numbers that describe how a training image was augmented
EPSILON = 1e-6
zeros = jax.nn.initializers.zeros
# Uniform in +-1 / sqrt(fan in).
uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Constant(nnx.Variable[jax.Array]):
    """Random numbers that are drawn once and never trained: stored with a model, but no parameters."""


def linear(in_features: int, out_features: int, **options: Any) -> nnx.Linear:
    return nnx.Linear(in_features, out_features, use_bias=False, **({"kernel_init": uniform} | options))


def rms_norm(features: int, **options: Any) -> nnx.RMSNorm:
    return nnx.RMSNorm(features, epsilon=EPSILON, **options)


class AdaRMSNorm(nnx.Module):
    """x / rms(x) * (1 + linear(condition)), at least in float32 inside."""

    def __init__(self, features: int, condition_features: int, **options: Any) -> None:
        self.linear = linear(condition_features, features, kernel_init=zeros, **options)

    def __call__(self, x: jax.Array, condition: jax.Array) -> jax.Array:
        """x [batch..., X, Y, features], condition [batch..., condition_features]."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = 1 + self.linear(condition)[..., None, None, :].astype(wide.dtype)
        mean_square = jnp.mean(wide * wide, -1, keepdims=True)
        return (wide * scale * jax.lax.rsqrt(mean_square + EPSILON)).astype(x.dtype)


class GEGLU(nnx.Module):
    """down(value * gelu(gate)) with the exact GELU, value and gate being the halves of up(x)."""

    def __init__(
        self, features: int, hidden_features: int, *, dropout: float, rngs: nnx.Rngs, **options: Any
    ) -> None:
        self.up = linear(features, 2 * hidden_features, rngs=rngs, **options)
        self.down = linear(hidden_features, features, kernel_init=zeros, rngs=rngs, **options)
        self.dropout = blocks.Dropout(dropout, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., features] to the same shape."""
        value, gate = jnp.split(self.up(x), 2, -1)
        out: jax.Array = self.down(self.dropout(value * jax.nn.gelu(gate, approximate=False)))
        return out


class FourierFeatures(nnx.Module):
    """Cosines and sines of random projections, which are constants: [..., inputs] to [..., features]."""

    def __init__(self, inputs: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.weight = Constant(jax.random.normal(rngs.params(), (features // 2, inputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        angles = 2 * math.pi * jnp.einsum("...i,fi->...f", x, self.weight[...])
        return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class MappingNetwork(nnx.Module):
    """Residual feed-forward blocks on the sum of all conditions, [batch..., width]."""

    def __init__(
        self, width: int, hidden: int, depth: int, *, dropout: float, rngs: nnx.Rngs, **options: Any
    ) -> None:
        options = {"rngs": rngs, **options}
        self.in_norm = rms_norm(width, **options)
        self.norms = nnx.List(rms_norm(width, **options) for _ in range(depth))
        self.mlps = nnx.List(GEGLU(width, hidden, dropout=dropout, **options) for _ in range(depth))
        self.out_norm = rms_norm(width, **options)

    def __call__(self, condition: jax.Array) -> jax.Array:
        x: jax.Array = self.in_norm(condition)
        for norm, mlp in zip(self.norms, self.mlps, strict=True):
            x = x + mlp(norm(x))
        x = self.out_norm(x)
        return x


class Conditioning(nnx.Module):
    """Noise level, class, augmentation and another condition as one vector, [batch..., mapping width]."""

    def __init__(self, config: HDiTConfig, *, rngs: nnx.Rngs, **options: Any) -> None:
        options = {"rngs": rngs, **options}
        mapping, self.config = config.mapping, config
        width = mapping.width
        self.time_emb = FourierFeatures(1, width, rngs=rngs)
        self.time_in_proj = linear(width, width, **options)
        self.aug_emb = FourierFeatures(AUGMENTATION, width, rngs=rngs)
        self.aug_in_proj = linear(width, width, **options)
        normal = jax.nn.initializers.normal(1.0)
        has_classes, extra = config.num_classes > 0, config.condition_features
        rows = config.num_classes + 1
        self.class_emb = nnx.Embed(rows, width, embedding_init=normal, **options) if has_classes else None
        self.mapping_cond_in_proj = linear(extra, width, **options) if extra else None
        hidden = mapping.hidden or 3 * width
        self.mapping = MappingNetwork(width, hidden, mapping.depth, dropout=mapping.dropout, **options)

    def __call__(
        self,
        sigma: jax.Array,
        classes: jax.Array | None,
        augmentation: jax.Array | None,
        condition: jax.Array | None,
    ) -> jax.Array:
        x = self.time_in_proj(self.time_emb(jnp.log(sigma)[..., None] / 4))
        if augmentation is None:
            augmentation = jnp.zeros((*sigma.shape, AUGMENTATION), sigma.dtype)
        x += self.aug_in_proj(self.aug_emb(augmentation))
        for name, part, given in (
            ("classes", self.class_emb, classes),
            ("condition", self.mapping_cond_in_proj, condition),
        ):
            if (part is None) != (given is None):
                raise ValueError(
                    f"the model has {'no ' if part is None else ''}{name}, and they were "
                    f"{'not ' if given is None else ''}given; {_HINTS[name]}"
                )
            if part is not None and given is not None:
                x += part(given)
        c: jax.Array = self.mapping(x)
        return c


_HINTS = {
    "classes": "HDiTConfig.num_classes says how many there are, and is itself the label of none",
    "condition": "HDiTConfig.condition_features says how many features it has",
}


def to_patches(x: jax.Array, side: int) -> jax.Array:
    """[batch..., X, Y, C] to [batch..., X / side, Y / side, side * side * C], by row, column, channel."""
    *batch, rows, columns, channels = x.shape
    x = x.reshape(*batch, rows // side, side, columns // side, side, channels)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, rows // side, columns // side, -1)


def to_pixels(x: jax.Array, side: int) -> jax.Array:
    """The inverse of `to_patches`."""
    *batch, rows, columns, _ = x.shape
    x = x.reshape(*batch, rows, columns, side, side, -1)
    return jnp.swapaxes(x, -4, -3).reshape(*batch, rows * side, columns * side, -1)


class Split(nnx.Module):
    """Every token to 2 x 2 of the level above, blended with what it had: skip + fac * (split - skip)."""

    def __init__(self, in_features: int, out_features: int, *, param_dtype: Dtype, **options: Any) -> None:
        self.proj = linear(in_features, 4 * out_features, param_dtype=param_dtype, **options)
        self.fac = nnx.Param(jnp.full(1, 0.5, param_dtype))  # no limits: it may leave [0, 1]

    def __call__(self, x: jax.Array, skip: jax.Array) -> jax.Array:
        """x [batch..., X, Y, in_features], skip [batch..., 2 X, 2 Y, out_features] to the shape of skip."""
        x = to_pixels(self.proj(x), 2)
        return skip + self.fac[...].astype(x.dtype) * (x - skip)


@dataclasses.dataclass(frozen=True)
class AxialRoPE:
    """Rotary positions on a grid of any size, for the `position` of an attention layer.

    A quarter of the features of a head turns by the row, a quarter by the column, half of them not at all.
    Coordinates are the centres of tokens, in [-1, 1] along the longer side of the grid. Every head has
    frequencies of its own, between pi and 10 pi.

    Attributes:
      num_heads: heads of query and key.
      head_dim: features of a head, a multiple of 8.
    """

    num_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        if self.head_dim < 8 or self.head_dim % 8:
            nearest = max(round(self.head_dim / 8), 1) * 8
            raise ValueError(
                f"head_dim must be a multiple of 8, got {self.head_dim}; the nearest is {nearest}"
            )

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """[num_heads, head_dim / 8], evenly spaced in their logarithm, heads side by side."""
        count = self.num_heads * self.head_dim // 8
        steps = np.arange(count).reshape(-1, self.num_heads).T
        frequencies: NDArray[np.float64] = math.pi * 10 ** (steps / count)
        return frequencies

    def __call__(self, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Both [batch..., X, Y, num_heads, head_dim], turned, at least in float32."""
        dtype = jnp.promote_types(query.dtype, jnp.float32)
        rows, columns = query.shape[-4:-2]
        angles = self._angles(rows, columns, dtype)
        cosine, sine = jnp.cos(angles), jnp.sin(angles)

        def turned(x: jax.Array) -> jax.Array:
            quarter = self.head_dim // 4
            first, second, rest = jnp.split(x.astype(dtype), [quarter, 2 * quarter], -1)
            return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], -1)

        return turned(query), turned(key)

    def _angles(self, rows: int, columns: int, dtype: Any) -> jax.Array:
        """[X, Y, num_heads, head_dim / 4]: by the row, then by the column."""
        frequencies = jnp.asarray(self.frequencies, dtype)
        longer = max(rows, columns)
        by_row, by_column = (
            ((2 * jnp.arange(side, dtype=dtype) + 1 - side) / longer)[:, None, None] * frequencies
            for side in (rows, columns)
        )
        shape = (rows, columns, *frequencies.shape)
        parts = jnp.broadcast_to(by_row[:, None], shape), jnp.broadcast_to(by_column, shape)
        return jnp.concatenate(parts, -1)
