# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong, checked once and before anything is traced: the value given, what is legal."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_na import implementations, target
from jax_na.neighborhood import MAX_RANK, Neighborhood, given_rank

PARAMETERS = ("kernel_size", "stride", "dilation", "is_causal")


def neighborhood(ndim: int, rank: int | None, *parameters: Any) -> Neighborhood:
    """The Neighborhood of a query with `ndim` axes; `parameters` in the order of PARAMETERS.

    The rank is `rank`, else the length of whichever parameter is a tuple, else ndim - 3.
    """
    named = dict(zip(PARAMETERS, parameters, strict=True))
    given = given_rank(**named)
    if rank is None:
        rank = ndim - 3 if given is None else given
        if not 1 <= rank <= MAX_RANK:
            raise ValueError(
                f"query has {ndim} axes: [batch, *spatial, heads, head_dim] with 1 to {MAX_RANK} spatial axes has 4 "
                f"to {MAX_RANK + 3}; for other numbers of batch axes give kernel_size as a tuple, one value per axis"
            )
    elif given not in (None, rank):
        wrong = {n: p for n, p in named.items() if isinstance(p, (tuple, list))}
        raise ValueError(f"na{rank}d takes integers or tuples of {rank} values, got {wrong}")
    if ndim < rank + 2:
        raise ValueError(
            f"query must be [batch..., {rank} spatial axes, heads, head_dim]: at least {rank + 2} axes, got {ndim}"
        )
    return Neighborhood(*(p if isinstance(p, (tuple, list)) else (p,) * rank for p in parameters))


def arrays(**named: Any) -> list[Array]:
    """The arguments as JAX arrays of one supported dtype."""
    for name, x in named.items():
        if not isinstance(x, (jax.Array, np.ndarray)):
            raise TypeError(f"{name} must be an array, got {type(x).__name__}")
    converted = {name: jnp.asarray(x) for name, x in named.items()}
    dtypes = {name: x.dtype.name for name, x in converted.items()}
    for name, dtype in dtypes.items():
        if dtype not in implementations.ALL:
            legal = ", ".join(implementations.ALL)
            raise TypeError(f"{name} has dtype {dtype}; legal are {legal}")
    if len(set(dtypes.values())) > 1:
        common = jnp.result_type(*converted.values()).name
        raise TypeError(f"dtypes differ: {_list(dtypes)}; convert them to one, for instance {common}")
    return list(converted.values())


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def same_grid(n: Neighborhood, query: Array, **others: Array) -> None:
    """`others` must have the batch and spatial axes of the query, and windows must fit the grid."""
    names = "[batch..., " + "XYZ"[: n.rank].replace("", " ").strip().replace(" ", ", ") + ", heads, features]"
    for name, x in others.items():
        if x.ndim != query.ndim:
            raise ValueError(
                f"{name} has {x.ndim} axes, shape {x.shape}; query has {query.ndim}, shape {query.shape}: {names}"
            )
        if x.shape[:-2] != query.shape[:-2]:
            raise ValueError(
                f"{name} has shape {x.shape}; its batch and spatial axes must be {query.shape[:-2]}, those of the "
                f"query {query.shape}: {names}"
            )
    n.axes(query.shape[-n.rank - 2 : -2])
    for name, x in {"query": query, **others}.items():
        if 0 in x.shape[-2:]:
            raise ValueError(f"{name} has shape {x.shape}: it needs at least 1 head and 1 feature")


def features(query: Array, key: Array) -> None:
    """query and key are multiplied: they must agree in head_dim."""
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query has head_dim {query.shape[-1]}, key {key.shape[-1]}; they must be equal")


def heads(heads: int, kv_heads: int, name: str = "key") -> None:
    if heads % kv_heads:
        legal = [n for n in range(1, heads + 1) if heads % n == 0]
        nearest = min(legal, key=lambda n: abs(n - kv_heads))
        raise ValueError(
            f"query has {heads} heads, {name} {kv_heads}; heads must be a multiple of kv heads (nearest legal: {nearest})"
        )


def kv_heads(key: Array, value: Array) -> None:
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"key has {key.shape[-2]} heads, value {value.shape[-2]}; they must be equal")


def scale(scale: Any, head_dim: int) -> float:
    """The static factor of the scores, head_dim ** -0.5 by default."""
    if scale is None:
        return head_dim**-0.5
    if isinstance(scale, jax.core.Tracer):
        raise TypeError(
            "scale must be a Python number: it is compiled in; multiply query by a traced scale instead"
        )
    number = (
        scale.item() if isinstance(scale, (jax.Array, np.ndarray, np.generic)) and scale.size == 1 else scale
    )
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        raise TypeError(f"scale must be a real number or None (head_dim ** -0.5), got {scale!r}")
    if not math.isfinite(number):
        raise ValueError(
            f"scale must be finite, got {scale!r}; the default is head_dim ** -0.5 = {head_dim**-0.5:g}"
        )
    return float(number)


