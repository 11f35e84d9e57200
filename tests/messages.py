# SPDX-License-Identifier: Apache-2.0
"""Every message a user can meet, each with a call that earns it."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_na
from jax_na import Neighborhood

NAMES = "legal are 'fused', 'gemm', 'naive', 'xla' and None"
NO_WEIGHTS = "implementation 'fused' never stores weights; 'gemm', 'naive', 'xla' have the unfused operations"


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


Q = zeros(2, 5, 6, 4, 8)
KV = zeros(2, 5, 6, 2, 8)
BF16, F64, I32 = Q.astype(jnp.bfloat16), Q.astype(np.float64), Q.astype(np.int32)


def attend(query=Q, key=Q, value=Q, kernel_size=(3, 3), **options):
    return jax_na.neighborhood_attention(query, key, value, kernel_size, **options)


def qk(query=Q, key=Q, kernel_size=(3, 3), **options):
    return jax_na.neighborhood_qk(query, key, kernel_size, **options)


def av(weights=zeros(2, 5, 6, 4, 9), value=Q, kernel_size=(3, 3), **options):  # noqa: B008
    return jax_na.neighborhood_av(weights, value, kernel_size, **options)


# name: (call, a part of the message)
VALUE_ERRORS = {
    "window too long": (
        lambda: attend(kernel_size=(3, 4), dilation=(1, 2)),
        "kernel_size 4 * dilation 2 = 8 exceeds length 6 of spatial axis 1; the largest legal kernel_size "
        "with dilation 2 is 3; the largest legal dilation with kernel_size 4 is 1",
    ),
    "kernel longer than the axis": (
        lambda: attend(kernel_size=(7, 7)),
        "kernel_size 7 * dilation 1 = 7 exceeds length 5 of spatial axis 0; the largest legal kernel_size "
        "with dilation 1 is 5",
    ),
    "dilation longer than the axis": (
        lambda: attend(kernel_size=(1, 1), dilation=9),
        "kernel_size 1 * dilation 9 = 9 exceeds length 5 of spatial axis 0; the largest legal dilation with "
        "kernel_size 1 is 5",
    ),
    "both longer than the axis": (
        lambda: attend(kernel_size=(9, 9), dilation=8),
        "kernel_size 9 * dilation 8 = 72 exceeds length 5 of spatial axis 0; both must be at most 5",
    ),
    "stride too long": (
        lambda: attend(kernel_size=(3, 2), stride=(3, 3)),
        "stride 3 exceeds kernel_size 2 on axis 1; the largest legal one is 2",
    ),
    "kernel 0": (
        lambda: attend(kernel_size=0),
        "kernel_size must be >= 1, got 0; the nearest legal value is 1",
    ),
    "stride 0": (lambda: attend(stride=(1, 0)), "stride must be >= 1, got 0; the nearest legal value is 1"),
    "negative dilation": (
        lambda: attend(dilation=-2),
        "dilation must be >= 1, got -2; the nearest legal value is 1",
    ),
    "tuples of different lengths": (
        lambda: attend(kernel_size=(3, 3), stride=(1, 1, 1)),
        "tuples must have one value per axis, but their lengths differ: {'kernel_size': 2, 'stride': 3}",
    ),
    "too many axes": (
        lambda: attend(kernel_size=(1, 1, 1, 1)),
        "kernel_size (1, 1, 1, 1) has 4 values; 1 to 3 axes are supported",
    ),
    "no axis": (lambda: attend(kernel_size=()), "kernel_size () has 0 values; 1 to 3 axes are supported"),
    "rank not known": (
        lambda: attend(kernel_size=3),
        "kernel_size 3 does not say how many spatial axes there are; give a tuple, for images (3, 3), or the "
        "function or argument that names the rank: na1d, na2d, na3d, or rank=2 of a layer",
    ),
    "fewer axes than the rank": (
        lambda: attend(*[zeros(5, 6, 4)] * 3, kernel_size=(3, 3)),
        "query has 3 axes; [batch..., *spatial, heads, head_dim] with 2 spatial axes has at least 4",
    ),
    "na2d with one value": (
        lambda: jax_na.na2d(Q, Q, Q, (3,)),
        "na2d takes one value or 2 for kernel_size, got (3,) of length 1",
    ),
    "na2d with three flags": (
        lambda: jax_na.na2d(Q, Q, Q, 3, is_causal=(True, False, False)),
        "na2d takes one value or 2 for is_causal, got (True, False, False) of length 3",
    ),
    "na3d with too few axes": (
        lambda: jax_na.na3d(*[zeros(3, 3, 3, 2)] * 3, 3),
        "query has 4 axes; [batch..., *spatial, heads, head_dim] with 3 spatial axes has at least 5",
    ),
    "number of axes": (
        lambda: attend(key=zeros(5, 6, 4, 8)),
        "key has shape (5, 6, 4, 8), query (2, 5, 6, 4, 8); the batch and spatial axes of [batch..., X, Y, "
        "heads, features] must be the same, legal is (2, 5, 6, heads, features)",
    ),
    "spatial shape": (
        lambda: attend(value=zeros(2, 5, 7, 4, 8)),
        "value has shape (2, 5, 7, 4, 8), query (2, 5, 6, 4, 8); the batch and spatial axes",
    ),
    "batch": (
        lambda: attend(key=zeros(1, 5, 6, 4, 8)),
        "key has shape (1, 5, 6, 4, 8), query (2, 5, 6, 4, 8); the batch and spatial axes",
    ),
    "head_dim": (lambda: attend(key=zeros(2, 5, 6, 4, 7)), "key has head_dim 7, query 8; they must be equal"),
    "heads are no multiple": (
        lambda: attend(key=zeros(2, 5, 6, 3, 8), value=zeros(2, 5, 6, 3, 8)),
        "there are 4 heads and 3 kv heads; heads must be a multiple of kv heads, the nearest legal number "
        "of those is 2",
    ),
    "more kv heads": (
        lambda: attend(key=zeros(2, 5, 6, 8, 8), value=zeros(2, 5, 6, 8, 8)),
        "there are 4 heads and 8 kv heads; heads must be a multiple of kv heads, the nearest legal number "
        "of those is 4",
    ),
    "heads of the value": (lambda: attend(key=KV), "value has 4 heads, key 2; they must be equal"),
    "no heads": (
        lambda: attend(*[zeros(1, 5, 0, 3)] * 3, kernel_size=(3,)),
        "query has shape (1, 5, 0, 3); it needs at least 1 head and 1 feature",
    ),
    "no features": (
        lambda: attend(value=zeros(2, 5, 6, 4, 0)),
        "value has shape (2, 5, 6, 4, 0); it needs at least 1 head and 1 feature",
    ),
    "no tokens": (
        lambda: attend(*[zeros(1, 0, 2, 3)] * 3, kernel_size=(1,)),
        "kernel_size 1 * dilation 1 = 1 exceeds length 0 of spatial axis 0",
    ),
    "infinite scale": (
        lambda: attend(scale=float("inf")),
        "scale must be finite, got inf; the default here is 0.353553",
    ),
    "rpb of another kernel": (
        lambda: attend(rpb=zeros(4, 5, 7)),
        "rpb has shape (4, 5, 7); [heads, 2 * kernel_size - 1 per axis] is (4, 5, 5) for 4 heads and "
        "kernel_size (3, 3)",
    ),
    "rpb of other heads": (
        lambda: attend(rpb=zeros(2, 5, 5)),
        "rpb has shape (2, 5, 5); [heads, 2 * kernel_size - 1 per axis] is (4, 5, 5) for 4 heads",
    ),
    "additional keys alone": (
        lambda: attend(additional_keys=zeros(2, 3, 4, 8)),
        "additional_keys without additional_values; give both or neither",
    ),
    "additional values alone": (
        lambda: attend(additional_values=zeros(2, 3, 4, 8)),
        "additional_values without additional_keys; give both or neither",
    ),
    "shape of additional values": (
        lambda: attend(additional_keys=zeros(2, 3, 4, 8), additional_values=zeros(2, 2, 4, 8)),
        "additional_values has shape (2, 2, 4, 8); [batch..., tokens, kv_heads, features] is (2, 3, 4, 8) "
        "for 3 tokens",
    ),
    "axes of additional keys": (
        lambda: attend(additional_keys=zeros(4, 8), additional_values=zeros(4, 8)),
        "additional_keys has shape (4, 8); [batch..., tokens, kv_heads, features] is (2, 1, 4, 8) for 1 ",
    ),
    "unknown implementation": (
        lambda: attend(implementation="fussed"),
        f"there is no implementation 'fussed'; {NAMES}; did you mean 'fused'?",
    ),
    "implementation is no name": (lambda: attend(implementation=3), f"there is no implementation 3; {NAMES}"),
    "fused has no weights": (lambda: qk(implementation="fused"), NO_WEIGHTS),
    "fused has no weighted sum": (lambda: av(implementation="fused"), NO_WEIGHTS),
    "slots": (
        lambda: av(zeros(2, 5, 6, 4, 8)),
        "weights have 8 slots; kernel_size (3, 3) has 9, its product",
    ),
    "heads of the weights": (lambda: av(value=zeros(2, 5, 6, 3, 8)), "there are 4 heads and 3 kv heads"),
    "grid of the value": (lambda: av(value=zeros(2, 5, 5, 4, 8)), "value has shape (2, 5, 5, 4, 8), "),
    "window of the products": (
        lambda: qk(kernel_size=(6, 6)),
        "kernel_size 6 * dilation 1 = 6 exceeds length 5 of spatial axis 0",
    ),
    "head_dim of the products": (
        lambda: qk(key=zeros(2, 5, 6, 4, 3)),
        "key has head_dim 3, query 8; they must be equal",
    ),
    "merging nothing": (
        lambda: jax_na.merge_attentions([], []),
        "got 0 outputs and 0 lses; legal is the same number of both, at least 1",
    ),
    "merging unequal numbers": (
        lambda: jax_na.merge_attentions([Q], []),
        "got 1 outputs and 0 lses; legal is the same number of both, at least 1",
    ),
    "merging unequal shapes": (
        lambda: jax_na.merge_attentions([Q, Q], [Q[..., 0], Q[..., 0, 0]]),
        "outputs have shapes [(2, 5, 6, 4, 8), (2, 5, 6, 4, 8)], lses [(2, 5, 6, 4), (2, 5, 6)]; legal is",
    ),
    "neighborhood on another rank": (
        lambda: Neighborhood((3, 3)).mask((5,)),
        "shape (5,) has 1 axes, the neighborhood has 2",
    ),
    "neighborhood on a small grid": (
        lambda: Neighborhood((3, 3)).bounds((5, 2)),
        "kernel_size 3 * dilation 1 = 3 exceeds length 2 of spatial axis 1",
    ),
    "a Neighborhood and a stride": (
        lambda: attend(kernel_size=Neighborhood((3, 3)), stride=2),
        "stride 2 is given beside a Neighborhood, which has its own, (1, 1); make it part of the "
        "Neighborhood",
    ),
    "a Neighborhood and a flag per axis": (
        lambda: attend(kernel_size=Neighborhood((3, 3)), is_causal=(False, False)),
        "is_causal (False, False) is given beside a Neighborhood, which has its own, (False, False)",
    ),
    "a Neighborhood of another rank": (
        lambda: jax_na.na2d(Q, Q, Q, Neighborhood(3)),
        "na2d takes a Neighborhood of rank 2, got one of rank 1 (kernel 3)",
    ),
    "a Neighborhood that does not fit": (
        lambda: attend(kernel_size=Neighborhood((3, 7))),
        "kernel_size 7 * dilation 1 = 7 exceeds length 6 of spatial axis 1",
    ),
    "implementations for a wrong problem": (
        lambda: jax_na.implementations(Q, (7, 7)),
        "kernel_size 7 * dilation 1 = 7 exceeds length 5 of spatial axis 0",
    ),
}
TYPE_ERRORS = {
    "fractional kernel": (
        lambda: attend(kernel_size=2.6),
        "kernel_size must be an integer >= 1, got 2.6; the nearest legal value is 3",
    ),
    "kernel as text": (lambda: attend(kernel_size="3"), "kernel_size must be an integer >= 1, got '3'"),
    "kernel as a flag": (lambda: attend(kernel_size=True), "kernel_size must be an integer >= 1, got True"),
    "number as a flag": (
        lambda: attend(is_causal=(1, 0)),
        "is_causal must be True or False (or a tuple of them), got 1",
    ),
    "not an array": (lambda: attend(key=[1.0]), "key must be an array, got list"),
    "integers": (
        lambda: attend(I32, I32, I32),
        "query has dtype int32; legal are float32, bfloat16, float16, float64",
    ),
    "mixed dtypes": (
        lambda: attend(key=BF16),
        "dtypes differ: query float32, key bfloat16, value float32; convert to one, for instance float32",
    ),
    "dtype of the scores": (
        lambda: qk(preferred_element_type="int32"),
        "preferred_element_type must be a floating dtype or None, got 'int32'",
    ),
    "unknown dtype of the scores": (
        lambda: qk(preferred_element_type="float31"),
        "preferred_element_type must be a floating dtype or None, got 'float31'",
    ),
    "scale as text": (
        lambda: attend(scale="1"),
        "scale must be a real number or None for head_dim ** -0.5, got '1'",
    ),
    "scale per head": (lambda: attend(scale=zeros(4)), "scale must be a real number or None"),
    "traced kernel_size": (
        lambda: jax.jit(lambda w: jax_na.na2d(Q, Q, Q, w))(3),
        "kernel_size is traced, but it must be known when compiling: jax.jit(..., "
        "static_argnames='kernel_size'), or bind it with functools.partial",
    ),
    "traced kernel sizes": (
        lambda: jax.jit(attend)(Q, Q, Q, np.array([3, 3])),
        "kernel_size is traced, but it must be known when compiling",
    ),
    "traced flag": (
        lambda: jax.jit(lambda c: attend(is_causal=c))(True),
        "is_causal is traced, but it must be known when compiling",
    ),
    "traced scale": (
        lambda: jax.eval_shape(lambda scale: attend(scale=scale), np.float32(1)),
        "scale is traced, but it must be known when compiling: multiply the query by it, and give scale=1.0",
    ),
    "rpb is no array": (lambda: attend(rpb=1.0), "rpb must be an array, got float"),
    "rpb of integers": (
        lambda: attend(rpb=zeros(4, 5, 5, dtype=np.int32)),
        "rpb has dtype int32; legal are float32, bfloat16, float16, float64",
    ),
    "dtype of additional keys": (
        lambda: attend(additional_keys=BF16[:, 0], additional_values=BF16[:, 0]),
        "dtypes differ: query float32, additional_keys bfloat16, additional_values bfloat16",
    ),
    "dtype of the weights": (
        lambda: av(zeros(2, 5, 6, 4, 9, dtype=np.float16)),
        "weights have dtype float16; legal for this value: float32",
    ),
    "dtype of the weights of a bfloat16 value": (
        lambda: av(zeros(2, 5, 6, 4, 9, dtype=np.float16), BF16),
        "weights have dtype float16; legal for this value: bfloat16 and float32",
    ),
}
