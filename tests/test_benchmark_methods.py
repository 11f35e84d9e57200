# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks measure: programs, the check before the timing, methods and tiles."""

import functools
import json
import math
import time
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jax_na.tools import clock, problems, profiler
from jax_na.tools.problems import BACKWARD, BOTH, BY_NAME, FORWARD

from .benchmark_modules import BIASED, GRID, case

# What benchmark_modules has made importable:
# isort: split
import check
import jax_methods
import tiles
from method import CPU, GPU, Yardstick, fastest, too_large

# Programs


@pytest.fixture(scope="module", params=[GRID, BIASED], ids=["grouped", "bias"])
def checked(request):
    """A problem, and a function that gives inputs and right results of its heads."""
    attend = profiler.attention(request.param, "fused", return_lse=True)
    return request.param, functools.cache(jax_methods.Attention(case(request.param), attend).planes)


@pytest.mark.usefixtures("quick_compile")
def test_directions_agree():
    attend, inputs = profiler.attention(BIASED, "fused"), profiler.arrays(BIASED)
    programs = {d: profiler.program(replace(BIASED, direction=d), attend, inputs) for d in problems.PASSES}
    (out,), gradients, both = (programs[d].compile()() for d in (FORWARD, BACKWARD, BOTH))
    assert out.shape == BIASED.out_shape
    assert [g.shape for g in gradients] == list(BIASED.shapes.values())
    for found, right in zip((out, *gradients), both, strict=True):
        np.testing.assert_array_equal(found, right)
    varied = programs[FORWARD].vary
    assert varied(0) is inputs["query"]
    assert not bool(jnp.all(varied(1) == varied(2)))


def test_short_programs_are_queued_together(monkeypatch):
    program = profiler.Program(jnp.sin, lambda i: jnp.full(2, float(i)), ())
    monkeypatch.setattr(profiler, "SHORT_CALL", 10.0)
    assert profiler.clock(program, "gpu").sample().calls % profiler.TOGETHER == 0
    monkeypatch.setattr(profiler, "SHORT_CALL", 0.0)
    assert 1 <= profiler.clock(program, "gpu").sample().calls <= clock.MOST_QUEUED


# The check before the timing


def test_right_results_pass_the_check(checked):
    problem, planes_of = checked
    errors = check.sampled(problem, case(problem).bounds, planes_of)
    assert set(errors) == {"out", "lse", "dquery"} | (set() if problem.rpb else {"dkey", "dvalue"})
    assert max(errors.values()) < 1e-5
    assert check.wrong(errors, "float32", GPU) is None


@pytest.mark.parametrize("name", ["out", "lse", "dquery", "dkey", "dvalue"])
def test_wrong_results_do_not(checked, name):
    problem, planes_of = checked

    def spoiled(batch, kv_head):
        return {n: x * 1.02 if n == name else x for n, x in planes_of(batch, kv_head).items()}

    errors = check.sampled(problem, case(problem).bounds, spoiled)
    if name in errors:
        text = check.wrong({name: errors[name]}, "float32", GPU)
        assert text == f"it is WRONG: the relative error of {name} is 2.0e-02"
    else:
        assert problem.rpb  # the sample has no gradients of keys where there is a bias


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("name", ["jax-blocked", "jax-dense"])
def test_peers_compute_the_same(name):
    method = next(m for m in jax_methods.METHODS if m.name == name)
    assert method.prepare(case(GRID, direction=FORWARD)).errors()["out"] < 1e-5


def test_not_a_number_is_wrong():
    assert "WRONG" in check.wrong({"out": math.nan}, "bfloat16", CPU)
    right = {"out": np.ones(3)}
    assert math.isnan(check.whole({"out": np.array([1, 2, np.nan])}, right)["out"])
    planes = {name: np.full((5, 6, 1, 8), np.nan, np.float32) for name in ("query", "key", "value", "out")}
    assert math.isnan(check.sampled(GRID, case(GRID).bounds, lambda batch, head: planes)["out"])


# Methods


def test_obstacles_are_said_in_words():
    large = case(BY_NAME["flux-256-w80"])
    methods = {m.name: m for m in jax_methods.METHODS}
    assert methods["naive"].obstacle(large) == "it would take too long"
    assert "scores of all pairs would take 384.0 GB" in methods["jax-dense"].obstacle(large)
    assert methods["cudnn-all"].obstacle(large) == "cuDNN needs a GPU"
    assert "positional bias" in methods["jax-dense"].obstacle(case(BIASED))
    assert "only measured forward" in methods["identity"].obstacle(case(GRID, CPU))
    assert too_large(case(GRID, CPU), "it", 1e9) == "it would take 3.7 GB"
    assert too_large(case(GRID, GPU), "it", 1e9) is None


def test_the_best_configuration_is_chosen():
    def prepared(seconds):
        return Yardstick(case(GRID), lambda: time.sleep(seconds) or (), 0.0)

    def refused():
        raise RuntimeError("no such tile")

    every = {"slow": lambda: prepared(0.1), "refused": refused, "fast": lambda: prepared(0.0)}
    assert fastest(case(GRID, tries=3), every).note == "fast"
    assert fastest(case(GRID, tries=1), every).note == "slow"
    assert fastest(case(GRID, choice="fast"), every).note == "fast"
    with pytest.raises(RuntimeError, match="no such tile"):
        fastest(case(GRID, tries=2), {"refused": refused, "again": refused})


@pytest.mark.usefixtures("cuda_kernels")
def test_tiles_to_try():
    trials = list(tiles.trials(replace(BY_NAME["nat-s1-56-b128"], dtype="bfloat16"), 3))
    assert {t["direction"] for t in trials} == {FORWARD, BACKWARD}
    assert all(t["rank"] >= 0 and json.loads(t["choice"]) for t in trials)
    assert len({(t["kernel"], t["tile"]) for t in trials}) == len(trials)
