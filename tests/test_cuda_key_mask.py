# SPDX-License-Identifier: Apache-2.0
"""A mask of keys in the CUDA kernels against the oracle, on the host executor (on the GPU with
JAX_NA_KERNELS=device).

Every batch entry has a mask of its own. What keys that do not exist hold is NaN or far too large in half of
the tests: it must reach no result, and their own gradients are zeros.
"""

import dataclasses

import numpy as np
import pytest

from . import cuda_kernels, cuda_tilings, oracle
from .cases import NAMED, Case
from .cuda_checks import assert_lost_gradients_are_nan, assert_lost_queries_are_nan
from .cuda_kernels import Kernel, Pass, any_seed
from .cuda_problems import Problem, dtype_of, outside, region
from .seen import assert_same
from .test_cuda_halo import CASES as HALO_CASES
from .test_cuda_halo import HALF_MODES, any_choice, backward_choices, has_place
from .test_cuda_kernels import MODES, NAMED_HERE, ROWS, repeated, tolerance
from .test_cuda_non_finite import in_tf32
from .test_regions import CUTS, OUTSIDE, regions

pytestmark = pytest.mark.some(4)  # the rest is for --exhaustive: the executor is slow

NAMES = ("all-1d", "grouped-heads", "long-kernel", "boxes-1d", "interior-causal", "dilated-groups")
NAMES += ("asymmetric-2d", "mixed-2d", "all-2d", "multi-query", "rpb-many-tiles")
NAMES += ("head-dim-20", "head-dim-128", "head-dim-256", "rpb-256", "all-3d", "boxes-3d", "batch-0")
NAMES += ("negative-scale", "tokens-2d", "tokens-boxes", "tokens-1", "rpb-256-tokens")
CASES = [NAMED_HERE[name] for name in NAMES]
HUGE = (np.nan, np.inf, 1e30)


def masked(case, axes=None, batch=2):
    """A problem with a mask, and with several batch entries unless it has none."""
    problem = repeated(Problem.of(case, axes))
    return dataclasses.replace(problem, batch=batch if problem.batch else 0, key_mask=True)


def any_mask(problem, rng):
    """For each batch entry keys here and there, or what padding would leave; any byte but 0 is a key."""
    shape = problem.geometry.key_shape
    exists = rng.random((problem.batch, *shape)) < rng.choice([0.3, 0.7])
    for entry in exists[any_seed(rng) % 2 :: 2]:
        axis = rng.integers(len(shape))
        entry[...] = np.indices(shape)[axis] < rng.integers(shape[axis] + 1)
    return np.where(exists, rng.integers(1, 256, exists.shape), 0).astype(np.uint8)


def any_inputs(problem, mode, mask, is_planted, rng):
    """Inputs with this mask; no float32 input has more bits than TF32, as in test_cuda_non_finite."""
    inputs = problem.inputs(rng, mode[0])
    if mode[0] == "float32":
        inputs = {name: x if name == "key_mask" else in_tf32(x) for name, x in inputs.items()}
    inputs["key_mask"] = mask
    for name in ("key", "value") if is_planted else ():
        rows = inputs[name][mask == 0]
        with np.errstate(over="ignore"):  # of float16
            rows[..., any_seed(rng) % rows.shape[-1]] = np.float64(HUGE[any_seed(rng) % 3]).astype(rows.dtype)
        inputs[name][mask == 0] = rows
    return inputs


