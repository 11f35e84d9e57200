# SPDX-License-Identifier: Apache-2.0
"""Attention as a primitive, its derivative as a linear map, and the transpose of that map, each a primitive:

    attention   x -> (O, LSE)
    tangent     x, (O, LSE), dx -> (dO, dLSE)
    backward    x, (O, LSE), (dO, dLSE) -> dx

where x, the `Inputs`, are query, key, value, and if there are any additional tokens and rpb; dx is one of
each. All take besides what is `Present`: the position of the region, and which keys exist.

tangent and backward are linear in what begins with d and transpose into each other, so first derivatives in
reverse mode are kernel calls. Their derivatives by x, which second order needs, are those of the pure JAX
implementation. O and LSE, functions of x, are passed on only to save computing them again.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from jax_na.avals import like
from jax_na.kernels.table import ATTENTION, choose
from jax_na.mesh.shards import undivided
from jax_na.op import Inputs, Op, Present, Results, Saved
from jax_na.rules import fused_calls, stored, tokens
from jax_na.rules.primitive import Primitive, all_zero, instantiate
from jax_na.xla import attention as xla
from jax_na.xla.products import accumulator, either


class Attention(NamedTuple):
    """The operands of attention."""

    inputs: Inputs
    present: Present


class Tangent(NamedTuple):
    """The operands of the tangent map, which is linear in `along`."""

    inputs: Inputs
    results: Results
    along: Inputs
    present: Present


class Backward(NamedTuple):
    """The operands of the backward map, which is linear in `cotangents`."""

    inputs: Inputs
    results: Results
    cotangents: Results
    present: Present


def _attention_types(operands: Attention, *, op: Op) -> Results:
    query, value = operands.inputs.query, operands.inputs.value
    rows = query.shape[:-1]
    return Results(like(query, (*rows, value.shape[-1])), like(query, rows, accumulator(query.dtype)))


def _tangent_types(operands: Tangent, *, op: Op) -> Results:
    return operands.results


def _backward_types(operands: Backward, *, op: Op) -> Inputs:
    return operands.inputs


# The three maps in pure JAX. `ordinary` is what is known about the operands, see `either`.


def _forward(op: Op, inputs: Inputs, present: Present, ordinary: bool | None = None) -> Results:
    return tokens.include(op, xla.attention_forward(op, inputs, present, ordinary), inputs, present)


def _tangent(
    op: Op, inputs: Inputs, along: Inputs, present: Present, ordinary: bool | None = None
) -> Results:
    def forward(inputs: Inputs) -> Results:
        return _forward(op, inputs, present, ordinary)

    dresults: Results = jax.jvp(forward, (inputs,), (along,))[1]
    return dresults


def _backward(op: Op, operands: Backward, ordinary: bool | None = None) -> Inputs:
    inputs, results, cotangents, present = operands
    gradients = xla.attention_backward(op, operands, ordinary)
    saved = Saved(results.lse, fused_calls.delta(results, cotangents), cotangents.out)
    return tokens.include_gradients(op, gradients, inputs, present, saved)


# Lowering: to fused kernels, to the unfused ones, or to the above.


def _lower_attention(platform: str, operands: Attention, *, op: Op) -> Results:
    inputs, present = operands
    implementation = _implementation(op, platform, inputs, present)
    if implementation == "xla":
        compute = functools.partial(_forward, op, inputs, present)
        return Results(*either(platform, compute, [inputs.value]))
    if implementation != "fused":
        local = dataclasses.replace(op, implementation=implementation)
        return tokens.include(op, stored.forward(platform, local, inputs, present), inputs, present)
    inside = fused_calls.inside(platform, fused_calls.FORWARD, inputs, present)
    results = fused_calls.forward(platform, op, inside, present)
    return results if inside is inputs else tokens.include(op, results, inputs, present)


def _lower_tangent(platform: str, operands: Tangent, *, op: Op) -> Results:
    inputs, _, along, present = operands
    compute = functools.partial(_tangent, op, inputs, along, present)
    return Results(*either(platform, compute, [inputs.value, along.value]))


def _lower_backward(platform: str, operands: Backward, *, op: Op) -> Inputs:
    inputs, results, cotangents, present = operands
    implementation = _implementation(op, platform, inputs, present)
    if implementation == "xla":
        factors = [inputs.query, inputs.key, cotangents.out]
        return Inputs(*either(platform, functools.partial(_backward, op, operands), factors, results.lse))
    saved = Saved(results.lse, fused_calls.delta(results, cotangents), cotangents.out)
    inside = fused_calls.inside(platform, fused_calls.BACKWARD, inputs, present)
    if implementation == "fused":
        gradients = fused_calls.backward(platform, op, inside, results, cotangents, present)
    else:
        inside = inputs._replace(token_key=None, token_value=None)
        local = dataclasses.replace(op, implementation=implementation)
        gradients = stored.backward(platform, local, inside, saved, present)
    whole = tokens.include_gradients(op, gradients, inputs, present, saved)
    return whole._replace(query=gradients.query) if inside is inputs else whole


def _implementation(op: Op, platform: str, inputs: Inputs, present: Present) -> str:
    """What is to be called: "fused", one that stores weights, or "xla" for no kernel."""
    return choose(op, ATTENTION, platform, inputs._asdict() | present._asdict())


attention_p = Primitive("na_attention", _attention_types, _lower_attention)
tangent_p = Primitive("na_attention_tangent", _tangent_types, _lower_tangent)
backward_p = Primitive("na_attention_backward", _backward_types, _lower_backward)


def attention(op: Op, inputs: Inputs, present: Present) -> Results:
    """(O, LSE) by "fused" or "xla"; None takes the faster one that the platform has."""
    results: Results = attention_p(Attention(inputs, present), op=op)
    return results


# Derivatives.


def _attention_jvp(primals: Attention, tangents: Attention, *, op: Op) -> tuple[Results, Results | None]:
    out, lse = attention_p(primals, op=op)
    # names for checkpoint policies: with both saved, no forward kernel runs twice
    results = Results(checkpoint_name(out, "jax_na_out"), checkpoint_name(lse, "jax_na_lse"))
    if all_zero(tangents.inputs):
        return results, None
    along = instantiate(tangents.inputs)
    return results, tangent_p(Tangent(primals.inputs, results, along, primals.present), op=op)


def _tangent_transpose(ct: Results, operands: Tangent, *, op: Op) -> Tangent:
    inputs, results, _, present = operands
    return operands._replace(along=backward_p(Backward(inputs, results, ct, present), op=op))


def _backward_transpose(ct: Inputs, operands: Backward, *, op: Op) -> Backward:
    inputs, results, _, present = operands
    return operands._replace(cotangents=tangent_p(Tangent(inputs, results, ct, present), op=op))


def _tangent_map(op: Op, operands: Tangent) -> Results:
    return _tangent(op, operands.inputs, operands.along, operands.present)


def _backward_map(op: Op, operands: Backward) -> Inputs:
    results = _forward(op, operands.inputs, operands.present)
    return _backward(op, operands._replace(results=results))


def _tangent_jvp(primals: Tangent, tangents: Tangent, *, op: Op) -> Any:
    def by_inputs(inputs: Inputs) -> Results:
        results: Results = undivided(_tangent_map, op, primals._replace(inputs=inputs))
        return results

    return _linear_jvp(tangent_p, "along", by_inputs, primals, tangents, op)


def _backward_jvp(primals: Backward, tangents: Backward, *, op: Op) -> Any:
    def by_inputs(inputs: Inputs) -> Inputs:
        gradients: Inputs = undivided(_backward_map, op, primals._replace(inputs=inputs))
        return gradients

    return _linear_jvp(backward_p, "cotangents", by_inputs, primals, tangents, op)


def _linear_jvp(
    primitive: Primitive, linear: str, by_inputs: Callable[[Inputs], Any], primals: Any, tangents: Any, op: Op
) -> tuple[Any, Any]:
    """The jvp of a map that is linear in the operands `linear` and depends on inputs as `by_inputs` does."""
    terms = []
    moved = getattr(tangents, linear)
    if not all_zero(moved):
        terms.append(primitive(primals._replace(**{linear: instantiate(moved)}), op=op))
    if not all_zero(tangents.inputs):
        velocity = instantiate(tangents.inputs)
        terms.append(jax.jvp(by_inputs, (primals.inputs,), (velocity,))[1])
    dots = jax.tree.map(lambda *parts: functools.reduce(operator.add, parts), *terms) if terms else None
    return primitive(primals, op=op), dots


attention_p.define_jvp(_attention_jvp)
tangent_p.define_jvp(_tangent_jvp)
backward_p.define_jvp(_backward_jvp)
tangent_p.define_transpose(_tangent_transpose)
backward_p.define_transpose(_backward_transpose)
