# SPDX-License-Identifier: Apache-2.0
"""Every message about regions, each with a call that earns it; `attend` is legal without changes."""

import jax
import jax.numpy as jnp
import numpy as np

import jax_na
from jax_na import Neighborhood

from .messages import zeros

# queries [3, 5) x [0, 6) of a grid of 9 x 6 see, with a window of 3 x 3, the keys [2, 6) x [0, 6)
QUERY, KEY = zeros(2, 2, 6, 4, 8), zeros(2, 4, 6, 4, 8)


def attend(query=QUERY, key=KEY, value=None, **options):
    options = {"length": (9, 6), "query_start": (3, 0), "key_start": (2, 0), "kernel_size": (3, 3)} | options
    return jax_na.region_attention(query, key, key if value is None else value, **options)


def traced(**options):
    """With positions that nobody knows when tracing."""
    jax.eval_shape(lambda i: attend(**({"query_start": (i, 0)} | options)), jnp.int32(3))


VALUE_ERRORS = {
    "batch of the region": (
        lambda: attend(key=KEY[:1]),
        "key has shape (1, 4, 6, 4, 8), query (2, 2, 6, 4, 8); the batch axes of [batch..., X, Y, heads, "
        "features] must be the same",
    ),
    "rank of the region": (
        lambda: attend(key=KEY[:, 0], kernel_size=(3, 3)),
        "key has shape (2, 6, 4, 8), query (2, 2, 6, 4, 8); the batch axes",
    ),
    "value of the region": (
        lambda: attend(value=QUERY),
        "value has shape (2, 2, 6, 4, 8), key (2, 4, 6, 4, 8); the batch and spatial axes",
    ),
    "window of the region": (
        lambda: attend(length=(9, 2)),
        "kernel_size 3 * dilation 1 = 3 exceeds length 2 of spatial axis 1",
    ),
    "rank of the length": (
        lambda: attend(length=(9, 6, 6)),
        "tuples must have one value per axis, but their lengths differ: {'kernel_size': 2, 'length': 3, ",
    ),
    "rank of the start": (
        lambda: attend(query_start=(3,)),
        "their lengths differ: {'kernel_size': 2, 'length': 2, 'query_start': 1, 'key_start': 2}",
    ),
    "array of starts": (
        lambda: attend(key_start=np.array([2, 0, 0])),
        "their lengths differ: {'kernel_size': 2, 'length': 2, 'query_start': 2, 'key_start': 3}",
    ),
    "traced array of starts": (
        lambda: jax.eval_shape(lambda start: attend(key_start=start), np.array([2, 0, 0])),
        "key_start has shape (3,); legal are () and (2,)",
    ),
    "length 0": (lambda: attend(length=0), "length must be >= 1, got 0; the nearest legal value is 1"),
    "negative start": (
        lambda: attend(query_start=(-1, 0)),
        "query_start -1 puts 2 positions at [-1, 1) of spatial axis 0 of length 9; legal are 0 to 7",
    ),
    "start past the end": (
        lambda: attend(key_start=(2, 1)),
        "key_start 1 puts 6 positions at [1, 7) of spatial axis 1 of length 6; legal are 0 to 0",
    ),
    "more queries than the grid": (
        lambda: traced(length=(9, 5)),
        "query has 6 positions on spatial axis 1; legal are 1 to 5, its length",
    ),
    "more keys than the grid": (
        lambda: traced(length=(3, 6)),
        "key has 4 positions on spatial axis 0; legal are 1 to 3, its length",
    ),
    "no queries": (
        lambda: attend(query=QUERY[:, :0]),
        "query has 0 positions on spatial axis 0; legal are 1 to 9, its length",
    ),
    "keys begin too late": (
        lambda: attend(key_start=(3, 0)),
        "key has the positions [3, 7) of spatial axis 0, but the queries [3, 5) see the keys [2, 6); "
        "Neighborhood.keys_of tells",
    ),
    "keys end too early": (
        lambda: attend(query_start=(np.int64(4), 0)),
        "key has the positions [2, 6) of spatial axis 0, but the queries [4, 6) see the keys [3, 7)",
    ),
    "keys of an array of starts": (
        lambda: attend(query_start=jnp.array([4, 0])),
        "but the queries [4, 6) see the keys [3, 7)",
    ),
    "keys of the axis that is known": (
        lambda: traced(key=KEY[:, :, :5]),
        "key has the positions [0, 5) of spatial axis 1, but the queries [0, 6) see the keys [0, 6)",
    ),
    "heads of the region": (lambda: attend(key=KEY[..., :3, :]), "there are 4 heads and 3 kv heads"),
    "bias of the region": (lambda: attend(rpb=zeros(4, 5, 4)), "rpb has shape (4, 5, 4); [heads, "),
    "implementation of the region": (
        lambda: attend(implementation="fussed"),
        "there is no implementation 'fussed'",
    ),
    "keys of another rank": (
        lambda: Neighborhood((3, 3)).keys_of((9, 6), [(0, 3)]),
        "region [(0, 3)] has 1 axes, the neighborhood has 2",
    ),
    "keys of queries outside": (
        lambda: Neighborhood(3).keys_of((9,), [(7, 10)]),
        "region [7, 10) is not inside [0, 9) of axis 0, or empty",
    ),
    "keys of no queries": (
        lambda: Neighborhood(3).keys_of((9,), [(4, 4)]),
        "region [4, 4) is not inside [0, 9) of axis 0, or empty",
    ),
    "keys in a small grid": (
        lambda: Neighborhood(3).keys_of((2,), [(0, 2)]),
        "kernel_size 3 * dilation 1 = 3 exceeds length 2 of spatial axis 0",
    ),
}
TYPE_ERRORS = {
    "fractional start": (
        lambda: attend(query_start=(3.0, 0)),
        "query_start must be integers or arrays of integers, got 3.0",
    ),
    "start as a flag": (
        lambda: attend(key_start=False),
        "key_start must be integers or arrays of integers, got False",
    ),
    "traced fractional start": (
        lambda: traced(query_start=jnp.zeros(2)),
        "query_start must be integers or arrays of integers, got ",
    ),
    "traced length": (
        lambda: jax.eval_shape(lambda n: attend(length=(n, 6)), jnp.int32(9)),
        "length is traced, but it must be known when compiling",
    ),
    "region of integers": (
        lambda: attend(*[zeros(2, 2, 6, 4, 8, dtype=np.int32)] * 2),
        "query has dtype int32; legal are",
    ),
}