def assert_masked(problem, mode, inputs, kernels, rng, given=None):
    """Forward and backward kernels do what the oracle says; `given` are the inputs that they get instead."""
    given = given or inputs
    exists = inputs["key_mask"] != 0
    attention = oracle.Attention(problem.geometry, inputs | {"key_mask": exists}, problem.scale)
    out, lse, of_gradients = tolerance(problem, mode)
    how = {"precision": mode[1]}
    found = cuda_kernels.forward(problem, mode[0], given, kernels=kernels[0], seed=any_seed(rng), **how)
    assert_same({"out": found["out"]}, {"out": attention.out}, out)
    assert_same({"lse": found["lse"]}, {"lse": attention.lse}, lse)
    dout = rng.standard_normal(attention.out.shape).astype(dtype_of(mode[0]))
    dout = in_tf32(dout) if mode[0] == "float32" else dout
    dlse = rng.standard_normal(attention.lse.shape).astype(np.float32)
    delta = (dout.astype(np.float64) * attention.out).sum(-1) - dlse
    saved = {"lse": attention.lse.astype(np.float32), "delta": delta.astype(np.float32), "dout": dout}
    how |= {"parts": int(rng.integers(4, 14)), "seed": any_seed(rng)}
    found = cuda_kernels.backward(problem, mode[0], given, saved, kernels=kernels[1], **how)
    expected = attention.gradients(dout, dlse)
    # Few keys or queries are left in a sum: what its products round is more of it.
    assert_same(found, {name: expected[name] for name in found}, 2 * of_gradients)
    for name in ("key", "value"):
        assert not found[name][~exists].astype(np.float64).any()


def kernels_of(name, problem, mode, rng):
    """Of the forward and of the backward passes, with random tiles."""
    if name != "portable":
        return any_choice(problem, mode[0], name, rng), backward_choices(problem, mode[0], name, rng)[0]
    rows = ROWS[any_seed(rng) % 3]
    return (
        cuda_tilings.forward_kernels(problem, mode, rows, rng),
        cuda_tilings.backward_kernels(problem, mode, rows, rng),
    )


every_mode = pytest.mark.parametrize("mode", MODES, ids="-".join)
planted_or_not = pytest.mark.parametrize("is_planted", [False, True])
HALO = "halo_sm90" if has_place("halo_sm90") else "halo"
every_kernel = pytest.mark.parametrize(
    ("name", "mode"),
    [*(("portable", mode) for mode in MODES), *((HALO, mode) for mode in HALF_MODES)],
    ids=lambda x: x if isinstance(x, str) else "-".join(x),
)


@pytest.mark.some(5)
@planted_or_not
@every_mode
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(case, mode, is_planted, rng):
    problem = masked(case)
    inputs = any_inputs(problem, mode, any_mask(problem, rng), is_planted, rng)
    assert_masked(problem, mode, inputs, kernels_of("portable", problem, mode, rng), rng)


@pytest.mark.some(1)
@every_mode
@pytest.mark.parametrize("name", CUTS)
def test_regions(name, mode, rng):
    for queries, keys in regions(NAMED[name], CUTS[name]):
        problem = masked(NAMED[name], region(NAMED[name], queries, keys))
        inputs = any_inputs(problem, mode, any_mask(problem, rng), True, rng)
        assert_masked(problem, mode, inputs, kernels_of("portable", problem, mode, rng), rng)


@pytest.mark.some(3)
@planted_or_not
@pytest.mark.parametrize("mode", HALF_MODES, ids="-".join)
@pytest.mark.parametrize("case", HALO_CASES, ids=str)
def test_halo(case, mode, is_planted, rng):
    problem = masked(case)
    inputs = any_inputs(problem, mode, any_mask(problem, rng), is_planted, rng)
    assert_masked(problem, mode, inputs, kernels_of(HALO, problem, mode, rng), rng)


@pytest.mark.some(1)
@pytest.mark.parametrize("mode", HALF_MODES, ids="-".join)
@pytest.mark.parametrize("name", CUTS)
def test_halo_regions(name, mode, rng):
    case = dataclasses.replace(NAMED[name], head_dim=16, value_dim=24)
    for queries, keys in regions(case, CUTS[name]):
        problem = masked(case, region(case, queries, keys))
        inputs = any_inputs(problem, mode, any_mask(problem, rng), True, rng)
        assert_masked(problem, mode, inputs, kernels_of("halo", problem, mode, rng), rng)


