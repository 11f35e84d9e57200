# SPDX-License-Identifier: Apache-2.0
"""What one device computes of an operation that is split along batch, heads and, exchanging halos, space.

Also where nothing is split, a periodic axis is continued past both ends here: the call is that of a region.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from jax_na import periodic
from jax_na.avals import like
from jax_na.mesh import halo as halos
from jax_na.mesh.halo import Halo, Names
from jax_na.mesh.roles import OFFSETS, Role, factors
from jax_na.mesh.roles import of as roles_of
from jax_na.neighborhood import Shape
from jax_na.op import Op

Function = Callable[..., Sequence[Array]]
Roles = tuple[Sequence[Role], Sequence[Role]]  # of operands and results
Placement = Sequence[Names]  # mesh axes per array axis


def placement(spec: Any, ndim: int) -> list[Names]:
    """A PartitionSpec as one tuple of mesh axes per array axis."""
    entries = [() if e is None else e if isinstance(e, tuple) else (e,) for e in spec]
    return entries + [()] * (ndim - len(entries))


def product(sizes: Mapping[str, int], names: Names) -> int:
    """Over how many devices these mesh axes cut."""
    return math.prod(sizes[name] for name in names)


@dataclass(frozen=True)
class Split:
    """One call over a mesh: `axes` are the mesh axes of every factor that is split, none by default."""

    op: Op
    batch: int
    sizes: Mapping[str, int] = field(default_factory=dict)  # of the mesh axes, in their order
    axes: Mapping[str, Names] = field(default_factory=dict)
    local: Shape = ()  # the grid of a shard, if it is not the even split

    @property
    def rank(self) -> int:
        return self.op.rank

    def shards(self, names: Names) -> int:
        return product(self.sizes, names)

    def place(self, role: Role, shape: Shape) -> list[Names]:
        """Where an array goes. An axis of one kv head, shared by all heads, goes everywhere."""
        meaning = factors(role, len(shape), self.batch, self.rank)
        return [
            () if f is None or (f == "h" and n == 1) else self.axes.get(f, ())
            for f, n in zip(meaning, shape, strict=True)
        ]

    def spec(self, role: Role, shape: Shape) -> PartitionSpec:
        return PartitionSpec(*(names or None for names in self.place(role, shape)))

    def spatial(self) -> list[tuple[int, Halo]]:
        """(axis of the grid, exchange) of the spatial axes that are split."""
        found = []
        for a, axis in enumerate(self.op.continued.axes):
            names = self.axes.get(f"x{a}", ())
            if self.shards(names) > 1:
                cut = tuple((name, self.sizes[name]) for name in names)
                before, _ = self.op.margins[a]
                found.append((a, halos.halo(axis, self._block(a), cut, tuple(self.sizes), before)))
        return found

    def _block(self, a: int) -> int:
        """The coordinates of a shard along an axis of the grid."""
        return self.local[a] if self.local else self.op.length[a] // self.shards(self.axes.get(f"x{a}", ()))

    def extend(self, keys: Sequence[Array]) -> Sequence[Array]:
        """Keys of a shard with all that its queries see, axis by axis: the second takes the corners along."""
        exchanges = dict(self.spatial())
        for a, margins in enumerate(self.op.margins):
            dim = self.batch + a
            if a in exchanges:
                keys = halos.extend(exchanges[a], keys, dim)
            else:
                keys = [periodic.continued(x, dim, *margins) for x in keys]
        return keys

    def send_home(self, extended: Sequence[Array]) -> Sequence[Array]:
        """The transpose of `extend`."""
        exchanges = dict(self.spatial())
        for a, margins in reversed([*enumerate(self.op.margins)]):
            dim = self.batch + a
            if a in exchanges:
                extended = _sent_home(exchanges[a], extended, dim, self._block(a))
            else:
                extended = [periodic.folded(x, dim, *margins) for x in extended]
        return extended

    def regions(self, offsets: Array) -> Array:
        """The offsets of this device's region."""
        offsets = self.op.first_queries(offsets)
        for a, halo in self.spatial():
            offsets = offsets.at[a].set(halos.starts(halo))
        return offsets

    def key_grid(self, keys: Shape) -> Shape:
        """Local [*spatial, kv heads] of the extended keys, from that of all keys."""
        grid = list(keys)
        for a, margins in enumerate(self.op.margins):
            grid[a] += sum(margins)
        for a, halo in self.spatial():
            grid[a] = halo.keys
        if keys[-1] > 1:
            grid[-1] //= self.shards(self.axes.get("h", ()))
        return tuple(grid)


def split(
    op: Op,
    sizes: Mapping[str, int],
    roles: Sequence[Role],
    shapes: Sequence[Shape],
    given: Sequence[Placement],
) -> Split:
    """The split that moves least: every factor goes where the first array that has it split lies.

    Arrays that must be gathered are named in a warning, once.
    """
    batch = len(shapes[0]) - op.rank - 2
    axes: dict[str, Names] = {}
    refused: dict[str | None, str] = {None: "every device needs all of it"}
    arrays = [x for x in zip(roles, shapes, given, strict=True) if "batch" in x[0]]
    for role, shape, places in arrays:
        for factor, names in zip(factors(role, len(shape), batch, op.rank), places, strict=True):
            if factor is None or not names or factor in axes or factor in refused:
                continue
            reason = _obstacle(op, factor, product(sizes, names), batch, arrays)
            if reason is not None:
                refused[factor] = reason
            elif not {*names} & {name for used in axes.values() for name in used}:
                axes[factor] = tuple(names)
    result = Split(op, batch, sizes, axes)
    for role, shape, places in zip(roles, shapes, given, strict=True):
        _warn_of_gathers(result, role, shape, places, refused)
    return result


