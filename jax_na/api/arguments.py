# SPDX-License-Identifier: Apache-2.0
"""What a user can get wrong in an argument: `request.py` checks all of them, before anything is traced.

Functions named require_* raise or return nothing; the others return the argument as it is used from there on.
Every message has the value given, what is legal, and the nearest legal value where there is one.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_na.axis_values import given_rank, per_axis, positive
from jax_na.neighborhood import Neighborhood, Shape
from jax_na.op import DTYPES

Positions = int | tuple[int | Array, ...] | Array
Precision = Any  # jax.lax.PrecisionLike


def arrays(named: Mapping[str, Any]) -> dict[str, Array]:
    """The arguments as JAX arrays; all must have the same, supported dtype."""
    converted = {name: _array(name, x) for name, x in named.items()}
    dtypes = {name: x.dtype.name for name, x in converted.items()}
    if len(set(dtypes.values())) > 1:
        common = jnp.result_type(*converted.values()).name
        given = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"dtypes differ: {given}; convert to one, for instance {common}")
    return converted


def _array(name: str, x: Any) -> Array:
    if not isinstance(x, (jax.Array, np.ndarray)):
        hint = "; give its array, x[...]" if type(x).__module__.startswith("flax.") else ""
        raise TypeError(f"{name} must be an array, got {type(x).__name__}{hint}")
    array = jnp.asarray(x)
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype.name}; legal are {', '.join(DTYPES)}")
    return jax.lax.convert_element_type(array, array.dtype)  # a weak type, of a Python number, ends here


def floating(name: str, dtype: Any) -> Any:
    """A dtype of real numbers, or None."""
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(f"{name} must be a floating dtype or None, got {dtype!r}")
    return found


def spatial(n: Neighborhood, x: Array) -> Shape:
    """The spatial axes of an array [batch..., *spatial, heads, features]."""
    return x.shape[-n.rank - 2 : -2]


def _layout(n: Neighborhood) -> str:
    return f"[batch..., {', '.join('XYZ'[: n.rank])}, heads, features]"


def require_same_axes(n: Neighborhood, named: Mapping[str, Array]) -> None:
    """All must have the batch and spatial axes of the first."""
    (first, query), *others = named.items()
    for name, x in others:
        if x.ndim != query.ndim or x.shape[:-2] != query.shape[:-2]:
            legal = ", ".join(map(str, query.shape[:-2]))
            raise ValueError(
                f"{name} has shape {x.shape}, {first} {query.shape}; the batch and spatial axes of "
                f"{_layout(n)} must be the same, legal is ({legal}, heads, features)"
            )
    require_known_sizes(n, named)


def require_known_sizes(n: Neighborhood, named: Mapping[str, Array]) -> None:
    """There must be heads and features, and only batch axes may have the symbolic sizes of jax.export."""
    for name, x in named.items():
        if not all(isinstance(size, int) for size in x.shape[-n.rank - 2 :]):
            raise ValueError(
                f"{name} has shape {x.shape}; the batch axes of {_layout(n)} can have symbolic sizes, all "
                "others must be known"
            )
        if 0 in x.shape[-2:]:
            raise ValueError(f"{name} has shape {x.shape}; it needs at least 1 head and 1 feature")


def grid(n: Neighborhood, length: Any, **starts: Any) -> Shape:
    """The shape of a whole grid; what is given per axis must have the rank of the neighborhood."""
    given_rank(kernel_size=n.kernel_size, length=length, **starts)
    return per_axis("length", length, n.rank, positive)


def starts(name: str, value: Any, rank: int) -> tuple[Any, ...]:
    """A position per axis: integers, or traced scalars."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim:
        if value.shape != (rank,):
            raise ValueError(f"{name} has shape {value.shape}; legal are () and ({rank},)")
        value = tuple(value)
    return per_axis(name, value, rank, _position)


def _position(name: str, value: Any) -> Any:
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        legal = value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    else:
        legal = isinstance(value, int) and not isinstance(value, bool)
    if not legal:
        raise TypeError(f"{name} must be integers or arrays of integers, got {value!r}")
    return value if isinstance(value, jax.core.Tracer) else operator.index(value)


