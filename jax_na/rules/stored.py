# SPDX-License-Identifier: Apache-2.0
"""The maps of fused.py by the unfused kernels, where the fused ones do not take the problem.

Weights exist while a map is computed, and not from the forward to the backward one. With the maps of
trilinear.py, PN (qk), NN (av) and IN (inverse):

    S = scale PN(Q, K) + rpb;   P = exp(S - LSE);   O = NN(P, V)
    dS = P * (PN(dO, V) - delta);   dV = IN(P, dO);   dQ = scale NN(dS, K);   dK = scale IN(dS, Q)
    d_rpb = sums of dS
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array

from jax_na.op import Inputs, Op, Present, Results, Saved
from jax_na.rules import slots
from jax_na.rules.softmax import Scores, softmax_p
from jax_na.rules.trilinear import AvOperands, InverseOperands, QkOperands, av_p, inverse_p, qk_p
from jax_na.xla.softmax import exp, is_seen


def forward(platform: str, op: Op, inputs: Inputs, present: Present) -> Results:
    """O and LSE without additional tokens, by the implementation of `op`."""
    scores = _scores(platform, op, inputs, present)
    weights, lse = softmax_p.lower(platform, Scores(scores), op=dataclasses.replace(op, scale=1.0))
    out = av_p.lower(platform, AvOperands(weights, inputs.value, present.offsets), op=op).x
    return Results(out, lse)


def backward(platform: str, op: Op, inputs: Inputs, saved: Saved, present: Present) -> Inputs:
    """The gradients of the inputs, without what additional tokens add."""
    offsets = present.offsets
    scores = _scores(platform, op, inputs, present)
    weights = exp(scores, saved.lse)
    dweights = _qk(platform, op, QkOperands(saved.dout, inputs.value, offsets))
    dscores = jnp.where(is_seen(scores), weights * (dweights - saved.delta[..., None]), 0)
    dproducts = op.scale * dscores
    keys = inputs.key.shape[-op.rank - 2 : -1]
    at_keys = functools.partial(inverse_p.lower, platform, op=op, keys=keys)
    return Inputs(
        av_p.lower(platform, AvOperands(dproducts, inputs.key, offsets), op=op).x,
        at_keys(InverseOperands(dproducts, inputs.query, offsets)).y,
        at_keys(InverseOperands(weights, saved.dout, offsets)).y,
        rpb=None if inputs.rpb is None else _bias_gradient(op, inputs.rpb, dscores, offsets),
    )


def _bias_gradient(op: Op, rpb: Array, dscores: Array, offsets: Array) -> Array:
    queries = dscores.shape[-op.rank - 2 : -2]
    add_up = jax.linear_transpose(lambda table: slots.bias(op, table, queries, offsets), rpb)
    gradient: Array = add_up(dscores.sum(range(dscores.ndim - op.rank - 2)))[0]
    return gradient


def _scores(platform: str, op: Op, inputs: Inputs, present: Present) -> Array:
    qk = functools.partial(_qk, platform, op)
    products = qk(QkOperands(inputs.query, inputs.key, present.offsets))
    scores = slots.scores(op, products, inputs.rpb, present.offsets)
    return slots.masked(op, scores, present, lambda *operands: qk(QkOperands(*operands)))


def _qk(platform: str, op: Op, operands: QkOperands) -> Array:
    weights: Array = qk_p.lower(platform, operands, op=op).weights
    return weights
