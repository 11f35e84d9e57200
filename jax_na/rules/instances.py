# SPDX-License-Identifier: Apache-2.0
"""Several instances of an operation at once, for vmap: as a batch axis, as heads, or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.mesh import roles

Dims = Sequence[int | None]  # where the mapped axis of each array is, None if it has none


def _size(operands: Sequence[Array], dims: Dims) -> int:
    """How many instances there are."""
    return next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)


def _lead(x: Array, dim: int | None, size: int) -> Array:
    """The array with the mapped axis in front, which it may lack."""
    return jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)


def lead(operands: Sequence[Array], dims: Dims, has_batch: Sequence[bool]) -> list[Array]:
    """The operands with the mapped axis in front, of those that have batch axes."""
    size = _size(operands, dims)
    each = zip(operands, dims, has_batch, strict=True)
    return [_lead(x, dim, size) if has_it else x for x, dim, has_it in each]


class Heads(NamedTuple):
    """The mapped axis as a part of the heads: [groups, instances, heads of a group].

    A group is of one key head. So groups stay together, and an axis of heads that is split over devices can
    stay split.
    """

    instances: int
    groups: int
    batch: int  # axes, without the mapped one
    rank: int

    @classmethod
    def of(cls, operands: Sequence[Array], dims: Dims, every: Sequence[roles.Role], rank: int) -> Heads:
        """Of the operands of a record, whose first array says how many batch axes there are."""
        batch = operands[0].ndim - (dims[0] is not None) - rank - 2
        heads = cls(_size(operands, dims), 1, batch, rank)
        counts = [
            _without(x.shape, dim)[heads.place(role)]
            for x, dim, role in zip(operands, dims, every, strict=True)
            if "heads" in role
        ]
        return heads._replace(groups=min(counts))

    def place(self, role: roles.Role) -> int:
        """The axis of heads of an array of one instance."""
        return roles.factors(role, 0, self.batch, self.rank).index("h")

    def merged(self, x: Array, dim: int | None, role: roles.Role) -> Array:
        """An operand with the heads of all instances; one without heads as it is."""
        if "heads" not in role:
            return x
        at, first = self.place(role), _lead(x, dim, self.instances)
        before, heads, behind = first.shape[1 : at + 1], first.shape[at + 1], first.shape[at + 2 :]
        grouped = first.reshape(self.instances, *before, self.groups, heads // self.groups, *behind)
        inside = jnp.moveaxis(grouped, 0, at + 1)
        return inside.reshape(*before, self.instances * heads, *behind)

    def divided(self, x: Array, role: roles.Role) -> Array:
        """A result, with the mapped axis in front."""
        at = self.place(role)
        before, heads, behind = x.shape[:at], x.shape[at] // self.instances, x.shape[at + 1 :]
        grouped = x.reshape(*before, self.groups, self.instances, heads // self.groups, *behind)
        return jnp.moveaxis(grouped, at + 1, 0).reshape(self.instances, *before, heads, *behind)


def _without(shape: tuple[int, ...], dim: int | None) -> tuple[int, ...]:
    """A shape without the mapped axis."""
    if dim is None:
        return shape
    dim %= len(shape)
    return shape[:dim] + shape[dim + 1 :]


def are_counted(operands: Sequence[Array], dims: Dims) -> bool:
    """Whether the number of instances is known, and no symbol: the number of heads has to be known."""
    return isinstance(_size(operands, dims), int)


def is_split(x: Array) -> bool:
    """Whether an axis is explicitly split over a mesh: then it cannot be merged with another."""
    return any(axis is not None for axis in jax.typeof(x).sharding.spec)


def one_by_one(function: Callable[..., Any], operands: Sequence[Array], dims: Dims) -> Any:
    """The function for one instance after the other."""
    mapped = [None if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]

    def one(slices: list[Array | None]) -> Any:
        return function(*(x if s is None else s for s, x in zip(slices, operands, strict=True)))

    return jax.lax.map(one, mapped)
