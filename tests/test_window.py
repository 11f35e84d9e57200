# SPDX-License-Identifier: Apache-2.0
"""The window rule and its inverse for every legal short axis; Neighborhood's geometry."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

import jax_na
from jax_na import Neighborhood, _cpu, window_rule
from jax_na.op import Op

from . import helpers, oracle
from .cases import CASES, NAMED


def legal_axes(length):
    """Every legal axis of a length."""
    for d in range(1, length + 1):
        for w in range(1, length // d + 1):
            for s, causal in itertools.product(range(1, w + 1), (False, True)):
                yield oracle.Axis(length, w, s, d, causal)


def as_tuple(axis):
    return axis.length, axis.kernel_size, axis.stride, axis.dilation, axis.is_causal


def from_ranges(ranges, axis):
    """[length, length] mask from half-open ranges of group positions, one per row."""
    x = np.arange(axis.length)
    group, position = x % axis.dilation, x // axis.dilation
    start, stop = np.asarray(ranges).T[..., None]
    return (group[:, None] == group) & (start <= position) & (position < stop)


def assert_windows(axis):
    """The rule of the kernels is the definition, and Python's has the same tables."""
    mask = oracle.axis_mask(axis)
    windows, inverse = _cpu.windows(as_tuple(axis)), _cpu.inverse_windows(as_tuple(axis))
    assert np.array_equal(from_ranges(windows, axis), mask), axis
    assert np.array_equal(from_ranges(inverse, axis), mask.T), axis
    helpers.assert_identical(window_rule.windows(*as_tuple(axis)), windows)
    helpers.assert_identical(window_rule.inverse_windows(*as_tuple(axis)), inverse)


@pytest.mark.parametrize("length", range(1, 29))
def test_windows_and_inverse(length):
    for axis in legal_axes(length):
        assert_windows(axis)


@pytest.mark.parametrize("length", [64, 97])
def test_windows_of_long_axes(length, rng):
    for axis in rng.permutation(np.array(list(legal_axes(length)), object))[:100]:
        assert_windows(axis)


def test_pitch():
    """Of rows of weights, in Python and in the binding."""
    for size in range(1, 70):
        assert Op(Neighborhood(size), (size,)).pitch == _cpu.pitch(size)


SMALL = [case for case in CASES if case.geometry.mask.size < 50_000]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_mask_and_indices(case):
    neighborhood = Neighborhood(**case.spec)
    geometry = case.geometry
    assert np.array_equal(neighborhood.mask(case.grid), geometry.mask.reshape(case.grid * 2))
    indices = np.asarray(neighborhood.indices(case.grid)).reshape(-1, geometry.window)
    keys = np.broadcast_to(np.arange(geometry.mask.shape[1]), geometry.mask.shape)
    assert np.array_equal(indices, geometry.to_slots(keys, -1))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_bounds(case):
    bounds = Neighborhood(**case.spec).bounds(case.grid)
    assert len(bounds) == len(case.grid)
    for axis, rows in zip(case.axes, bounds, strict=True):
        keys = [list(range(start, stop, axis.dilation)) for start, stop in np.asarray(rows)]
        assert keys == [[k for k in oracle.slots(axis, x) if k is not None] for x in range(axis.length)]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_flops(case):
    neighborhood = Neighborhood(**case.spec)
    products = int(case.geometry.mask.sum()) * 3 * 4 * (8 + 5)
    arguments = {"heads": 4, "head_dim": 8, "value_dim": 5, "batch": 3}
    assert neighborhood.flops(case.grid, **arguments) == 2 * products
    assert neighborhood.flops(case.grid, **arguments, backward=True) == 5 * products


def test_flops_default_value_dim():
    neighborhood = Neighborhood((3, 3))
    both = neighborhood.flops((5, 6), heads=2, head_dim=7, value_dim=7)
    assert neighborhood.flops((5, 6), heads=2, head_dim=7) == both == 2 * 2 * 30 * 9 * 14
    beside = neighborhood.flops((5, 6), heads=2, head_dim=7, additional_tokens=3)
    assert beside == 2 * 2 * 30 * (9 + 3) * 14


def test_neighborhood_is_a_value():
    a = Neighborhood((3, 3), stride=1, dilation=(2, 1), is_causal=(True, False))
    b = Neighborhood([3, 3], (1, 1), (np.int64(2), 1), (np.True_, False))
    assert a == b
    assert hash(a) == hash(b)
    assert a != Neighborhood((3, 3), dilation=(1, 2), is_causal=(True, False))
    with pytest.raises(AttributeError):
        a.stride = (2, 2)


@pytest.mark.parametrize(
    "sizes", [[3, 2], np.array([3, 2]), jnp.array([3, 2]), (np.int64(3), jnp.int32(2)), [np.array(3), 2]]
)
def test_arrays_stand_for_tuples(sizes):
    expected = Neighborhood((3, 2), is_causal=(True, False))
    for flags in ([True, False], np.array([True, False]), (jnp.bool_(True), False)):
        assert Neighborhood(sizes, is_causal=flags) == expected
    q = np.ones((1, 5, 6, 1, 4), np.float32)
    for given in (jax_na.na2d, jax_na.neighborhood_attention):
        helpers.assert_identical(given(q, q, q, sizes), given(q, q, q, (3, 2)))


def test_neighborhood_geometry_is_not_shared():
    """Tables are cached inside; what a user does to a result must not change the next one."""
    neighborhood, grid = Neighborhood((3, 2), dilation=(1, 2)), (5, 7)
    for method in (neighborhood.mask, neighborhood.indices):
        first = method(grid).copy()
        writable = method(grid)
        if writable.flags.writeable:
            writable[...] = 0
        helpers.assert_identical(method(grid), first)
    bounds = neighborhood.bounds(grid)
    before = [np.array(x) for x in bounds]
    for x in bounds:
        if x.flags.writeable:
            x[...] = 0
    helpers.assert_identical(list(map(np.array, neighborhood.bounds(grid))), before)


def test_neighborhood_broadcasts():
    case = NAMED["mixed-2d"]
    neighborhood = Neighborhood(**case.spec)
    assert neighborhood == Neighborhood((4, 3), (2, 1), (2, 1), (True, False))
    assert Neighborhood(3, dilation=(1, 2)).kernel_size == (3, 3)
    assert Neighborhood(3).kernel_size == (3,)