@pytest.mark.some(2)
@pytest.mark.parametrize("rpb", [False, True])
@pytest.mark.parametrize("name", ["portable", HALO])
@pytest.mark.parametrize("reason", OUTSIDE)
def test_windows_outside_the_keys_are_nan(reason, name, rpb, rng):
    """Also where a mask hides what is there."""
    problem = dataclasses.replace(outside(OUTSIDE[reason]), rpb=rpb, key_mask=True)
    kernels = kernels_of(name, problem, ("bfloat16", "default"), rng)
    assert_lost_queries_are_nan(problem, kernels[0], rng)
    assert_lost_gradients_are_nan(problem, kernels[1], rng)


EMPTY = (  # queries without keys, in tiles that see some and in tiles that see none
    Case("empty-1d", (300,), 33, head_dim=16, heads=2, kv_heads=1, rpb=True),
    Case("empty-2d", (18, 17), (5, 3), head_dim=24),
)


def half_mask(problem):
    """In one batch entry the second half does not exist, in the other nothing does."""
    mask = np.zeros((problem.batch, *problem.geometry.key_shape), np.uint8)
    mask[0, : mask.shape[1] // 2] = 1
    return mask


@pytest.mark.some(3)
@planted_or_not
@every_kernel
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_queries_without_keys(case, name, mode, is_planted, rng):
    problem = masked(case)
    inputs = any_inputs(problem, mode, half_mask(problem), is_planted, rng)
    kernels = kernels_of(name, problem, mode, rng)
    found = cuda_kernels.forward(problem, mode[0], inputs, kernels=kernels[0], precision=mode[1])
    for empty in (found["out"][1], found["out"][0, -3:]):
        assert not empty.astype(np.float64).any()
    assert np.isneginf(found["lse"][1]).all()
    assert_masked(problem, mode, inputs, kernels, rng)


PLAIN = Case("plain", (13, 14), (5, 4), head_dim=32, heads=2, rpb=True)


@pytest.mark.some(3)
@every_kernel
@pytest.mark.parametrize("additional", [0, 5])
def test_without_a_masked_key_nothing_changes(additional, name, mode, rng):
    problem = masked(dataclasses.replace(PLAIN, additional=0 if name == HALO else additional))
    mask = np.ones((problem.batch, *problem.geometry.key_shape), np.uint8)
    inputs = any_inputs(problem, mode, mask, False, rng)
    assert_masked(problem, mode, inputs, kernels_of(name, problem, mode, rng), rng)


@pytest.mark.some(2)
@every_kernel
def test_kernels_that_ignore_the_mask_are_found(name, mode, rng):
    """These tests would say nothing if they passed with a mask that the kernels do not get."""
    problem = masked(PLAIN)
    ignorant = dataclasses.replace(problem, key_mask=False)
    inputs = any_inputs(problem, mode, any_mask(problem, rng), False, rng)
    inputs["key_mask"][:, :3] = 0
    given = {name: x for name, x in inputs.items() if name != "key_mask"}
    right, wrong = kernels_of(name, problem, mode, rng), kernels_of(name, ignorant, mode, rng)
    with pytest.raises(AssertionError, match="relative errors"):
        assert_masked(ignorant, mode, inputs, wrong, rng, given)
    shape = problem.shapes()["lse"]
    saved = {name: rng.standard_normal(shape).astype(np.float32) for name in ("lse", "delta")}
    saved["dout"] = rng.standard_normal(problem.shapes()["out"]).astype(dtype_of(mode[0]))
    how = {"precision": mode[1]}
    expected = cuda_kernels.backward(problem, mode[0], inputs, saved, kernels=right[1], **how)
    found = cuda_kernels.backward(ignorant, mode[0], given, saved, kernels=wrong[1], **how)
    for name, x in expected.items():
        with pytest.raises(AssertionError):
            assert_same({name: found[name]}, {name: x.astype(np.float64)}, 2 * tolerance(problem, mode)[2])


def test_kernels_without_a_mask_say_so():
    problem = dataclasses.replace(masked(PLAIN), head_dim=64, value_dim=64, rpb=False)
    which = (Kernel.FORWARD, Pass.FORWARD, problem, ("bfloat16", "default"))
    assert cuda_tilings.obstacle(*which, "sm90") == "it takes no mask of keys (key_mask)"
    assert not cuda_tilings.obstacle(*which, "portable")
