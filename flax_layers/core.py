# SPDX-License-Identifier: Apache-2.0
"""What the linen and the nnx layer share: the sizes of their parameters, and attention with padding."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import jax_na

PerAxis = int | Sequence[int]
PerAxisFlag = bool | Sequence[bool]
KernelSize = PerAxis | jax_na.Neighborhood
Position = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Project = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]

kernel_init = jax.nn.initializers.lecun_normal()
bias_init = jax.nn.initializers.zeros
rpb_init = jax.nn.initializers.truncated_normal(0.02)


class Heads(NamedTuple):
    """Sizes of the projections: the query has [num, head_dim], key and value have [kv, head_dim]."""

    num: int
    kv: int
    head_dim: int


def head_sizes(qkv_features: int, num_heads: int, num_kv_heads: int | None) -> Heads:
    """Checks that the features split into heads, and the heads into groups that share a kv head."""
    kv = num_heads if num_kv_heads is None else num_kv_heads
    if num_heads < 1 or kv < 1:
        raise ValueError(f"num_heads and num_kv_heads must be >= 1, got {num_heads} and {kv}")
    if qkv_features < 1 or qkv_features % num_heads:
        nearest = max(round(qkv_features / num_heads), 1) * num_heads
        raise ValueError(
            f"qkv_features {qkv_features} do not split into {num_heads} heads; the nearest is {nearest}"
        )
    if num_heads % kv:
        nearest = min((n for n in range(1, num_heads + 1) if num_heads % n == 0), key=lambda n: abs(n - kv))
        raise ValueError(
            f"num_kv_heads {kv} does not divide num_heads {num_heads}; the nearest that does is {nearest}"
        )
    return Heads(num_heads, kv, qkv_features // num_heads)


def bias_shape(heads: Heads, neighborhood: jax_na.Neighborhood) -> tuple[int, ...]:
    """[heads, 2 * kernel_size - 1 for every axis]."""
    return (heads.num, *(2 * w - 1 for w in neighborhood.kernel_size))


def bias_dtype(param_dtype: DTypeLike) -> Any:
    """The bias is added to logits that are at least float32, so it is stored in no less."""
    return jnp.promote_types(param_dtype, jnp.float32)


def scale_of(scale: float | None, cosine_scale: float | None) -> float | None:
    """The factor of the scores; that of cosine attention is in the query."""
    if cosine_scale is None:
        return scale
    if scale is not None:
        raise ValueError(f"scale {scale} and cosine_scale {cosine_scale} are both given; give one of them")
    return 1.0


def cosine(query: jax.Array, key: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Query and key of length 1, the query times `scale` [heads]; in no less than float32."""

    def unit(x: jax.Array) -> jax.Array:
        wide = x.astype(bias_dtype(x.dtype))
        return wide * jax.lax.rsqrt(jnp.sum(wide * wide, -1, keepdims=True) + 1e-6)  # zeros stay zeros

    factors = scale.reshape((1,) * (query.ndim - 2) + (-1, 1))
    return unit(query) * factors, unit(key)


def placed(
    position: Position | None, query: jax.Array, key: jax.Array, value: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The three as attention takes them: query and key as the hook returns them, of their shapes.

    Norms and hooks may compute in another dtype, as Flax's do by default; the value's is that of the layer.
    """
    if position is not None:
        given = query.shape, key.shape
        query, key = position(query, key)
        if (query.shape, key.shape) != given:
            shapes = query.shape, key.shape
            raise ValueError(f"position returns shapes {shapes}; query and key have {given}, which must stay")
    return query.astype(value.dtype), key.astype(value.dtype), value


def self_attention(
    inputs_q: jax.Array, inputs_k: jax.Array | None, inputs_v: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Fills in what was left out, by the rule of Flax: keys are the queries, values are the keys."""
    if inputs_k is None and inputs_v is not None:
        raise ValueError("inputs_v was given without inputs_k; give inputs_k alone to use it for both")
    inputs_k = inputs_q if inputs_k is None else inputs_k
    return inputs_q, inputs_k, inputs_k if inputs_v is None else inputs_v


def attend(
    neighborhood: jax_na.Neighborhood,
    inputs: tuple[jax.Array, jax.Array, jax.Array],
    project: Project,
    **options: Any,
) -> jax.Array:
    """Pads the inputs to the window, projects them, attends, and takes the padding off again.

    inputs [batch..., *spatial, features] each; returns [batch..., *spatial, heads, head_dim]. `project` makes
    query, key and value of them; `options` go to `jax_na.neighborhood_attention`.
    """
    rank = neighborhood.rank
    spatial = _spatial_shape(inputs, rank)
    least = [w * d for w, d in zip(neighborhood.kernel_size, neighborhood.dilation, strict=True)]
    missing = [(0, max(n - have, 0)) for n, have in zip(least, spatial, strict=True)]
    if padded := any(after for _, after in missing):
        query, key, value = (jnp.pad(x, [(0, 0)] * (x.ndim - rank - 1) + missing + [(0, 0)]) for x in inputs)
        inputs = query, key, value
    out: jax.Array = jax_na.neighborhood_attention(*project(*inputs), neighborhood, **options)
    if padded:
        out = out[(..., *map(slice, spatial), slice(None), slice(None))]
    return out


def _spatial_shape(inputs: Sequence[jax.Array], rank: int) -> tuple[int, ...]:
    for name, x in zip(("inputs_q", "inputs_k", "inputs_v"), inputs, strict=True):
        if x.ndim < rank + 1:
            raise ValueError(
                f"{name} {x.shape} must be [batch..., *spatial, features] with {rank} spatial axes: "
                f"at least {rank + 1} axes"
            )
        if x.shape[:-1] != inputs[0].shape[:-1]:
            raise ValueError(
                f"{name} {x.shape} and inputs_q {inputs[0].shape} must agree in all axes but the last"
            )
    return inputs[0].shape[-1 - rank : -1]