def rpb(rpb: Any, n: Neighborhood, heads: int) -> Array | None:
    """The positional bias [heads, 2 * w - 1 per axis]."""
    if rpb is None:
        return None
    if not isinstance(rpb, (jax.Array, np.ndarray)):
        raise TypeError(f"rpb must be an array, got {type(rpb).__name__}")
    rpb = jnp.asarray(rpb)
    if rpb.dtype.name not in implementations.ALL:
        raise TypeError(f"rpb has dtype {rpb.dtype.name}; legal are {', '.join(implementations.ALL)}")
    legal = (heads, *(2 * w - 1 for w in n.kernel_size))
    if rpb.shape != legal:
        raise ValueError(
            f"rpb has shape {rpb.shape}; [heads, 2 * kernel_size - 1 per axis] is {legal} for {heads} heads and "
            f"kernel_size {n.kernel_size}"
        )
    return rpb


def additional(
    keys: Any, values: Any, n: Neighborhood, query: Array, value: Array
) -> tuple[Array, Array] | None:
    """The tokens that every query sees, [batch..., T, kv_heads, head_dim] and [batch..., T, kv_heads, value_dim]."""
    if keys is None and values is None:
        return None
    if keys is None or values is None:
        given, missing = ("additional_values", "additional_keys")[:: 1 if keys is None else -1]
        raise ValueError(f"{given} without {missing}; give both or neither")
    _, k, v = arrays(query=query, additional_keys=keys, additional_values=values)
    batch, kv = query.shape[: query.ndim - n.rank - 2], value.shape[-2]
    tokens = k.shape[-3] if k.ndim >= 3 else "T"
    for name, x, dim in (("additional_keys", k, query.shape[-1]), ("additional_values", v, value.shape[-1])):
        if x.shape != (*batch, tokens, kv, dim):
            legal = ", ".join(map(str, (*batch, tokens, kv, dim)))
            raise ValueError(
                f"{name} has shape {x.shape}; legal is [batch..., T, kv_heads, features] = ({legal})"
            )
    return (k, v) if k.shape[-3] else None


def weights(weights: Any, value: Any) -> tuple[Array, Array]:
    """Weights may also have the accumulator's dtype."""
    (value,) = arrays(value=value)
    (weights,) = arrays(weights=weights)
    legal = {value.dtype.name: None, jnp.promote_types(value.dtype, jnp.float32).name: None}
    if weights.dtype.name not in legal:
        raise TypeError(
            f"weights have dtype {weights.dtype.name}, value {value.dtype.name}; legal: {', '.join(legal)}"
        )
    return weights, value


def slots(weights: Array, n: Neighborhood) -> None:
    if weights.shape[-1] != n.size:
        raise ValueError(
            f"weights have {weights.shape[-1]} slots; kernel_size {n.kernel_size} has {n.size}, its product"
        )


def implementation(name: str | None, dtype: Any, unfused: bool = False) -> None:
    """An implementation asked for by name must exist, offer the operation, and have kernels for some platform."""
    names = implementations.NAMES
    if name is None:
        return
    if name not in names:
        close = difflib.get_close_matches(str(name), names, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"unknown implementation {name!r}; there are {', '.join(map(repr, names))}, None{hint}"
        )
    row = implementations.row(name)
    if unfused and not row.unfused:
        those = ", ".join(repr(r.name) for r in implementations.ROWS if r.unfused)
        raise ValueError(
            f"implementation {name!r} does not store weights: it has no unfused operations; {those} do"
        )
    reasons = [row.obstacle(platform, dtype) for platform in ("cpu", *target.TARGETS)]
    if all(reasons):
        runs = [n for n in names if implementations.row(n).obstacle("cpu", dtype) is None]
        raise ValueError(
            f"implementation {name!r} cannot run: {reasons[0]}; these can: {', '.join(map(repr, runs))}"
        )


def pair_counts(outputs: Sequence[Array], lses: Sequence[Array]) -> None:
    """The arguments of merge_attentions."""
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"merge_attentions needs as many lses as outputs and at least one, got {len(outputs)} and {len(lses)}"
        )
    for o, s in zip(outputs, lses, strict=True):
        if o.shape != outputs[0].shape or s.shape != o.shape[:-1]:
            raise ValueError(
                "merge_attentions needs outputs of one shape [..., heads, value_dim] and lses [..., heads]; "
                f"got {[x.shape for x in outputs]} and {[x.shape for x in lses]}"
            )
