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
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive as FlatPrimitive
from jax.interpreters import ad, batching, mlir

from jax_na.avals import align
from jax_na.kernels.platforms import PLATFORMS
from jax_na.mesh import partition, roles

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
        """The mapped axis becomes a new leading batch axis; where results mix the batch, map one by one."""
        has_batch = ["batch" in role for role in roles_of(params["tree"])]
        bind = functools.partial(self.flat.bind, **params)
        outputs = None
        if not any(d is not None and not b for d, b in zip(dims, has_batch, strict=True)):
            wide = _lead(operands, dims, has_batch)
            if self._keeps_batch(wide, **params):
                outputs = bind(*wide)
        if outputs is None:
            outputs = _map(bind, operands, dims)
        return outputs, [0] * len(outputs)

    def _keeps_batch(self, operands: Sequence[Array], tree: Tree, partitioned: Any, **params: Any) -> bool:
        """Whether all results have the batch axes; one that does not is a sum over them."""
        outcome = self._outcome(operands, tree, params)
        return all("batch" in role for role in roles_of(outcome))

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


def _lead(operands: Sequence[Array], dims: Sequence[int | None], has_batch: Sequence[bool]) -> list[Array]:
    """The operands with the mapped axis in front, which some may lack, of those that have batch axes."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)

    def one(x: Array, dim: int | None) -> Array:
        return jnp.broadcast_to(x, (size, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)

    each = zip(operands, dims, has_batch, strict=True)
    return [one(x, dim) if has_it else x for x, dim, has_it in each]


def _map(function: Callable[..., Any], operands: Sequence[Array], dims: Sequence[int | None]) -> Any:
    """The function for one instance after the other."""
    mapped = [None if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(operands, dims, strict=True)]

    def one(slices: list[Array | None]) -> Any:
        return function(*(x if s is None else s for s, x in zip(slices, operands, strict=True)))

    return jax.lax.map(one, mapped)
