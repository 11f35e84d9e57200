# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention as an nnx layer, with the conventions of `flax.nnx.MultiHeadAttention`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype, Initializer, PrecisionLike

import jax_na
from flax_layers import core
from flax_layers.groups import Group, HeadGroups, Heads, KernelSize, PerAxis, PerAxisFlag, Windows, head_sizes

__all__ = ["NeighborhoodAttention"]


class NeighborhoodAttention(nnx.Module):
    """The nnx twin of `flax_layers.NeighborhoodAttention`: same parameters, same result, same names.

    Parameters exist from construction on, so `in_features` and `rngs` are given there. Everything else, the
    padding of small inputs included, is as in the linen layer.

    Args:
      num_heads: number of query heads; `qkv_features` must be a multiple.
      in_features: features of the inputs.
      kernel_size: keys per axis, one value or one per axis; a `jax_na.Neighborhood` stands for it, stride,
        dilation, is_causal and is_periodic; "full", or `head_groups` in its place, as in the linen layer.
      qkv_features: features of all heads of the query; `in_features` if None.
      out_features: features of the output; `in_features` if None.
      num_kv_heads: heads of key and value; a divisor of `num_heads`, which is the default (grouped heads).
      stride, dilation, is_causal, is_periodic: see `jax_na.neighborhood_attention`; one value or one per
        axis.
      rank: number of spatial axes, needed if kernel_size, stride, dilation, is_causal and is_periodic are
        single values.
      rel_pos_bias: learn a relative positional bias, `rpb [heads, 2 * kernel_size - 1, ...]`, in float32.
      scale: factor of the logits; `head_dim ** -0.5` if None. cosine_scale: in its place, cosine attention
        with a learned factor per head, which begins with this number.
      position: a function of query and key, after the norm, that returns both with their positions in them.
      head_groups: pairs of kernel_size and dilation, one for each group of neighbouring heads; if the heads
        do not divide, the last groups have one more. Group i has a bias `rpb_i`.
      implementation: see `jax_na.neighborhood_attention`.
      in_kv_features: features of `inputs_k` and `inputs_v`; `in_features` if None.
      dropout_rate, heads_dropout_rate: dropout of the output projection's result, and of what the heads
        return, before it; the attention probabilities have none.
      normalize_qk: as in the linen layer; a factory is called with `(head_dim, rngs=rngs)`:
        `functools.partial(nnx.RMSNorm, epsilon=1e-6)`.
      deterministic: no dropout if True; overridden by the call's, needed only if a dropout rate is > 0.
      keep_rngs: keep a dropout stream of `rngs`; if False every call that drops out brings its own `rngs`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from flax_layers.nnx import NeighborhoodAttention
      >>> layer = NeighborhoodAttention(4, 32, kernel_size=(7, 7), rel_pos_bias=True, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 28, 28, 32))).shape
      (2, 28, 28, 32)
    """

    rpb: nnx.Param[jax.Array] | None  # of all heads; those of head_groups have rpb_0, rpb_1, ..

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        kernel_size: KernelSize | None = None,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        stride: PerAxis = 1,
        dilation: PerAxis = 1,
        is_causal: PerAxisFlag = False,
        is_periodic: PerAxisFlag = False,
        rank: int | None = None,
        rel_pos_bias: bool = False,
        scale: float | None = None,
        implementation: str | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        dropout_rate: float = 0.0,
        deterministic: bool | None = None,
        precision: PrecisionLike = None,
        kernel_init: Initializer = core.kernel_init,
        out_kernel_init: Initializer | None = None,
        bias_init: Initializer = core.bias_init,
        out_bias_init: Initializer | None = None,
        rpb_init: Initializer = core.rpb_init,
        use_bias: bool = True,
        normalize_qk: bool | Callable[..., nnx.Module] = False,
        cosine_scale: float | None = None,
        position: core.Position | None = None,
        head_groups: HeadGroups | None = None,
        heads_dropout_rate: float = 0.0,
        rngs: nnx.Rngs,
        keep_rngs: bool = True,
    ) -> None:
        self.in_features = in_features
        self.score_scale = core.scale_of(scale, cosine_scale)
        self.position = position
        self.implementation = implementation
        self.precision = precision
        heads = head_sizes(qkv_features or in_features, num_heads, num_kv_heads)
        windows = Windows(kernel_size, stride, dilation, is_causal, is_periodic, rank, head_groups)
        self.groups = windows.groups(heads)
        shared: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        dense = functools.partial(nnx.LinearGeneral, use_bias=use_bias, precision=precision, **shared)
        project = functools.partial(dense, kernel_init=kernel_init, bias_init=bias_init)
        in_kv_features = in_kv_features or in_features
        self.query = project(in_features, (heads.num, heads.head_dim))
        self.key = project(in_kv_features, (heads.kv, heads.head_dim))
        self.value = project(in_kv_features, (heads.kv, heads.head_dim))
        layer_norm = functools.partial(nnx.LayerNorm, use_bias=False, dtype=dtype, param_dtype=param_dtype)
        norm: Any = layer_norm if normalize_qk is True else normalize_qk
        self.query_ln = norm(heads.head_dim, rngs=rngs) if norm else None
        self.key_ln = norm(heads.head_dim, rngs=rngs) if norm else None
        self.scale = self._initial_scale(heads, cosine_scale, param_dtype)
        self.out = dense(
            in_features=(heads.num, heads.head_dim),
            out_features=out_features or in_features,
            axis=(-2, -1),
            kernel_init=out_kernel_init or kernel_init,
            bias_init=out_bias_init or bias_init,
        )
        for group in self.groups:
            rpb = self._initial_bias(group, rpb_init, param_dtype, rngs) if rel_pos_bias else None
            setattr(self, group.bias_name, rpb)
        drop = functools.partial(self._dropout, deterministic, rngs if keep_rngs else None)
        self.heads_dropout, self.dropout = drop(heads_dropout_rate), drop(dropout_rate)

    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        key_mask: jax.Array | None = None,
        deterministic: bool | None = None,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> jax.Array:
        """Attends from every position of `inputs_q` to its neighborhood in `inputs_k` and `inputs_v`.

        Args:
          inputs_q: `[batch..., *spatial, in_features]`.
          inputs_k: keys on the same grid; `inputs_q` if None.
          inputs_v: values on the same grid; `inputs_k` if None.
          key_mask: bool `[batch..., *spatial]` or without the batch axes, True where a key exists; nobody
            sees the others, nor what fills up axes that are too short.
          deterministic: no dropout if True; takes precedence over the constructor's.
          rngs: stream of the dropout mask; takes precedence over the constructor's.

        Returns:
          `[batch..., *spatial, out_features]`.
        """
        inputs = core.self_attention(inputs_q, inputs_k, inputs_v)
        if inputs_q.shape[-1] != self.in_features:
            raise ValueError(f"inputs_q has {inputs_q.shape[-1]} features, the layer has {self.in_features}")
        biases = [getattr(self, group.bias_name) for group in self.groups]
        x = core.attend(
            self.groups,
            inputs,
            self._project,
            [None if rpb is None else rpb[...] for rpb in biases],
            key_mask,
            scale=self.score_scale,
            implementation=self.implementation,
            precision=self.precision,
        )
        x = self._drop(self.heads_dropout, x, deterministic, rngs)
        return self._drop(self.dropout, self.out(x), deterministic, rngs)

    @property
    def neighborhood(self) -> jax_na.Neighborhood:
        """The window of all heads; a ValueError if there is not one of them."""
        found = [group.neighborhood for group in self.groups]
        if len(found) > 1 or found[0] is None:
            raise ValueError('heads have windows of their own, or are "full"; see the attribute groups')
        return found[0]

    @staticmethod
    def _dropout(deterministic: bool | None, rngs: nnx.Rngs | None, rate: float) -> nnx.Dropout:
        return nnx.Dropout(rate, deterministic=deterministic, rngs=rngs if rate > 0.0 else None)

    @staticmethod
    def _drop(
        dropout: nnx.Dropout,
        x: jax.Array,
        deterministic: bool | None,
        rngs: nnx.Rngs | nnx.RngStream | None,
    ) -> jax.Array:
        return x if dropout.rate == 0.0 else dropout(x, deterministic=deterministic, rngs=rngs)

    def _initial_bias(
        self, group: Group, init: Initializer, param_dtype: Dtype, rngs: nnx.Rngs
    ) -> nnx.Param[jax.Array]:
        return nnx.Param(init(rngs.params(), group.bias_shape, core.bias_dtype(param_dtype)))

    def _initial_scale(
        self, heads: Heads, cosine_scale: float | None, param_dtype: Dtype
    ) -> nnx.Param[jax.Array] | None:
        if cosine_scale is None:
            return None
        return nnx.Param(jnp.full(heads.num, cosine_scale, core.bias_dtype(param_dtype)))

    def _project(
        self, inputs_q: jax.Array, inputs_k: jax.Array, inputs_v: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[batch..., *spatial, features] to query [..., num, head_dim], key and value [..., kv, head_dim]."""
        query, key, value = self.query(inputs_q), self.key(inputs_k), self.value(inputs_v)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        if self.scale is not None:
            query, key = core.cosine(query, key, self.scale[...])
        return core.placed(self.position, query, key, value)