def require_same_keys(n: Neighborhood, named: Mapping[str, Array]) -> None:
    """Query and key have the same batch axes, key and value the same positions."""
    query, key, value = named.values()
    batch = query.shape[: query.ndim - n.rank - 2]
    if key.ndim != query.ndim or key.shape[: len(batch)] != batch:
        raise ValueError(
            f"key has shape {key.shape}, query {query.shape}; the batch axes of {_layout(n)} must be the same"
        )
    if value.ndim != key.ndim or value.shape[:-2] != key.shape[:-2]:
        raise ValueError(
            f"value has shape {value.shape}, key {key.shape}; the batch and spatial axes of {_layout(n)} "
            "must be the same"
        )
    require_known_sizes(n, named)


def require_inside(name: str, length: Shape, first: tuple[Any, ...], count: Shape) -> None:
    """The positions [first, first + count) are some of the grid's, as far as they are known."""
    for a, (size, start, n) in enumerate(zip(length, first, count, strict=True)):
        if not 1 <= n <= size:
            raise ValueError(
                f"{name} has {n} positions on spatial axis {a}; legal are 1 to {size}, its length"
            )
        if isinstance(start, int) and not 0 <= start <= size - n:
            raise ValueError(
                f"{name}_start {start} puts {n} positions at [{start}, {start + n}) of spatial axis {a} of "
                f"length {size}; legal are 0 to {size - n}"
            )


def require_windows(
    n: Neighborhood, length: Shape, queries: tuple[Shape, Shape], keys: tuple[Shape, Shape]
) -> None:
    """The keys hold all windows of the queries, on axes where both are known; both are (first, count)."""
    region = [(q, q + count) if isinstance(q, int) else (0, 1) for q, count in zip(*queries, strict=True)]
    for a, (start, stop) in enumerate(n.keys_of(length, region)):
        q, k, count = queries[0][a], keys[0][a], keys[1][a]
        if isinstance(q, int) and isinstance(k, int) and not (k <= start and stop <= k + count):
            raise ValueError(
                f"key has the positions [{k}, {k + count}) of spatial axis {a}, but the queries "
                f"[{region[a][0]}, {region[a][1]}) see the keys [{start}, {stop}); Neighborhood.keys_of tells"
            )


def require_features(named: Mapping[str, Array]) -> None:
    """Query and key must have the same head_dim, key and value the same heads; heads come in groups."""
    query, *others = named.values()
    key, value = named.get("key"), named.get("value")
    if key is not None and query.shape[-1] != key.shape[-1]:
        raise ValueError(f"key has head_dim {key.shape[-1]}, query {query.shape[-1]}; they must be equal")
    if key is not None and value is not None and key.shape[-2] != value.shape[-2]:
        raise ValueError(f"value has {value.shape[-2]} heads, key {key.shape[-2]}; they must be equal")
    require_groups(query.shape[-2], others[0].shape[-2])


def require_groups(heads: int, kv_heads: int) -> None:
    """There are as many query heads for every kv head."""
    if heads % kv_heads:
        legal = [n for n in range(1, heads + 1) if heads % n == 0]
        nearest = min(legal, key=lambda n: abs(n - kv_heads))
        raise ValueError(
            f"there are {heads} heads and {kv_heads} kv heads; heads must be a multiple of kv heads, the "
            f"nearest legal number of those is {nearest}"
        )


def scale(scale: Any, head_dim: int) -> float:
    """The static factor of the scores."""
    default: float = head_dim**-0.5
    if scale is None:
        return default
    if isinstance(scale, jax.core.Tracer):
        raise TypeError(
            "scale is traced, but it must be known when compiling: multiply the query by it, and give "
            "scale=1.0"
        )
    is_array = isinstance(scale, (jax.Array, np.ndarray, np.generic))
    number: Any = scale.item() if is_array and scale.size == 1 else scale
    if not isinstance(number, numbers.Real) or isinstance(number, bool):
        raise TypeError(f"scale must be a real number or None for head_dim ** -0.5, got {scale!r}")
    if not math.isfinite(number):
        raise ValueError(f"scale must be finite, got {scale!r}; the default here is {default:g}")
    return float(number)


