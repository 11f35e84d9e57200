# SPDX-License-Identifier: Apache-2.0
"""What the linen and the nnx layer share: initial values, hooks, and attention with padding."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import jax_na
from flax_layers.groups import Group

Position = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
Project = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]

kernel_init = jax.nn.initializers.lecun_normal()
bias_init = jax.nn.initializers.zeros
rpb_init = jax.nn.initializers.truncated_normal(0.02)


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
    groups: Sequence[Group],
    inputs: tuple[jax.Array, jax.Array, jax.Array],
    project: Project,
    biases: Sequence[jax.Array | None],
    key_mask: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    """Pads the inputs to the largest window, projects them, attends, and takes the padding off again.

    Periodic axes are not padded. With a mask of keys [batch..., *spatial], padding does not exist either.
    inputs [batch..., *spatial, features] each; returns [batch..., *spatial, heads, head_dim]. `project` makes
    query, key and value of them; `biases` are those of the groups; `options` go to
    `jax_na.neighborhood_attention`.
    """
    rank = groups[0].rank
    spatial = _spatial_shape(inputs, rank)
    neighborhoods = [group.on(spatial) for group in groups]
    spans = [[w * d for w, d in zip(n.kernel_size, n.dilation, strict=True)] for n in neighborhoods]
    missing = [
        (0, 0 if is_periodic else max(*span, have) - have)
        for *span, have, is_periodic in zip(*spans, spatial, neighborhoods[0].is_periodic, strict=True)
    ]
    if padded := any(after for _, after in missing):
        query, key, value = (jnp.pad(x, [(0, 0)] * (x.ndim - rank - 1) + missing + [(0, 0)]) for x in inputs)
        inputs = query, key, value
        key_mask = _padded(key_mask, missing)
    query, key, value = project(*inputs)
    parts = []
    for group, neighborhood, rpb in zip(groups, neighborhoods, biases, strict=True):
        own_query = _heads(query, group.start, group.stop)
        own_key, own_value = (_heads(x, group.kv_start, group.kv_stop) for x in (key, value))
        attention = jax_na.neighborhood_attention(
            own_query, own_key, own_value, neighborhood, rpb=rpb, key_mask=key_mask, **options
        )
        parts.append(attention)
    out: jax.Array = parts[0] if len(parts) == 1 else jnp.concatenate(parts, -2)
    if padded:
        out = out[(..., *map(slice, spatial), slice(None), slice(None))]
    return out


def _padded(mask: jax.Array | None, missing: Sequence[tuple[int, int]]) -> jax.Array | None:
    """A mask [..., *spatial], padded at the end of the axes; one with too few axes is left for the error."""
    if mask is None or mask.ndim < len(missing):
        return mask
    return jnp.pad(mask, [(0, 0)] * (mask.ndim - len(missing)) + list(missing))


def _heads(x: jax.Array, start: int, stop: int) -> jax.Array:
    return x if stop - start == x.shape[-2] else x[..., start:stop, :]


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