def _warn_of_gathers(
    split: Split, role: Role, shape: Shape, given: Placement, refused: Mapping[str | None, str]
) -> None:
    """Names the axes of an array that are split in another way than they are given."""
    meaning = factors(role, len(shape), split.batch, split.rank)
    for d, (have, want) in enumerate(zip(given, split.place(role, shape), strict=True)):
        if split.shards(tuple(have)) > 1 and tuple(have) != want[: len(have)]:
            reason = refused.get(meaning[d], "the arrays of the call are split differently")
            _warn(f"axis {d} of an array of shape {shape}, split over {', '.join(have)}: {reason}")


def _obstacle(op: Op, factor: str, n: int, batch: int, arrays: Sequence[Any]) -> str | None:
    """Why an axis cannot be split n ways, None if it can."""
    for role, shape, _ in arrays:
        meaning = factors(role, len(shape), batch, op.rank)
        if factor not in meaning:
            continue
        size = shape[meaning.index(factor)]
        if factor[0] == "x" and size != op.length[int(factor[1:])]:
            return "the call is about a region of the grid"
        if size % n and not (factor == "h" and size == 1):
            what = {"b": "batch entries", "x": "tokens", "h": "heads"}[factor[0]]
            return f"{size} {what} do not divide over {n} devices"
    return None


@functools.cache  # once per message, whatever the filters of the caller
def _warn(message: str) -> None:
    warnings.warn(f"neighborhood attention gathers {message}", UserWarning, stacklevel=2)


def _sent_home(halo: Halo, extended: Sequence[Array], dim: int, block: int) -> Sequence[Array]:
    """The transpose of an exchange; `block` coordinates are those of a shard."""
    if not extended:
        return extended
    shards = [like(jax.typeof(x), (*x.shape[:dim], block, *x.shape[dim + 1 :])) for x in extended]
    (sums,) = jax.linear_transpose(functools.partial(halos.extend, halo, dim=dim), shards)(list(extended))
    found: Sequence[Array] = sums
    return found


def undivided(function: Callable[[Op, Any], Any], op: Op, operands: Any) -> Any:
    """function(op, operands), of records, for a function that knows no periodic axes."""
    if op.continued is op:
        return function(op, operands)
    leaves, tree = jax.tree.flatten(operands)
    split = Split(op, leaves[0].ndim - op.rank - 2)
    extended = _with_halos(split, roles_of(operands), leaves)
    results = function(op.continued, jax.tree.unflatten(tree, extended))
    found = _at_home(split, roles_of(results), jax.tree.leaves(results))
    return jax.tree.unflatten(jax.tree.structure(results), found)


def on_shards(function: Function, split: Split, roles: Roles, shapes: Sequence[Shape] = ()) -> Function:
    """`function` as every device runs it on its shards; `shapes` are those of the whole results.

    It has a parameter `op`, and gets one without periodic axes. Results that lack an axis which is split are
    sums over it.
    """
    inputs, outputs = roles

    def run(*shards: Array, **params: Any) -> tuple[Array, ...]:
        params["op"] = split.op.continued
        if "keys" in params:  # the grid of a result that no operand shows
            params["keys"] = split.key_grid(params["keys"])
        results = function(*_with_halos(split, inputs, shards), **params)
        return tuple(_without_halos(split, outputs, results, shapes))

    return run


def _with_halos(split: Split, roles: Sequence[Role], shards: Sequence[Array]) -> list[Array]:
    """The operands for a device's region: keys with their halos, its own offsets."""
    operands = [split.regions(x) if role == OFFSETS else x for role, x in zip(roles, shards, strict=True)]
    for role in {role: None for role in roles if "keys" in role}:  # those of a role travel together
        keys = [i for i, other in enumerate(roles) if other == role]
        for i, x in zip(keys, split.extend([operands[i] for i in keys]), strict=True):
            operands[i] = x
    return operands


def _without_halos(
    split: Split, roles: Sequence[Role], results: Sequence[Array], shapes: Sequence[Shape]
) -> list[Array]:
    """The results of a shard, of those of its region; sums over the devices where a split axis is missing."""
    found = _at_home(split, roles, results)
    if not (used := {name for names in split.axes.values() for name in names}):
        return found
    for i, (role, shape) in enumerate(zip(roles, shapes, strict=True)):
        summed = tuple(sorted(used.difference(*split.place(role, shape))))
        found[i] = lax.psum(found[i], summed) if summed else found[i]
    return found


def _at_home(split: Split, roles: Sequence[Role], results: Sequence[Array]) -> list[Array]:
    """The results of a region, with what belongs to keys of other places added there."""
    found = list(results)
    extended = [i for i, role in enumerate(roles) if "keys" in role]
    for i, x in zip(extended, split.send_home([found[i] for i in extended]), strict=True):
        found[i] = x
    return found