def rpb(rpb: Any, n: Neighborhood, heads: int) -> Array | None:
    """The positional bias [heads, 2 * kernel_size - 1 per axis], of any supported dtype."""
    if rpb is None:
        return None
    table = _array("rpb", rpb)
    legal = (heads, *(2 * w - 1 for w in n.kernel_size))
    if table.shape != legal:
        raise ValueError(
            f"rpb has shape {table.shape}; [heads, 2 * kernel_size - 1 per axis] is {legal} for {heads} "
            f"heads and kernel_size {n.kernel_size}"
        )
    return table


def tokens(
    given: tuple[Any, Any], n: Neighborhood, query: Array, value: Array
) -> tuple[Array, Array] | tuple[None, None]:
    """The keys and values of the tokens that every query sees, if there are any."""
    absent = [x is None for x in given]
    if all(absent):
        return None, None
    if any(absent):
        present, missing = ("values", "keys") if absent[0] else ("keys", "values")
        raise ValueError(f"additional_{present} without additional_{missing}; give both or neither")
    names = ("additional_keys", "additional_values")
    converted = arrays({"query": query, **dict(zip(names, given, strict=True))})
    keys, values = (converted[name] for name in names)
    batch, kv_heads = query.shape[: query.ndim - n.rank - 2], value.shape[-2]
    count = keys.shape[-3] if keys.ndim > 2 else 1
    _require_tokens(names[0], keys, (*batch, count, kv_heads, query.shape[-1]))
    _require_tokens(names[1], values, (*batch, count, kv_heads, value.shape[-1]))
    return (None, None) if 0 in keys.shape else (keys, values)  # no token, or an empty batch


def _require_tokens(name: str, x: Array, legal: Shape) -> None:
    if x.shape != legal:
        raise ValueError(
            f"{name} has shape {x.shape}; [batch..., tokens, kv_heads, features] is {legal} for {legal[-3]} "
            "tokens"
        )


def mask(name: str, given: Any, legal: Shape, axes: str) -> Array | None:
    """Which keys exist: bool, of this shape or of its last axes, those without the batch's."""
    if given is None:
        return None
    if not isinstance(given, (jax.Array, np.ndarray)) or given.dtype != np.bool_:
        kind = getattr(given, "dtype", type(given).__name__)
        raise TypeError(f"{name} must be an array of bool, True where a key exists, got {kind}")
    if given.ndim > len(legal) or given.shape != legal[len(legal) - given.ndim :]:
        raise ValueError(f"{name} has shape {given.shape}; {axes} is {legal}, batch axes can be left out")
    return jnp.broadcast_to(given, legal)


def weights_and_value(named: Mapping[str, Any]) -> dict[str, Array]:
    """The arguments as JAX arrays; weights have the dtype of the value or of its accumulator."""
    weights, value = (_array(name, x) for name, x in named.items())
    legal = (value.dtype, jnp.promote_types(value.dtype, jnp.float32))
    if weights.dtype not in legal:
        names = " and ".join(dict.fromkeys(dtype.name for dtype in legal))
        raise TypeError(f"weights have dtype {weights.dtype.name}; legal for this value: {names}")
    return {"weights": weights, "value": value}


def require_slots(weights: Array, n: Neighborhood) -> None:
    if weights.shape[-1] != n.size:
        raise ValueError(
            f"weights have {weights.shape[-1]} slots; kernel_size {n.kernel_size} has {n.size}, its product"
        )


def require_partial_attentions(outputs: Sequence[Array], lses: Sequence[Array]) -> None:
    """The arguments of merge_attentions."""
    if not outputs or len(outputs) != len(lses):
        raise ValueError(
            f"got {len(outputs)} outputs and {len(lses)} lses; legal is the same number of both, at least 1"
        )
    for o, s in zip(outputs, lses, strict=True):
        if o.shape != outputs[0].shape or s.shape != o.shape[:-1]:
            raise ValueError(
                f"outputs have shapes {[x.shape for x in outputs]}, lses {[x.shape for x in lses]}; legal is "
                "one shape [..., heads, value_dim] for all outputs and [..., heads] for all lses"
            )
