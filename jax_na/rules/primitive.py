# SPDX-License-Identifier: Apache-2.0
"""JAX's machinery for a primitive: evaluation, batching, derivatives and lowering.

A primitive of JAX takes and returns flat lists of arrays. Ours take a record (a NamedTuple of arrays, other
records, and of None for what is absent), return one, and so do the rules that they are given: around every
rule stands a function that puts the record together and takes the one that is returned apart. The structure
of the record, `tree`, is a parameter of the flat primitive, and so is the marker of mesh/partition.py, which
splits an operation over the devices of a mesh.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.extend.core import Primitive as FlatPrimitive
from jax.interpreters import ad, batching, mlir

from jax_na.avals import align
from jax_na.kernels.platforms import PLATFORMS
from jax_na.mesh import partition, roles
from jax_na.rules import instances

Record = Any  # a NamedTuple of arrays, records, None
Tree = Any  # the structure of a record, without its arrays

is_linear: Callable[[Any], bool] = ad.is_undefined_primal  # the operands that a transposition asks about


def is_zero(tangent: Any) -> bool:
    """Whether a tangent is known to be zero."""
    return type(tangent) is ad.Zero


def all_zero(tangents: Record) -> bool:
    """Whether all tangents of a record are known to be zero."""
    return all(map(is_zero, jax.tree.leaves(tangents, is_leaf=is_zero)))


def instantiate(tangents: Record) -> Record:
    """A record of tangents with arrays of zeros for those that are known to be zero."""
    # keeps what shard_map knows about a tangent; jnp.zeros does not
    return jax.tree.map(ad.instantiate_zeros, tangents, is_leaf=is_zero)


class Primitive:
    """An operation on a record of arrays that JAX transforms by the rules given here.

    Args:
        name: what it is called in jaxprs.
        types: `types(record of avals, **params)` is the record of the results' types, see `like`.
        lower: `lower(platform, record, **params)` computes the results; platform is one of `PLATFORMS`, or ""
            for others. The parameters are `op` and, for one primitive, static sizes of its result.
    """

    def __init__(self, name: str, types: Callable[..., Record], lower: Callable[..., Record]) -> None:
        self.types = types
        self.lower = lower
        self.flat = FlatPrimitive(name)
        self.flat.multiple_results = True
        self.flat.def_impl(functools.partial(_evaluate, self.flat))
        self.flat.def_abstract_eval(self._abstract)
        batching.primitive_batchers[self.flat] = self._batch
        for platform in ("", *PLATFORMS):
            rule = mlir.lower_fun(functools.partial(self._lower, platform), multiple_results=True)
            mlir.register_lowering(self.flat, rule, platform=platform or None)

    def __call__(self, operands: Record, **params: Any) -> Record:
        """The record of results, of a record of operands."""
        leaves, tree = jax.tree.flatten(operands)
        results = self.flat.bind(*align(*leaves), tree=tree, partitioned=partition.marker(), **params)
        return self._outcome(leaves, tree, params).unflatten(results)

    def _outcome(self, operands: Sequence[Any], tree: Tree, params: Any) -> Tree:
        """The structure of the results."""
        avals = [x.aval if is_linear(x) else jax.typeof(x) for x in operands]
        return jax.tree.structure(self.types(tree.unflatten(avals), **params))

    def _abstract(self, *avals: Any, tree: Tree, partitioned: Any, **params: Any) -> list[Any]:
        return jax.tree.leaves(self.types(tree.unflatten(avals), **params))

    def _lower(
        self, platform: str, *operands: Array, tree: Tree, partitioned: Any, **params: Any
    ) -> Sequence[Array]:
        def function(*shards: Array, **params: Any) -> list[Array]:
            return jax.tree.leaves(self.lower(platform, tree.unflatten(shards), **params))

        outcome = self._outcome(operands, tree, params)
        both = (roles_of(tree), roles_of(outcome))
        results: Sequence[Array] = partition.automatic(function, params["op"], both, operands, params)
        return results

    def _batch(
        self, operands: Sequence[Array], dims: Sequence[int | None], **params: Any
    ) -> tuple[list[Array], list[int]]:
        """The mapped axis becomes a new leading batch axis.

        A bias has none, and its gradient is a sum over the batch: there the mapped axis becomes a part of the
        heads. Where that cannot be either, as for positions of regions, instances are mapped one by one.
        """
        arguments = roles_of(params["tree"])
        mapped = [role for role, d in zip(arguments, dims, strict=True) if d is not None]
        outputs = self._in_batch(operands, dims, **params) if all("batch" in r for r in mapped) else None
        can_be_heads = all("heads" in r for r in mapped) and not any(map(instances.is_split, operands))
        if outputs is None and can_be_heads and instances.are_counted(operands, dims):
            outputs = self._among_heads(operands, dims, **params)
        if outputs is None:
            outputs = instances.one_by_one(functools.partial(self.flat.bind, **params), operands, dims)
        return outputs, [0] * len(outputs)

    def _in_batch(self, operands: Sequence[Array], dims: instances.Dims, **params: Any) -> list[Array] | None:
        """With a batch axis more; None where a result has none, but is a sum over the batch."""
        has_batch = ["batch" in role for role in roles_of(params["tree"])]
        wide = instances.lead(operands, dims, has_batch)
        if not all("batch" in role for role in self._result_roles(wide, **params)):
            return None
        found: list[Array] = self.flat.bind(*wide, **params)
        return found

    def _among_heads(self, operands: Sequence[Array], dims: instances.Dims, **params: Any) -> list[Array]:
        """Every instance has heads of its own; of an array without the mapped axis all have the same."""
        arguments = roles_of(params["tree"])
        heads = instances.Heads.of(operands, dims, arguments, params["op"].rank)
        wide = [heads.merged(*each) for each in zip(operands, dims, arguments, strict=True)]
        results = self._result_roles(wide, **params)
        found = zip(self.flat.bind(*wide, **params), results, strict=True)
        return [heads.divided(x, role) for x, role in found]

    def _result_roles(
        self, operands: Sequence[Array], tree: Tree, partitioned: Any, **params: Any
    ) -> list[roles.Role]:
        return roles_of(self._outcome(operands, tree, params))

    def define_jvp(self, rule: Callable[..., tuple[Record, Record | None]]) -> None:
        """`rule(primals, tangents, **params)` gives results and their tangents, None if all are zero."""

        def jvp(
            primals: Sequence[Any], tangents: Sequence[Any], *, tree: Tree, partitioned: Any, **params: Any
        ) -> tuple[list[Any], list[Any]]:
            results, dots = rule(tree.unflatten(primals), tree.unflatten(tangents), **params)
            outputs = jax.tree.leaves(results)
            zeros = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in outputs]
            return outputs, zeros if dots is None else jax.tree.leaves(dots)

        ad.primitive_jvps[self.flat] = jvp

    def define_transpose(self, rule: Callable[..., Record]) -> None:
        """`rule(cotangents, operands, **params)` gives the operands, cotangents in place of linear ones."""

        def transpose(
            cotangents: Sequence[Any], *operands: Any, tree: Tree, partitioned: Any, **params: Any
        ) -> list[Any]:
            if all(map(is_zero, cotangents)):
                return [None] * len(operands)
            of_results = self._outcome(operands, tree, params).unflatten(map(instantiate, cotangents))
            found = tree.flatten_up_to(rule(of_results, tree.unflatten(operands), **params))
            return [c if is_linear(x) else None for c, x in zip(found, operands, strict=True)]

        ad.primitive_transposes[self.flat] = transpose


def roles_of(tree: Tree) -> list[roles.Role]:
    """The roles of the arrays of a record with this structure."""
    return roles.of(tree.unflatten([0] * tree.num_leaves))


def _evaluate(primitive: Any, *operands: Array, **params: Any) -> list[Array]:
    """Outside of jit: compiles the primitive for these parameters, or takes what JAX has compiled before."""
    with jax.disable_jit(False):  # else it would come back here for ever
        results: list[Array] = _compiled((primitive, *sorted(params.items())), *operands)
    return results


@functools.partial(jax.jit, static_argnums=0)
def _compiled(call: tuple[Any, ...], *operands: Array) -> list[Array]:
    primitive, *params = call
    results: list[Array] = primitive.bind(*operands, **dict(params))
    return results
