# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention as a linen layer, after `flax.linen.MultiHeadDotProductAttention`."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype, Initializer, PrecisionLike, PRNGKey

from flax_layers import core
from flax_layers.groups import (
    Group,
    HeadGroups,
    Heads,
    KernelSize,
    PerAxis,
    PerAxisFlag,
    Windows,
    checked_pairs,
    head_sizes,
)
from jax_na.api.window import Window
from jax_na.axis_values import sequence


class NeighborhoodAttention(nn.Module):
    """Multi-head attention in which every position attends to its neighborhood.

    Takes inputs `[batch..., *spatial, features]`. The number of spatial axes is `rank`, or the length of
    whichever of `kernel_size`, `stride`, `dilation`, `is_causal`, `is_periodic` is a tuple.
    Axes shorter than `kernel_size * dilation` are padded with zeros at the end, before the projections, and
    cropped after, as in the published NAT and DiNAT layers: there, padded positions take part as keys.
    Periodic axes are not padded: their lengths must be legal for all windows.

    Parameters have the names and shapes of `flax.linen.MultiHeadDotProductAttention`, so checkpoints swap:
    `query`, `key`, `value` with `kernel [features, heads, head_dim]` and `bias [heads, head_dim]`, `out` with
    `kernel [heads, head_dim, out_features]` and `bias [out_features]`, `query_ln` and `key_ln` with
    `normalize_qk`; and `rpb [heads, 2 * kernel_size - 1, ...]` with `rel_pos_bias`, or one for each group of
    heads, `rpb_0`, `rpb_1`, ...

    Attributes:
      num_heads: number of query heads; `qkv_features` must be a multiple.
      kernel_size: keys per axis, one value or one per axis; a `jax_na.Neighborhood` stands for all five.
        "full" is attention between all positions of a grid of any size; `rank` says how many axes it has.
      stride, dilation, is_causal, is_periodic: see `jax_na.neighborhood_attention`; one value or one per
        axis.
      rank: number of spatial axes, needed if all of these are single values.
      rel_pos_bias: learn a relative positional bias. It is stored in float32 whatever `param_dtype`
        (float64 for float64 parameters).
      scale: factor of the logits; `head_dim ** -0.5` if None.
      implementation: "naive", "gemm", "fused", "xla", or None for the fastest that supports the problem.
      head_groups: in place of `kernel_size` and `dilation`, pairs of these, one for each group of heads:
        `[((7, 7), 1), ((7, 7), 4)]`. Groups are neighbouring heads, in order, of equal size; if they do not
        divide the heads, the last groups have one head more, as in StyleNAT. stride, is_causal and
        is_periodic are shared, inputs are padded to the largest window, and with `rel_pos_bias` group i has a
        parameter `rpb_i`.
      num_kv_heads: heads of key and value; a divisor of `num_heads`, which is the default (grouped heads).
      dtype: dtype of the computation; inferred from inputs and parameters if None.
      param_dtype: dtype of the parameters.
      qkv_features: features of all heads of the query; the input's features if None.
      out_features: features of the output; the input's features if None.
      dropout_rate: dropout of the output projection's result. The kernels never form the attention
        probabilities, so there is no dropout of those, and no `broadcast_dropout`.
      heads_dropout_rate: dropout of what the heads return, before the output projection.
      deterministic: no dropout if True; here or in the call, needed only if there is a dropout rate > 0.
      precision: precision of the projections and of the attention, see `jax_na.neighborhood_attention`.
      kernel_init, bias_init: initializers of the query, key and value projections.
      out_kernel_init, out_bias_init: initializers of the output projection; the ones above if None.
      rpb_init: initializer of the relative positional bias.
      use_bias: whether the projections add a bias.
      normalize_qk: whether query and key are normalized over their head_dim, by LayerNorm without bias
        (https://arxiv.org/abs/2302.05442), or a factory of another module for each, which is called with the
        `name` that its parameters have: `functools.partial(nn.RMSNorm, epsilon=1e-6)`.
      cosine_scale: cosine attention: query and key are divided by their lengths, and the scores multiplied by
        a learned factor per head, the parameter `scale [heads]`, which begins with this number; takes the
        place of `scale`.
      position: a function of query and key `[batch..., *spatial, heads, head_dim]`, after the norm, that
        returns both with their positions in them: rotary embeddings, say.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax_layers import NeighborhoodAttention
      >>> layer = NeighborhoodAttention(num_heads=4, kernel_size=(7, 7), dilation=2, rel_pos_bias=True)
      >>> images = jnp.ones((2, 28, 28, 32))
      >>> variables = layer.init(jax.random.key(0), images)
      >>> layer.apply(variables, images).shape
      (2, 28, 28, 32)
    """

    num_heads: int
    kernel_size: KernelSize | None = None
    stride: PerAxis = 1
    dilation: PerAxis = 1
    is_causal: PerAxisFlag = False
    is_periodic: PerAxisFlag = False
    rank: int | None = None
    rel_pos_bias: bool = False
    scale: float | None = None
    implementation: str | None = None
    num_kv_heads: int | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    precision: PrecisionLike = None
    kernel_init: Initializer = core.kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = core.bias_init
    out_bias_init: Initializer | None = None
    rpb_init: Initializer = core.rpb_init
    use_bias: bool = True
    normalize_qk: bool | Callable[..., nn.Module] = False
    cosine_scale: float | None = None
    position: core.Position | None = None
    head_groups: HeadGroups | None = None
    heads_dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in Window._fields:  # a layer is hashable, so that it can be a static argument of jit
            values = sequence(getattr(self, name))
            if values is not None:
                object.__setattr__(self, name, values)
        if self.head_groups is not None:
            object.__setattr__(self, "head_groups", checked_pairs(self.head_groups))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | None = None,
        inputs_v: jax.Array | None = None,
        *,
        key_mask: jax.Array | None = None,
        deterministic: bool | None = None,
        dropout_rng: PRNGKey | None = None,
    ) -> jax.Array:
        """Attends from every position of `inputs_q` to its neighborhood in `inputs_k` and `inputs_v`.

        Args:
          inputs_q: `[batch..., *spatial, features]`.
          inputs_k: keys on the same grid; `inputs_q` if None.
          inputs_v: values on the same grid; `inputs_k` if None.
          key_mask: bool `[batch..., *spatial]` or without the batch axes, True where a key exists; nobody
            sees the others, nor what fills up axes that are too short.
          deterministic: no dropout if True; if a dropout rate is > 0, give either this or the attribute.
          dropout_rng: key of the dropout mask; `self.make_rng("dropout")` if None.

        Returns:
          `[batch..., *spatial, out_features]`.
        """
        inputs = core.self_attention(inputs_q, inputs_k, inputs_v)
        heads = head_sizes(self.qkv_features or inputs_q.shape[-1], self.num_heads, self.num_kv_heads)
        groups = self._windows().groups(heads)
        x = core.attend(
            groups,
            inputs,
            functools.partial(self._project, heads),
            [self._rpb(group) for group in groups],
            key_mask,
            scale=core.scale_of(self.scale, self.cosine_scale),
            implementation=self.implementation,
            precision=self.precision,
        )
        heads_rng = dropout_rng
        if dropout_rng is not None and self.heads_dropout_rate > 0.0:
            heads_rng, dropout_rng = jax.random.split(dropout_rng)  # two masks
        x = self._drop(x, self.heads_dropout_rate, deterministic, heads_rng)
        out: jax.Array = self._dense(
            features=self.out_features or inputs_q.shape[-1],
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            name="out",
        )(x)
        return self._drop(out, self.dropout_rate, deterministic, dropout_rng)

    def _windows(self) -> Windows:
        window = (self.kernel_size, self.stride, self.dilation, self.is_causal, self.is_periodic)
        return Windows(*window, self.rank, self.head_groups)

    def _rpb(self, group: Group) -> jax.Array | None:
        if not self.rel_pos_bias:
            return None
        dtype = core.bias_dtype(self.param_dtype)
        rpb: jax.Array = self.param(group.bias_name, self.rpb_init, group.bias_shape, dtype)
        return rpb

    def _drop(self, x: jax.Array, rate: float, deterministic: bool | None, rng: PRNGKey | None) -> jax.Array:
        if rate == 0.0:
            return x
        deterministic = nn.merge_param("deterministic", self.deterministic, deterministic)
        dropped: jax.Array = nn.Dropout(rate)(x, deterministic=deterministic, rng=rng)
        return dropped

    def _project(
        self, heads: Heads, inputs_q: jax.Array, inputs_k: jax.Array, inputs_v: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[batch..., *spatial, features] to query [..., num, head_dim], key and value [..., kv, head_dim]."""
        query = self._dense(features=(heads.num, heads.head_dim), name="query")(inputs_q)
        key = self._dense(features=(heads.kv, heads.head_dim), name="key")(inputs_k)
        value = self._dense(features=(heads.kv, heads.head_dim), name="value")(inputs_v)
        if self.normalize_qk:
            layer_norm = functools.partial(
                nn.LayerNorm, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype
            )
            norm = layer_norm if self.normalize_qk is True else self.normalize_qk
            query, key = norm(name="query_ln")(query), norm(name="key_ln")(key)
        if self.cosine_scale is not None:
            init = nn.initializers.constant(self.cosine_scale)
            scale = self.param("scale", init, (heads.num,), core.bias_dtype(self.param_dtype))
            query, key = core.cosine(query, key, scale)
        return core.placed(self.position, query, key, value)

    def _dense(self, **options: Any) -> nn.DenseGeneral:
        inits = {"kernel_init": self.kernel_init, "bias_init": self.bias_init}
        return nn.DenseGeneral(
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            **(inits | options),
        )
