# SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention by definition: numpy, float64, dense n x m matrices.

Everything else is compared with this file, so it shares no code with the package and avoids every trick:
windows are found by sliding a list slice, gradients are the textbook formulas on dense matrices. Sums run
over what a query sees: what is not finite elsewhere is not multiplied with zero.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a neighborhood, with the queries and the keys that are present (all of them by default)."""

    length: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    is_causal: bool = False
    query_start: int = 0
    num_queries: int | None = None
    key_start: int = 0
    num_keys: int | None = None
    is_periodic: bool = False

    @property
    def queries(self) -> range:
        count = self.length if self.num_queries is None else self.num_queries
        return range(self.query_start, self.query_start + count)

    @property
    def keys(self) -> range:
        count = self.length if self.num_keys is None else self.num_keys
        return range(self.key_start, self.key_start + count)

    @property
    def is_legal(self) -> bool:
        return 1 <= self.stride <= self.kernel_size and self.kernel_size * self.dilation <= self.length


def window(axis: Axis, x: int) -> tuple[list[int], int, range]:
    """The coordinates of the group of a query, its position there, and the positions of its window.

    On a periodic axis these go on past the ends of the group.
    """
    group = list(range(x % axis.dilation, axis.length, axis.dilation))
    i = group.index(x)
    first = i - i % axis.stride
    block = range(len(group))[first : first + axis.stride]
    wanted = axis.stride - 1 if axis.is_causal else axis.stride // 2
    leader = block[min(wanted, len(block) - 1)]
    start = leader - axis.kernel_size + 1 if axis.is_causal else leader - axis.kernel_size // 2
    while start < 0 and not axis.is_periodic:
        start += 1
    while start + axis.kernel_size > len(group) and not axis.is_periodic:
        start -= 1
    return group, i, range(start, start + axis.kernel_size)


def slots(axis: Axis, x: int) -> list[int | None]:
    """Coordinates of the keys that query `x` sees, slot by slot; None for a causal slot past the query."""
    group, i, positions = window(axis, x)
    return [None if axis.is_causal and j > i else group[j % len(group)] for j in positions]


@functools.lru_cache(maxsize=4096)
def axis_slots(axis: Axis) -> Array:
    """[queries, keys]: the slot in which a query sees a key, -1 where it does not."""
    table = np.full((len(axis.queries), len(axis.keys)), -1)
    for row, x in enumerate(axis.queries):
        for slot, key in enumerate(slots(axis, x)):
            if key is not None:
                if key not in axis.keys:
                    raise ValueError(f"query {x} sees key {key}, which is not in {axis.keys}")
                table[row, axis.keys.index(key)] = slot
    return table


def axis_mask(axis: Axis) -> Array:
    """[queries, keys]: whether the query sees the key."""
    return axis_slots(axis) >= 0


def axis_displacement(axis: Axis) -> Array:
    """[queries, keys]: entry of the relative positional bias of a pair (meaningful where it is visible)."""
    windows = [window(axis, x) for x in axis.queries]
    first = np.array([positions[0] - i for _, i, positions in windows])  # slot 0, seen from the query
    return axis_slots(axis) + first[:, None] + axis.kernel_size - 1


def _combine(tables: list[Array], sizes: list[int]) -> Array:
    """Row-major index over the axes, [all queries, all keys], from one [queries, keys] table per axis."""
    total = np.zeros((1, 1), int)
    for table, size in zip(tables, sizes, strict=True):
        grid = total[:, None, :, None] * size + table[None, :, None, :]
        total = grid.reshape(total.shape[0] * table.shape[0], total.shape[1] * table.shape[1])
    return total


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The dense tables of a neighborhood in several axes; N queries, M keys."""

    axes: tuple[Axis, ...]

    @functools.cached_property
    def mask(self) -> Array:
        """[N, M]: whether the query sees the key."""
        return _combine([axis_mask(a) for a in self.axes], [2] * len(self.axes)) == 2 ** len(self.axes) - 1

    @functools.cached_property
    def slot(self) -> Array:
        """[N, M]: slot of the key in the query's window, 0 where it is not visible."""
        index = _combine([axis_slots(a) for a in self.axes], [a.kernel_size for a in self.axes])
        return np.where(self.mask, index, 0)

    @functools.cached_property
    def displacement(self) -> Array:
        """[N, M]: flat index into rpb[head], 0 where the key is not visible."""
        sizes = [2 * a.kernel_size - 1 for a in self.axes]
        return np.where(self.mask, _combine([axis_displacement(a) for a in self.axes], sizes), 0)

    @property
    def window(self) -> int:
        return math.prod(a.kernel_size for a in self.axes)

    @property
    def query_shape(self) -> tuple[int, ...]:
        return tuple(len(a.queries) for a in self.axes)

    @property
    def key_shape(self) -> tuple[int, ...]:
        return tuple(len(a.keys) for a in self.axes)

    def from_slots(self, weights: Array) -> Array:
        """Weights [..., N, window] as dense [..., N, M], zero where nothing is visible."""
        dense = np.take_along_axis(
            weights, np.broadcast_to(self.slot, (*weights.shape[:-1], self.slot.shape[-1])), -1
        )
        return np.where(self.mask, dense, 0.0)

    def to_slots(self, dense: Array, fill: float) -> Array:
        """Dense [..., N, M] as weights [..., N, window]; slots without a key hold `fill`."""
        weights = np.full((*dense.shape[:-1], self.window), fill)
        rows, columns = np.nonzero(self.mask)
        weights[..., rows, self.slot[rows, columns]] = dense[..., rows, columns]
        return weights


