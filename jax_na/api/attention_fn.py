# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention in the place of dot-product attention in the attention layers of Flax."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jax_na.api.arguments import Precision
from jax_na.api.attention import neighborhood_attention
from jax_na.api.window import Flags, Ints, Window, neighborhood_of
from jax_na.neighborhood import Neighborhood

INSTEAD = {
    "mask": "the window says what a query sees, and causality is an option of it; which keys exist, "
    "the same for all queries, is the key_mask of attention_fn",
    "bias": "give a relative positional bias as rpb to attention_fn",
    "is_causal": "give it to attention_fn, for every axis",
    "dropout_rate": "no kernel forms the attention weights; drop out what the layer returns",
    "sow_weights": "no kernel forms the weights; neighborhood_qk has the scores",
}


def attention_fn(
    kernel_size: Ints | Neighborhood,
    *,
    stride: Ints = 1,
    dilation: Ints = 1,
    is_causal: Flags = False,
    is_periodic: Flags = False,
    scale: float | None = None,
    rpb: Array | None = None,
    key_mask: Array | None = None,
    implementation: str | None = None,
) -> Callable[..., Array]:
    """An `attention_fn` for Flax: `flax.nnx.MultiHeadAttention`, `flax.linen.MultiHeadDotProductAttention`.

    The layer then takes inputs [batch..., *spatial, features]. Its parameters stay as they are.

    Args:
        kernel_size, stride, dilation, is_causal, is_periodic, scale, rpb, key_mask, implementation: as in
            `neighborhood_attention`; one of the first five must be a tuple, or kernel_size a `Neighborhood`.
            rpb and key_mask are the same in all calls: for a mask of every batch, the layers of
            `flax_layers` take it when they are called.

    Returns:
        A function of query, key and value that takes what Flax's layers pass on besides.

    Raises:
        TypeError, ValueError: as `neighborhood_attention`. The function raises ValueError for what it has no
            counterpart of: a mask, a bias, dropout of the attention weights, weights that are to be sown, and
            decoding one token at a time.

    Example:
        >>> from flax import nnx
        >>> window = jax_na.attention_fn(kernel_size=(7, 7))
        >>> layer = nnx.MultiHeadAttention(4, 32, decode=False, attention_fn=window, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 28, 28, 32))).shape
        (2, 28, 28, 32)
    """
    neighborhood = neighborhood_of(Window(kernel_size, stride, dilation, is_causal, is_periodic))
    options = {"scale": scale, "rpb": rpb, "key_mask": key_mask, "implementation": implementation}
    return functools.partial(_attend, neighborhood, options)


def _attend(
    neighborhood: Neighborhood,
    options: dict[str, Any],
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: DTypeLike | None = None,
    precision: Precision = None,
    module: Any = None,
    is_causal: bool = False,
) -> Array:
    """Neighborhood attention with the signature of Flax's `dot_product_attention`, from query on."""
    drops = dropout_rate > 0.0 and not deterministic
    _refuse(mask=mask, bias=bias, is_causal=is_causal or None, dropout_rate=drops or None, sow_weights=module)
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    query, key, value = (x.astype(dtype) for x in (query, key, value))
    out: Array = neighborhood_attention(query, key, value, neighborhood, precision=precision, **options)
    return out


def _refuse(**given: Any) -> None:
    """Raises ValueError for the first that is not None."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"neighborhood attention in a Flax layer takes no {name}: {INSTEAD[name]}")