def _flat(x: Array, rank: int) -> Array:
    """[*batch, *spatial, heads, dim] -> [batch, heads, n, dim] in float64."""
    x = np.asarray(x, np.float64)
    batch, spatial = x.shape[: x.ndim - rank - 2], x.shape[x.ndim - rank - 2 : -2]
    return x.reshape(math.prod(batch), math.prod(spatial), *x.shape[-2:]).swapaxes(1, 2)


def _unflat(x: Array, like: Array, dim: int | None = None) -> Array:
    """The inverse of `_flat`, with the shape of `like` (and another last axis if `dim` is given)."""
    return x.swapaxes(1, 2).reshape(*like.shape[:-1], dim or like.shape[-1])


def _share(x: Array, heads: int) -> Array:
    """Repeat key/value heads: query head h reads head h // (heads // kv_heads)."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def _unshare(x: Array, kv_heads: int) -> Array:
    """The transpose of `_share`: add the query heads that read the same head."""
    batch, heads, *rest = x.shape
    return x.reshape(batch, kv_heads, heads // kv_heads, *rest).sum(2)


def _bias(geometry: Geometry, rpb: Array | None) -> Array | float:
    """[heads, N, M] from rpb [heads, 2*w0-1, ...]."""
    if rpb is None:
        return 0.0
    return np.asarray(rpb, np.float64).reshape(len(rpb), -1)[:, geometry.displacement]


def _bias_gradient(geometry: Geometry, dense: Array, rpb: Array) -> Array:
    """Sum of the visible entries of [batch, heads, N, M] by the rpb entry they used."""
    flat = np.zeros((len(rpb), math.prod(rpb.shape[1:])))
    for head, values in enumerate(dense.sum(0)):
        np.add.at(flat[head], geometry.displacement[geometry.mask], values[geometry.mask])
    return flat.reshape(rpb.shape)


def _sum_of_seen(seen: Array, weights: Array, x: Array) -> Array:
    """weights [.., N, M] @ x [.., M, E], of the pairs that are `seen` alone."""
    if np.isfinite(x).all():
        return np.where(seen, weights, 0.0) @ x
    with np.errstate(invalid="ignore"):  # infinities among those that are seen
        return np.where(seen[..., None], weights[..., None] * x[..., None, :, :], 0.0).sum(-2)


def _transposed(x: Array) -> Array:
    return x.swapaxes(-1, -2)


Inputs = dict[str, Array]


class Attention:
    """Dense attention of query, key, value, and if they are there rpb, additional_keys, additional_values.

    key_mask [*batch, *keys] and additional_mask [*batch, tokens] say which keys exist, of those given.
    """

    def __init__(self, geometry: Geometry, inputs: Inputs, scale: float | None = None) -> None:
        self.geometry, self.inputs, rank = geometry, inputs, len(geometry.axes)
        self.query = _flat(inputs["query"], rank)
        self.heads, self.kv_heads = self.query.shape[1], inputs["key"].shape[-2]
        self.scale = self.query.shape[-1] ** -0.5 if scale is None else scale
        self.keys = _share(self._with_tokens("key", "additional_keys"), self.heads)
        self.values = _share(self._with_tokens("value", "additional_values"), self.heads)
        bias = np.zeros((self.heads, *geometry.mask.shape)) + _bias(geometry, inputs.get("rpb"))
        tokens = self.keys.shape[2] - geometry.mask.shape[1]
        padding = ((0, 0), (0, tokens))
        visible = np.pad(geometry.mask, padding, constant_values=True) & self._existing(tokens)
        with np.errstate(invalid="ignore"):
            logits = self.scale * self.query @ _transposed(self.keys) + np.pad(bias, ((0, 0), *padding))
        logits = np.where(visible, logits, -np.inf)
        self.seen = logits != -np.inf  # a score of -inf is a masked key
        top = np.where(self.seen.any(-1), logits.max(-1), 0.0)[..., None]
        with np.errstate(invalid="ignore"):  # inf - inf, and NaN beside what is not seen
            weights = np.where(self.seen, np.exp(logits - top), 0.0)
        total = weights.sum(-1, keepdims=True)
        log_sum = np.where(total == 0, -np.inf, top + np.log(np.where(total == 0, 1.0, total)))
        self.probabilities = weights / np.where(total == 0, 1.0, total)
        self.out_flat = _sum_of_seen(self.seen, self.probabilities, self.values)
        self.out = _unflat(self.out_flat, inputs["query"], self.values.shape[-1])
        self.lse = _unflat(log_sum, inputs["query"][..., :1])[..., 0]

    def _with_tokens(self, name: str, token_name: str) -> Array:
        """Keys or values of the grid followed by the additional ones, [batch, kv_heads, M + T, dim]."""
        parts = [_flat(self.inputs[name], len(self.geometry.axes))]
        if token_name in self.inputs:
            parts.append(_flat(self.inputs[token_name], 1))
        return np.concatenate(parts, 2)

    def _existing(self, tokens: int) -> Array:
        """[batch or 1, 1, 1, M + T]: which keys and additional tokens there are."""
        sizes = {"key_mask": self.geometry.mask.shape[1], "additional_mask": tokens}
        batch = self.query.shape[0] if any(name in self.inputs for name in sizes) else 1
        parts = [
            self.inputs[name].reshape(batch, size) != 0
            if name in self.inputs
            else np.ones((batch, size), bool)
            for name, size in sizes.items()
        ]
        return np.concatenate(parts, 1)[:, None, None]

    def _at_keys(self, weights: Array, x: Array) -> Array:
        """The sum over the queries that see a key."""
        return _sum_of_seen(_transposed(self.seen), _transposed(weights), x)

    def gradients(self, out_cotangent: Array, lse_cotangent: Array) -> Inputs:
        """Cotangents of all inputs, by the formulas of the definition."""
        d_out = _flat(out_cotangent, len(self.geometry.axes))
        d_lse = _flat(np.asarray(lse_cotangent)[..., None], len(self.geometry.axes))
        delta = (d_out * self.out_flat).sum(-1, keepdims=True) - d_lse
        with np.errstate(invalid="ignore"):
            d_logits = self.probabilities * (d_out @ _transposed(self.values) - delta)
        d_logits = np.where(self.seen, d_logits, 0.0)
        d_values = _unshare(self._at_keys(self.probabilities, d_out), self.kv_heads)
        d_keys = _unshare(self.scale * self._at_keys(d_logits, self.query), self.kv_heads)
        m = self.geometry.mask.shape[1]
        flat = {
            "query": self.scale * _sum_of_seen(self.seen, d_logits, self.keys),
            "key": d_keys[:, :, :m],
            "value": d_values[:, :, :m],
            "additional_keys": d_keys[:, :, m:],
            "additional_values": d_values[:, :, m:],
        }
        result = {name: _unflat(x, self.inputs[name]) for name, x in flat.items() if name in self.inputs}
        if "rpb" in self.inputs:
            result["rpb"] = _bias_gradient(self.geometry, d_logits[..., :m], self.inputs["rpb"])
        return result


def _weighted(weights: Array, x: Array) -> Array:
    """weights @ x, where a weight of zero contributes nothing."""
    return _sum_of_seen(weights != 0, weights, x)


def neighborhood_qk(geometry: Geometry, inputs: Inputs, cotangent: Array) -> tuple[Array, Inputs]:
    """Products of query and key (plus rpb) by slot [..., heads, window], and the gradients of a cotangent."""
    rank = len(geometry.axes)
    query, key = _flat(inputs["query"], rank), _flat(inputs["key"], rank)
    shared = _share(key, query.shape[1])
    dense = query @ _transposed(shared) + _bias(geometry, inputs.get("rpb"))
    weights = _unflat(geometry.to_slots(dense, -np.inf), inputs["query"], geometry.window)
    d_dense = geometry.from_slots(_flat(cotangent, rank))
    gradients = {
        "query": _unflat(_weighted(d_dense, shared), inputs["query"]),
        "key": _unflat(_unshare(_weighted(_transposed(d_dense), query), key.shape[1]), inputs["key"]),
    }
    if "rpb" in inputs:
        gradients["rpb"] = _bias_gradient(geometry, d_dense, inputs["rpb"])
    return weights, gradients


def neighborhood_av(geometry: Geometry, inputs: Inputs, cotangent: Array) -> tuple[Array, Inputs]:
    """Sum of weights times value over the window, and the gradients for a cotangent."""
    rank = len(geometry.axes)
    value = _flat(inputs["value"], rank)
    dense = geometry.from_slots(_flat(inputs["weights"], rank))
    shared = _share(value, dense.shape[1])
    out = _unflat(_weighted(dense, shared), inputs["weights"], value.shape[-1])
    d_out = _flat(cotangent, rank)
    d_weights = geometry.to_slots(d_out @ _transposed(shared), 0.0)
    gradients = {
        "weights": _unflat(d_weights, inputs["weights"]),
        "value": _unflat(_unshare(_weighted(_transposed(dense), d_out), value.shape[1]), inputs["value"]),
    }
    return out, gradients
